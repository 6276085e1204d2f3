// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/godatapath/datapath/internal/block"
	"github.com/godatapath/datapath/internal/bpf"
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

// Endpoint is a workload of this node, as the programs know it.
type Endpoint struct {
	// ID is the caller's number for the endpoint, not 0 and unique on the node.
	ID uint32
	// Identity says who the endpoint is; see [Identity].
	Identity Identity
	// Ifindex is the host-side device, as the node's namespace counts.
	Ifindex int
	// Addrs are the addresses that the endpoint may send from and receives on:
	// one or two, at most one per family.
	Addrs []netip.Addr
	// MAC is the address of the device inside, NodeMAC that of the host-side
	// device, which the endpoint takes for its gateway.
	MAC, NodeMAC net.HardwareAddr
	// NoPeerRedirect delivers through the host-side device, where a bridge or
	// a qdisc may be waiting, and not straight into the namespace.
	NoPeerRedirect bool
}

// Endpoints is the endpoint table of a node: which addresses live here, behind
// which device, with which identity. Without it a program delivers nothing.
//
// It may be used by several goroutines, and by several processes when it is
// pinned, as long as one of them writes. A change is one transaction for the
// programs: cached verdicts are judged again after it.
type Endpoints struct {
	mu     sync.Mutex
	addrs  *Map[bpf.TableAddress, bpf.TableEndpoint]
	links  *Map[uint32, bpf.TableEndpoint]
	change *node.Epoch
}

// NewEndpoints makes the endpoint table, or adopts the pinned one.
func NewEndpoints(cfg EndpointsConfig) (_ *Endpoints, err error) {
	if cfg.Max < 0 || cfg.Max > 1<<24 {
		return nil, fmt.Errorf("make the endpoint table: Max is %d, want 1 to %d", cfg.Max, 1<<24)
	}
	if cfg.Max == 0 {
		cfg.Max = DefaultEndpoints
	}
	var u undo.Stack
	defer u.Run(&err)
	e := &Endpoints{change: node.NewEpoch(cfg.Pins)}
	// An endpoint has up to two addresses, and while it changes them, four.
	if e.addrs, err = newTable[bpf.TableAddress, bpf.TableEndpoint](endpointByAddr, endpointSchema, 2*cfg.Max+2, cfg.Config); err != nil {
		return nil, err
	}
	u.Push(e.addrs.Close)
	if e.links, err = newTable[uint32, bpf.TableEndpoint](endpointByIfindex, endpointSchema, cfg.Max, cfg.Config); err != nil {
		return nil, err
	}
	return e, nil
}

// OpenEndpoints opens the endpoint table that is pinned in the folder pins and
// never makes one: for tools. An absent one answers os.ErrNotExist.
func OpenEndpoints(pins string) (_ *Endpoints, err error) {
	var u undo.Stack
	defer u.Run(&err)
	e := &Endpoints{change: node.NewEpoch(pins)}
	if e.addrs, err = Open[bpf.TableAddress, bpf.TableEndpoint](filepath.Join(pins, endpointByAddr)); err != nil {
		return nil, err
	}
	u.Push(e.addrs.Close)
	if e.links, err = Open[uint32, bpf.TableEndpoint](filepath.Join(pins, endpointByIfindex)); err != nil {
		return nil, err
	}
	return e, nil
}

// newTable makes a table as the compiled objects describe it.
func newTable[K, V any](name string, schema uint32, entries int, cfg Config) (*Map[K, V], error) {
	spec, err := bpf.LoadTable()
	if err != nil {
		return nil, fmt.Errorf("read the tables object: %w", err)
	}
	ms := spec.Maps[name]
	if entries > 0 {
		ms.MaxEntries = uint32(entries)
	}
	return New(Spec[K, V]{Map: ms, Schema: schema}, cfg)
}

// Set adds or changes an endpoint, as a whole, under its Ifindex. Packets reach
// it when its programs are attached too. An address that another endpoint has
// is refused with an error that is os.ErrExist, unless that one has the same
// ID: then the endpoint has got a new device. A full table is unix.E2BIG; what
// was there stays.
func (e *Endpoints) Set(ep Endpoint) (err error) {
	value, err := ep.value()
	if err != nil {
		return fmt.Errorf("set endpoint %d: %w", ep.ID, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.has(value) {
		return nil
	}
	if err := e.set(value); err != nil {
		return fmt.Errorf("set endpoint %d: %w", ep.ID, err)
	}
	return e.change.Changed()
}

// has reports whether the endpoint is there as it should be, so that setting it
// again disturbs no cached verdict.
func (e *Endpoints) has(want bpf.TableEndpoint) bool {
	if have, err := e.links.Lookup(want.Ifindex); err != nil || have != want {
		return false
	}
	for _, a := range present(want) {
		if have, err := e.addrs.Lookup(a); err != nil || have != want {
			return false
		}
	}
	return true
}

func (e *Endpoints) set(value bpf.TableEndpoint) (err error) {
	var u undo.Stack
	defer u.Run(&err)
	var stale []bpf.TableEndpoint
	switch old, err := e.links.Lookup(value.Ifindex); {
	case err == nil:
		if old.Id != value.Id {
			return fmt.Errorf("interface %d belongs to endpoint %d: %w", value.Ifindex, old.Id, os.ErrExist)
		}
		stale = append(stale, old)
	case !errors.Is(err, ebpf.ErrKeyNotExist):
		return err
	}
	for _, a := range present(value) {
		old, err := e.addrs.Lookup(a)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if old.Id != value.Id {
			return fmt.Errorf("address %s belongs to endpoint %d: %w", wire.GoAddr(a), old.Id, os.ErrExist)
		}
		if old.Ifindex != value.Ifindex {
			stale = append(stale, old)
		}
	}
	// The device first: an address that is found must lead to a known device.
	back, had := e.links.Lookup(value.Ifindex)
	if err := e.links.Set(value.Ifindex, value); err != nil {
		return err
	}
	u.Push(func() error {
		if had != nil {
			return e.links.Delete(value.Ifindex)
		}
		return e.links.Set(value.Ifindex, back)
	})
	for _, a := range present(value) {
		before, had := e.addrs.Lookup(a)
		if err := e.addrs.Set(a, value); err != nil {
			return err
		}
		u.Push(func() error {
			if had != nil {
				return e.addrs.Delete(a)
			}
			return e.addrs.Set(a, before)
		})
	}
	for _, old := range stale {
		if err := e.forget(old, value); err != nil {
			return err
		}
	}
	return nil
}

// forget takes away what old has and now has not.
func (e *Endpoints) forget(old, now bpf.TableEndpoint) error {
	var errs []error
	for _, a := range present(old) {
		if a != now.Addrs[0] && a != now.Addrs[1] {
			errs = append(errs, e.addrs.Delete(a))
		}
	}
	if old.Ifindex != now.Ifindex {
		errs = append(errs, e.links.Delete(old.Ifindex))
	}
	return errors.Join(errs...)
}

// Delete takes away the endpoint of that host-side device. From then on nothing
// is delivered to its addresses, and nothing that it sends is accepted. Nil if
// there is none.
func (e *Endpoints) Delete(ifindex int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.remove(uint32(ifindex)); err != nil {
		return fmt.Errorf("delete the endpoint of interface %d: %w", ifindex, err)
	}
	return e.change.Changed()
}

func (e *Endpoints) remove(ifindex uint32) error {
	old, err := e.links.Lookup(ifindex)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range present(old) {
		// The address may have moved to the endpoint's new device.
		if now, err := e.addrs.Lookup(a); err == nil && now.Ifindex == ifindex {
			errs = append(errs, e.addrs.Delete(a))
		}
	}
	return errors.Join(append(errs, e.links.Delete(ifindex))...)
}

// Sync makes the table hold exactly these endpoints. All are checked before the
// first is written, and what is new is there before what is old goes.
func (e *Endpoints) Sync(all []Endpoint) (Changes, error) {
	values := make(map[uint32]bpf.TableEndpoint, len(all))
	for _, ep := range all {
		v, err := ep.value()
		if err != nil {
			return Changes{}, fmt.Errorf("sync the endpoint table: endpoint %d: %w", ep.ID, err)
		}
		if other, ok := values[v.Ifindex]; ok {
			return Changes{}, fmt.Errorf("sync the endpoint table: interface %d: endpoints %d and %d both have it", v.Ifindex, other.Id, v.Id)
		}
		values[v.Ifindex] = v
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var out Changes
	var gone []uint32
	for entry, err := range e.links.All() {
		if err != nil {
			return out, fmt.Errorf("sync the endpoint table: %w", err)
		}
		if want, ok := values[entry.Key]; !ok {
			gone = append(gone, entry.Key)
		} else if want == entry.Value {
			delete(values, entry.Key)
		} else if want.Id != entry.Value.Id {
			// The interface has changed hands: the old owner goes first.
			if err := e.remove(entry.Key); err != nil {
				return out, fmt.Errorf("sync the endpoint table: %w", err)
			}
			out.Deleted++
		}
	}
	var errs []error
	for _, ep := range all {
		v, ok := values[uint32(ep.Ifindex)]
		if !ok {
			continue
		}
		if err := e.set(v); err != nil {
			errs = append(errs, fmt.Errorf("sync the endpoint table: endpoint %d: %w", ep.ID, err))
			continue
		}
		out.Set++
	}
	for _, ifindex := range gone {
		if err := e.remove(ifindex); err != nil {
			errs = append(errs, fmt.Errorf("sync the endpoint table: interface %d: %w", ifindex, err))
			continue
		}
		out.Deleted++
	}
	return out, errors.Join(append(errs, e.change.Changed())...)
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
			if !yield(goEndpoint(entry.Value), err) || err != nil {
				return
			}
		}
	}
}

// Len counts the endpoints.
func (e *Endpoints) Len() (int, error) { return e.links.Len() }

// Close drops our handles; a pinned table stays, and so do the programs that
// use it. Idempotent.
func (e *Endpoints) Close() error { return errors.Join(e.links.Close(), e.addrs.Close()) }

// Remove takes the pins away and closes. The table ends with the last program
// that uses it.
func (e *Endpoints) Remove() error { return errors.Join(e.links.Remove(), e.addrs.Remove()) }

// DatapathParts makes the table a block of programs.Load.
func (e *Endpoints) DatapathParts() block.Parts {
	return block.Parts{
		Name:     "endpoints",
		Maps:     map[string]*ebpf.Map{endpointByAddr: e.addrs.EBPF(), endpointByIfindex: e.links.EBPF()},
		Settings: map[string]any{"with_endpoints": uint8(1)},
		Bind:     e.change.Bind,
	}
}

// value checks an endpoint and turns it into what the programs read.
func (ep Endpoint) value() (bpf.TableEndpoint, error) {
	var v bpf.TableEndpoint
	var err error
	switch {
	case ep.ID == 0:
		return v, errors.New("ID is 0, which means none")
	case !ep.Identity.Valid():
		return v, fmt.Errorf("Identity is %d, which is neither reserved (1 to 8) nor the user's (256 to %d)", ep.Identity, MaxIdentity)
	case ep.Ifindex <= 0:
		return v, fmt.Errorf("Ifindex is %d, want the index of the host-side device", ep.Ifindex)
	case len(ep.Addrs) == 0:
		return v, errors.New("Addrs is empty, want at least one address")
	}
	v.Id, v.Identity, v.Ifindex = ep.ID, uint32(ep.Identity), uint32(ep.Ifindex)
	if v.Mac, err = wire.MAC(ep.MAC); err != nil {
		return v, fmt.Errorf("MAC: %w", err)
	}
	if v.NodeMac, err = wire.MAC(ep.NodeMAC); err != nil {
		return v, fmt.Errorf("NodeMAC: %w", err)
	}
	for _, a := range ep.Addrs {
		if a, err = wire.CheckAddr(a); err != nil {
			return v, err
		}
		slot := 0
		if a.Is6() {
			slot = 1
		}
		if v.Addrs[slot] != (bpf.TableAddress{}) {
			return v, fmt.Errorf("address %s: a second one of its family", a)
		}
		v.Addrs[slot] = wire.Addr(a)
	}
	if ep.NoPeerRedirect {
		v.Flags |= uint32(bpf.TableEndpointFlagENDPOINT_NO_PEER_REDIRECT)
	}
	return v, nil
}

func goEndpoint(v bpf.TableEndpoint) Endpoint {
	ep := Endpoint{
		ID:             v.Id,
		Identity:       Identity(v.Identity),
		Ifindex:        int(v.Ifindex),
		MAC:            net.HardwareAddr(v.Mac[:]),
		NodeMAC:        net.HardwareAddr(v.NodeMac[:]),
		NoPeerRedirect: v.Flags&uint32(bpf.TableEndpointFlagENDPOINT_NO_PEER_REDIRECT) != 0,
	}
	for _, a := range present(v) {
		ep.Addrs = append(ep.Addrs, wire.GoAddr(a))
	}
	return ep
}

func present(v bpf.TableEndpoint) []bpf.TableAddress {
	out := make([]bpf.TableAddress, 0, len(v.Addrs))
	for _, a := range v.Addrs {
		if a != (bpf.TableAddress{}) {
			out = append(out, a)
		}
	}
	return out
}
