// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/undo"
	"github.com/godatapath/datapath/internal/wire"
	tablemaps "github.com/godatapath/datapath/maps"
)

// adopt reads what an earlier process has left in the tables. Rows that belong
// to no service are what a process has left that was killed in the middle of a
// change: they are taken away. Whether the others are of one state only a
// compilation can tell, the next time that the service is set.
func (b *Balancer) adopt() error {
	found, stray, err := b.read()
	if err != nil {
		return err
	}
	if err := b.passOver(stray); err != nil {
		return err
	}
	compiler := b.compiler()
	for name, k := range found {
		k.doubtful = true
		b.noteSets(k.rows, true)
		for f := range k.rows.frontends {
			addr := wire.GoAddr(f.Addr)
			k.rows.addrs[f.Addr] = k.rows.addrs[f.Addr] || compiler.ownsAddress(FrontendType(k.rows.frontends[f].Type), addr)
		}
		k.noteDraining(nil, b.ids.now())
		b.services[name] = k
		b.serviceIDs.adopt(k.rows.id)
		for f := range k.rows.frontends {
			b.owners[f] = name
		}
		for at, id := range k.rows.backends {
			if b.backendUse[at]++; b.backendUse[at] == 1 {
				b.ids.adopt(id)
				b.backendIDs[at] = id
			}
		}
		for a, owned := range k.rows.addrs {
			u := b.addrUse[a]
			if u.all++; owned {
				u.owned++
			}
			b.addrUse[a] = u
		}
	}
	after := newRows()
	for a, u := range b.addrUse {
		after.frontends[addrKey(a)] = u.row()
	}
	var u undo.Stack // of rows that are only mended
	err = put(&u, b.tables.frontends, stray.frontends, after.frontends)
	return errors.Join(err, b.erase(stray, after))
}

// passOver has identifiers never be given again that something still holds, also
// what is stray.
func (b *Balancer) passOver(stray *rows) error {
	for id := range stray.infos {
		b.serviceIDs.pass(id)
	}
	for key, m := range stray.members {
		b.serviceIDs.pass(key.Service)
		b.ids.pass(m.Backend)
	}
	for id := range stray.backends {
		b.ids.pass(id)
	}
	for e, err := range b.tables.affinities.All() {
		if err != nil {
			return err
		}
		b.serviceIDs.pass(e.Key.Service)
		b.ids.pass(e.Value.Backend)
	}
	for e, err := range b.tables.peers.All() {
		if err != nil {
			return err
		}
		b.serviceIDs.pass(e.Value.Service)
	}
	return nil
}

var errMaglevSize = errors.New("another size")

// checkMaglevSize tells whether the tables that are pinned, if there are any, take
// Maglev tables of our size, before anything is changed. The kernel says so only
// when it is tried. No service has the set 0.
func checkMaglevSize(cfg Config) error {
	if cfg.Pins == "" {
		return nil
	}
	path := filepath.Join(cfg.Pins, bpf.TableMapMaglev)
	outer, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open table %s: %w", path, err)
	}
	defer outer.Close()
	inner, err := newMaglevTable(make([]uint32, cfg.MaglevSize))
	if err != nil {
		return err
	}
	defer inner.Close()
	err = outer.Put(uint32(0), uint32(inner.FD()))
	if errors.Is(err, unix.EINVAL) {
		return invalid.Errorf("Config.MaglevSize is %d, and the tables in %s were made with %w%s: set that, or have them replaced (maps.Replace)",
			cfg.MaglevSize, cfg.Pins, errMaglevSize, sizeOfOne(outer))
	}
	if err != nil {
		return fmt.Errorf("try table %s: %w", path, err)
	}
	return outer.Delete(uint32(0))
}

// sizeOfOne is the size of a table inside of another, in words.
func sizeOfOne(outer *ebpf.Map) string {
	var set, id uint32
	if !outer.Iterate().Next(&set, &id) {
		return ""
	}
	m, err := ebpf.NewMapFromID(ebpf.MapID(id))
	if err != nil {
		return ""
	}
	defer m.Close()
	return fmt.Sprintf(", %d", m.MaxEntries())
}

// read turns the rows into services. stray are those that belong to none.
func (b *Balancer) read() (found map[string]*kept, stray *rows, err error) {
	all, err := b.contents()
	if err != nil {
		return nil, nil, err
	}
	found = map[string]*kept{}
	byID := map[uint32]*kept{}
	reached := map[uint32]int{} // frontends by their services
	for key, row := range all.frontends {
		if key.Protocol != 0 {
			reached[row.Service]++
		}
	}
	ids := slices.SortedFunc(maps.Keys(all.infos), func(a, b uint32) int {
		return cmp.Or(cmp.Compare(reached[b], reached[a]), cmp.Compare(a, b))
	})
	for _, id := range ids {
		info := all.infos[id]
		name := text(info.Name[:])
		// Two of a name can only be if a process was killed that had no right to be
		// there. The one that clients reach stays.
		if found[name] != nil || name == "" || id == 0 {
			continue
		}
		k := &kept{spec: specOf(info), rows: &compiled{
			id: id, info: info, frontends: map[bpf.TableFrontendKey]bpf.TableFrontend{}, slots: map[bpf.TableSlotKey]bpf.TableSlot{},
			maglevs: map[uint32][]uint32{}, members: map[bpf.TableMemberKey]bpf.TableMember{},
			ranges: map[bpf.TableSourceRangeKey]uint32{}, addrs: map[bpf.TableAddress]bool{}, backends: map[netip.AddrPort]uint32{},
		}}
		found[name], byID[id] = k, k
		delete(all.infos, id)
	}
	sets := map[uint32]*kept{}
	for key, row := range all.frontends {
		k := byID[row.Service]
		if key.Protocol == 0 || k == nil || sets[row.Set] != nil && sets[row.Set] != k {
			continue // a set has one owner
		}
		k.rows.frontends[key] = row
		if key.Scope == uint8(bpf.TableFrontendScopeSCOPE_ALL) {
			f := Frontend{Addr: goAddrPort(key.Addr, key.Port), Protocol: Protocol(key.Protocol), Type: FrontendType(row.Type)}
			k.spec.Frontends = append(k.spec.Frontends, f)
		}
		k.rows.addrs[key.Addr] = false // whose it is, the Config tells
		sets[row.Set] = k
		b.lastSet = max(b.lastSet, row.Set)
		delete(all.frontends, key)
	}
	owned := map[uint32]netip.AddrPort{} // one id has one backend, and one backend one id
	idOf := map[netip.AddrPort]uint32{}
	for key, m := range all.members {
		k := byID[key.Service]
		at := goAddrPort(key.Addr, key.Port)
		if k == nil || all.backends[m.Backend] != backendOf(at) {
			continue
		}
		if other, ok := owned[m.Backend]; ok && other != at {
			continue
		}
		if other, ok := idOf[at]; ok && other != m.Backend {
			continue
		}
		owned[m.Backend], idOf[at] = at, m.Backend
		k.rows.members[key], k.rows.backends[at] = m, m.Backend
		if State(m.State) != Draining {
			k.spec.Backends = append(k.spec.Backends, Backend{
				Addr: at, State: State(m.State), Weight: int(m.Weight), Node: wire.GoAddr(m.Node), Zone: text(m.Zone[:]),
			})
		}
		delete(all.members, key)
	}
	for id := range owned {
		delete(all.backends, id)
	}
	for key, s := range all.slots {
		b.lastSet = max(b.lastSet, key.Set)
		if k := sets[key.Set]; k != nil {
			k.rows.slots[key] = s
			delete(all.slots, key)
		}
	}
	for set := range all.maglevs {
		b.lastSet = max(b.lastSet, set)
		if k := sets[set]; k != nil {
			k.rows.maglevs[set] = nil
			delete(all.maglevs, set)
		}
	}
	for key, v := range all.ranges {
		if k := sets[bigEndian(key.Set)]; k != nil {
			k.rows.ranges[key] = v
			k.spec.SourceRanges = append(k.spec.SourceRanges, wire.GoPrefix(bpf.TablePrefixKey{Prefixlen: key.Prefixlen - 32, Addr: key.Addr}))
			delete(all.ranges, key)
		}
	}
	for _, k := range found {
		k.spec.Frontends = withoutPlaces(k.spec.Frontends)
		sortSpec(&k.spec)
		k.spec.SourceRanges = slices.Compact(k.spec.SourceRanges) // those of two sets
	}
	return found, all, nil
}

// withoutPlaces leaves out the frontends that a wildcard stands for.
func withoutPlaces(all []Frontend) []Frontend {
	wild := map[Frontend]bool{}
	for _, f := range all {
		if f.isWildcard() {
			wild[f] = true
		}
	}
	return slices.DeleteFunc(all, func(f Frontend) bool {
		any := netip.IPv6Unspecified()
		if f.Addr.Addr().Is4() {
			any = netip.IPv4Unspecified()
		}
		w := f
		w.Addr = netip.AddrPortFrom(any, f.Addr.Port())
		return wild[w] && w != f
	})
}

func specOf(i bpf.TableServiceInfo) Service {
	return Service{
		Name: text(i.Name[:]), Algorithm: Algorithm(i.Maglev), Affinity: seconds(i.AffinitySeconds), External: Policy(i.ExternalLocal),
		Internal: Policy(i.InternalLocal), DenySources: i.Deny != 0, NoBackend: NoBackend(1 - i.Reject), OnRemove: Removal(i.OnRemove), Direct: i.Direct != 0,
	}
}

// contents reads all tables.
func (b *Balancer) contents() (*rows, error) {
	out, t := newRows(), b.tables
	var err error
	collect(&err, t.backends, out.backends)
	collect(&err, t.members, out.members)
	collect(&err, t.ranges, out.ranges)
	collect(&err, t.slots, out.slots)
	collect(&err, t.infos, out.infos)
	collect(&err, t.frontends, out.frontends)
	sets := map[uint32]uint32{}
	collect(&err, t.maglevs, sets)
	for set := range sets {
		out.maglevs[set] = nil
	}
	return out, err
}

func collect[K comparable, V any](err *error, m *tablemaps.Map[K, V], to map[K]V) {
	if *err != nil {
		return
	}
	for e, e2 := range m.All() {
		if e2 != nil {
			*err = e2
			return
		}
		to[e.Key] = e.Value
	}
}

func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
