// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/wire"
	"github.com/godatapath/datapath/programs"
)

// Touched is what a removal has met.
type Touched struct {
	Flows   int // translated to the backend, of Config.Flows; how many there were, whatever the policy
	Sockets int // ended
}

// RemoveBackend takes a backend out of a service, and its flows as how says, in
// the place of Service.OnRemove. A service or backend that is not there is
// os.ErrNotExist.
func (b *Balancer) RemoveBackend(service string, backend netip.AddrPort, how Removal) (Touched, error) {
	fail := func(done Touched, err error) (Touched, error) {
		return done, fmt.Errorf("remove backend %s of service %q: %w", backend, service, err)
	}
	backend = netip.AddrPortFrom(backend.Addr().Unmap(), backend.Port())
	if how.policy() > Purge {
		return fail(Touched{}, invalid.Errorf("a policy of %#x: want Reset, Drain or Purge, with DestroySockets or without", uint8(how)))
	}
	if err := b.enter(); err != nil {
		return fail(Touched{}, err)
	}
	defer b.mu.Unlock()
	k := b.services[service]
	if k == nil {
		return fail(Touched{}, fmt.Errorf("the service: %w", os.ErrNotExist))
	}
	p, err := b.without(k, backend, how)
	if err != nil {
		return fail(Touched{}, err)
	}
	applied, err := b.carryOut([]planned{p})
	if !applied {
		return fail(Touched{}, err)
	}
	err = errors.Join(err, b.change.Changed())
	done, e := b.leave(departure{spec: k.spec, id: k.rows.id, backends: []netip.AddrPort{backend}, how: how, counted: true})
	if err = errors.Join(err, e); err != nil {
		return fail(done, err)
	}
	return done, nil
}

// without plans what takes a backend away. One that drains already can be taken
// away in another manner.
func (b *Balancer) without(k *kept, backend netip.AddrPort, how Removal) (planned, error) {
	s := k.spec.clone()
	s.Backends = slices.DeleteFunc(s.Backends, func(x Backend) bool { return x.Addr == backend })
	if _, drains := k.draining[backend]; drains && len(s.Backends) == len(k.spec.Backends) {
		rest := k.rows.without(backend)
		if how.policy() == Drain {
			rest = k.rows
		}
		return planned{change{name: s.Name, old: k.rows, new: rest}, k.spec}, nil
	}
	if len(s.Backends) == len(k.spec.Backends) {
		return planned{}, fmt.Errorf("the backend: %w", os.ErrNotExist)
	}
	onRemove := s.OnRemove
	s.OnRemove = how
	c, err := b.changeTo(s, nil)
	if err != nil {
		return planned{}, err
	}
	s.OnRemove = onRemove
	c.new.info = infoOf(s)
	return planned{*c, s}, nil
}

// without are the rows without a backend that is in no set.
func (c *compiled) without(backends ...netip.AddrPort) *compiled {
	out := *c
	out.members, out.backends = maps.Clone(c.members), maps.Clone(c.backends)
	for _, at := range backends {
		delete(out.members, memberKey(c.id, at))
		delete(out.backends, at)
	}
	return &out
}

// departure is what a change takes away from a service.
type departure struct {
	spec     Service // as it was
	id       uint32
	backends []netip.AddrPort
	how      Removal
	counted  bool // somebody wants to know how many flows there are
}

// departures are those of changes that are about to be carried out.
func (b *Balancer) departures(plan ...planned) (all []departure) {
	for _, p := range plan {
		old := b.services[p.name]
		if old == nil {
			continue
		}
		d := departure{spec: old.spec, id: old.rows.id, how: p.spec.OnRemove}
		if p.new == nil {
			// Nothing stays for which a flow could be drained.
			if d.how = old.spec.OnRemove; d.how.policy() == Drain {
				d.how = Reset | d.how&DestroySockets
			}
		}
		for at := range old.rows.backends {
			if p.new == nil {
				d.backends = append(d.backends, at)
			} else if _, stays := p.new.backends[at]; !stays {
				d.backends = append(d.backends, at)
			}
		}
		if len(d.backends) > 0 && (d.how.policy() == Purge || d.how.endsSockets() && len(b.sockets) > 0) {
			all = append(all, d)
		}
	}
	return all
}

// leave does with flows and sockets what a removal says, once no new ones come.
func (b *Balancer) leave(d departure) (done Touched, err error) {
	var errs []error
	for _, backend := range d.backends {
		for _, f := range d.spec.Frontends {
			if b.cfg.Flows != nil && (d.counted || d.how.policy() == Purge) {
				n, err := b.flowsOf(f, backend, d.how)
				done.Flows += n
				errs = append(errs, err)
			}
		}
		if d.how.endsSockets() && len(b.sockets) > 0 {
			n, err := b.endSockets(d.id, backend)
			done.Sockets += n
			if d.how&DestroySockets != 0 || !errors.Is(err, ebpf.ErrNotSupported) {
				errs = append(errs, err)
			}
		}
	}
	return done, errors.Join(errs...)
}

func (b *Balancer) flowsOf(f Frontend, backend netip.AddrPort, how Removal) (int, error) {
	at := f.Addr
	if f.isWildcard() {
		at = netip.AddrPortFrom(netip.Addr{}, f.Addr.Port())
	}
	if how.policy() == Purge {
		return b.cfg.Flows.FlushTranslated(uint8(f.Protocol), at, backend)
	}
	return b.cfg.Flows.CountTranslated(uint8(f.Protocol), at, backend)
}

// endSockets ends the connected sockets that were connected to a service and talk
// to a backend of it, in the namespaces that AttachSockets was told of.
func (b *Balancer) endSockets(service uint32, backend netip.AddrPort) (ended int, err error) {
	any, err := b.hasPeers(service, backend)
	if err != nil || !any {
		return 0, err
	}
	var errs []error
	for _, p := range []Protocol{TCP, UDP} {
		n, err := b.endSocketsOf(service, backend, p)
		if err != nil {
			err = fmt.Errorf("end the %s sockets that talk to %s: %w", p, backend, err)
		}
		ended, errs = ended+n, append(errs, err)
	}
	return ended, errors.Join(errs...)
}

// hasPeers tells whether a connected socket is remembered that talks to a backend
// of a service.
func (b *Balancer) hasPeers(service uint32, backend netip.AddrPort) (bool, error) {
	addr, port := wire.Addr(backend.Addr()), wire.Port(backend.Port())
	for e, err := range b.tables.peers.All() {
		if err != nil {
			return false, fmt.Errorf("look for sockets: %w", err)
		}
		if e.Value.Service == service && e.Value.Backend == addr && e.Value.BackendPort == port {
			return true, nil
		}
	}
	return false, nil
}

func (b *Balancer) endSocketsOf(service uint32, backend netip.AddrPort, p Protocol) (int, error) {
	spec, err := bpf.LoadDestroy()
	if err != nil {
		return 0, fmt.Errorf("read the object: %w", err)
	}
	name := map[Protocol]string{TCP: "end_tcp", UDP: "end_udp"}[p]
	for other := range spec.Programs {
		if other != name {
			delete(spec.Programs, other)
		}
	}
	peers := b.tables.peers.EBPF()
	spec.Maps[bpf.TableMapSocketPeers].MaxEntries = peers.MaxEntries()
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{bpf.TableMapSocketPeers: peers}})
	if err != nil {
		return 0, fmt.Errorf("load the program (kernel 6.5): %w", err)
	}
	defer coll.Close()
	requests := coll.Maps[bpf.TableMapSocketRequests]
	want := bpf.TableSocketRequest{Addr: wire.Addr(backend.Addr()), Port: wire.Port(backend.Port()), Protocol: uint8(p), Service: service}
	if err := requests.Put(uint32(0), want); err != nil {
		return 0, err
	}
	it, err := link.AttachIter(link.IterOptions{Program: coll.Programs[name]})
	if err != nil {
		return 0, err
	}
	defer it.Close()
	var errs []error
	for _, s := range b.sockets {
		errs = append(errs, s.walk(it))
	}
	if err := requests.Lookup(uint32(0), &want); err != nil {
		errs = append(errs, err)
	}
	return int(want.Ended), errors.Join(errs...)
}

// walk runs an iterator over sockets in the namespaces that s was told of.
func (s *Sockets) walk(it *link.Iter) error {
	namespaces := []programs.Namespace{s.cfg.Namespace}
	if s.cfg.Namespaces != nil {
		namespaces = s.cfg.Namespaces()
	}
	var errs []error
	for _, ns := range namespaces {
		errs = append(errs, inNamespace(ns, func() error {
			r, err := it.Open()
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(io.Discard, r)
			return err
		}))
	}
	return errors.Join(errs...)
}

func inNamespace(ns programs.Namespace, fn func() error) error {
	if ns == nil {
		return fn()
	}
	return ns.Do(fn)
}
