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

// rest is how long the identifier of a backend or a service is not given to another
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
	sets       map[uint32]bool // that are in use
	services   map[string]*kept
	owners     map[bpf.TableFrontendKey]string // of frontends on this node
	backendIDs map[netip.AddrPort]uint32
	backendUse map[netip.AddrPort]int // services that have it
	addrUse    map[bpf.TableAddress]addrUse
	sockets    []*Sockets
	bound      bool // packets are translated too
	closed     bool
}

// kept is a service as it is.
type kept struct {
	spec     Service
	rows     *compiled
	draining map[netip.AddrPort]time.Time // since when
	doubtful bool                         // the rows may not be what the spec says
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
		return nil, fmt.Errorf("make the services: %w", err)
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
		backendUse: map[netip.AddrPort]int{}, addrUse: map[bpf.TableAddress]addrUse{}, sets: map[uint32]bool{},
	}
}

// SetService makes the service be as described, as a whole: a packet sees it as
// it was or as it is. Established flows go on, but for those of backends that it
// leaves out, see Service.OnRemove. A service that is the same already disturbs
// nothing.
//
// A frontend that another service has is os.ErrExist, tables that are full are
// unix.E2BIG, input that can not be used is os.ErrInvalid. After an error all is
// as before, unless it says that the change is done.
func (b *Balancer) SetService(s Service) error {
	if b.cfg.MaglevSize == 0 {
		return invalid.Errorf("set service %q: the services were opened for reading", s.Name)
	}
	s, err := s.check(b.cfg)
	if err != nil {
		return fmt.Errorf("set %w", err)
	}
	if err := b.enter(); err != nil {
		return fmt.Errorf("set service %q: %w", s.Name, err)
	}
	defer b.mu.Unlock()
	c, err := b.changeTo(s, nil)
	if err != nil {
		return fmt.Errorf("set service %q: %w", s.Name, err)
	}
	if c == nil {
		return b.change.Unchanged()
	}
	p := planned{change: *c, spec: s}
	gone := b.departures(p)
	applied, err := b.carryOut([]planned{p})
	if applied {
		err = errors.Join(err, b.settle(gone))
	}
	if err != nil {
		return fmt.Errorf("set service %q: %w", s.Name, err)
	}
	return nil
}

// settle makes a change count for the flows there are, and does with those of
// backends that have gone what is to be done.
func (b *Balancer) settle(gone []departure) error {
	err := b.change.Changed()
	for _, d := range gone {
		if _, e := b.leave(d); e != nil {
			err = errors.Join(err, fmt.Errorf("it is done, but: service %q: %w", d.spec.Name, e))
		}
	}
	return err
}

// DeleteService takes a service away, and its flows as its OnRemove says. Nil if
// there is none of the name.
func (b *Balancer) DeleteService(name string) error {
	if b.cfg.MaglevSize == 0 {
		return invalid.Errorf("delete service %q: the services were opened for reading", name)
	}
	if err := b.enter(); err != nil {
		return fmt.Errorf("delete service %q: %w", name, err)
	}
	defer b.mu.Unlock()
	old := b.services[name]
	if old == nil {
		return b.change.Unchanged()
	}
	p := planned{change: change{name: name, old: old.rows}}
	gone := b.departures(p)
	applied, err := b.carryOut([]planned{p})
	if applied {
		err = errors.Join(err, b.settle(gone))
	}
	if err != nil {
		return fmt.Errorf("delete service %q: %w", name, err)
	}
	return nil
}

// planned is a change with what the service is afterwards.
type planned struct {
	change
	spec Service
}

// carryOut applies changes and keeps what has become of the services. What could
// not be taken away behind a change is the error of one that is applied.
func (b *Balancer) carryOut(all []planned) (applied bool, err error) {
	changes := make([]change, len(all))
	for i, p := range all {
		changes[i] = p.change
	}
	if applied, err = b.apply(changes); !applied {
		for _, c := range changes {
			if c.old == nil && c.new != nil {
				b.serviceIDs.undo(c.new.id)
			}
		}
		b.forgetUnused()
		return false, err
	}
	for _, p := range all {
		b.noteSets(p.old, false)
		b.noteSets(p.new, true)
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
				b.services[was].lose(k)
			}
			b.owners[k] = p.name
		}
	}
	return true, err
}

// lose takes a frontend away that another service has now.
func (k *kept) lose(key bpf.TableFrontendKey) {
	delete(k.rows.frontends, key)
	k.spec.Frontends = slices.DeleteFunc(slices.Clone(k.spec.Frontends), func(f Frontend) bool {
		return frontendKey(f.Addr, f.Protocol) == key
	})
	k.doubtful = true
}

func (b *Balancer) noteSets(c *compiled, used bool) {
	if c == nil {
		return
	}
	for set := range c.sets() {
		if used {
			b.sets[set] = true
		} else {
			delete(b.sets, set)
		}
	}
}

// changeTo plans what makes a service be as checked; nil: it is so already. next
// are the owners of frontends that there are to be, if more than this changes.
func (b *Balancer) changeTo(s Service, next map[bpf.TableFrontendKey]string) (*change, error) {
	old := b.services[s.Name]
	isSame := old != nil && reflect.DeepEqual(old.spec, s)
	if isSame && !old.doubtful {
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
	fail := func(err error) (*change, error) {
		if old == nil {
			b.serviceIDs.undo(id)
		}
		b.forgetUnused()
		return nil, err
	}
	for _, be := range s.Backends {
		if _, err := b.backendID(be.Addr); err != nil {
			return fail(err)
		}
	}
	var err error
	if c.new, err = b.compiler().compile(id, s); err != nil {
		return fail(err)
	}
	if old != nil {
		drain(old.rows, c.new, s.OnRemove)
	}
	if err := b.check(c, next); err != nil {
		return fail(err)
	}
	if isSame && old.rows.isAs(c.new) {
		old.doubtful = false
		return nil, nil
	}
	return c, nil
}

func (b *Balancer) compiler() *compiler {
	return &compiler{
		cfg: b.cfg, clock: b.clock,
		set: func() uint32 {
			for b.lastSet++; b.lastSet == 0 || b.sets[b.lastSet]; b.lastSet++ {
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
	if err := b.enter(); err != nil {
		return maps.Changes{}, fmt.Errorf("sync the services: %w", err)
	}
	defer b.mu.Unlock()
	done, gone, err := b.sync(checked, names, fronts)
	if done != (maps.Changes{}) {
		err = errors.Join(err, b.settle(gone))
	} else {
		err = errors.Join(err, b.change.Unchanged())
	}
	if err != nil {
		err = fmt.Errorf("sync the services: %w", err)
	}
	return done, err
}

// syncChunk is how many services are changed in one step: enough for whole
// batches, and little room for the old and the new rows at once.
const syncChunk = 2048

func (b *Balancer) sync(all []Service, stay map[string]bool, fronts map[bpf.TableFrontendKey]string) (done maps.Changes, gone []departure, err error) {
	var leaving []string
	for name := range b.services {
		if !stay[name] {
			leaving = append(leaving, name)
		}
	}
	slices.Sort(leaving)
	later, gone, errs := b.setAll(all, fronts, &done)
	for chunk := range slices.Chunk(leaving, syncChunk) {
		var plan []planned
		for _, name := range chunk {
			plan = append(plan, planned{change: change{name: name, old: b.services[name].rows}})
		}
		left := b.departures(plan...)
		applied, err := b.carryOut(plan)
		errs = append(errs, err)
		if applied {
			gone = append(gone, left...)
			done.Deleted += len(plan)
		}
	}
	// There is room now for some that had none.
	failed, left, more := b.setAll(later, fronts, &done)
	gone, errs = append(gone, left...), append(errs, more...)
	for _, s := range failed {
		errs = append(errs, fmt.Errorf("service %q: a table of services is full: %w", s.Name, unix.E2BIG))
	}
	return done, gone, errors.Join(errs...)
}

// setAll sets services, many in one step. It returns those for which there was
// no room, the backends that are gone, and what stood against others.
func (b *Balancer) setAll(all []Service, fronts map[bpf.TableFrontendKey]string, done *maps.Changes) (full []Service, gone []departure, errs []error) {
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
		left := b.departures(plan...)
		if applied, err := b.carryOut(plan); applied {
			done.Set += len(plan)
			gone, errs = append(gone, left...), append(errs, err)
			continue
		}
		// Some of them do not fit: each by itself.
		for _, p := range plan {
			c, err := b.changeTo(p.spec, fronts)
			applied := false
			if err == nil && c != nil {
				one := planned{change: *c, spec: p.spec}
				left := b.departures(one)
				if applied, err = b.carryOut([]planned{one}); applied {
					gone = append(gone, left...)
				}
			}
			if applied || err == nil {
				done.Set++
			}
			switch {
			case err == nil:
			case errors.Is(err, unix.E2BIG) && !applied:
				full = append(full, p.spec)
			default:
				errs = append(errs, fmt.Errorf("service %q: %w", p.spec.Name, err))
			}
		}
	}
	return full, gone, errs
}

// Close drops our handles; pinned tables stay, and so do the programs that use
// them. Idempotent.
// Other methods answer os.ErrClosed afterwards. [Sockets] have a Close of their own.
func (b *Balancer) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return b.tables.close()
}

// enter begins a method that works on the tables, and leaves mu locked unless it
// fails.
func (b *Balancer) enter() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return fmt.Errorf("the services: %w", os.ErrClosed)
	}
	return nil
}

// Remove takes the pins away and closes. The tables end with the last program
// that uses them.
func (b *Balancer) Remove() error {
	if b.cfg.MaglevSize == 0 {
		return invalid.Errorf("remove the services: they were opened for reading")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	return b.tables.remove()
}

// DatapathParts makes the services a block of programs.Load. It needs the flow
// table beside it, which remembers what a packet was turned into.
func (b *Balancer) DatapathParts() block.Parts {
	b.mu.Lock()
	b.bound = true
	b.mu.Unlock()
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
