// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/godatapath/datapath/internal/bpf"
)

// Status is a service as the programs have it.
type Status struct {
	Service
	ID uint32
}

// Services lists the services, by name, as they were set. Backends that drain
// are among them.
func (b *Balancer) Services() ([]Status, error) {
	if err := b.enter(); err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
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

// MaglevTable is how new flows to some frontends of a service are spread.
type MaglevTable struct {
	Frontends []Frontend
	// Outside are frontends that lead here for clients from outside only: those of a
	// service whose External is Local.
	Outside []Frontend
	// Slots has the backend of each slot. One that was taken away a moment ago
	// is the zero AddrPort.
	Slots []netip.AddrPort
}

// MaglevTables reads the tables of a service, by its id, as the programs have
// them: one, or two if its frontends differ in their policy. A service that is
// not there, or that does not choose by Maglev, is os.ErrNotExist. It needs
// CAP_SYS_ADMIN.
func (b *Balancer) MaglevTables(id uint32) ([]MaglevTable, error) {
	if err := b.enter(); err != nil {
		return nil, fmt.Errorf("read the Maglev tables of service %d: %w", id, err)
	}
	defer b.mu.Unlock()
	all, err := b.contents()
	if err != nil {
		return nil, fmt.Errorf("read the Maglev tables of service %d: %w", id, err)
	}
	backends := map[uint32]netip.AddrPort{}
	for key, m := range all.members {
		if key.Service == id {
			backends[m.Backend] = goAddrPort(key.Addr, key.Port)
		}
	}
	bySet := map[uint32]*MaglevTable{}
	for key, row := range all.frontends {
		if _, ok := all.maglevs[row.Set]; !ok || row.Service != id || key.Protocol == 0 {
			continue
		}
		if bySet[row.Set] == nil {
			slots, err := b.maglevSlots(row.Set)
			if err != nil {
				return nil, fmt.Errorf("read a Maglev table of service %d: %w", id, err)
			}
			t := &MaglevTable{Slots: make([]netip.AddrPort, len(slots))}
			for i, backend := range slots {
				t.Slots[i] = backends[backend]
			}
			bySet[row.Set] = t
		}
		t := bySet[row.Set]
		f := Frontend{Addr: goAddrPort(key.Addr, key.Port), Protocol: Protocol(key.Protocol), Type: FrontendType(row.Type)}
		if key.Scope == uint8(bpf.TableFrontendScopeSCOPE_OUTSIDE) {
			t.Outside = append(t.Outside, f)
		} else {
			t.Frontends = append(t.Frontends, f)
		}
	}
	if len(bySet) == 0 {
		if _, ok := all.infos[id]; !ok {
			return nil, fmt.Errorf("no service has the id %d: %w", id, os.ErrNotExist)
		}
		return nil, fmt.Errorf("service %d has no Maglev table, it chooses at random or has no backend: %w", id, os.ErrNotExist)
	}
	var out []MaglevTable
	for _, t := range bySet {
		slices.SortFunc(t.Frontends, compareFrontends)
		slices.SortFunc(t.Outside, compareFrontends)
		out = append(out, *t)
	}
	// One that is for the outside only comes last.
	slices.SortFunc(out, func(a, b MaglevTable) int {
		if len(a.Frontends) == 0 || len(b.Frontends) == 0 {
			return cmp.Compare(len(b.Frontends), len(a.Frontends))
		}
		return compareFrontends(a.Frontends[0], b.Frontends[0])
	})
	return out, nil
}

// maglevSlots reads the table of a set: ids of backends.
func (b *Balancer) maglevSlots(set uint32) ([]uint32, error) {
	id, err := b.tables.maglevs.Lookup(set)
	if err != nil {
		return nil, err
	}
	m, err := ebpf.NewMapFromID(ebpf.MapID(id))
	if err != nil {
		return nil, fmt.Errorf("open the table with id %d: %w", id, err)
	}
	defer m.Close()
	slots := make([]uint32, m.MaxEntries())
	var cursor ebpf.MapBatchCursor
	n, err := m.BatchLookup(&cursor, make([]uint32, len(slots)), slots, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) || n != len(slots) {
		return nil, fmt.Errorf("read %d of %d slots: %w", n, len(slots), err)
	}
	return slots, nil
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
