// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/godatapath/datapath/internal/block"
	"github.com/godatapath/datapath/internal/bpf"
	pinfs "github.com/godatapath/datapath/internal/bpffs"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/node"
	"github.com/godatapath/datapath/internal/undo"
	"github.com/godatapath/datapath/internal/wire"
)

// Names of the tables of [Endpoints], in C and as pins.
const (
	endpointByAddr    = bpf.TableMapEndpointByAddr
	endpointByIfindex = bpf.TableMapEndpointByIfindex
)

const endpointSchema = 1

// DefaultEndpoints is how many endpoints a table holds that is not told otherwise.
const DefaultEndpoints = 4096

// EndpointsConfig describes the endpoint table.
type EndpointsConfig struct {
	Config
	// Max is the number of endpoints that fit; 0: [DefaultEndpoints].
	Max int
}

// Endpoints is the endpoint table of a node: which addresses live here, behind
// which device, with which identity. Without it a program delivers nothing.
//
// It may be used by several goroutines, and by several processes when it is
// pinned, as long as one of them writes. A change is one transaction for the
// programs: cached verdicts are judged again after it, once. A call that changes
// nothing disturbs none of them.
//
// The table takes less than 1 KiB of kernel memory for each endpoint that fits,
// all at once: an entry of 60 bytes by device and two by address, and what a
// hash table adds to each.
type Endpoints struct {
	mu     sync.Mutex
	addrs  *Map[bpf.TableAddress, bpf.TableEndpoint]
	links  *Map[uint32, bpf.TableEndpoint] // what counts; addrs follows from it
	whole  bool                            // nothing is left of a process that was killed
	change *node.Epoch
}

// NewEndpoints makes the endpoint table, or adopts the pinned one. A pinned one
// of another Max is an [*IncompatibleError], unless OnMismatch is [Replace] or
// [Migrate]; more endpoints than fit are unix.E2BIG then, and what is pinned
// stays as it was.
func NewEndpoints(cfg EndpointsConfig) (_ *Endpoints, err error) {
	if cfg.Max < 0 || cfg.Max > 1<<24 {
		return nil, invalid.Errorf("make the endpoint table: Max is %d, want 1 to %d", cfg.Max, 1<<24)
	}
	if cfg.Max == 0 {
		cfg.Max = DefaultEndpoints
	}
	var u undo.Stack
	defer u.Run(&err)
	e := &Endpoints{change: node.NewEpoch(cfg.Pins)}
	isNew := pinfs.IsFree(cfg.Pins, endpointByIfindex)
	// The one that counts first: if Max is too small for what is pinned, that is
	// found before anything is replaced.
	if e.links, err = newTable[uint32, bpf.TableEndpoint](endpointByIfindex, endpointSchema, cfg.Max, cfg.Config); err != nil {
		return nil, err
	}
	u.Push(e.links.Close)
	if isNew {
		u.Push(e.links.Unpin)
	}
	// An endpoint has up to two addresses, and while it changes them, four.
	if e.addrs, err = newTable[bpf.TableAddress, bpf.TableEndpoint](endpointByAddr, endpointSchema, 2*cfg.Max+2, cfg.Config); err != nil {
		return nil, err
	}
	return e, nil
}

// OpenEndpoints opens the endpoint table that is pinned in the folder pins and
// never makes one: for tools. An absent one answers os.ErrNotExist, one of
// another schema or layout [*IncompatibleError].
func OpenEndpoints(pins string) (_ *Endpoints, err error) {
	var u undo.Stack
	defer u.Run(&err)
	e := &Endpoints{change: node.NewEpoch(pins)}
	if e.links, err = openTable[uint32, bpf.TableEndpoint](endpointByIfindex, endpointSchema, pins); err != nil {
		return nil, err
	}
	u.Push(e.links.Close)
	if e.addrs, err = openTable[bpf.TableAddress, bpf.TableEndpoint](endpointByAddr, endpointSchema, pins); err != nil {
		return nil, err
	}
	return e, nil
}

// newTable makes a table as the compiled objects describe it.
func newTable[K, V any](name string, schema uint32, entries int, cfg Config) (*Map[K, V], error) {
	spec, err := tableSpec[K, V](name, schema)
	if err != nil {
		return nil, err
	}
	if entries > 0 {
		spec.Map.MaxEntries = uint32(entries)
	}
	return New(spec, cfg)
}

// openTable opens a table that must be as the compiled objects describe it, but
// for its size.
func openTable[K, V any](name string, schema uint32, pins string) (*Map[K, V], error) {
	spec, err := tableSpec[K, V](name, schema)
	if err != nil {
		return nil, err
	}
	return OpenSpec(filepath.Join(pins, name), spec)
}

func tableSpec[K, V any](name string, schema uint32) (Spec[K, V], error) {
	spec, err := bpf.LoadTable()
	if err != nil {
		return Spec[K, V]{}, fmt.Errorf("read the tables object: %w", err)
	}
	return Spec[K, V]{Map: spec.Maps[name], Schema: schema}, nil
}

// Lookup returns the endpoint that has the address; ebpf.ErrKeyNotExist if
// none of this node has it.
func (e *Endpoints) Lookup(addr netip.Addr) (Endpoint, error) {
	addr, err := wire.CheckAddr(addr)
	if err != nil {
		return Endpoint{}, fmt.Errorf("look up an endpoint: %w", err)
	}
	v, err := e.addrs.Lookup(wire.Addr(addr))
	if err != nil {
		return Endpoint{}, fmt.Errorf("look up endpoint %s: %w", addr, err)
	}
	return goEndpoint(v), nil
}

// All walks over the endpoints, in no order. An endpoint that is there all the
// time is met exactly once.
func (e *Endpoints) All() iter.Seq2[Endpoint, error] {
	return func(yield func(Endpoint, error) bool) {
		for entry, err := range e.links.All() {
			if err != nil {
				yield(Endpoint{}, err)
				return
			}
			if !yield(goEndpoint(entry.Value), nil) {
				return
			}
		}
	}
}

// Len counts the endpoints.
func (e *Endpoints) Len() (int, error) { return e.links.Len() }

// Close drops our handles; a pinned table stays, and so do the programs that
// use it. A change that is under way is finished first. Idempotent.
func (e *Endpoints) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return errors.Join(e.addrs.Close(), e.links.Close())
}

// Remove takes the pins away and closes, as [Endpoints.Close] does. The table
// ends with the last program that uses it.
func (e *Endpoints) Remove() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return errors.Join(e.addrs.Remove(), e.links.Remove())
}

// DatapathParts makes the table a block of programs.Load.
func (e *Endpoints) DatapathParts() block.Parts {
	return block.Parts{
		Name:     "endpoints",
		Maps:     map[string]*ebpf.Map{endpointByAddr: e.addrs.EBPF(), endpointByIfindex: e.links.EBPF()},
		Settings: map[string]any{"with_endpoints": uint8(1)},
		Bind:     e.change.Bind,
	}
}
