// SPDX-License-Identifier: Apache-2.0

package show

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/godatapath/datapath/maps"
)

// Endpoint is a workload of a node.
type Endpoint struct {
	Addresses []netip.Addr `json:"addresses"` // IPv4 first
	ID        uint32       `json:"id"`
	Identity  uint32       `json:"identity"`
	Ifindex   int          `json:"ifindex"` // of the host-side device
	MAC       string       `json:"mac"`     // of the device inside
	NodeMAC   string       `json:"nodemac"` // of the host-side device
}

// Endpoints reads the endpoint table, in the order of the addresses.
func Endpoints(t *maps.Endpoints) ([]Endpoint, error) {
	out := []Endpoint{}
	for ep, err := range t.All() {
		if err != nil {
			return nil, err
		}
		e := Endpoint{
			Addresses: ep.Addrs, ID: ep.ID, Identity: uint32(ep.Identity), Ifindex: ep.Ifindex,
			MAC: ep.MAC.String(), NodeMAC: ep.NodeMAC.String(),
		}
		slices.SortFunc(e.Addresses, netip.Addr.Compare)
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Endpoint) int {
		return cmp.Or(slices.CompareFunc(a.Addresses, b.Addresses, netip.Addr.Compare), cmp.Compare(a.Ifindex, b.Ifindex))
	})
	return out, nil
}

// EndpointRows has a row for each address, those of IPv4 first.
func EndpointRows(all []Endpoint) []Row {
	type entry struct {
		addr netip.Addr
		row  Row
	}
	var entries []entry
	for _, e := range all {
		for _, a := range e.Addresses {
			entries = append(entries, entry{a, Row{
				a.String(), fmt.Sprintf("id=%d", e.ID), fmt.Sprintf("identity=%d", e.Identity), fmt.Sprintf("ifindex=%d", e.Ifindex),
				"mac=" + strings.ToUpper(e.MAC), "nodemac=" + strings.ToUpper(e.NodeMAC),
			}})
		}
	}
	slices.SortStableFunc(entries, func(a, b entry) int { return a.addr.Compare(b.addr) })
	var rows []Row
	for _, e := range entries {
		rows = append(rows, e.row)
	}
	return rows
}
