// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
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
	hookFromUnderlay = hook{"from_underlay", bpf.TableProgramPROGRAM_FROM_UNDERLAY, Ingress, bpf.LoadFromUnderlay}
)

const attachedTable = bpf.TableMapEndpointAttached

// Datapath is the programs of one node, loaded with the tables of its blocks.
// Its methods may be called concurrently.
type Datapath struct {
	cfg       Config
	state     *node.State
	attached  *ebpf.Map // endpoints whose programs are attached: ifindex to id
	endpoints *ebpf.Map // the endpoint table by ifindex, ours to close; nil: no such block
	programs  map[string]*ebpf.Program

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
		if err := bpffs.Check(cfg.Pins); err != nil {
			return nil, fmt.Errorf("load the datapath: %w", err)
		}
		for _, name := range []string{attachedTable, node.PinName, linksFolder} {
			undoNew(&u, filepath.Join(cfg.Pins, name))
		}
		if err := os.MkdirAll(filepath.Join(cfg.Pins, linksFolder), 0o700); err != nil {
			return nil, fmt.Errorf("load the datapath: make the folder of the pinned links: %w", err)
		}
	}
	if d.state, err = node.New(cfg.Pins); err != nil {
		return nil, fmt.Errorf("load the datapath: %w", err)
	}
	all.Maps[node.MapName] = d.state.Map()
	if err := d.cookie(); err != nil {
		return nil, fmt.Errorf("load the datapath: %w", err)
	}
	if d.attached, err = makeAttached(cfg.Pins, all.Maps[bpf.TableMapEndpointByIfindex]); err != nil {
		return nil, fmt.Errorf("load the datapath: %w", err)
	}
	all.Maps[attachedTable] = d.attached
	if m := all.Maps[bpf.TableMapEndpointByIfindex]; m != nil {
		if d.endpoints, err = m.Clone(); err != nil {
			return nil, fmt.Errorf("load the datapath: hold the endpoint table: %w", err)
		}
	}
	if err := d.load(all); err != nil {
		return nil, err
	}
	if d.endpoints != nil {
		if err := d.prune(); err != nil {
			return nil, fmt.Errorf("load the datapath: %w", err)
		}
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
		if all.Settings[bpf.FromUnderlayVarOverlayNode] != nil && all.Maps[bpf.TableMapFlows] != nil {
			hooks = append(hooks, hookFromUnderlay)
		}
	}
	return hooks
}

// load loads the programs. Tables that no block brings are made here, as the C
// describes them: those of a block that is absent, of one entry, which no code
// uses, and the programs' own room for drafts.
func (d *Datapath) load(all block.Parts) (err error) {
	standIns := map[string]*ebpf.Map{}
	defer func() {
		for _, m := range standIns {
			err = errors.Join(err, m.Close())
		}
	}()
	used := map[string]bool{}
	for _, h := range d.hooks(all) {
		spec, err := h.load()
		if err != nil {
			return fmt.Errorf("load %s: read the object: %w", h.name, err)
		}
		for name, value := range all.Settings {
			if v := spec.Variables[name]; v != nil {
				used[name] = true
				if err := v.Set(value); err != nil {
					return fmt.Errorf("load %s: setting %s: %w", h.name, name, err)
				}
			}
		}
		replace := map[string]*ebpf.Map{}
		for name, ms := range spec.Maps {
			if name == ".rodata.config" {
				continue
			}
			m := all.Maps[name]
			if m == nil {
				if m = standIns[name]; m == nil {
					if strings.HasPrefix(name, ".data.") {
						ms.Flags |= unix.BPF_F_MMAPABLE // as the loader will ask of it
					}
					if m, err = ebpf.NewMap(ms); err != nil {
						return fmt.Errorf("load %s: make the stand-in for table %s: %w", h.name, name, err)
					}
					standIns[name] = m
				}
			}
			ms.MaxEntries, ms.Flags = m.MaxEntries(), m.Flags()
			replace[name] = m
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
		if err != nil {
			return fmt.Errorf("load %s: %w", h.name, err)
		}
		d.programs[h.name] = coll.DetachProgram(h.name)
		coll.Close()
	}
	for name := range all.Settings {
		if !used[name] {
			return fmt.Errorf("load the datapath: no program knows the setting %s", name)
		}
	}
	return nil
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
	var opts ebpf.MapOptions
	if pins != "" {
		ms.Pinning = ebpf.PinByName
		opts.PinPath = pins
	}
	m, err := ebpf.NewMapWithOptions(ms, opts)
	if err != nil {
		return nil, fmt.Errorf("make table %s: %w", attachedTable, err)
	}
	return m, nil
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
	for _, m := range []*ebpf.Map{d.attached, d.endpoints} {
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
		for _, name := range []string{attachedTable, node.PinName} {
			if err := os.Remove(filepath.Join(d.cfg.Pins, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove the datapath: %w", err))
			}
		}
	}
	return errors.Join(append(errs, d.release())...)
}
