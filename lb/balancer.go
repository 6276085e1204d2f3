// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/block"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/node"
	"github.com/godatapath/datapath/internal/ticks"
	"github.com/godatapath/datapath/internal/undo"
	"github.com/godatapath/datapath/internal/wire"
	"github.com/godatapath/datapath/maps"
)

// restBackend and restService are how long an identifier is not given to another
// after its last use, besides that they are counted up: longer than the longest
// time that a client is remembered.
const rest = 2 * maxAffinity

// Balancer is the services of a node. Its methods may be called concurrently; of
// the processes that share pinned tables one writes, any number read.
type Balancer struct {
	cfg    Config
	clock  ticks.Clock
	tables *tables
	change *node.Epoch

	mu         sync.Mutex
	ids        *ids // of backends
	serviceIDs *ids
	lastSet    uint32
	services   map[string]*kept
	owners     map[bpf.TableFrontendKey]string // of frontends on this node
	backendIDs map[netip.AddrPort]uint32
	backendUse map[netip.AddrPort]int // services that have it
	addrUse    map[bpf.TableAddress]addrUse
	sockets    []*Sockets
}

// kept is a service as it is.
type kept struct {
	spec     Service
	rows     *compiled
	draining map[netip.AddrPort]time.Time // since when
}

// New makes the tables of services, or adopts the pinned ones with their
// services, which go on as they are until they are set again.
func New(cfg Config) (_ *Balancer, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, fmt.Errorf("make the services: %w", err)
	}
	b := newBalancer(cfg)
	if b.clock, err = ticks.Kernel(); err != nil {
		return nil, fmt.Errorf("make the services: %w", err)
	}
	var u undo.Stack
	defer u.Run(&err)
	if b.tables, err = makeTables(cfg); err != nil {
		return nil, err
	}
	u.Push(b.tables.close)
	if err := b.adopt(); err != nil {
		return nil, fmt.Errorf("adopt the services: %w", err)
	}
	return b, nil
}

// Open opens the services that are pinned in the folder pins: for tools. An
// absent one answers os.ErrNotExist. What it returns lists, and is no block.
func Open(pins string) (_ *Balancer, err error) {
	b := newBalancer(Config{Config: maps.Config{Pins: pins}})
	if b.clock, err = ticks.Kernel(); err != nil {
		return nil, fmt.Errorf("open the services: %w", err)
	}
	if b.tables, err = openTables(pins); err != nil {
		return nil, err
	}
	return b, nil
}

func newBalancer(cfg Config) *Balancer {
	return &Balancer{
		cfg: cfg, change: node.NewEpoch(cfg.Pins), ids: newIDs(rest), serviceIDs: newIDs(rest),
		services: map[string]*kept{}, owners: map[bpf.TableFrontendKey]string{}, backendIDs: map[netip.AddrPort]uint32{},
		backendUse: map[netip.AddrPort]int{}, addrUse: map[bpf.TableAddress]addrUse{},
	}
}

// SetService makes the service be as described, as a whole: a packet sees it as
// it was or as it is. Established flows go on, but for those of backends that it
// leaves out, see Service.OnRemove. A service that is the same already disturbs
// nothing.
//
// A frontend that another service has is os.ErrExist, tables that are full are
// unix.E2BIG, input that can not be used is os.ErrInvalid. After an error all is
// as before.
func (b *Balancer) SetService(s Service) error {
	if b.cfg.MaglevSize == 0 {
		return invalid.Errorf("set service %q: the services were opened for reading", s.Name)
	}
	s, err := s.check(b.cfg)
	if err != nil {
		return fmt.Errorf("set: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c, err := b.changeTo(s, nil)
	if err != nil {
		return fmt.Errorf("set service %q: %w", s.Name, err)
	}
	if c == nil {
		return b.change.Unchanged()
	}
	old := b.services[s.Name]
	if err := b.carryOut([]planned{{*c, s}}); err != nil {
		return fmt.Errorf("set service %q: %w", s.Name, err)
	}
	if err := b.change.Changed(); err != nil {
		return err
	}
	if gone := lost(old, s); len(gone) > 0 && (s.OnRemove.policy() == Purge || s.OnRemove&DestroySockets != 0) {
		if _, err := b.leave(s, c.new.id, gone, s.OnRemove); err != nil {
			return fmt.Errorf("set service %q: it is set, but: %w", s.Name, err)
		}
	}
	return nil
}

// lost are the backends that a service had and has no more.
func lost(old *kept, s Service) (gone []netip.AddrPort) {
	if old == nil {
		return nil
	}
	for _, b := range old.spec.Backends {
		if !slices.ContainsFunc(s.Backends, func(x Backend) bool { return x.Addr == b.Addr }) {
			gone = append(gone, b.Addr)
		}
	}
	return gone
}

// DeleteService takes a service away. Nil if there is none of the name.
func (b *Balancer) DeleteService(name string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.services[name]
	if old == nil {
		return b.change.Unchanged()
	}
	if err := b.carryOut([]planned{{change: change{name: name, old: old.rows}}}); err != nil {
		return fmt.Errorf("delete service %q: %w", name, err)
	}
	return b.change.Changed()
}

// planned is a change with what the service is afterwards.
type planned struct {
	change
	spec Service
}

// carryOut applies changes and keeps what has become of the services.
func (b *Balancer) carryOut(all []planned) error {
	changes := make([]change, len(all))
	for i, p := range all {
		changes[i] = p.change
	}
	if err := b.apply(changes); err != nil {
		for _, c := range changes {
			if c.old == nil && c.new != nil {
				b.serviceIDs.giveBack(c.new.id)
			}
		}
		b.forgetUnused()
		return err
	}
	for _, p := range all {
		if p.old != nil {
			for k := range p.old.frontends {
				if b.owners[k] == p.name {
					delete(b.owners, k)
				}
			}
		}
		if p.new == nil {
			b.serviceIDs.giveBack(p.old.id)
			delete(b.services, p.name)
			continue
		}
		now := &kept{spec: p.spec, rows: p.new}
		now.noteDraining(b.services[p.name], b.ids.now())
		b.services[p.name] = now
		for k := range p.new.frontends {
			if was := b.owners[k]; was != "" && was != p.name {
				delete(b.services[was].rows.frontends, k)
			}
			b.owners[k] = p.name
		}
	}
	return nil
}

// changeTo plans what makes a service be as checked; nil: it is so already. next
// are the owners of frontends that there are to be, if more than this changes.
func (b *Balancer) changeTo(s Service, next map[bpf.TableFrontendKey]string) (*change, error) {
	old := b.services[s.Name]
	if old != nil && reflect.DeepEqual(old.spec, s) {
		return nil, nil
	}
	c := &change{name: s.Name}
	id := uint32(0)
	if old != nil {
		c.old, id = old.rows, old.rows.id
	} else {
		var err error
		if id, err = b.serviceIDs.take(); err != nil {
			return nil, err
		}
	}
	for _, be := range s.Backends {
		if _, err := b.backendID(be.Addr); err != nil {
			return nil, err
		}
	}
	c.new = b.compiler().compile(id, s)
	if old != nil && s.OnRemove.policy() == Drain {
		drain(old.rows, c.new)
	}
	if err := b.check(c, next); err != nil {
		if old == nil {
			b.serviceIDs.giveBack(id)
		}
		b.forgetUnused()
		return nil, err
	}
	return c, nil
}

func (b *Balancer) compiler() *compiler {
	return &compiler{
		cfg: b.cfg, clock: b.clock,
		set: func() uint32 {
			if b.lastSet++; b.lastSet == 0 {
				b.lastSet++
			}
			return b.lastSet
		},
		ids: func(at netip.AddrPort) uint32 { return b.backendIDs[at] },
	}
}

// check says whether another service has a frontend and is to keep it.
func (b *Balancer) check(c *change, next map[bpf.TableFrontendKey]string) error {
	for k := range c.new.frontends {
		if owner, ok := b.owners[k]; ok && owner != c.name && next[k] != c.name {
			return fmt.Errorf("frontend %s/%s belongs to service %q: %w", goAddrPort(k.Addr, k.Port), Protocol(k.Protocol), owner, os.ErrExist)
		}
	}
	return nil
}

// Sync makes these the services, all of them and no others. All are checked
// before the first is written. A service that can not be set stays as it was,
// the others are set, and the error names each that is not. What is new is there
// before what is old goes, as far as there is room for both. Changes counts
// services.
func (b *Balancer) Sync(all []Service) (maps.Changes, error) {
	if b.cfg.MaglevSize == 0 {
		return maps.Changes{}, invalid.Errorf("sync the services: they were opened for reading")
	}
	checked := make([]Service, 0, len(all))
	names, fronts := map[string]bool{}, map[bpf.TableFrontendKey]string{}
	var errs []error
	c := b.compiler()
	for _, s := range all {
		s, err := s.check(b.cfg)
		if err == nil && names[s.Name] {
			err = invalid.Errorf("service %q: it comes twice", s.Name)
		}
		names[s.Name] = true
		for _, f := range s.Frontends {
			for _, at := range c.places(f) {
				k := frontendKey(at, f.Protocol)
				if other, ok := fronts[k]; ok && other != s.Name && err == nil {
					err = invalid.Errorf("service %q: frontend %s is one of service %q too", s.Name, f, other)
				}
				fronts[k] = s.Name
			}
		}
		errs = append(errs, err)
		checked = append(checked, s)
	}
	if err := errors.Join(errs...); err != nil {
		return maps.Changes{}, fmt.Errorf("sync the services: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	done, err := b.sync(checked, names, fronts)
	if err != nil {
		err = fmt.Errorf("sync the services: %w", err)
	}
	if done != (maps.Changes{}) {
		return done, errors.Join(err, b.change.Changed())
	}
	return done, errors.Join(err, b.change.Unchanged())
}

// syncChunk is how many services are changed in one step: enough for whole
// batches, and little room for the old and the new rows at once.
const syncChunk = 2048

func (b *Balancer) sync(all []Service, stay map[string]bool, fronts map[bpf.TableFrontendKey]string) (done maps.Changes, err error) {
	var leaving []string
	for name := range b.services {
		if !stay[name] {
			leaving = append(leaving, name)
		}
	}
	slices.Sort(leaving)
	later, errs := b.setAll(all, fronts, &done)
	for chunk := range slices.Chunk(leaving, syncChunk) {
		var plan []planned
		for _, name := range chunk {
			plan = append(plan, planned{change: change{name: name, old: b.services[name].rows}})
		}
		if err := b.carryOut(plan); err != nil {
			errs = append(errs, err)
			continue
		}
		done.Deleted += len(plan)
	}
	// There is room now for some that had none.
	failed, more := b.setAll(later, fronts, &done)
	errs = append(errs, more...)
	for _, s := range failed {
		errs = append(errs, fmt.Errorf("service %q: %w", s.Name, unix.E2BIG))
	}
	return done, errors.Join(errs...)
}

// setAll sets services, many in one step. It returns those for which there was
// no room, and what stood against others.
func (b *Balancer) setAll(all []Service, fronts map[bpf.TableFrontendKey]string, done *maps.Changes) (full []Service, errs []error) {
	for chunk := range slices.Chunk(all, syncChunk) {
		var plan []planned
		for _, s := range chunk {
			c, err := b.changeTo(s, fronts)
			if err != nil {
				errs = append(errs, fmt.Errorf("service %q: %w", s.Name, err))
			} else if c != nil {
				plan = append(plan, planned{*c, s})
			}
		}
		if len(plan) == 0 {
			continue
		}
		if err := b.carryOut(plan); err == nil {
			done.Set += len(plan)
			continue
		}
		// Some of them do not fit: each by itself.
		for _, p := range plan {
			c, err := b.changeTo(p.spec, fronts)
			if err == nil && c != nil {
				err = b.carryOut([]planned{{*c, p.spec}})
			}
			switch {
			case err == nil:
				done.Set++
			case errors.Is(err, unix.E2BIG):
				full = append(full, p.spec)
			default:
				errs = append(errs, fmt.Errorf("service %q: %w", p.spec.Name, err))
			}
		}
	}
	return full, errs
}

// Close drops our handles; pinned tables stay, and so do the programs that use
// them. Idempotent.
func (b *Balancer) Close() error { return b.tables.close() }

// Remove takes the pins away and closes. The tables end with the last program
// that uses them.
func (b *Balancer) Remove() error { return b.tables.remove() }

// DatapathParts makes the services a block of programs.Load. It needs the flow
// table beside it, which remembers what a packet was turned into.
func (b *Balancer) DatapathParts() block.Parts {
	parts := block.Parts{Name: "services", Maps: b.tables.ebpf(), Bind: b.change.Bind}
	if b.cfg.MaglevSize != 0 {
		parts.Settings = b.settings()
	}
	return parts
}

func (b *Balancer) settings() map[string]any {
	return map[string]any{
		"with_services": uint8(1), "with_translation": uint8(1), "maglev_size": uint32(b.cfg.MaglevSize),
		"hairpin_ipv4": wire.Addr(b.cfg.Hairpin[0]), "hairpin_ipv6": wire.Addr(b.cfg.Hairpin[1]),
	}
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }
