// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/node"
)

// HookStatus is what is attached to one side of one device, in the order in
// which the programs run.
type HookStatus struct {
	Ifindex   int
	Device    string // "" if the device is gone
	Direction Direction
	Programs  []AttachedProgram
}

// AttachedProgram is a program on a hook.
type AttachedProgram struct {
	ID     ebpf.ProgramID
	LinkID link.ID // 0: not attached by a link
	Name   string  // cut by the kernel to 15 characters
	Tag    string  // hash of its instructions
	Pin    string  // path of our pinned attachment; "" if it is not ours
}

// Hooks tells all programs on a device: tcx, both sides, in order. Classic tc
// filters run behind them and are not listed. A device that does not exist
// answers unix.ENODEV.
func Hooks(ns Namespace, ifindex int) ([]HookStatus, error) {
	var out []HookStatus
	err := Config{Namespace: ns}.do(func() error {
		name := ""
		if dev, err := net.InterfaceByIndex(ifindex); err == nil {
			name = dev.Name
		}
		for _, d := range []Direction{Ingress, Egress} {
			kind, err := d.attachType()
			if err != nil {
				return err
			}
			q, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: kind})
			if err != nil {
				return err
			}
			h := HookStatus{Ifindex: ifindex, Device: name, Direction: d}
			for _, p := range q.Programs {
				h.Programs = append(h.Programs, describe(p))
			}
			out = append(out, h)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the programs of interface %d: %w", ifindex, explainAttach(err))
	}
	return out, nil
}

func describe(p link.AttachedProgram) AttachedProgram {
	out := AttachedProgram{ID: p.ID}
	out.LinkID, _ = p.LinkID()
	prog, err := ebpf.NewProgramFromID(p.ID)
	if err != nil {
		return out // it went away in between; its number is all that is left
	}
	defer prog.Close()
	if info, err := prog.Info(); err == nil {
		out.Name, out.Tag = info.Name, info.Tag
	}
	return out
}

// Status is a node as its pins tell it.
type Status struct {
	Epoch          uint32 // of the cached verdicts
	NetnsCookie    uint64 // of the node's namespace; see devices.Namespace.Cookie
	HostIfindex    int    // 0: no host pair
	OverlayIfindex int    // 0: no overlay
	Hooks          []HookStatus
}

// ReadStatus tells what is attached on the node whose pins are in the folder:
// each hook that we are on, with who else is there. ns is the node's namespace.
// It changes nothing and needs no [Datapath].
func ReadStatus(pins string, ns Namespace) (Status, error) {
	out, err := ReadNode(pins)
	if err != nil {
		return Status{}, err
	}
	dir := filepath.Join(pins, linksFolder)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Status{}, fmt.Errorf("read the status: %w", err)
	}
	ours := map[link.ID]string{}
	devices := map[int]bool{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		l, err := link.LoadPinnedLink(path, nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return Status{}, fmt.Errorf("read the status: open the attachment at %s: %w", path, err)
		}
		info, err := l.Info()
		if err := errors.Join(err, l.Close()); err != nil {
			return Status{}, fmt.Errorf("read the status: ask the attachment at %s: %w", path, err)
		}
		ours[info.ID] = path
		if tcx := info.TCX(); tcx != nil && tcx.Ifindex != 0 {
			devices[int(tcx.Ifindex)] = true
			continue
		}
		out.Hooks = append(out.Hooks, HookStatus{Programs: []AttachedProgram{{ID: info.Program, LinkID: info.ID, Pin: path}}})
	}
	for ifindex := range devices {
		hooks, err := Hooks(ns, ifindex)
		if errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return Status{}, fmt.Errorf("read the status: %w", err)
		}
		for _, h := range hooks {
			for i, p := range h.Programs {
				h.Programs[i].Pin = ours[p.LinkID]
			}
			if len(h.Programs) > 0 {
				out.Hooks = append(out.Hooks, h)
			}
		}
	}
	slices.SortFunc(out.Hooks, func(a, b HookStatus) int {
		return cmp.Or(cmp.Compare(a.Ifindex, b.Ifindex), cmp.Compare(a.Direction, b.Direction))
	})
	return out, nil
}

// ReadNode tells the node's state alone, without its hooks. A folder without a
// node answers os.ErrNotExist.
func ReadNode(pins string) (Status, error) {
	s, err := node.Open(pins)
	if err != nil {
		return Status{}, fmt.Errorf("read the status: %w", err)
	}
	n, err := s.Get()
	if err := errors.Join(err, s.Close()); err != nil {
		return Status{}, fmt.Errorf("read the status: %w", err)
	}
	return Status{Epoch: n.Epoch, NetnsCookie: n.NetnsCookie, HostIfindex: int(n.HostIfindex), OverlayIfindex: int(n.OverlayIfindex)}, nil
}
