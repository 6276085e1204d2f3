// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/block"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/bpffs"
	"github.com/godatapath/datapath/internal/node"
	"github.com/godatapath/datapath/internal/undo"
)

type (
	ebpfMap = ebpf.Map
	loader  = func() (*ebpf.CollectionSpec, error)
)

// The hooks of a node, with the names of the programs.
var (
	hookFromEndpoint = hook{"from_endpoint", bpf.TableProgramPROGRAM_FROM_ENDPOINT, Ingress, bpf.LoadFromEndpoint}
	hookToEndpoint   = hook{"to_endpoint", bpf.TableProgramPROGRAM_TO_ENDPOINT, Egress, bpf.LoadToEndpoint}
	hookFromHost     = hook{"from_host", bpf.TableProgramPROGRAM_FROM_HOST, Ingress, bpf.LoadFromHost}
	hookFromOverlay  = hook{"from_overlay", bpf.TableProgramPROGRAM_FROM_OVERLAY, Ingress, bpf.LoadFromOverlay}
	hookFromDevice   = hook{"from_device", bpf.TableProgramPROGRAM_FROM_DEVICE, Ingress, bpf.LoadFromDevice}
	hookXDP          = hook{"xdp_device", bpf.TableProgramPROGRAM_XDP, XDP, bpf.LoadXDP}
)

const (
	attachedTable      = bpf.TableMapEndpointAttached
	uplinksTable       = bpf.TableMapUplinks
	nodeAddressesTable = bpf.TableMapNodeAddresses
)

// Datapath is the programs of one node, loaded with the tables of its blocks.
// Its methods may be called concurrently.
type Datapath struct {
	cfg       Config
	state     *node.State
	attached  *ebpf.Map // endpoints whose programs are attached: ifindex to id
	endpoints *ebpf.Map // the endpoint table by ifindex, ours to close; nil: no such block
	uplinks   *ebpf.Map // ifindex to addresses
	addresses *ebpf.Map // the node's own
	programs  map[string]*ebpf.Program

	overlayPort uint16 // UDP, of the peers block; 0: there is none

	own sync.Mutex // of uplinks and addresses; taken before mu

	mu     sync.Mutex
	closed bool
	links  map[linkKey]*Attachment
	order  []linkKey // of links, the first attached first
}

type linkKey struct {
	hook    string
	ifindex int
}

// Load puts the programs into the kernel, with the tables and settings of the
// blocks. What no block brings is a dead branch that the verifier takes out.
// Nothing is attached yet. The blocks stay the caller's; the programs keep
// their tables alive on their own.
//
// An error from the verifier is in the chain as [*ebpf.VerifierError]; print it
// with %+v to get the log. A kernel that lacks a feature answers
// [ebpf.ErrNotSupported]. After an error nothing is left.
func Load(cfg Config, blocks ...Block) (_ *Datapath, err error) {
	settings, err := cfg.settings()
	if err != nil {
		return nil, fmt.Errorf("load the datapath: %w", err)
	}
	all, binds, err := parts(blocks, settings)
	if err != nil {
		return nil, fmt.Errorf("load the datapath: %w", err)
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("load the datapath: lift the limit on locked memory: %w", err)
	}
	var u undo.Stack
	defer u.Run(&err)
	d := &Datapath{cfg: cfg, programs: map[string]*ebpf.Program{}, links: map[linkKey]*Attachment{}}
	u.Push(d.release)
	if cfg.Pins != "" {
		takeBack, err := bpffs.Ensure(filepath.Join(cfg.Pins, linksFolder))
		if err != nil {
			return nil, fmt.Errorf("load the datapath: %w", explainPermission(err))
		}
		u.Push(takeBack)
		for _, name := range []string{attachedTable, uplinksTable, nodeAddressesTable, node.PinName} {
			undoNew(&u, filepath.Join(cfg.Pins, name))
		}
	}
	if d.state, err = node.New(cfg.Pins); err != nil {
		return nil, fmt.Errorf("load the datapath: %w", explainPermission(err))
	}
	all.Maps[node.MapName] = d.state.Map()
	if err := d.cookie(); err != nil {
		return nil, fmt.Errorf("load the datapath: %w", err)
	}
	if d.attached, err = makeAttached(cfg.Pins, all.Maps[bpf.TableMapEndpointByIfindex]); err != nil {
		return nil, fmt.Errorf("load the datapath: %w", err)
	}
	all.Maps[attachedTable] = d.attached
	if d.uplinks, err = makeOwn(cfg.Pins, uplinksTable); err != nil {
		return nil, fmt.Errorf("load the datapath: %w", err)
	}
	if d.addresses, err = makeOwn(cfg.Pins, nodeAddressesTable); err != nil {
		return nil, fmt.Errorf("load the datapath: %w", err)
	}
	all.Maps[uplinksTable], all.Maps[nodeAddressesTable] = d.uplinks, d.addresses
	if m := all.Maps[bpf.TableMapEndpointByIfindex]; m != nil {
		if d.endpoints, err = m.Clone(); err != nil {
			return nil, fmt.Errorf("load the datapath: hold the endpoint table: %w", err)
		}
	}
	d.overlayPort, _ = all.Settings[bpf.FromOverlayVarOverlayPort].(uint16)
	if err := d.load(all); err != nil {
		return nil, explainPermission(err)
	}
	if d.endpoints != nil {
		if err := d.prune(); err != nil {
			return nil, fmt.Errorf("load the datapath: %w", err)
		}
	}
	if err := d.pruneUplinks(); err != nil {
		return nil, fmt.Errorf("load the datapath: %w", err)
	}
	for _, bind := range binds {
		bind(d.state.Bump)
	}
	// The programs may meet verdicts of earlier ones, found with other settings.
	if err := d.state.Bump(); err != nil {
		return nil, err
	}
	return d, nil
}

// undoNew takes the file at path away if the load fails, unless it was there
// before: then it belongs to programs that run.
func undoNew(u *undo.Stack, path string) {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return
	}
	u.Push(func() error {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	})
}

// hooks are those that can be used with what the blocks bring.
func (d *Datapath) hooks(all block.Parts) []hook {
	hooks := []hook{hookFromHost}
	if d.endpoints != nil {
		hooks = append(hooks, d.endpointHooks()...)
	}
	if all.Maps[bpf.TableMapPeers] != nil {
		hooks = append(hooks, hookFromOverlay)
	}
	if all.Maps[bpf.TableMapFlows] != nil {
		hooks = append(hooks, hookFromDevice)
		if d.cfg.XDP {
			hooks = append(hooks, hookXDP)
		}
	}
	return hooks
}

// load makes the tables, and then loads the programs, all at the same time: the
// verifier is what takes long. Tables that no block brings are made here, as the C
// describes them: those of a block that is absent, of one entry, which no code
// uses, and the programs' own room for drafts.
func (d *Datapath) load(all block.Parts) error {
	hooks := d.hooks(all)
	specs, kernel, err := readObjects(hooks)
	if err != nil {
		return err
	}
	tables := &ebpf.CollectionSpec{Maps: map[string]*ebpf.MapSpec{}, Variables: map[string]*ebpf.VariableSpec{}}
	replace, used := map[string]*ebpf.Map{}, map[string]bool{}
	for i, h := range hooks {
		spec := specs[i]
		for name, value := range all.Settings {
			if v := spec.Variables[name]; v != nil {
				used[name] = true
				if err := v.Set(value); err != nil {
					return fmt.Errorf("load %s: setting %s: %w", h.name, name, err)
				}
			}
		}
		for name, v := range ownSettings(h, spec) {
			tables.Variables[h.name+" "+name] = v
		}
		for name, ms := range spec.Maps {
			if m := all.Maps[name]; m != nil {
				ms.MaxEntries, ms.Flags = m.MaxEntries(), m.Flags()
				replace[name] = m
			}
			tables.Maps[name] = ms
		}
		tables.ByteOrder = spec.ByteOrder
	}
	for name := range all.Settings {
		if !used[name] {
			return fmt.Errorf("load the datapath: no program knows the setting %s", name)
		}
	}
	made, err := ebpf.NewCollectionWithOptions(tables, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return fmt.Errorf("load the datapath: %w", err)
	}
	defer made.Close()
	return d.loadPrograms(hooks, specs, made.Maps, kernel)
}

// loadPrograms loads the programs of all hooks at the same time. What one lacks the
// others mostly lack too, so the first error stands for all.
func (d *Datapath) loadPrograms(hooks []hook, specs []*ebpf.CollectionSpec, tables map[string]*ebpf.Map, kernel *btf.Cache) (err error) {
	var running sync.WaitGroup
	loaded, errs := make([]*ebpf.Program, len(hooks)), make([]error, len(hooks))
	for i, h := range hooks {
		running.Go(func() {
			loaded[i], errs[i] = loadProgram(h, specs[i], tables, kernel)
		})
	}
	running.Wait()
	for i, h := range hooks {
		if errs[i] == nil {
			d.programs[h.name] = loaded[i]
		} else if err == nil {
			err = errs[i]
		}
	}
	return err
}

// loadProgram loads the program of a hook with tables that are there.
func loadProgram(h hook, spec *ebpf.CollectionSpec, tables map[string]*ebpf.Map, kernel *btf.Cache) (*ebpf.Program, error) {
	spec.Variables = nil // they are in the tables
	mine := map[string]*ebpf.Map{}
	for name := range spec.Maps {
		mine[name] = tables[name]
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: mine, Cache: kernel})
	if err != nil {
		return nil, fmt.Errorf("load the datapath: %w", err)
	}
	defer coll.Close()
	return coll.DetachProgram(h.name), nil
}

// readObjects reads the objects of the hooks and the kernel's BTF, at the same time.
func readObjects(hooks []hook) (specs []*ebpf.CollectionSpec, kernel *btf.Cache, err error) {
	var running sync.WaitGroup
	kernel = btf.NewCache()
	running.Go(func() { _, _ = kernel.Kernel() }) // who needs it asks again, and is told what is wrong
	specs = make([]*ebpf.CollectionSpec, len(hooks))
	errs := make([]error, len(hooks))
	for i, h := range hooks {
		running.Go(func() {
			if specs[i], errs[i] = h.load(); errs[i] != nil {
				errs[i] = fmt.Errorf("load %s: read the object: %w", h.name, errs[i])
			}
		})
	}
	running.Wait()
	return specs, kernel, errors.Join(errs...)
}

// ownSettings gives an object's settings a table of their own, and returns them:
// the compiler lays them out in the order in which each object uses them.
func ownSettings(h hook, spec *ebpf.CollectionSpec) map[string]*ebpf.VariableSpec {
	settings := map[string]*ebpf.VariableSpec{}
	const common = ".rodata.config"
	own := ".rodata." + h.name
	ms := spec.Maps[common]
	ms.Name = own
	spec.Maps[own] = ms
	delete(spec.Maps, common)
	for name, v := range spec.Variables {
		if v.SectionName == common {
			v.SectionName = own
			settings[name] = v
		}
	}
	for i, ins := range spec.Programs[h.name].Instructions {
		if ins.Reference() == common {
			spec.Programs[h.name].Instructions[i] = ins.WithReference(own)
		}
	}
	return settings
}

// makeAttached makes, or opens, the table of the endpoints that may be reached.
func makeAttached(pins string, endpoints *ebpf.Map) (*ebpf.Map, error) {
	spec, err := bpf.LoadTable()
	if err != nil {
		return nil, fmt.Errorf("read the tables object: %w", err)
	}
	ms := spec.Maps[attachedTable]
	if endpoints != nil {
		ms.MaxEntries = endpoints.MaxEntries()
	}
	if pins == "" {
		m, err := ebpf.NewMap(ms)
		if err != nil {
			return nil, fmt.Errorf("make table %s: %w", attachedTable, err)
		}
		return m, nil
	}
	path := filepath.Join(pins, attachedTable)
	old, err := ebpf.LoadPinnedMap(path, nil)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return pinNew(ms, path, nil)
	case err != nil:
		return nil, fmt.Errorf("open table %s: %w", path, err)
	case ms.Compatible(old) == nil:
		return old, nil
	}
	// The endpoint table has another size now. What runs goes on with the old
	// table until it is replaced.
	defer old.Close()
	if ms.MaxEntries = old.MaxEntries(); ms.Compatible(old) != nil {
		return nil, fmt.Errorf("open table %s: it is not ours, take it away: %w", path, ms.Compatible(old))
	}
	ms.MaxEntries = endpoints.MaxEntries()
	return pinNew(ms, path, old)
}

// makeOwn makes, or opens, a table of the programs' own.
func makeOwn(pins, name string) (*ebpf.Map, error) {
	spec, err := bpf.LoadTable()
	if err != nil {
		return nil, fmt.Errorf("read the tables object: %w", err)
	}
	ms := spec.Maps[name]
	if pins == "" {
		m, err := ebpf.NewMap(ms)
		if err != nil {
			return nil, fmt.Errorf("make table %s: %w", name, err)
		}
		return m, nil
	}
	path := filepath.Join(pins, name)
	old, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return pinNew(ms, path, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("open table %s: %w", path, err)
	}
	if err := ms.Compatible(old); err != nil {
		return nil, errors.Join(fmt.Errorf("open table %s: it is not ours, take it away: %w", path, err), old.Close())
	}
	return old, nil
}

// pinNew makes a table with the entries of old, which may be nil, and puts it at
// path in one step. An entry for which there is no room is of an endpoint that
// is gone.
func pinNew(ms *ebpf.MapSpec, path string, old *ebpf.Map) (_ *ebpf.Map, err error) {
	var u undo.Stack
	defer u.Run(&err)
	m, err := ebpf.NewMap(ms)
	if err != nil {
		return nil, fmt.Errorf("make table %s: %w", ms.Name, err)
	}
	u.Push(m.Close)
	if old != nil {
		var ifindex, id uint32
		all := old.Iterate()
		for all.Next(&ifindex, &id) {
			if err := m.Put(ifindex, id); err != nil && !errors.Is(err, unix.E2BIG) {
				return nil, fmt.Errorf("carry over an entry of table %s: %w", path, err)
			}
		}
		if err := all.Err(); err != nil {
			return nil, fmt.Errorf("read table %s: %w", path, err)
		}
	}
	aside := path + "-next"
	if err := os.Remove(aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("take away what a crash has left: %w", err)
	}
	c, err := m.Clone() // Pin notes the path, and a Close of ours must not care
	if err != nil {
		return nil, fmt.Errorf("pin table %s: %w", path, err)
	}
	defer c.Close()
	if err := c.Pin(aside); err != nil {
		return nil, fmt.Errorf("pin table %s: %w", path, err)
	}
	if err := os.Rename(aside, path); err != nil {
		return nil, errors.Join(fmt.Errorf("pin table %s: %w", path, err), os.Remove(aside))
	}
	return m, nil
}

// explainPermission adds what to do to an error that says no.
func explainPermission(err error) error {
	var verifier *ebpf.VerifierError // it says no in the same words, about something else
	if errors.Is(err, os.ErrPermission) && !errors.As(err, &verifier) {
		return fmt.Errorf("%w (root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and for pins CAP_SYS_ADMIN, are needed)", err)
	}
	return err
}

// Program returns a loaded program by the name of its hook, for example
// "from_endpoint": to be run by a test or to be an anchor for another one. It
// is borrowed. Nil if there is none of that name, or if it is of no use with the
// blocks of this load.
func (d *Datapath) Program(name string) *ebpf.Program { return d.programs[name] }

// Bump ends the epoch of the cached verdicts: the next packet of every flow is
// judged anew. The blocks do this themselves after a change of theirs; it is
// for a change that they can not see, such as one of the node's routes.
func (d *Datapath) Bump() error { return d.state.Bump() }

// Close drops our handles. What is pinned goes on; what is not is taken off its
// device, last attached first, and the programs end. Idempotent.
func (d *Datapath) Close() error {
	d.own.Lock()
	defer d.own.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return d.release()
}

func (d *Datapath) release() error {
	var errs []error
	for _, key := range slices.Backward(d.order) {
		errs = append(errs, d.links[key].Close())
	}
	d.links, d.order = nil, nil
	for _, p := range d.programs {
		errs = append(errs, p.Close())
	}
	for _, m := range []*ebpf.Map{d.attached, d.endpoints, d.uplinks, d.addresses} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	if d.state != nil {
		errs = append(errs, d.state.Close())
	}
	return errors.Join(errs...)
}

// Remove takes the programs off all devices, with their pins and the node's
// state, and closes. The blocks' tables are theirs to remove.
func (d *Datapath) Remove() error {
	d.own.Lock()
	defer d.own.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("remove the datapath: %w", os.ErrClosed)
	}
	d.closed = true
	var errs []error
	for _, key := range slices.Backward(d.order) {
		errs = append(errs, d.links[key].Remove())
	}
	d.links, d.order = nil, nil
	if d.cfg.Pins != "" {
		errs = append(errs, removePinnedLinks(d.cfg.Pins))
		for _, name := range []string{attachedTable, uplinksTable, nodeAddressesTable, node.PinName} {
			if err := os.Remove(filepath.Join(d.cfg.Pins, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove the datapath: %w", err))
			}
		}
	}
	return errors.Join(append(errs, d.release())...)
}
