// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/bpffs"
	"github.com/godatapath/datapath/internal/undo"
	"github.com/godatapath/datapath/maps"
)

// schema is raised when an entry that was written before must not be read as it
// is.
const schema = 3

// tables are those of the services, in the order in which they are written.
type tables struct {
	backends   *maps.Map[uint32, bpf.TableBackend]
	members    *maps.Map[bpf.TableMemberKey, bpf.TableMember]
	ranges     *maps.Map[bpf.TableSourceRangeKey, uint32]
	slots      *maps.Map[bpf.TableSlotKey, bpf.TableSlot]
	maglevs    *maps.Map[uint32, uint32] // set to the table's descriptor, or id
	infos      *maps.Map[uint32, bpf.TableServiceInfo]
	frontends  *maps.Map[bpf.TableFrontendKey, bpf.TableFrontend]
	affinities *maps.Map[bpf.TableAffinityKey, bpf.TableAffinity]
	peers      *maps.Map[uint64, bpf.TableSocketPeer] // by the cookies of connected sockets
	targets    *maps.Map[bpf.TableSocketKey, bpf.TableSocketTarget]
	events     *maps.Map[uint32, []uint64]
}

// makeTables makes them, or adopts the pinned ones. They belong together: if one
// can not be adopted and is to be replaced, all are, and the programs that run go
// on with the old ones until they are replaced themselves.
func makeTables(cfg Config) (*tables, error) {
	all := cfg
	if cfg.OnMismatch == maps.Replace {
		all.OnMismatch = maps.Fail
	}
	err := checkMaglevSize(cfg)
	var t *tables
	if err == nil {
		t, err = makeOrAdopt(all)
	}
	var other *maps.IncompatibleError
	if cfg.OnMismatch != maps.Replace || !errors.As(err, &other) && !errors.Is(err, errMaglevSize) {
		return t, err
	}
	return replaceTables(all)
}

// replaceTables makes new tables in the place of all that are pinned. After an
// error those are there again.
func replaceTables(cfg Config) (_ *tables, err error) {
	var u undo.Stack
	defer u.Run(&err)
	var aside []string
	for _, name := range tableNames {
		pin := filepath.Join(cfg.Pins, name)
		if err := os.Rename(pin, pin+"-old"); errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("put table %s aside: %w", name, err)
		}
		aside = append(aside, pin+"-old")
		u.Push(func() error { return os.Rename(pin+"-old", pin) })
	}
	t, err := makeOrAdopt(cfg)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, old := range aside {
		errs = append(errs, os.Remove(old))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(fmt.Errorf("take an old table away: %w", err), t.remove())
	}
	return t, nil
}

// tableNames are those of our tables, as they are pinned.
var tableNames = [...]string{
	bpf.TableMapBackends, bpf.TableMapServiceMembers, bpf.TableMapSourceRanges, bpf.TableMapServiceSlots, bpf.TableMapMaglev,
	bpf.TableMapServiceInfos, bpf.TableMapFrontends, bpf.TableMapAffinities, bpf.TableMapSocketPeers, bpf.TableMapSocketTargets,
	bpf.TableMapSocketEvents,
}

func makeOrAdopt(cfg Config) (_ *tables, err error) {
	spec, err := bpf.LoadTable()
	if err != nil {
		return nil, fmt.Errorf("read the tables object: %w", err)
	}
	var u undo.Stack
	defer u.Run(&err)
	t := new(tables)
	m := maker{spec: spec, cfg: cfg.Config, u: &u}
	inner := spec.Maps[bpf.TableMapMaglev].InnerMap
	inner.MaxEntries = uint32(cfg.MaglevSize)
	t.backends = table[uint32, bpf.TableBackend](&m, bpf.TableMapBackends, cfg.Backends)
	t.members = table[bpf.TableMemberKey, bpf.TableMember](&m, bpf.TableMapServiceMembers, 4*cfg.Backends)
	t.ranges = table[bpf.TableSourceRangeKey, uint32](&m, bpf.TableMapSourceRanges, 4*cfg.Frontends)
	t.slots = table[bpf.TableSlotKey, bpf.TableSlot](&m, bpf.TableMapServiceSlots, 4*cfg.Backends)
	t.maglevs = table[uint32, uint32](&m, bpf.TableMapMaglev, 2*cfg.Maglevs)
	t.infos = table[uint32, bpf.TableServiceInfo](&m, bpf.TableMapServiceInfos, cfg.Frontends)
	t.frontends = table[bpf.TableFrontendKey, bpf.TableFrontend](&m, bpf.TableMapFrontends, 2*cfg.Frontends)
	t.affinities = table[bpf.TableAffinityKey, bpf.TableAffinity](&m, bpf.TableMapAffinities, cfg.Clients)
	t.peers = table[uint64, bpf.TableSocketPeer](&m, bpf.TableMapSocketPeers, cfg.Sockets)
	t.targets = table[bpf.TableSocketKey, bpf.TableSocketTarget](&m, bpf.TableMapSocketTargets, cfg.Sockets)
	t.events = table[uint32, []uint64](&m, bpf.TableMapSocketEvents, 0)
	return t, m.err
}

// maker makes one table after the other until one fails.
type maker struct {
	spec *ebpf.CollectionSpec
	cfg  maps.Config
	u    *undo.Stack
	err  error
}

func table[K, V any](m *maker, name string, entries int) *maps.Map[K, V] {
	if m.err != nil {
		return nil
	}
	ms := m.spec.Maps[name]
	if entries > 0 {
		ms.MaxEntries = uint32(entries)
	}
	version := uint32(schema)
	if ms.Type == ebpf.HashOfMaps {
		version = 0 // the kernel keeps no BTF for it
	}
	isNew := bpffs.IsFree(m.cfg.Pins, name)
	t, err := maps.New(maps.Spec[K, V]{Map: ms, Schema: version}, m.cfg)
	if err != nil {
		m.err = err
		return nil
	}
	m.u.Push(t.Close)
	if isNew {
		m.u.Push(t.Unpin)
	}
	return t
}

// openTables opens those that a reader wants.
func openTables(pins string) (_ *tables, err error) {
	spec, err := bpf.LoadTable()
	if err != nil {
		return nil, fmt.Errorf("read the tables object: %w", err)
	}
	var u undo.Stack
	defer u.Run(&err)
	t := new(tables)
	o := opener{spec: spec, pins: pins, u: &u}
	t.backends = open[uint32, bpf.TableBackend](&o, bpf.TableMapBackends)
	t.members = open[bpf.TableMemberKey, bpf.TableMember](&o, bpf.TableMapServiceMembers)
	t.ranges = open[bpf.TableSourceRangeKey, uint32](&o, bpf.TableMapSourceRanges)
	t.slots = open[bpf.TableSlotKey, bpf.TableSlot](&o, bpf.TableMapServiceSlots)
	t.maglevs = open[uint32, uint32](&o, bpf.TableMapMaglev)
	t.infos = open[uint32, bpf.TableServiceInfo](&o, bpf.TableMapServiceInfos)
	t.frontends = open[bpf.TableFrontendKey, bpf.TableFrontend](&o, bpf.TableMapFrontends)
	t.affinities = open[bpf.TableAffinityKey, bpf.TableAffinity](&o, bpf.TableMapAffinities)
	t.peers = open[uint64, bpf.TableSocketPeer](&o, bpf.TableMapSocketPeers)
	t.targets = open[bpf.TableSocketKey, bpf.TableSocketTarget](&o, bpf.TableMapSocketTargets)
	t.events = open[uint32, []uint64](&o, bpf.TableMapSocketEvents)
	return t, o.err
}

type opener struct {
	spec *ebpf.CollectionSpec
	pins string
	u    *undo.Stack
	err  error
}

func open[K, V any](o *opener, name string) *maps.Map[K, V] {
	if o.err != nil {
		return nil
	}
	ms := o.spec.Maps[name]
	version := uint32(schema)
	if ms.Type == ebpf.HashOfMaps {
		version = 0
	}
	t, err := maps.OpenSpec(filepath.Join(o.pins, name), maps.Spec[K, V]{Map: ms, Schema: version})
	if err != nil {
		o.err = err
		return nil
	}
	o.u.Push(t.Close)
	return t
}

func (t *tables) close() error {
	return errors.Join(t.events.Close(), t.targets.Close(), t.peers.Close(), t.affinities.Close(), t.frontends.Close(), t.infos.Close(),
		t.maglevs.Close(), t.slots.Close(), t.ranges.Close(), t.members.Close(), t.backends.Close())
}

func (t *tables) remove() error {
	return errors.Join(t.events.Remove(), t.targets.Remove(), t.peers.Remove(), t.affinities.Remove(), t.frontends.Remove(), t.infos.Remove(),
		t.maglevs.Remove(), t.slots.Remove(), t.ranges.Remove(), t.members.Remove(), t.backends.Remove())
}

// ebpf lists them under their names in C.
func (t *tables) ebpf() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		bpf.TableMapBackends: t.backends.EBPF(), bpf.TableMapServiceMembers: t.members.EBPF(), bpf.TableMapSourceRanges: t.ranges.EBPF(),
		bpf.TableMapServiceSlots: t.slots.EBPF(), bpf.TableMapMaglev: t.maglevs.EBPF(), bpf.TableMapServiceInfos: t.infos.EBPF(),
		bpf.TableMapFrontends: t.frontends.EBPF(), bpf.TableMapAffinities: t.affinities.EBPF(),
		bpf.TableMapSocketPeers: t.peers.EBPF(), bpf.TableMapSocketTargets: t.targets.EBPF(), bpf.TableMapSocketEvents: t.events.EBPF(),
	}
}
