// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func pins(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bpf")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, unix.Mount("bpffs", dir, "bpf", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	return dir
}

func newState(t *testing.T, pins string) *State {
	t.Helper()
	s, err := New(pins)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func epochOf(t *testing.T, s *State) uint32 {
	t.Helper()
	n, err := s.Get()
	require.NoError(t, err)
	return n.Epoch
}

func TestState(t *testing.T) {
	t.Parallel()
	s := newState(t, "")
	first := epochOf(t, s)
	assert.NotZero(t, first)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	require.NoError(t, s.SetHost(4, 5, mac))
	require.NoError(t, s.SetOverlay(6))
	require.NoError(t, s.SetCookie(7))
	n, err := s.Get()
	require.NoError(t, err)
	assert.Equal(t, []uint32{4, 5, 6, first + 2}, []uint32{n.HostIfindex, n.NetIfindex, n.OverlayIfindex, n.Epoch})
	assert.Equal(t, uint64(7), n.NetnsCookie)
	assert.Equal(t, mac, net.HardwareAddr(n.HostMac[:]))
	var inKernel [32]byte
	require.NoError(t, s.Map().Lookup(uint32(0), &inKernel), "the memory is the table")
	assert.EqualValues(t, 4, inKernel[4])

	require.NoError(t, s.SetHost(4, 5, mac))
	require.NoError(t, s.SetOverlay(6))
	assert.Equal(t, first+2, epochOf(t, s), "nothing has changed")
	require.NoError(t, s.SetHost(4, 5, net.HardwareAddr{2, 0, 0, 0, 0, 2}))
	require.NoError(t, s.SetOverlay(0))
	assert.Equal(t, first+4, epochOf(t, s))
	require.NoError(t, s.Bump())
	assert.Equal(t, first+5, epochOf(t, s))

	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	_, err = s.Get()
	for _, err := range []error{err, s.Bump(), s.SetHost(1, 2, mac), s.SetOverlay(1), s.SetCookie(1)} {
		require.ErrorIs(t, err, os.ErrClosed)
	}
}

// 0 marks entries and is never an epoch.
func TestEpochPassesOverZero(t *testing.T) {
	t.Parallel()
	s := newState(t, "")
	atomic.StoreUint32(&s.view().Epoch, ^uint32(0))
	require.NoError(t, s.Bump())
	assert.Equal(t, uint32(1), epochOf(t, s))
}

func TestPinnedState(t *testing.T) {
	t.Parallel()
	dir := pins(t)
	_, err := Open(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	s := newState(t, dir)
	require.NoError(t, s.SetOverlay(9))
	epoch := epochOf(t, s)
	require.NoError(t, s.Close())
	again := newState(t, dir)
	n, err := again.Get()
	require.NoError(t, err)
	assert.Equal(t, uint32(9), n.OverlayIfindex)
	assert.Equal(t, epoch, n.Epoch)

	// A folder that is none for pins leaves nothing.
	_, err = New(t.TempDir())
	require.ErrorContains(t, err, "pin the node's state")
}

// Only a state of this version is written to: each property is looked at, and
// the error names those that differ.
func TestAnotherTableIsNoState(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*ebpf.MapSpec){
		"":                                     func(*ebpf.MapSpec) {},
		"name: have node, want node_state_1":   func(ms *ebpf.MapSpec) { ms.Name = "node" },
		"name: have node_state_2, want":        func(ms *ebpf.MapSpec) { ms.Name = "node_state_2" },
		"type: have Hash, want Array":          func(ms *ebpf.MapSpec) { ms.Type, ms.Flags = ebpf.Hash, 0 },
		"key size: have 8, want 4":             func(ms *ebpf.MapSpec) { ms.Type, ms.Flags, ms.KeySize = ebpf.Hash, 0, 8 },
		"value size: have 40, want 32":         func(ms *ebpf.MapSpec) { ms.ValueSize = 40 },
		"value size: have 24, want 32":         func(ms *ebpf.MapSpec) { ms.ValueSize = 24 },
		"max entries: have 2, want 1":          func(ms *ebpf.MapSpec) { ms.MaxEntries = 2 },
		"flags: have 0, want 1024":             func(ms *ebpf.MapSpec) { ms.Flags = 0 },
		"value size: have 33, want 32; max en": func(ms *ebpf.MapSpec) { ms.ValueSize, ms.MaxEntries = 33, 3 },
	} {
		dir := pins(t)
		ms, err := mapSpec()
		require.NoError(t, err)
		ms.Key, ms.Value, ms.Contents = nil, nil, nil
		change(ms)
		m, err := ebpf.NewMap(ms)
		require.NoError(t, err)
		path := filepath.Join(dir, PinName)
		require.NoError(t, m.Pin(path))
		for _, open := range []func(string) (*State, error){New, Open} {
			s, err := open(dir)
			if want == "" {
				require.NoError(t, err)
				require.NoError(t, s.Close())
				continue
			}
			require.ErrorIs(t, err, ebpf.ErrMapIncompatible)
			require.ErrorContains(t, err, "open the node's state "+path+": ")
			require.ErrorContains(t, err, want)
			require.ErrorContains(t, err, "remove it")
		}
		if want != "" {
			require.ErrorIs(t, NewEpoch(dir).Unchanged(), ebpf.ErrMapIncompatible, "nor does a table announce to it")
		}
		assert.FileExists(t, path)
		require.NoError(t, m.Close())
	}
}

func TestStateConcurrently(t *testing.T) {
	t.Parallel()
	s := newState(t, "")
	first := epochOf(t, s)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				assert.NoError(t, s.Bump())
				_, err := s.Get()
				assert.NoError(t, err)
			}
		})
	}
	wg.Wait()
	assert.Equal(t, first+2000, epochOf(t, s))
}

func TestEpochOfATable(t *testing.T) {
	t.Parallel()
	e := NewEpoch("")
	require.NoError(t, e.Changed(), "nobody is there to tell")
	calls, err := [2]int{}, [2]error{}
	for i := range calls {
		e.Bind(func() error { calls[i]++; return err[i] })
	}
	require.NoError(t, e.Unchanged())
	assert.Equal(t, [2]int{}, calls)
	require.NoError(t, e.Changed())
	assert.Equal(t, [2]int{1, 1}, calls, "a table of two nodes")
	err[1] = errors.New("not today")
	require.ErrorIs(t, e.Changed(), err[1])
	require.ErrorIs(t, e.Unchanged(), err[1], "it is still due")
	err[1] = nil
	require.NoError(t, e.Unchanged())
	assert.Equal(t, [2]int{4, 4}, calls)
	require.NoError(t, e.Unchanged())
	assert.Equal(t, [2]int{4, 4}, calls)
	err[0] = os.ErrClosed
	require.NoError(t, e.Changed())
	require.NoError(t, e.Changed())
	assert.Equal(t, [2]int{5, 6}, calls, "one that is closed is asked no more")
}

func TestEpochOfAPinnedTable(t *testing.T) {
	t.Parallel()
	dir := pins(t)
	s := newState(t, dir)
	first := epochOf(t, s)
	e := NewEpoch(dir)
	require.NoError(t, e.Unchanged())
	assert.Equal(t, first+1, epochOf(t, s), "whoever wrote before us may have been killed before he told")
	require.NoError(t, e.Unchanged())
	assert.Equal(t, first+1, epochOf(t, s))
	require.NoError(t, e.Changed())
	assert.Equal(t, first+2, epochOf(t, s))
	bound := 0
	e.Bind(func() error { bound++; return nil })
	require.NoError(t, e.Changed())
	assert.Equal(t, 1, bound)
	assert.Equal(t, first+2, epochOf(t, s), "the node's own programs are told once")

	// A datapath that was closed may have left its programs running by their pins.
	e = NewEpoch(dir)
	e.Bind(func() error { return os.ErrClosed })
	require.NoError(t, e.Unchanged())
	require.NoError(t, e.Changed())
	assert.Equal(t, first+3, epochOf(t, s))
}
