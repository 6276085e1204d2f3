// SPDX-License-Identifier: Apache-2.0

package show

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/godatapath/datapath/lb"
)

// Service is a set of frontends that lead to a set of backends.
type Service struct {
	ID        uint32           `json:"id"`
	Name      string           `json:"name"`
	Algorithm string           `json:"algorithm"`
	Affinity  float64          `json:"affinitySeconds,omitempty"`
	Frontends []Frontend       `json:"frontends"`
	Backends  []ServiceBackend `json:"backends"`
}

// Frontend is where clients reach a service.
type Frontend struct {
	Address  netip.AddrPort `json:"address"`
	Type     string         `json:"type"`
	Protocol string         `json:"protocol"`
}

// ServiceBackend is a backend as one service has it.
type ServiceBackend struct {
	Address netip.AddrPort `json:"address"`
	State   string         `json:"state"`
	Weight  int            `json:"weight"`
	Node    string         `json:"node,omitempty"` // that has it
	Zone    string         `json:"zone,omitempty"`
}

// Backend is who serves: an address in a state, for the services where it is in
// that state.
type Backend struct {
	Address  netip.AddrPort `json:"address"`
	State    string         `json:"state"`
	Uses     int            `json:"uses"` // services
	Services []string       `json:"services"`
}

// Services reads the services, in the order of their identifiers.
func Services(b *lb.Balancer) ([]Service, error) {
	all, err := b.Services()
	if err != nil {
		return nil, err
	}
	out := []Service{}
	for _, s := range all {
		one := Service{
			ID: s.ID, Name: s.Name, Algorithm: s.Algorithm.String(), Affinity: s.Affinity.Seconds(),
			Frontends: []Frontend{}, Backends: []ServiceBackend{},
		}
		for _, f := range s.Frontends {
			one.Frontends = append(one.Frontends, Frontend{Address: f.Addr, Type: f.Type.String(), Protocol: f.Protocol.String()})
		}
		for _, b := range s.Backends {
			backend := ServiceBackend{Address: b.Addr, State: b.State.String(), Weight: b.Weight, Zone: b.Zone}
			if b.Node.IsValid() && !b.Node.IsUnspecified() {
				backend.Node = b.Node.String()
			}
			one.Backends = append(one.Backends, backend)
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b Service) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// ServicesHeading is the row above those of [ServiceRows].
var ServicesHeading = Row{"ID", "Frontend", "Type", "Backend"}

// ServiceRows has the backends of each frontend below one another.
func ServiceRows(all []Service) []Row {
	var rows []Row
	for _, s := range all {
		backends := []string{"(none)"}
		if len(s.Backends) > 0 {
			backends = nil
		}
		for _, b := range s.Backends {
			backends = append(backends, b.String())
		}
		for _, f := range s.Frontends {
			head := Row{strconv.FormatUint(uint64(s.ID), 10), fmt.Sprintf("%s/%s", f.Address, f.Protocol), f.Type}
			for _, b := range backends {
				rows = append(rows, append(head[:3:3], b))
				head = Row{"", "", ""} // once is enough
			}
		}
	}
	return rows
}

// String is the address and the state, and the weight if it is not that of most.
func (b ServiceBackend) String() string {
	if b.Weight > 1 {
		return fmt.Sprintf("%s (%s, weight %d)", b.Address, b.State, b.Weight)
	}
	return fmt.Sprintf("%s (%s)", b.Address, b.State)
}

// Backends turns the list of services around: in the order of the addresses.
func Backends(all []Service) []Backend {
	type key struct {
		at    netip.AddrPort
		state string
	}
	by := map[key]*Backend{}
	for _, s := range all {
		for _, b := range s.Backends {
			k := key{b.Address, b.State}
			if by[k] == nil {
				by[k] = &Backend{Address: b.Address, State: b.State}
			}
			by[k].Uses++
			by[k].Services = append(by[k].Services, s.Name)
		}
	}
	out := []Backend{}
	for _, b := range by {
		slices.Sort(b.Services)
		out = append(out, *b)
	}
	slices.SortFunc(out, func(a, b Backend) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.State, b.State))
	})
	return out
}

// BackendsHeading is the row above those of [BackendRows].
var BackendsHeading = Row{"Backend", "State", "Uses", "Services"}

// BackendRows has a row for each backend and state.
func BackendRows(all []Backend) []Row {
	const most = 4 // names in a row
	var rows []Row
	for _, b := range all {
		names := b.Services
		more := ""
		if len(names) > most {
			more = fmt.Sprintf(" and %d more", len(names)-most)
			names = names[:most]
		}
		rows = append(rows, Row{b.Address.String(), b.State, strconv.Itoa(b.Uses), strings.Join(names, " ") + more})
	}
	return rows
}
