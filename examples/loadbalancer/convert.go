// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/godatapath/datapath/lb"
)

// parseServices reads the list of services as the library has them. What is wrong
// with a service as a whole, the library tells when it is set.
func parseServices(text []byte) ([]lb.Service, error) {
	all, err := decode(text)
	if err != nil {
		return nil, err
	}
	out := make([]lb.Service, len(all))
	var errs []error
	for i, s := range all {
		if out[i], err = s.convert(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.title(i), err))
		}
	}
	return out, errors.Join(errs...)
}

func (s Service) convert() (lb.Service, error) {
	out := lb.Service{Name: s.Name, Affinity: time.Duration(s.AffinitySeconds) * time.Second, DenySources: s.DenySources}
	if s.Name == "" {
		return out, errors.New("name: it is empty")
	}
	if s.AffinitySeconds < 0 || s.AffinitySeconds > 86400 {
		return out, fmt.Errorf("affinitySeconds: %d: want 0 to 86400", s.AffinitySeconds)
	}
	if s.DenySources && len(s.SourceRanges) == 0 {
		return out, errors.New("denySources: there are no sourceRanges that are denied")
	}
	var err error
	if out.Algorithm, err = named(s.Algorithm, lb.Random, lb.Maglev); err != nil {
		return out, fmt.Errorf("algorithm: %w", err)
	}
	if out.OnRemove, err = removal(s.OnRemove); err != nil {
		return out, fmt.Errorf("onRemove: %w", err)
	}
	for i, f := range s.Frontends {
		front, err := f.convert()
		if err != nil {
			return out, fmt.Errorf("frontends: number %d: %w", i+1, err)
		}
		out.Frontends = append(out.Frontends, front)
	}
	for i, b := range s.Backends {
		back, err := b.convert()
		if err != nil {
			return out, fmt.Errorf("backends: number %d: %w", i+1, err)
		}
		out.Backends = append(out.Backends, back)
	}
	for i, text := range s.SourceRanges {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return out, fmt.Errorf("sourceRanges: number %d: %q: want a prefix such as 192.0.2.0/24", i+1, text)
		}
		out.SourceRanges = append(out.SourceRanges, p)
	}
	return out, nil
}

func (f Frontend) convert() (out lb.Frontend, err error) {
	if out.Addr, err = addrPort(f.Address); err != nil {
		return out, fmt.Errorf("address: %w", err)
	}
	if out.Protocol, err = named(f.Protocol, lb.TCP, lb.UDP, lb.SCTP); err != nil {
		return out, fmt.Errorf("protocol: %w", err)
	}
	if out.Type, err = named(f.Type, lb.ExternalIP, lb.LoadBalancer, lb.NodePort); err != nil {
		return out, fmt.Errorf("type: %w", err)
	}
	return out, nil
}

func (b Backend) convert() (out lb.Backend, err error) {
	if out.Addr, err = addrPort(b.Address); err != nil {
		return out, fmt.Errorf("address: %w", err)
	}
	if out.State, err = named(b.State, lb.Active, lb.Terminating, lb.Quarantined, lb.Maintenance); err != nil {
		return out, fmt.Errorf("state: %w", err)
	}
	if b.Weight > 65535 {
		return out, fmt.Errorf("weight: %d: want 1 to 65535", b.Weight)
	}
	out.Weight = cmp.Or(b.Weight, 1)
	return out, nil
}

func addrPort(text string) (netip.AddrPort, error) {
	at, err := netip.ParseAddrPort(text)
	switch {
	case err != nil:
		return at, fmt.Errorf("%q: want ip:port, or [ip]:port", text)
	case at.Port() == 0:
		return at, fmt.Errorf("%q: the port is 0", text)
	case at.Addr().Zone() != "":
		return at, fmt.Errorf("%q: a zone has no meaning here", text)
	}
	return at, nil
}

// named is which of the values has that name, in whatever case; of none, the first.
func named[T fmt.Stringer](name string, all ...T) (none T, err error) {
	if name == "" {
		return all[0], nil
	}
	var names []string
	for _, v := range all {
		if strings.EqualFold(v.String(), name) {
			return v, nil
		}
		names = append(names, v.String())
	}
	last := len(names) - 1
	return none, fmt.Errorf("%q: want %s or %s", name, strings.Join(names[:last], ", "), names[last])
}

func removal(name string) (lb.Removal, error) {
	switch strings.ToLower(name) {
	case "", "reset":
		return lb.Reset, nil
	case "drain":
		return lb.Drain, nil
	}
	return 0, fmt.Errorf("%q: want reset or drain", name)
}
