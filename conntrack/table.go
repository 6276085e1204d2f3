// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	gomaps "maps"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/block"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/bpffs"
	"github.com/godatapath/datapath/internal/ticks"
	"github.com/godatapath/datapath/internal/undo"
	"github.com/godatapath/datapath/maps"
)

const (
	flowsTable     = bpf.TableMapFlows
	ringTable      = bpf.TableMapFlowRing
	eventsTable    = bpf.TableMapFlowEvents
	fragmentsTable = bpf.TableMapFragmentsSeen
	headSection    = ".data.ring"
	headTable      = bpf.TableVarFlowRingHead

	// schema is raised when an entry that was written before must not be read
	// as it is.
	schema = 3
)

// Table is the flow table of a node. The programs write it; this side lists,
// counts, flushes and expires. Its methods may be called concurrently.
type Table struct {
	cfg       Config
	flows     *maps.Map[bpf.TableTuple, bpf.TableFlow]
	ring      *maps.Map[uint32, bpf.TableTuple]
	head      *maps.Map[uint32, uint32]
	events    *maps.Map[uint32, []uint64]
	fragments *maps.Map[bpf.TableFragmentKey, bpf.TableFragments]
	nat       *nat // nil without Config.NAT
	clock     ticks.Clock

	mu   sync.RWMutex  // held for reading while the pass runs
	pass *ebpf.Program // nil once closed

	end    sync.Once
	closed chan struct{} // closed by Close, for those who wait

	expiring sync.Mutex // one pass at a time: a reaper must know its condemner
}

// New makes the flow table, or adopts the pinned one with its flows. A pinned
// table of other sizes is a [*maps.IncompatibleError], unless Config.OnMismatch
// is maps.Replace, for an empty one, or maps.Migrate, which copies the flows:
// more than fit are unix.E2BIG, and what is pinned stays as it was. Programs that
// run write to the old table until they are replaced; flows that begin meanwhile
// begin anew after that. A setting that can not be used is os.ErrInvalid.
func New(cfg Config) (_ *Table, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, fmt.Errorf("make the flow table: %w", err)
	}
	spec, err := bpf.LoadTable()
	if err != nil {
		return nil, fmt.Errorf("read the tables object: %w", err)
	}
	var u undo.Stack
	defer u.Run(&err)
	t := &Table{cfg: cfg, closed: make(chan struct{})}
	u.Push(t.Close)
	if err := prefixesFit(spec, cfg); err != nil {
		return nil, err
	}
	// The only one that can be too small for what is pinned comes first, so that
	// nothing is replaced then.
	if t.flows, err = table[bpf.TableTuple, bpf.TableFlow](&u, spec.Maps[flowsTable], 2*cfg.Flows, cfg, nil); err != nil {
		return nil, err
	}
	if t.ring, err = table[uint32, bpf.TableTuple](&u, spec.Maps[ringTable], cfg.Unconfirmed, cfg, t.fillRing); err != nil {
		return nil, err
	}
	if t.events, err = table[uint32, []uint64](&u, spec.Maps[eventsTable], 0, cfg, nil); err != nil {
		return nil, err
	}
	if t.fragments, err = table[bpf.TableFragmentKey, bpf.TableFragments](&u, spec.Maps[fragmentsTable], cfg.Fragments, cfg, nil); err != nil {
		return nil, err
	}
	// A variable of the programs, kept as a table of one.
	head := spec.Maps[headSection]
	head.Name, head.Key, head.Value, head.Contents = headTable, nil, nil, nil
	head.Flags |= unix.BPF_F_MMAPABLE // as the loader makes every variable
	if t.head, err = table[uint32, uint32](&u, head, 0, cfg, nil); err != nil {
		return nil, err
	}
	if err := t.makeNAT(&u, spec); err != nil {
		return nil, err
	}
	if err := t.loadPass(); err != nil {
		return nil, err
	}
	return t, nil
}

// Open opens the flow table that is pinned in the folder pins and never makes
// one: for tools that list, look up, count and flush. An absent one answers
// os.ErrNotExist, one of another schema or layout [*maps.IncompatibleError]. The
// table does not tell the settings of its owner, so what Open returns is no
// block of programs.Load and does not expire.
func Open(pins string) (_ *Table, err error) {
	spec, err := bpf.LoadTable()
	if err != nil {
		return nil, fmt.Errorf("read the tables object: %w", err)
	}
	var u undo.Stack
	defer u.Run(&err)
	t := &Table{closed: make(chan struct{})}
	if t.cfg, err = (Config{}).withDefaults(); err != nil {
		return nil, err
	}
	u.Push(t.Close)
	flows := maps.Spec[bpf.TableTuple, bpf.TableFlow]{Map: spec.Maps[flowsTable], Schema: schema}
	if t.flows, err = maps.OpenSpec(filepath.Join(pins, flowsTable), flows); err != nil {
		return nil, err
	}
	events := maps.Spec[uint32, []uint64]{Map: spec.Maps[eventsTable], Schema: schema}
	if t.events, err = maps.OpenSpec(filepath.Join(pins, eventsTable), events); err != nil {
		return nil, err
	}
	if err := t.openNAT(pins, spec); err != nil {
		return nil, err
	}
	if err := t.loadPass(); err != nil {
		return nil, err
	}
	return t, nil
}

// table makes or adopts one of the tables. One that was made loses its pin again
// if the whole can not be had.
func table[K, V any](u *undo.Stack, ms *ebpf.MapSpec, entries int, cfg Config, migrate func(old, next *ebpf.Map) error) (*maps.Map[K, V], error) {
	if entries > 0 {
		ms.MaxEntries = uint32(entries)
	}
	isNew := bpffs.IsFree(cfg.Pins, ms.Name)
	m, err := maps.New(maps.Spec[K, V]{Map: ms, Schema: schema, Migrate: migrate}, cfg.Config)
	if err == nil && isNew {
		u.Push(m.Unpin)
	}
	return m, err
}

// fillRing gives the unconfirmed flows their places in a ring of another size.
// It follows from the flows, so what the old one holds does not matter. A flow
// whose place the ring does not have ends with its time and not for a newer one.
func (t *Table) fillRing(_, next *ebpf.Map) error {
	ring, err := maps.Wrap[uint32, bpf.TableTuple](next)
	if err != nil {
		return err
	}
	var failed error
	_, err = ring.SetAll(func(yield func(uint32, bpf.TableTuple) bool) {
		for e, err := range t.flows.All() {
			if failed = err; err != nil {
				return
			}
			f := e.Value
			if isOriginal(f) && f.Stage == uint32(bpf.TableFlowStageFLOW_NEW) && int(f.Slot) < ring.Capacity() && !yield(f.Slot, e.Key) {
				return
			}
		}
	})
	return errors.Join(failed, err, ring.Close())
}

// Close drops our handles; a pinned table stays, and so do the programs that
// use it. It waits for a pass that is under way. Idempotent. Other methods
// answer os.ErrClosed afterwards, and Run returns.
func (t *Table) Close() error {
	t.end.Do(func() { close(t.closed) })
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	if t.pass != nil {
		errs = append(errs, t.pass.Close())
		t.pass = nil
	}
	errs = append(errs, t.nat.close())
	if t.head != nil {
		errs = append(errs, t.head.Close())
	}
	if t.fragments != nil {
		errs = append(errs, t.fragments.Close())
	}
	if t.events != nil {
		errs = append(errs, t.events.Close())
	}
	if t.ring != nil {
		errs = append(errs, t.ring.Close())
	}
	if t.flows != nil {
		errs = append(errs, t.flows.Close())
	}
	return errors.Join(errs...)
}

// Remove takes the pins away and closes. The flows end with the last program
// that uses the table.
func (t *Table) Remove() error {
	if t.ring == nil {
		return errors.New("remove the flow table: it was opened for reading")
	}
	left := t.nat.remove
	if t.nat == nil {
		left = func() error { return removeLeftNAT(t.cfg.Pins) }
	}
	return errors.Join(t.Close(), left(), t.head.Remove(), t.fragments.Remove(), t.events.Remove(), t.ring.Remove(), t.flows.Remove())
}

// DatapathParts makes the table a block of programs.Load.
func (t *Table) DatapathParts() block.Parts {
	parts := block.Parts{Name: "flows", Maps: map[string]*ebpf.Map{
		flowsTable: t.flows.EBPF(), eventsTable: t.events.EBPF(),
		ringTable: nil, fragmentsTable: nil, headSection: nil,
	}}
	if t.ring != nil {
		parts.Maps[ringTable], parts.Maps[fragmentsTable], parts.Maps[headSection] = t.ring.EBPF(), t.fragments.EBPF(), t.head.EBPF()
		parts.Settings = map[string]any{
			"with_flows":       uint8(1),
			"unconfirmed_mask": uint32(t.ring.Capacity() - 1),
			"fragment_timeout": t.clock.Of(t.cfg.FragmentTimeout),
		}
		gomaps.Copy(parts.Settings, t.natSettings())
	}
	if t.nat != nil && t.nat.hints != nil {
		parts.Maps[unmasqueradedTable], parts.Maps[natHintsTable], parts.Maps[natEventsTable] = t.nat.prefixes.EBPF(), t.nat.hints.EBPF(), t.nat.events.EBPF()
		parts.Bind = t.nat.epoch.Bind
	}
	return parts
}
