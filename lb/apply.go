// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/undo"
	"github.com/godatapath/datapath/internal/wire"
	"github.com/godatapath/datapath/maps"
)

// change is what is to become of one service; nil: it is not there.
type change struct {
	name     string
	old, new *compiled
}

// rows are those of several services together, by table.
type rows struct {
	backends  map[uint32]bpf.TableBackend
	members   map[bpf.TableMemberKey]bpf.TableMember
	ranges    map[bpf.TableSourceRangeKey]uint32
	slots     map[bpf.TableSlotKey]bpf.TableSlot
	maglevs   map[uint32][]uint32
	infos     map[uint32]bpf.TableServiceInfo
	frontends map[bpf.TableFrontendKey]bpf.TableFrontend
}

func newRows() *rows {
	return &rows{
		backends: map[uint32]bpf.TableBackend{}, members: map[bpf.TableMemberKey]bpf.TableMember{},
		ranges: map[bpf.TableSourceRangeKey]uint32{}, slots: map[bpf.TableSlotKey]bpf.TableSlot{},
		maglevs: map[uint32][]uint32{}, infos: map[uint32]bpf.TableServiceInfo{},
		frontends: map[bpf.TableFrontendKey]bpf.TableFrontend{},
	}
}

// add adds the rows of a service that are its alone.
func (r *rows) add(c *compiled) {
	if c == nil {
		return
	}
	r.infos[c.id] = c.info
	merge(r.members, c.members)
	merge(r.ranges, c.ranges)
	merge(r.slots, c.slots)
	merge(r.frontends, c.frontends)
	for set, table := range c.maglevs {
		r.maglevs[set] = table
	}
}

func merge[K comparable, V any](to, from map[K]V) {
	for k, v := range from {
		to[k] = v
	}
}

// addrUse counts the frontends at an address.
type addrUse struct{ all, owned int }

func (u addrUse) row() bpf.TableFrontend {
	row := bpf.TableFrontend{Type: uint8(bpf.TableFrontendTypeFRONTEND_ADDRESS)}
	if u.owned > 0 {
		row.Flags = uint16(bpf.TableFrontendFlagFRONTEND_OWNED)
	}
	return row
}

func addrKey(a bpf.TableAddress) bpf.TableFrontendKey { return bpf.TableFrontendKey{Addr: a} }

// apply writes the changes, all or none: first what is new, then the frontends,
// which make it count, then what is old goes. The states of backends are ahead of
// the sets meanwhile: whom a set has is not asked for his.
// Those that can not be taken away do no harm, and leave with the next New; they
// are the error if applied is true.
func (b *Balancer) apply(changes []change) (applied bool, err error) {
	before, after := newRows(), newRows()
	backends, addrs := map[netip.AddrPort]int{}, map[bpf.TableAddress]addrUse{}
	for _, c := range changes {
		before.add(c.old)
		after.add(c.new)
		if c.new != nil {
			for k := range c.new.frontends { // some may come over from another service
				if owner := b.services[b.owners[k]]; owner != nil {
					before.frontends[k] = owner.rows.frontends[k]
				}
			}
		}
		count(backends, addrs, c.old, -1)
		count(backends, addrs, c.new, +1)
	}
	for at, more := range backends {
		id, have := b.backendIDs[at], b.backendUse[at]
		if have > 0 {
			before.backends[id] = backendOf(at)
		}
		if have+more > 0 {
			after.backends[id] = backendOf(at)
		}
	}
	for a, more := range addrs {
		have := b.addrUse[a]
		if have.all > 0 {
			before.frontends[addrKey(a)] = have.row()
		}
		if now := (addrUse{have.all + more.all, have.owned + more.owned}); now.all > 0 {
			after.frontends[addrKey(a)] = now.row()
		}
	}
	if err := b.write(before, after); err != nil {
		return false, b.explainFull(err)
	}
	for at, more := range backends {
		if b.backendUse[at] += more; b.backendUse[at] == 0 {
			delete(b.backendUse, at)
			b.ids.giveBack(b.backendIDs[at])
			delete(b.backendIDs, at)
		}
	}
	for a, more := range addrs {
		u := b.addrUse[a]
		if u.all, u.owned = u.all+more.all, u.owned+more.owned; u.all == 0 {
			delete(b.addrUse, a)
		} else {
			b.addrUse[a] = u
		}
	}
	if err := b.erase(before, after); err != nil {
		return true, fmt.Errorf("it is done, but what is old can not be taken away: %w", err)
	}
	return true, nil
}

func count(backends map[netip.AddrPort]int, addrs map[bpf.TableAddress]addrUse, c *compiled, n int) {
	if c == nil {
		return
	}
	for at := range c.backends {
		backends[at] += n
	}
	for a, owned := range c.addrs {
		u := addrs[a]
		u.all += n
		if owned {
			u.owned += n
		}
		addrs[a] = u
	}
}

// write writes what is new or different. After an error all is as before.
func (b *Balancer) write(before, after *rows) (err error) {
	var u undo.Stack
	defer u.Run(&err)
	t := b.tables
	if err := put(&u, t.backends, before.backends, after.backends); err != nil {
		return err
	}
	if err := put(&u, t.members, before.members, after.members); err != nil {
		return err
	}
	if err := put(&u, t.ranges, before.ranges, after.ranges); err != nil {
		return err
	}
	if err := put(&u, t.slots, before.slots, after.slots); err != nil {
		return err
	}
	if err := b.putMaglevs(&u, after.maglevs); err != nil {
		return err
	}
	if err := put(&u, t.infos, before.infos, after.infos); err != nil {
		return err
	}
	// The addresses come first: no look-up of a port is made without that of its address.
	isAddr := func(k bpf.TableFrontendKey) bool { return k.Protocol == 0 }
	if err := putIf(&u, t.frontends, before.frontends, after.frontends, isAddr); err != nil {
		return err
	}
	return putIf(&u, t.frontends, before.frontends, after.frontends, func(k bpf.TableFrontendKey) bool { return !isAddr(k) })
}

// explainFull says what to set where a table is full.
func (b *Balancer) explainFull(err error) error {
	if !errors.Is(err, unix.E2BIG) {
		return err
	}
	return fmt.Errorf("a table is full: raise Config.Frontends (%d), Backends (%d) or Maglevs (%d), or take others away first: %w",
		b.cfg.Frontends, b.cfg.Backends, b.cfg.Maglevs, err)
}

// erase takes away what is left of the old state. What could not be taken away
// does no harm, and the error says what it is.
func (b *Balancer) erase(before, after *rows) error {
	t := b.tables
	isPort := func(k bpf.TableFrontendKey) bool { return k.Protocol != 0 }
	var sets []uint32
	for set := range before.maglevs {
		if _, stays := after.maglevs[set]; !stays {
			sets = append(sets, set)
		}
	}
	_, err := t.maglevs.DeleteAll(sets)
	return errors.Join(
		dropIf(t.frontends, before.frontends, after.frontends, isPort),
		dropIf(t.frontends, before.frontends, after.frontends, func(k bpf.TableFrontendKey) bool { return !isPort(k) }),
		drop(t.infos, before.infos, after.infos),
		drop(t.slots, before.slots, after.slots),
		err,
		drop(t.ranges, before.ranges, after.ranges),
		drop(t.members, before.members, after.members),
		drop(t.backends, before.backends, after.backends),
	)
}

func (b *Balancer) putMaglevs(u *undo.Stack, all map[uint32][]uint32) error {
	for set, ids := range all {
		if err := b.putMaglev(set, ids); err != nil {
			return err
		}
		u.Push(func() error { return b.tables.maglevs.Delete(set) })
	}
	return nil
}

// putMaglev makes the table of a set and hangs it in, which holds it.
func (b *Balancer) putMaglev(set uint32, ids []uint32) error {
	m, err := newMaglevTable(ids)
	if err != nil {
		return err
	}
	defer m.Close()
	return b.tables.maglevs.Set(set, uint32(m.FD()))
}

func newMaglevTable(ids []uint32) (*ebpf.Map, error) {
	spec, err := bpf.LoadTable()
	if err != nil {
		return nil, fmt.Errorf("read the tables object: %w", err)
	}
	inner := spec.Maps[bpf.TableMapMaglev].InnerMap.Copy()
	inner.MaxEntries = uint32(len(ids))
	m, err := ebpf.NewMap(inner)
	if err != nil {
		return nil, fmt.Errorf("make a Maglev table: %w", err)
	}
	slots := make([]uint32, len(ids))
	for i := range slots {
		slots[i] = uint32(i)
	}
	if _, err := m.BatchUpdate(slots, ids, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("fill a Maglev table: %w", err), m.Close())
	}
	return m, nil
}

func put[K, V comparable](u *undo.Stack, m *maps.Map[K, V], before, after map[K]V) error {
	return putIf(u, m, before, after, func(K) bool { return true })
}

// putIf writes the rows of after that are wanted and not the same in before.
func putIf[K, V comparable](u *undo.Stack, m *maps.Map[K, V], before, after map[K]V, wanted func(K) bool) error {
	var keys []K
	for k, v := range after {
		if old, ok := before[k]; wanted(k) && (!ok || old != v) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	n, err := m.SetAll(rowsOf(keys, after))
	written := keys[:n]
	u.Push(func() error {
		var fresh, changed []K
		for _, k := range written {
			if _, ok := before[k]; ok {
				changed = append(changed, k)
			} else {
				fresh = append(fresh, k)
			}
		}
		_, set := m.SetAll(rowsOf(changed, before))
		_, del := m.DeleteAll(fresh)
		return errors.Join(set, del)
	})
	return err
}

func rowsOf[K comparable, V any](keys []K, from map[K]V) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for _, k := range keys {
			if !yield(k, from[k]) {
				return
			}
		}
	}
}

func drop[K, V comparable](m *maps.Map[K, V], before, after map[K]V) error {
	return dropIf(m, before, after, func(K) bool { return true })
}

// dropIf deletes the rows of before that are wanted so and not in after.
func dropIf[K, V comparable](m *maps.Map[K, V], before, after map[K]V, wanted func(K) bool) error {
	var gone []K
	for k := range before {
		if _, stays := after[k]; !stays && wanted(k) {
			gone = append(gone, k)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	_, err := m.DeleteAll(gone)
	return err
}

// backendID returns the id of a backend, a new one if nobody has it yet. It is
// held from the first change on that uses it.
func (b *Balancer) backendID(at netip.AddrPort) (uint32, error) {
	if id, ok := b.backendIDs[at]; ok {
		return id, nil
	}
	id, err := b.ids.take()
	if err != nil {
		return 0, fmt.Errorf("backend %s: %w", at, err)
	}
	b.backendIDs[at] = id
	return id, nil
}

// forgetUnused gives the ids back that a change which failed has taken.
func (b *Balancer) forgetUnused() {
	for at, id := range b.backendIDs {
		if b.backendUse[at] == 0 {
			b.ids.undo(id)
			delete(b.backendIDs, at)
		}
	}
}

func goAddrPort(a bpf.TableAddress, port uint16) netip.AddrPort {
	addr := wire.GoAddr(a)
	if !addr.IsValid() {
		addr = netip.IPv6Unspecified() // of a wildcard
	}
	return netip.AddrPortFrom(addr, wire.GoPort(port))
}
