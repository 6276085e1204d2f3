// SPDX-License-Identifier: Apache-2.0

// Package node is the state of a running node that its programs read on every
// packet: the epoch of the cached verdicts and the devices of the node. It
// lives in a map that is mapped into our memory, so a change is one store.
package node

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
)

// MapName is the state's name in the compiled objects, PinName its file.
const (
	MapName = ".data.node"
	PinName = "node"
)

// kernelName is what the kernel calls the state, which tells it from tables of
// others. The number at its end is the version of the layout and of what its
// fields mean: raise it when a state written before must not be read as it is.
const kernelName = "node_state_1"

// State is the state of one node. Its methods may be called concurrently.
type State struct {
	mu  sync.Mutex
	m   *ebpf.Map
	mem []byte
}

// New makes the state of a node, or opens the one that is pinned in the folder
// pins. An empty folder means that nothing is pinned. What is pinned there and is
// no state of this version is left alone, and the error is
// ebpf.ErrMapIncompatible.
func New(pins string) (*State, error) {
	if pins != "" {
		s, err := Open(pins)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return s, err
		}
	}
	ms, err := mapSpec()
	if err != nil {
		return nil, err
	}
	m, err := ebpf.NewMap(ms)
	if err != nil {
		return nil, fmt.Errorf("make the node's state: %w", err)
	}
	s, err := wrap(m)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	// Flows may outlive a lost state: do not start with an epoch of theirs.
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return nil, errors.Join(fmt.Errorf("make the node's state: %w", err), s.Close())
	}
	atomic.StoreUint32(&s.view().Epoch, uint32(now.Nano()>>16)|1)
	if pins != "" {
		if err := m.Pin(filepath.Join(pins, PinName)); err != nil {
			return nil, errors.Join(fmt.Errorf("pin the node's state: %w", err), s.Close())
		}
	}
	return s, nil
}

func mapSpec() (*ebpf.MapSpec, error) {
	spec, err := bpf.LoadTable()
	if err != nil {
		return nil, fmt.Errorf("read the tables object: %w", err)
	}
	ms := spec.Maps[MapName]
	ms.Name = kernelName
	ms.Flags |= unix.BPF_F_MMAPABLE
	return ms, nil
}

// Open opens the pinned state of a node. An absent one answers os.ErrNotExist,
// another table in its place ebpf.ErrMapIncompatible.
func Open(pins string) (*State, error) {
	path := filepath.Join(pins, PinName)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, fmt.Errorf("open the node's state %s: %w", path, err)
	}
	if err := check(m); err != nil {
		return nil, errors.Join(fmt.Errorf("open the node's state %s: %w", path, err), m.Close())
	}
	s, err := wrap(m)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the node's state %s: %w", path, err), m.Close())
	}
	return s, nil
}

// check refuses a table that is not a state of this version, before anything is
// written to it.
func check(m *ebpf.Map) error {
	want, err := mapSpec()
	if err != nil {
		return err
	}
	info, err := m.Info()
	if err != nil {
		return fmt.Errorf("ask the kernel about it: %w", err)
	}
	var diffs []string
	differ := func(what string, have, want any) {
		if have != want {
			diffs = append(diffs, fmt.Sprintf("%s: have %v, want %v", what, have, want))
		}
	}
	differ("name", info.Name, want.Name)
	differ("type", info.Type, want.Type)
	differ("key size", info.KeySize, want.KeySize)
	differ("value size", info.ValueSize, want.ValueSize)
	differ("max entries", info.MaxEntries, want.MaxEntries)
	differ("flags", info.Flags, want.Flags)
	if len(diffs) > 0 {
		return fmt.Errorf("%s: another version or somebody else has made it, stop what uses it and remove it: %w", strings.Join(diffs, "; "), ebpf.ErrMapIncompatible)
	}
	return nil
}

func wrap(m *ebpf.Map) (*State, error) {
	mem, err := unix.Mmap(m.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the node's state into memory: %w", err)
	}
	return &State{m: m, mem: mem}, nil
}

func (s *State) view() *bpf.TableNodeState {
	return (*bpf.TableNodeState)(unsafe.Pointer(&s.mem[0]))
}

// Map is the table itself, borrowed.
func (s *State) Map() *ebpf.Map { return s.m }

// Bump ends the current epoch: every cached verdict is judged again when its
// next packet comes. It is called after a change, once for all of its parts.
func (s *State) Bump() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem == nil {
		return fmt.Errorf("bump the epoch: %w", os.ErrClosed)
	}
	// 0 marks an entry to look at closely and is never an epoch.
	for atomic.AddUint32(&s.view().Epoch, 1) == 0 {
	}
	return nil
}

// SetHost tells the programs the host pair, by ifindex, with the address of
// its near end. Zero means that there is none. What they know already is left
// alone: packets are on the way.
func (s *State) SetHost(host, net uint32, mac net.HardwareAddr) error {
	known := false
	if err := s.update(func(n *bpf.TableNodeState) {
		if known = n.HostIfindex == host && n.NetIfindex == net && bytes.Equal(n.HostMac[:], mac); known {
			return
		}
		// Whole before it is found: the programs look at the index first.
		atomic.StoreUint32(&n.HostIfindex, 0)
		copy(n.HostMac[:], mac)
		atomic.StoreUint32(&n.NetIfindex, net)
		atomic.StoreUint32(&n.HostIfindex, host)
	}); err != nil || known {
		return err
	}
	return s.Bump()
}

// SetOverlay tells the programs the overlay device. Zero means none.
func (s *State) SetOverlay(ifindex uint32) error {
	known := false
	if err := s.update(func(n *bpf.TableNodeState) {
		known = atomic.SwapUint32(&n.OverlayIfindex, ifindex) == ifindex
	}); err != nil || known {
		return err
	}
	return s.Bump()
}

// SetUplinks tells the programs how many ways out of the node there are, and
// ends the epoch: one of them has changed.
func (s *State) SetUplinks(n uint16) error {
	if err := s.update(func(st *bpf.TableNodeState) { st.Uplinks = n }); err != nil {
		return err
	}
	return s.Bump()
}

// SetCookie notes the network namespace that the node is in.
func (s *State) SetCookie(cookie uint64) error {
	return s.update(func(n *bpf.TableNodeState) { atomic.StoreUint64(&n.NetnsCookie, cookie) })
}

func (s *State) update(fn func(*bpf.TableNodeState)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem == nil {
		return fmt.Errorf("change the node's state: %w", os.ErrClosed)
	}
	fn(s.view())
	return nil
}

// Get returns a copy of the state.
func (s *State) Get() (bpf.TableNodeState, error) {
	var out bpf.TableNodeState
	err := s.update(func(n *bpf.TableNodeState) { out = *n })
	return out, err
}

// Close drops our handles. It is idempotent. A pinned state stays.
func (s *State) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem == nil {
		return nil
	}
	err := unix.Munmap(s.mem)
	s.mem = nil
	return errors.Join(err, s.m.Close())
}
