// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/block"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/bpffs"
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
	schema = 1
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
	clock     clock

	mu   sync.RWMutex  // held for reading while the pass runs
	pass *ebpf.Program // nil once closed

	expiring sync.Mutex // one pass at a time: a reaper must know its condemner
}

// New makes the flow table, or adopts the pinned one with its flows. A pinned
// table of other sizes is a [*maps.IncompatibleError], unless Config.OnMismatch
// says otherwise.
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
	t := &Table{cfg: cfg}
	u.Push(t.Close)
	if t.flows, err = table[bpf.TableTuple, bpf.TableFlow](&u, spec.Maps[flowsTable], 2*cfg.Flows, cfg); err != nil {
		return nil, err
	}
	if t.ring, err = table[uint32, bpf.TableTuple](&u, spec.Maps[ringTable], cfg.Unconfirmed, cfg); err != nil {
		return nil, err
	}
	if t.events, err = table[uint32, []uint64](&u, spec.Maps[eventsTable], 0, cfg); err != nil {
		return nil, err
	}
	if t.fragments, err = table[bpf.TableFragmentKey, bpf.TableFragments](&u, spec.Maps[fragmentsTable], cfg.Fragments, cfg); err != nil {
		return nil, err
	}
	// A variable of the programs, kept as a table of one.
	head := spec.Maps[headSection]
	head.Name, head.Key, head.Value, head.Contents = headTable, nil, nil, nil
	head.Flags |= unix.BPF_F_MMAPABLE // as the loader makes every variable
	if t.head, err = table[uint32, uint32](&u, head, 0, cfg); err != nil {
		return nil, err
	}
	if err := t.loadPass(); err != nil {
		return nil, err
	}
	return t, nil
}

// Open opens the flow table that is pinned in the folder pins and never makes
// one: for tools that list, look up, count and flush. An absent one answers
// os.ErrNotExist. The table does not tell the settings of its owner, so what
// Open returns is no block of programs.Load and does not expire.
func Open(pins string) (_ *Table, err error) {
	var u undo.Stack
	defer u.Run(&err)
	t := new(Table)
	if t.cfg, err = (Config{}).withDefaults(); err != nil {
		return nil, err
	}
	u.Push(t.Close)
	if t.flows, err = maps.Open[bpf.TableTuple, bpf.TableFlow](filepath.Join(pins, flowsTable)); err != nil {
		return nil, err
	}
	if t.events, err = maps.Open[uint32, []uint64](filepath.Join(pins, eventsTable)); err != nil {
		return nil, err
	}
	if err := t.loadPass(); err != nil {
		return nil, err
	}
	return t, nil
}

// table makes or adopts one of the tables. One that was made loses its pin again
// if the whole can not be had.
func table[K, V any](u *undo.Stack, ms *ebpf.MapSpec, entries int, cfg Config) (*maps.Map[K, V], error) {
	if entries > 0 {
		ms.MaxEntries = uint32(entries)
	}
	isNew := bpffs.IsFree(cfg.Pins, ms.Name)
	m, err := maps.New(maps.Spec[K, V]{Map: ms, Schema: schema}, cfg.Config)
	if err == nil && isNew {
		u.Push(m.Unpin)
	}
	return m, err
}

// Close drops our handles; a pinned table stays, and so do the programs that
// use it. It waits for a pass that is under way. Idempotent. Other methods
// answer os.ErrClosed afterwards.
func (t *Table) Close() error {
	var errs []error
	if t.flows != nil {
		errs = append(errs, t.flows.Close())
	}
	if t.ring != nil {
		errs = append(errs, t.ring.Close())
	}
	if t.head != nil {
		errs = append(errs, t.head.Close())
	}
	if t.events != nil {
		errs = append(errs, t.events.Close())
	}
	if t.fragments != nil {
		errs = append(errs, t.fragments.Close())
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pass != nil {
		errs = append(errs, t.pass.Close())
		t.pass = nil
	}
	return errors.Join(errs...)
}

// Remove takes the pins away and closes. The flows end with the last program
// that uses the table.
func (t *Table) Remove() error {
	if t.ring == nil {
		return errors.New("remove the flow table: it was opened for reading")
	}
	return errors.Join(t.flows.Remove(), t.ring.Remove(), t.head.Remove(), t.events.Remove(), t.fragments.Remove(), t.Close())
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
			"fragment_timeout": t.clock.ticks(t.cfg.FragmentTimeout),
		}
	}
	return parts
}
