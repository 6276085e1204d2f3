// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Status is a service as the programs have it.
type Status struct {
	Service
	ID uint32
}

// Services lists the services, by name, as they were set. Backends that drain
// are among them.
func (b *Balancer) Services() ([]Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := b.services
	if b.cfg.MaglevSize == 0 {
		var err error
		if found, _, err = b.read(); err != nil {
			return nil, fmt.Errorf("list the services: %w", err)
		}
	}
	all := make([]Status, 0, len(found))
	for _, k := range found {
		s := Status{Service: k.spec.clone(), ID: k.rows.id}
		for key, m := range k.rows.members {
			if State(m.State) == Draining {
				s.Backends = append(s.Backends, Backend{Addr: goAddrPort(key.Addr, key.Port), State: Draining, Weight: int(m.Weight)})
			}
		}
		sortSpec(&s.Service)
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

func (s Service) clone() Service {
	s.Frontends, s.Backends, s.SourceRanges = slices.Clone(s.Frontends), slices.Clone(s.Backends), slices.Clone(s.SourceRanges)
	return s
}

func sortSpec(s *Service) {
	slices.SortFunc(s.Frontends, compareFrontends)
	slices.SortFunc(s.Backends, func(a, b Backend) int { return a.Addr.Compare(b.Addr) })
	slices.SortFunc(s.SourceRanges, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
}
