// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"io"
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
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.services[service]
	if k == nil {
		return fail(Touched{}, fmt.Errorf("the service: %w", os.ErrNotExist))
	}
	s := k.spec.clone()
	s.Backends = slices.DeleteFunc(s.Backends, func(x Backend) bool { return x.Addr == backend })
	if len(s.Backends) == len(k.spec.Backends) {
		return fail(Touched{}, fmt.Errorf("the backend: %w", os.ErrNotExist))
	}
	onRemove := s.OnRemove
	s.OnRemove = how
	c, err := b.changeTo(s, nil)
	if err != nil {
		return fail(Touched{}, err)
	}
	s.OnRemove = onRemove
	c.new.info = infoOf(s)
	if err := b.carryOut([]planned{{*c, s}}); err != nil {
		return fail(Touched{}, err)
	}
	if err := b.change.Changed(); err != nil {
		return fail(Touched{}, err)
	}
	done, err := b.leave(k.spec, c.new.id, []netip.AddrPort{backend}, how)
	if err != nil {
		return fail(done, err)
	}
	return done, nil
}

// leave does with flows and sockets what a removal says, once no new ones come.
func (b *Balancer) leave(s Service, id uint32, backends []netip.AddrPort, how Removal) (done Touched, err error) {
	var errs []error
	for _, backend := range backends {
		for _, f := range s.Frontends {
			if b.cfg.Flows != nil {
				n, err := b.flowsOf(f, backend, how)
				done.Flows += n
				errs = append(errs, err)
			}
		}
		if how&DestroySockets != 0 {
			for _, p := range []Protocol{TCP, UDP} {
				for _, sockets := range b.sockets {
					n, err := sockets.end(b.tables, id, backend, p)
					done.Sockets += n
					errs = append(errs, err)
				}
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

// end ends the connected sockets, in the namespaces that this is told of, that
// are connected to a service and talk to a backend.
func (s *Sockets) end(t *tables, service uint32, backend netip.AddrPort, p Protocol) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links == nil {
		return 0, nil
	}
	fail := func(err error) (int, error) {
		return 0, fmt.Errorf("end the %s sockets that talk to %s: %w", p, backend, err)
	}
	spec, err := bpf.LoadDestroy()
	if err != nil {
		return fail(fmt.Errorf("read the object: %w", err))
	}
	name := map[Protocol]string{TCP: "end_tcp", UDP: "end_udp"}[p]
	for other := range spec.Programs {
		if other != name {
			delete(spec.Programs, other)
		}
	}
	peers := t.sockets.EBPF()
	spec.Maps[bpf.TableMapSocketPeers].MaxEntries = peers.MaxEntries()
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{bpf.TableMapSocketPeers: peers}})
	if err != nil {
		return fail(fmt.Errorf("load the program (kernel 6.5): %w", err))
	}
	defer coll.Close()
	requests := coll.Maps[bpf.TableMapSocketRequests]
	want := bpf.TableSocketRequest{Addr: wire.Addr(backend.Addr()), Port: wire.Port(backend.Port()), Protocol: uint8(p), Service: service}
	if err := requests.Put(uint32(0), want); err != nil {
		return fail(err)
	}
	it, err := link.AttachIter(link.IterOptions{Program: coll.Programs[name]})
	if err != nil {
		return fail(err)
	}
	defer it.Close()
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
	if err := requests.Lookup(uint32(0), &want); err != nil {
		return fail(err)
	}
	if err := errors.Join(errs...); err != nil {
		_, err = fail(err)
		return int(want.Ended), err
	}
	return int(want.Ended), nil
}

func inNamespace(ns programs.Namespace, fn func() error) error {
	if ns == nil {
		return fn()
	}
	return ns.Do(fn)
}
