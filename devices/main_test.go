// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv(asNobody) != "" {
		os.Exit(tryAsNobody())
	}
	code := 0
	if err := firstThreadStays(); err != nil {
		fmt.Println("FAIL:", err)
		code = 1
	}
	before := countDescriptors()
	goroutines := runtime.NumGoroutine()
	code = max(code, m.Run())
	// The fuzzing engine leaves a goroutine for signals behind.
	if fuzzing := flag.Lookup("test.fuzz"); code == 0 && fuzzing.Value.String() == "" {
		if err := leaks(before, goroutines); err != nil {
			fmt.Println("FAIL:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// firstThreadStays runs before any test, while this goroutine is still on the
// first thread of the process, so that the goroutine of Do is likely to be put
// there when this one waits.
func firstThreadStays() error {
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	ns, err := NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	for range 200 {
		if err := ns.Do(func() error { return nil }); err != nil {
			return err
		}
	}
	after, err := os.Readlink("/proc/self/ns/net")
	if err == nil && after != before {
		err = errors.New("the first thread of the process was moved into another namespace")
	}
	return err
}

func countDescriptors() int {
	fds, _ := os.ReadDir("/proc/self/fd")
	return len(fds)
}

// leaks looks for descriptors, goroutines and threads that stayed in a
// namespace. What is on its way out gets two seconds.
func leaks(descriptors, goroutines int) error {
	var err error
	for range 40 {
		runtime.GC()
		err = nil
		if n := countDescriptors(); n > descriptors {
			err = errors.Join(err, fmt.Errorf("%d descriptors before the tests and %d after", descriptors, n))
		}
		if n := runtime.NumGoroutine(); n > goroutines {
			err = errors.Join(err, fmt.Errorf("%d goroutines before the tests and %d after", goroutines, n))
		}
		home, _ := os.Readlink("/proc/thread-self/ns/net")
		threads, _ := filepath.Glob("/proc/self/task/*/ns/net")
		for _, thread := range threads {
			if at, readErr := os.Readlink(thread); readErr == nil && at != home {
				err = errors.Join(err, fmt.Errorf("%s is in %s", thread, at))
			}
		}
		if err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

func newNS(t testing.TB) Namespace {
	t.Helper()
	ns, err := NewNamespace()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, ns.Close()) })
	return ns
}

func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func addrs(all ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range all {
		out = append(out, addr(s))
	}
	return out
}

// with runs fn in a namespace with a netlink socket of it.
func with(t testing.TB, ns Namespace, fn func(c conn) error) {
	t.Helper()
	require.NoError(t, withConn(ns, fn))
}

// addVeth makes a veth which is not ours, both ends in ns.
func addVeth(t testing.TB, ns Namespace, a, b string) Link {
	t.Helper()
	with(t, ns, func(c conn) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = a
		veth := netlink.NewVeth(attrs)
		veth.PeerName = b
		return c.LinkAdd(veth)
	})
	return find(t, ns, a)
}

// addPlainVXLAN makes a vxlan which is not flow-based.
func addPlainVXLAN(t testing.TB, ns Namespace, name string, port int, up bool) Link {
	t.Helper()
	with(t, ns, func(c conn) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		l := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 7, Port: port}
		if err := c.LinkAdd(l); err != nil || !up {
			return err
		}
		return c.LinkSetUp(l)
	})
	return find(t, ns, name)
}

func find(t testing.TB, ns Namespace, name string) Link {
	t.Helper()
	l, err := FindLink(ns, name)
	require.NoError(t, err)
	return l
}

// change does something to a device behind the back of the package.
func change(name string, fn func(c conn, l netlink.Link) error) func(conn) error {
	return func(c conn) error {
		l, err := c.find(name)
		if err != nil {
			return err
		}
		return fn(c, l)
	}
}

// attrs reads what a Link does not tell.
func attrs(t testing.TB, ns Namespace, name string) netlink.LinkAttrs {
	t.Helper()
	var a netlink.LinkAttrs
	with(t, ns, func(c conn) error {
		l, err := c.find(name)
		if err == nil {
			a = *l.Attrs()
		}
		return err
	})
	return a
}

func sysctl(t testing.TB, ns Namespace, family Family, dev, name string) int {
	t.Helper()
	v, err := ReadSysctl(ns, Sysctl{Family: family, Device: dev, Name: name})
	require.NoError(t, err)
	return v
}

func requireInput(t testing.TB, err error, field string) {
	t.Helper()
	var bad *InputError
	require.ErrorAs(t, err, &bad)
	require.ErrorIs(t, err, os.ErrInvalid)
	require.Equal(t, field, bad.Field, "%v", err)
}

// requireNothingLeft wants only the loopback device.
func requireNothingLeft(t testing.TB, ns Namespace, but ...string) {
	t.Helper()
	links, err := ListLinks(ns)
	require.NoError(t, err)
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	require.ElementsMatch(t, append([]string{"lo"}, but...), names)
}

// requireNoChange fails if fn makes the kernel report a change of a link, an
// address or a route. The kernel also reports on its own a while after a
// device came up, so a round that was disturbed is repeated; a function that
// does change something disturbs every round.
func requireNoChange(t testing.TB, ns Namespace, fn func()) {
	t.Helper()
	var s *nl.NetlinkSocket
	require.NoError(t, ns.Do(func() error {
		var err error
		s, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK,
			unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
		return err
	}))
	defer s.Close()
	wait := unix.NsecToTimeval(int64(30 * time.Millisecond))
	require.NoError(t, s.SetReceiveTimeout(&wait))
	drain := func() (types []uint16) {
		for {
			messages, _, err := s.Receive()
			if err != nil {
				require.True(t, errors.Is(err, unix.EAGAIN) || errors.Is(err, os.ErrDeadlineExceeded), "%v", err)
				return types
			}
			for _, m := range messages {
				types = append(types, m.Header.Type)
			}
		}
	}
	var seen []uint16
	for range 8 {
		drain()
		fn()
		if seen = drain(); len(seen) == 0 {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	require.Empty(t, seen, "types of the messages of the kernel")
}
