// SPDX-License-Identifier: Apache-2.0

package netnstest_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// newMap makes a BPF map of one number.
func newMap(t *testing.T, name string) int {
	t.Helper()
	attr := struct {
		kind, keySize, valueSize, entries, flags, inner, numa uint32
		name                                                  [16]byte
	}{kind: unix.BPF_MAP_TYPE_ARRAY, keySize: 4, valueSize: 4, entries: 1}
	copy(attr.name[:], name)
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_CREATE, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	require.Zero(t, errno)
	unix.CloseOnExec(int(fd))
	return int(fd)
}

func pin(t *testing.T, fd int, path string) {
	t.Helper()
	name := append([]byte(path), 0)
	attr := struct {
		path uint64
		fd   uint32
		_    uint32
	}{path: uint64(uintptr(unsafe.Pointer(&name[0]))), fd: uint32(fd)}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_PIN, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(name)
	require.Zero(t, errno)
}

// The tests of leaks do not run in parallel: whose a BPF object is can only be
// told when no other test runs.

func TestLabFindsEveryLeak(t *testing.T) {
	tb := new(fakeTB)
	// Another run of this test may be going on beside this one.
	prefix := fmt.Sprintf("netnstest-leak-%d-", os.Getpid())
	lab := netnstest.New(tb, netnstest.Config{NamePrefix: prefix})
	a, b := lab.Host("a", "192.0.2.1/24"), lab.Host("b", "192.0.2.2/24")
	lab.Wire(a, b)

	listener, err := a.ListenTCP(at(a.Addr4(), 80))
	require.NoError(t, err)
	ns, err := devices.OpenNamespace(b.Namespace().Path())
	require.NoError(t, err)
	stop, inside := make(chan struct{}), make(chan struct{})
	go leakedGoroutine(stop)
	thread := make(chan struct{})
	go func() {
		defer close(thread)
		_ = b.Do(func() error { close(inside); <-stop; return nil })
	}()
	<-inside
	dir := lab.PinDir()
	object := newMap(t, "leaked_map")
	pin(t, object, filepath.Join(dir, "leaked_pin"))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	file, err := os.Open("/dev/zero")
	require.NoError(t, err)
	alias := filepath.Join(devices.NamespaceDir, prefix+"alias")
	require.NoError(t, os.WriteFile(alias, nil, 0o444))
	require.NoError(t, unix.Mount(b.Namespace().Path(), alias, "none", unix.MS_BIND, ""))

	tb.end()
	said := tb.said()
	for _, want := range []string{
		"tcp socket 192.0.2.1:80 (descriptor ", "which holds the namespace of a",
		"a handle of a namespace (descriptor ", "which holds the namespace of b",
		"1 threads in the namespace of b",
		"the name " + alias + " of the namespace of b",
		"netnstest_test.leakedGoroutine",
		"bpf map leaked_map map_id ",
		"pin leaked_pin", "folder of pins folder",
		"/dev/zero",
	} {
		assert.Contains(t, said, want)
	}
	assert.NotContains(t, said, prefix+"a ", "the names themselves are gone")
	assert.NoFileExists(t, filepath.Join(devices.NamespaceDir, prefix+"a"))
	assert.NoDirExists(t, dir, "the folder goes in any case")

	close(stop)
	<-thread
	require.NoError(t, listener.Close())
	require.NoError(t, ns.Close())
	require.NoError(t, file.Close())
	require.NoError(t, unix.Close(object))
	require.NoError(t, devices.RemoveNamed(prefix+"alias"))
}

// A Close that was forgotten is found also when nobody refers to the thing any
// more: the collector, which would close it, waits.
func TestLabFindsWhatTheCollectorWouldClose(t *testing.T) {
	percent := debug.SetGCPercent(77)
	defer debug.SetGCPercent(percent)
	tb := new(fakeTB)
	lab := netnstest.NewLab(tb)
	a := lab.Host("a")
	forget(t, a)
	tb.end()
	assert.Contains(t, tb.said(), "tcp socket 127.0.0.1:80 (descriptor ")
	assert.Contains(t, tb.said(), "/dev/zero")
	assert.Equal(t, 77, debug.SetGCPercent(77), "the collector is as it was")

	// Now it may, so that Main does not find them too.
	require.Eventually(t, func() bool {
		runtime.GC()
		left, err := filepath.Glob("/proc/self/fd/*")
		require.NoError(t, err)
		return !slices.ContainsFunc(left, func(path string) bool {
			target, _ := os.Readlink(path)
			return target == "/dev/zero"
		})
	}, 10*time.Second, time.Millisecond)
}

func forget(t *testing.T, h *netnstest.Host) {
	t.Helper()
	_, err := h.ListenTCP(addrPort("127.0.0.1:80"))
	require.NoError(t, err)
	_, err = os.Open("/dev/zero")
	require.NoError(t, err)
}

func leakedGoroutine(stop chan struct{}) { <-stop }

// TestLabFindsALinkOfTheProcess runs on a thread that is in a namespace of its
// own, so that the link it leaves behind disturbs nobody.
func TestLabFindsALinkOfTheProcess(t *testing.T) {
	home, err := devices.NewNamespace()
	require.NoError(t, err)
	defer home.Close()
	t.Run("inside", func(t *testing.T) {
		netnstest.LockOtherThread()
		require.NoError(t, netns.Set(handleOf(t, home)))
		tb := new(fakeTB)
		lab := netnstest.NewLab(tb)
		// What goes wrong when code forgets which namespace it is in.
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "stray0"}}
		require.NoError(t, netlink.LinkAdd(bridge))
		lab.Host("a")
		tb.end()
		assert.Contains(t, tb.said(), "link stray0 (index ")
		require.NoError(t, netlink.LinkDel(bridge))
	})
}

func handleOf(t *testing.T, ns devices.Namespace) netns.NsHandle {
	t.Helper()
	var handle netns.NsHandle
	require.NoError(t, ns.Do(func() error {
		var err error
		handle, err = netns.Get()
		return err
	}))
	t.Cleanup(func() { handle.Close() })
	return handle
}

func TestCleanLabIsQuiet(t *testing.T) {
	tb := new(fakeTB)
	lab := netnstest.NewLab(tb)
	one, two := lab.Node("one"), lab.Node("two")
	one.Capture("")
	two.Echo(at(two.Addr4(), 80))
	lab.LossMeter(one, two, at(two.Addr4(), 9), 0)
	_, err := one.ProbeTCP(at(two.Addr4(), 80), 1000)
	require.NoError(t, err)
	object := newMap(t, "tidy")
	pin(t, object, filepath.Join(lab.PinDir(), "tidy"))
	require.Equal(t, lab.PinDir(), lab.PinDir())
	require.Contains(t, lab.PinDir(), fmt.Sprintf("-%d-", os.Getpid()), "Main tells its mounts from those of others")
	require.NoError(t, os.Remove(filepath.Join(lab.PinDir(), "tidy")))
	require.NoError(t, unix.Close(object))
	tb.end()
	assert.Empty(t, tb.errors)
	assert.Empty(t, tb.logs)
}

func TestLeaksOfAFailedTestAreOnlyLogged(t *testing.T) {
	tb := new(fakeTB)
	lab := netnstest.NewLab(tb)
	a := lab.Host("a")
	listener, err := a.ListenTCP(addrPort("127.0.0.1:80"))
	require.NoError(t, err)
	tb.Errorf("on purpose")
	tb.end()
	assert.Equal(t, []string{"on purpose"}, tb.errors)
	assert.Contains(t, strings.Join(tb.logs, "\n"), "left behind: tcp socket 127.0.0.1:80")
	require.NoError(t, listener.Close())
}

func TestLabDoesNotBlameItsNeighbours(t *testing.T) {
	// The other lab of the same test is alive, and so is what it holds.
	outer := netnstest.NewLab(t)
	h := outer.Host("h")
	server := h.Echo(addrPort("127.0.0.1:80"))
	tb := new(fakeTB)
	inner := netnstest.NewLab(tb)
	inner.Host("h")
	conn, err := h.DialTCP(server)
	require.NoError(t, err)
	defer conn.Close()
	object := newMap(t, "other")
	tb.end()
	assert.Empty(t, tb.errors)
	require.NoError(t, unix.Close(object))
}
