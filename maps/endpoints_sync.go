// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/wire"
)

// Sync makes the table hold exactly these endpoints. All are checked before the
// first is written: each as in [Endpoints.Set], and that no two have the same
// ID, interface or address. Endpoints may trade interfaces and addresses, with
// each other and with those that go. More of them than fit are unix.E2BIG, and
// nothing is changed.
//
// What is new is there before what is old goes, as far as there is room for
// both. Changes counts endpoints: one whose interface has a new owner is one
// deleted and one set. After another error Changes is what was found to do, and
// the next Sync does the rest.
func (e *Endpoints) Sync(all []Endpoint) (Changes, error) {
	links, addrs, err := e.wanted(all)
	if err != nil {
		return Changes{}, fmt.Errorf("sync the endpoint table: %w", err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var out Changes
	for entry, err := range e.links.All() {
		if err != nil {
			return Changes{}, fmt.Errorf("sync the endpoint table: %w", err)
		}
		if links[entry.Key].Id != entry.Value.Id {
			out.Deleted++
		}
	}
	for _, want := range links {
		if !e.has(want) {
			out.Set++
		}
	}
	// In the order of set.
	byAddr, err := syncTo(e.addrs, addrs)
	if err == nil {
		var byLink Changes
		byLink, err = syncTo(e.links, links)
		byAddr.Set, byAddr.Deleted = byAddr.Set+byLink.Set, byAddr.Deleted+byLink.Deleted
	}
	if err != nil {
		err = fmt.Errorf("sync the endpoint table: %w", err)
	} else {
		e.whole = true
	}
	if byAddr != (Changes{}) {
		return out, errors.Join(err, e.change.Changed())
	}
	return out, errors.Join(err, e.change.Unchanged())
}

// wanted turns the endpoints into the two tables.
func (e *Endpoints) wanted(all []Endpoint) (map[uint32]bpf.TableEndpoint, map[bpf.TableAddress]bpf.TableEndpoint, error) {
	links := make(map[uint32]bpf.TableEndpoint, len(all))
	addrs := make(map[bpf.TableAddress]bpf.TableEndpoint, 2*len(all))
	ids := make(map[uint32]int, len(all))
	for _, ep := range all {
		v, err := ep.value()
		if err != nil {
			return nil, nil, fmt.Errorf("endpoint %d: %w", ep.ID, err)
		}
		if other, ok := links[v.Ifindex]; ok {
			return nil, nil, invalid.Errorf("interface %d: endpoints %d and %d both have it", v.Ifindex, other.Id, v.Id)
		}
		if other, ok := ids[v.Id]; ok {
			return nil, nil, invalid.Errorf("endpoint %d: comes twice, on interfaces %d and %d", v.Id, other, v.Ifindex)
		}
		links[v.Ifindex], ids[v.Id] = v, ep.Ifindex
		for _, a := range present(v) {
			if other, ok := addrs[a]; ok {
				return nil, nil, invalid.Errorf("address %s: endpoints %d and %d both have it", wire.GoAddr(a), other.Id, v.Id)
			}
			addrs[a] = v
		}
	}
	if room := e.links.Capacity(); len(links) > room {
		return nil, nil, fmt.Errorf("%d endpoints, and table %s has room for %d: make it larger: %w", len(links), endpointByIfindex, room, unix.E2BIG)
	}
	return links, addrs, nil
}

func syncTo[K comparable, V any](m *Map[K, V], want map[K]V) (Changes, error) {
	return m.Sync(func(yield func(K, V) bool) {
		for k, v := range want {
			if !yield(k, v) {
				return
			}
		}
	})
}

// mend brings both tables in line before the first write of this process, for
// the one before may have been killed between two writes. The table by device
// is written last, so what it says is what was agreed. Only if it was being
// written just then do two devices have one address in it: the addresses, all
// written by then, tell which of them is right and what the other was to be.
func (e *Endpoints) mend() error {
	if e.whole {
		return nil
	}
	links, err := contentsOf(e.links)
	if err != nil {
		return fmt.Errorf("mend the endpoint table: %w", err)
	}
	addrs, err := contentsOf(e.addrs)
	if err != nil {
		return fmt.Errorf("mend the endpoint table: %w", err)
	}
	newest := map[uint32]bpf.TableEndpoint{}
	for _, v := range addrs {
		newest[v.Ifindex] = v
	}
	for _, ifindex := range outdated(links, addrs) {
		if v, ok := newest[ifindex]; ok && v != links[ifindex] {
			links[ifindex] = v
		} else {
			delete(links, ifindex)
		}
	}
	want := make(map[bpf.TableAddress]bpf.TableEndpoint, len(addrs))
	for ifindex, v := range links {
		for _, a := range present(v) {
			if _, taken := want[a]; !taken || addrs[a].Ifindex == ifindex {
				want[a] = v
			}
		}
	}
	byAddr, err := syncTo(e.addrs, want)
	if err == nil {
		var byLink Changes
		byLink, err = syncTo(e.links, links)
		byAddr.Set, byAddr.Deleted = byAddr.Set+byLink.Set, byAddr.Deleted+byLink.Deleted
	}
	if err != nil {
		return fmt.Errorf("mend the endpoint table: %w", err)
	}
	e.whole = true
	if byAddr != (Changes{}) {
		return e.change.Changed()
	}
	return nil
}

// outdated returns the devices one of whose addresses has gone over to another.
func outdated(links map[uint32]bpf.TableEndpoint, addrs map[bpf.TableAddress]bpf.TableEndpoint) (out []uint32) {
	for ifindex, v := range links {
		for _, a := range present(v) {
			at, found := addrs[a]
			if found && at.Ifindex != ifindex && at == links[at.Ifindex] {
				out = append(out, ifindex)
				break
			}
		}
	}
	return out
}

func contentsOf[K comparable, V any](m *Map[K, V]) (map[K]V, error) {
	out := map[K]V{}
	for entry, err := range m.All() {
		if err != nil {
			return nil, err
		}
		out[entry.Key] = entry.Value
	}
	return out, nil
}
