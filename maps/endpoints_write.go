// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/undo"
	"github.com/godatapath/datapath/internal/wire"
)

// Set adds or changes an endpoint, as a whole, under its Ifindex. Packets reach
// it when its programs are attached too.
//
// An address that another endpoint has is refused with an error that is
// os.ErrExist, unless that one has the same ID: then the endpoint has got a new
// device, and the old one is forgotten. A device that another endpoint has is
// refused the same way. A full table is unix.E2BIG. After an error what was
// there is there as before.
func (e *Endpoints) Set(ep Endpoint) error {
	value, err := ep.value()
	if err != nil {
		return fmt.Errorf("set endpoint %d: %w", ep.ID, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.mend(); err != nil {
		return fmt.Errorf("set endpoint %d: %w", ep.ID, err)
	}
	if e.has(value) {
		return e.change.Unchanged()
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

// set writes the addresses first and the device last, which makes the change
// count: see mend.
func (e *Endpoints) set(value bpf.TableEndpoint) (err error) {
	old, err := e.replaced(value)
	if err != nil {
		return err
	}
	var u undo.Stack
	defer u.Run(&err)
	for _, a := range present(value) {
		if err := put(&u, e.addrs, a, value); err != nil {
			return err
		}
	}
	var moved []uint32
	for _, o := range old {
		if o.Ifindex != value.Ifindex {
			moved = append(moved, o.Ifindex)
		}
		for _, a := range present(o) {
			if slices.Contains(value.Addrs[:], a) {
				continue
			}
			if err := e.release(&u, a, o); err != nil {
				return err
			}
		}
	}
	err = put(&u, e.links, value.Ifindex, value)
	if errors.Is(err, unix.E2BIG) && len(moved) > 0 {
		// The new device needs the place of the old one.
		if err := drop(&u, e.links, moved[0]); err != nil {
			return err
		}
		err = put(&u, e.links, value.Ifindex, value)
	}
	if err != nil {
		return err
	}
	for _, ifindex := range moved {
		if err := drop(&u, e.links, ifindex); err != nil {
			return err
		}
	}
	return nil
}

// replaced returns what the endpoint takes the place of: itself as it was, on
// this device and on another. It refuses what is another endpoint's.
func (e *Endpoints) replaced(value bpf.TableEndpoint) ([]bpf.TableEndpoint, error) {
	var all []bpf.TableEndpoint
	switch old, err := e.links.Lookup(value.Ifindex); {
	case err == nil && old.Id != value.Id:
		return nil, fmt.Errorf("interface %d belongs to endpoint %d: %w", value.Ifindex, old.Id, os.ErrExist)
	case err == nil:
		all = append(all, old)
	case !errors.Is(err, ebpf.ErrKeyNotExist):
		return nil, err
	}
	for _, a := range present(value) {
		owner, err := e.addrs.Lookup(a)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		link, err := e.links.Lookup(owner.Ifindex)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, err
		}
		if err != nil || link.Id != owner.Id || !slices.Contains(link.Addrs[:], a) {
			continue // nobody has it: what a process left that was killed
		}
		if owner.Id != value.Id {
			return nil, fmt.Errorf("address %s belongs to endpoint %d: %w", wire.GoAddr(a), owner.Id, os.ErrExist)
		}
		if !slices.Contains(all, link) {
			all = append(all, link)
		}
	}
	return all, nil
}

// release takes an address away unless it has gone over to another device.
func (e *Endpoints) release(u *undo.Stack, a bpf.TableAddress, from bpf.TableEndpoint) error {
	now, err := e.addrs.Lookup(a)
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return nil
	case err != nil:
		return err
	case now.Ifindex != from.Ifindex:
		return nil
	}
	return drop(u, e.addrs, a)
}

// put writes an entry and notes how to take that back.
func put[K comparable, V any](u *undo.Stack, m *Map[K, V], key K, value V) error {
	before, err := m.Lookup(key)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	had := err == nil
	if err := m.Set(key, value); err != nil {
		return err
	}
	u.Push(func() error {
		if had {
			return m.Set(key, before)
		}
		return m.Delete(key)
	})
	return nil
}

// drop takes an entry away and notes how to take that back.
func drop[K comparable, V any](u *undo.Stack, m *Map[K, V], key K) error {
	before, err := m.Lookup(key)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := m.Delete(key); err != nil {
		return err
	}
	u.Push(func() error { return m.Set(key, before) })
	return nil
}

// Delete takes away the endpoint of that host-side device. From then on nothing
// is delivered to its addresses, and nothing that it sends is accepted. Nil if
// there is none.
func (e *Endpoints) Delete(ifindex int) error {
	if !isIfindex(ifindex) {
		return invalid.Errorf("delete the endpoint of interface %d: want the index of the host-side device", ifindex)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	changed, err := e.remove(uint32(ifindex))
	if err != nil {
		return fmt.Errorf("delete the endpoint of interface %d: %w", ifindex, err)
	}
	if !changed {
		return e.change.Unchanged()
	}
	return e.change.Changed()
}

func (e *Endpoints) remove(ifindex uint32) (changed bool, err error) {
	if err := e.mend(); err != nil {
		return false, err
	}
	old, err := e.links.Lookup(ifindex)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var u undo.Stack
	defer u.Run(&err)
	for _, a := range present(old) {
		if err := e.release(&u, a, old); err != nil {
			return false, err
		}
	}
	return true, e.links.Delete(ifindex)
}
