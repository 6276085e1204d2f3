// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/internal/cgroup2"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
)

// cgroups is a hierarchy of version 2, mounted for the test, with a cgroup that
// single threads can be in.
type cgroups struct{ root, path string }

func newCgroups(t *testing.T) cgroups {
	t.Helper()
	c := cgroups{root: filepath.Join(t.TempDir(), "cgroup")}
	require.NoError(t, os.Mkdir(c.root, 0o700))
	require.NoError(t, cgroup2.Mount(c.root))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(c.root, 0)) })
	c.path = filepath.Join(c.root, fmt.Sprintf("lb-%d-%s", os.Getpid(), filepath.Base(t.Name())))
	require.NoError(t, os.Mkdir(c.path, 0o700))
	t.Cleanup(func() { assert.NoError(t, os.Remove(c.path)) })
	require.NoError(t, os.WriteFile(filepath.Join(c.path, "cgroup.type"), []byte("threaded"), 0))
	return c
}

// do calls fn on a thread that is in the cgroup, and in the namespace of a host.
func (c cgroups) do(h *netnstest.Host, fn func() error) error {
	return h.Do(func() error {
		tid := []byte(strconv.Itoa(unix.Gettid()))
		if err := os.WriteFile(filepath.Join(c.path, "cgroup.threads"), tid, 0); err != nil {
			return err
		}
		err := fn()
		if back := os.WriteFile(filepath.Join(c.root, "cgroup.threads"), tid, 0); err == nil {
			err = back
		}
		return err
	})
}

func sockaddr(a netip.AddrPort, mapped bool) unix.Sockaddr {
	if a.Addr().Is4() && !mapped {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// socket makes one with a timeout, closes it after fn.
func socket(to netip.AddrPort, mapped bool, kind int, fn func(fd int) error) error {
	family := unix.AF_INET6
	if to.Addr().Is4() && !mapped {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(int64(2 * time.Second))
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &wait); err != nil {
			return err
		}
	}
	return fn(fd)
}

// connect connects and has one message echoed, and returns what the socket
// believes to be talking to.
func connect(to netip.AddrPort, mapped bool, kind int) (peer netip.AddrPort, err error) {
	err = socket(to, mapped, kind, func(fd int) error {
		if err := unix.Connect(fd, sockaddr(to, mapped)); err != nil {
			return err
		}
		if _, err := unix.Write(fd, []byte("hello")); err != nil {
			return err
		}
		buf := make([]byte, 64)
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if err != nil || string(buf[:n]) != "hello" {
			return fmt.Errorf("read %q: %w", buf[:max(n, 0)], err)
		}
		if kind == unix.SOCK_DGRAM && addrPort(from) != to {
			return fmt.Errorf("the answer came from %s", addrPort(from))
		}
		sa, err := unix.Getpeername(fd)
		peer = addrPort(sa)
		return err
	})
	return peer, err
}

// ask sends a datagram from a socket that is not connected, and returns from
// where the answer came.
func ask(to netip.AddrPort, mapped bool) (from netip.AddrPort, err error) {
	err = socket(to, mapped, unix.SOCK_DGRAM, func(fd int) error {
		if err := unix.Sendto(fd, []byte("hello"), 0, sockaddr(to, mapped)); err != nil {
			return err
		}
		_, sa, err := unix.Recvfrom(fd, make([]byte, 64), 0)
		from = addrPort(sa)
		return err
	})
	return from, err
}

// socketLab is a client and a server, and the services of the client's sockets.
type socketLab struct {
	lab            *netnstest.Lab
	client, server *netnstest.Host
	groups         cgroups
}

func newSocketLab(t *testing.T) socketLab {
	t.Helper()
	l := socketLab{lab: netnstest.NewLab(t), groups: newCgroups(t)}
	l.client = l.lab.Host("client", "192.0.2.1/24", "2001:db8::1/64")
	l.server = l.lab.Host("server", "192.0.2.2/24", "2001:db8::2/64")
	l.lab.Wire(l.client, l.server)
	for _, at := range []string{"192.0.2.2:8080", "[2001:db8::2]:8080"} {
		l.server.Echo(netip.MustParseAddrPort(at))
	}
	return l
}

func service(name string, vip, backend netip.AddrPort) Service {
	s := Service{Name: name, Frontends: []Frontend{{Addr: vip}, {Addr: vip, Protocol: UDP}}}
	if backend.IsValid() {
		s.Backends = []Backend{{Addr: backend}}
	}
	return s
}

// A program that asks for a service talks to its backend and sees the service.
// No route leads to the service, so a packet to it would go nowhere.
func TestSockets(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	bal := newBal(t, Config{})
	vip4, vip6 := netip.MustParseAddrPort("198.51.100.1:80"), netip.MustParseAddrPort("[2001:db8:1::1]:80")
	require.NoError(t, bal.SetService(service("four", vip4, netip.MustParseAddrPort("192.0.2.2:8080"))))
	require.NoError(t, bal.SetService(service("six", vip6, netip.MustParseAddrPort("[2001:db8::2]:8080"))))
	s, err := bal.AttachSockets(SocketConfig{Cgroup: l.groups.path, Namespace: l.client.Namespace()})
	require.NoError(t, err)
	defer func() { assert.NoError(t, s.Close()) }()
	for _, row := range []struct {
		name   string
		vip    netip.AddrPort
		mapped bool
	}{{"IPv4", vip4, false}, {"IPv6", vip6, false}, {"IPv4 by a socket of IPv6", vip4, true}} {
		require.NoError(t, l.groups.do(l.client, func() error {
			for kind, name := range map[int]string{unix.SOCK_STREAM: "TCP", unix.SOCK_DGRAM: "UDP"} {
				peer, err := connect(row.vip, row.mapped, kind)
				if err != nil {
					return fmt.Errorf("%s %s: %w", row.name, name, err)
				}
				assert.Equal(t, row.vip, peer, "%s %s", row.name, name)
			}
			from, err := ask(row.vip, row.mapped)
			if err != nil {
				return fmt.Errorf("%s, not connected: %w", row.name, err)
			}
			assert.Equal(t, row.vip, from, row.name)
			// What is no service is left alone.
			direct := netip.AddrPortFrom(l.server.Addr4(), 8080)
			from, err = ask(direct, row.mapped)
			assert.Equal(t, direct, from)
			return err
		}))
	}
	// Outside of the cgroup nothing is translated.
	require.NoError(t, l.client.Do(func() error {
		_, err := connect(vip4, false, unix.SOCK_STREAM)
		assert.ErrorIs(t, err, unix.ENETUNREACH)
		return nil
	}))
	events, err := bal.SocketEvents()
	require.NoError(t, err)
	require.EqualValues(t, 9, events["translated"])
	require.NotZero(t, events["reversed"])
}

// Nobody is there: the program hears it at once, or its packets go where no
// service is.
func TestSocketsWithoutABackend(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	bal := newBal(t, Config{})
	vip4, vip6 := netip.MustParseAddrPort("198.51.100.1:80"), netip.MustParseAddrPort("[2001:db8:1::1]:80")
	s, err := bal.AttachSockets(SocketConfig{Cgroup: l.groups.path, Namespace: l.client.Namespace()})
	require.NoError(t, err)
	defer func() { assert.NoError(t, s.Close()) }()
	for no, want := range map[NoBackend]error{Reject: unix.ECONNREFUSED, Drop: unix.EHOSTUNREACH} {
		for _, vip := range []netip.AddrPort{vip4, vip6} {
			svc := service(vip.String(), vip, netip.AddrPort{})
			svc.NoBackend = no
			require.NoError(t, bal.SetService(svc))
			require.NoError(t, l.groups.do(l.client, func() error {
				start := time.Now()
				for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
					_, err := connect(vip, false, kind)
					assert.ErrorIs(t, err, want, vip)
				}
				_, err := ask(vip, false)
				assert.ErrorIs(t, err, want, vip)
				assert.Less(t, time.Since(start), time.Second)
				return nil
			}))
		}
	}
	// Beside a service, at its own address: nobody, and not whoever is outside.
	for _, vip := range []netip.AddrPort{vip4, vip6} {
		other := netip.AddrPortFrom(vip.Addr(), 81)
		require.NoError(t, l.groups.do(l.client, func() error {
			_, err := connect(other, false, unix.SOCK_STREAM)
			assert.ErrorIs(t, err, unix.ECONNREFUSED, other)
			_, err = ask(other, false)
			assert.ErrorIs(t, err, unix.ECONNREFUSED, other)
			return nil
		}))
	}
	events, err := bal.SocketEvents()
	require.NoError(t, err)
	require.EqualValues(t, 12, events["no backend"])
}

// Only the node's own sockets, when that is asked for.
func TestSocketsOfTheNode(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	pod := l.lab.Host("pod", "192.0.3.1/24")
	l.lab.Wire(pod, l.server)
	bal := newBal(t, Config{NodeAddrs: []netip.Addr{l.client.Addr4(), l.client.Addr6()}})
	vip := netip.MustParseAddrPort("198.51.100.1:80")
	require.NoError(t, bal.SetService(service("web", vip, netip.MustParseAddrPort("192.0.2.2:8080"))))
	s, err := bal.AttachSockets(SocketConfig{Cgroup: l.groups.path, Scope: NodeSockets, Namespace: l.client.Namespace()})
	require.NoError(t, err)
	defer func() { assert.NoError(t, s.Close()) }()
	require.NoError(t, l.groups.do(l.client, func() error { _, err := connect(vip, false, unix.SOCK_STREAM); return err }))
	require.NoError(t, l.groups.do(pod, func() error {
		_, err := connect(vip, false, unix.SOCK_STREAM)
		assert.ErrorIs(t, err, unix.ENETUNREACH, "a packet of a pod is for the programs on its device")
		return nil
	}))
}

// A port of the node that a service has is not to be had by a socket of the node.
func TestNodePortsAreKept(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	bal := newBal(t, Config{NodeAddrs: []netip.Addr{l.client.Addr4(), l.client.Addr6()}})
	require.NoError(t, bal.SetService(Service{
		Name: "web", Frontends: []Frontend{{Addr: netip.MustParseAddrPort("0.0.0.0:30080"), Type: NodePort}},
		Backends: []Backend{{Addr: netip.MustParseAddrPort("192.0.2.2:8080")}},
	}))
	s, err := bal.AttachSockets(SocketConfig{Cgroup: l.groups.path, Namespace: l.client.Namespace()})
	require.NoError(t, err)
	defer func() { assert.NoError(t, s.Close()) }()
	bind := func(h *netnstest.Host, at string, kind int) (err error) {
		a := netip.MustParseAddrPort(at)
		outer := l.groups.do(h, func() error {
			err = socket(a, false, kind, func(fd int) error { return unix.Bind(fd, sockaddr(a, false)) })
			return nil
		})
		require.NoError(t, outer)
		return err
	}
	for _, at := range []string{"0.0.0.0:30080", "192.0.2.1:30080", "[::]:30080"} {
		require.ErrorIs(t, bind(l.client, at, unix.SOCK_STREAM), unix.EADDRINUSE, at)
	}
	for _, at := range []string{"0.0.0.0:30081", "0.0.0.0:0", "[2001:db8::1]:30080"} {
		require.NoError(t, bind(l.client, at, unix.SOCK_STREAM), at)
	}
	require.NoError(t, bind(l.client, "0.0.0.0:30080", unix.SOCK_DGRAM), "another protocol")
	require.NoError(t, bind(l.server, "0.0.0.0:30080", unix.SOCK_STREAM), "another node")
	require.NoError(t, bal.SetService(Service{
		Name: "six", Frontends: []Frontend{{Addr: netip.MustParseAddrPort("[::]:30082"), Type: NodePort}, {Addr: netip.MustParseAddrPort("[2001:db8::1]:8443"), Type: HostPort}},
		Backends: []Backend{{Addr: netip.MustParseAddrPort("[2001:db8::2]:8080")}},
	}))
	for _, at := range []string{"[::]:30082", "[2001:db8::1]:30082", "[2001:db8::1]:8443"} {
		require.ErrorIs(t, bind(l.client, at, unix.SOCK_STREAM), unix.EADDRINUSE, at)
	}
	for _, at := range []string{"0.0.0.0:30082", "192.0.2.1:8443", "[2001:db8::1]:8444"} {
		require.NoError(t, bind(l.client, at, unix.SOCK_STREAM), at)
	}
	// Through the port one reaches the service, also by an address of the loopback device.
	for _, to := range []string{"192.0.2.1:30080", "127.0.0.1:30080", "127.9.9.9:30080", "[::1]:30082"} {
		require.NoError(t, l.groups.do(l.client, func() error {
			peer, err := connect(netip.MustParseAddrPort(to), false, unix.SOCK_STREAM)
			assert.Equal(t, netip.MustParseAddrPort(to), peer, "as it was asked")
			return err
		}), to)
	}
	require.NoError(t, l.groups.do(l.server, func() error {
		_, err := connect(netip.MustParseAddrPort("127.0.0.1:30080"), false, unix.SOCK_STREAM)
		assert.ErrorIs(t, err, unix.ECONNREFUSED, "that of another namespace is its own")
		return nil
	}))
}

// A socket that is not connected sends all its datagrams to one backend.
func TestDatagramsStayTogether(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	bal := newBal(t, Config{})
	vip := netip.MustParseAddrPort("198.51.100.1:53")
	var backends []Backend
	got := make(chan int, 1000)
	for i := range 8 {
		at := netip.AddrPortFrom(l.server.Addr4(), uint16(9000+i))
		backends = append(backends, Backend{Addr: at})
		conn, err := l.server.ListenUDP(at)
		require.NoError(t, err)
		defer conn.Close()
		go func() {
			for buf := make([]byte, 64); ; got <- i {
				if _, _, err := conn.ReadFromUDPAddrPort(buf); err != nil {
					return
				}
			}
		}()
	}
	require.NoError(t, bal.SetService(Service{Name: "dns", Frontends: []Frontend{{Addr: vip, Protocol: UDP}}, Backends: backends}))
	s, err := bal.AttachSockets(SocketConfig{Cgroup: l.groups.path, Namespace: l.client.Namespace()})
	require.NoError(t, err)
	defer func() { assert.NoError(t, s.Close()) }()
	used := map[int]bool{}
	for range 20 {
		seen := map[int]bool{}
		require.NoError(t, l.groups.do(l.client, func() error {
			return socket(vip, false, unix.SOCK_DGRAM, func(fd int) error {
				for range 10 {
					if err := unix.Sendto(fd, []byte("x"), 0, sockaddr(vip, false)); err != nil {
						return err
					}
				}
				return nil
			})
		}))
		for range 10 {
			select {
			case i := <-got:
				seen[i], used[i] = true, true
			case <-time.After(time.Second):
				t.Fatal("a datagram is missing")
			}
		}
		require.Len(t, seen, 1)
	}
	require.Greater(t, len(used), 2, "other sockets go elsewhere")
}

// Pinned, they outlive the process, and the next one replaces them in place.
func TestSocketPins(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	pins := filepath.Join(l.lab.PinDir(), "node")
	vip := netip.MustParseAddrPort("198.51.100.1:80")
	works := func() error {
		return l.groups.do(l.client, func() error { _, err := connect(vip, false, unix.SOCK_STREAM); return err })
	}
	bal, err := New(Config{Config: maps.Config{Pins: pins}})
	require.NoError(t, err)
	require.NoError(t, bal.SetService(service("web", vip, netip.MustParseAddrPort("192.0.2.2:8080"))))
	cfg := SocketConfig{Cgroup: l.groups.path, Namespace: l.client.Namespace()}
	first, err := bal.AttachSockets(cfg)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	require.NoError(t, first.Close())
	require.NoError(t, bal.Close())
	require.NoError(t, works(), "they go on")

	bal, err = New(Config{Config: maps.Config{Pins: pins}})
	require.NoError(t, err)
	second, err := bal.AttachSockets(cfg)
	require.NoError(t, err)
	require.NoError(t, works())
	pinned, err := filepath.Glob(filepath.Join(pins, "sockets", "*"))
	require.NoError(t, err)
	require.Len(t, pinned, len(calls))
	require.NoError(t, second.Remove())
	require.NoError(t, second.Remove())
	require.ErrorIs(t, works(), unix.ENETUNREACH)
	require.NoError(t, bal.Remove())
	left, err := os.ReadDir(pins)
	require.NoError(t, err)
	require.Empty(t, left)
	require.NoError(t, os.Remove(pins))
}

func TestAttachSocketsBadInput(t *testing.T) {
	t.Parallel()
	pins := netnstest.NewLab(t).PinDir()
	bal, err := New(Config{Config: maps.Config{Pins: pins}})
	require.NoError(t, err)
	defer func() { assert.NoError(t, bal.Remove()) }()
	before, err := os.ReadDir(pins)
	require.NoError(t, err)
	_, err = bal.AttachSockets(SocketConfig{})
	require.ErrorIs(t, err, os.ErrInvalid)
	_, err = bal.AttachSockets(SocketConfig{Cgroup: "/", Scope: 7})
	require.ErrorIs(t, err, os.ErrInvalid)
	_, err = bal.AttachSockets(SocketConfig{Cgroup: t.TempDir()})
	require.ErrorContains(t, err, "attach to the sockets of /tmp")
	_, err = bal.AttachSockets(SocketConfig{Cgroup: "/no/such/folder"})
	require.ErrorIs(t, err, os.ErrNotExist)
	after, err := os.ReadDir(pins)
	require.NoError(t, err)
	require.Equal(t, len(before), len(after), "nothing is left")
}

// A backend goes, and with it the sockets that talk to it: those that are
// connected to the service, and no others.
func TestDestroySockets(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	bal := newBal(t, Config{})
	backend := netip.AddrPortFrom(l.server.Addr4(), 8080)
	vip, other := netip.MustParseAddrPort("198.51.100.1:80"), netip.MustParseAddrPort("198.51.100.2:80")
	require.NoError(t, bal.SetService(service("web", vip, backend)))
	require.NoError(t, bal.SetService(service("other", other, backend)))
	s, err := bal.AttachSockets(SocketConfig{
		Cgroup: l.groups.path, Namespace: l.client.Namespace(),
		Namespaces: func() []programs.Namespace { return []programs.Namespace{l.server.Namespace(), l.client.Namespace()} },
	})
	require.NoError(t, err)
	defer func() { assert.NoError(t, s.Close()) }()
	fds := map[string]int{}
	require.NoError(t, l.groups.do(l.client, func() error {
		for name, x := range map[string]struct {
			to     netip.AddrPort
			kind   int
			mapped bool
		}{
			"web TCP": {vip, unix.SOCK_STREAM, false}, "web UDP": {vip, unix.SOCK_DGRAM, false}, "web mapped": {vip, unix.SOCK_STREAM, true},
			"other TCP": {other, unix.SOCK_STREAM, false}, "other UDP": {other, unix.SOCK_DGRAM, false}, "direct TCP": {backend, unix.SOCK_STREAM, false},
		} {
			family := unix.AF_INET
			if x.mapped {
				family = unix.AF_INET6
			}
			fd, err := unix.Socket(family, x.kind|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			fds[name] = fd
			t.Cleanup(func() { unix.Close(fd) })
			if err := unix.Connect(fd, sockaddr(x.to, x.mapped)); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		// One that is not connected, and has sent there.
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		fds["not connected"] = fd
		t.Cleanup(func() { unix.Close(fd) })
		return unix.Sendto(fd, []byte("x"), 0, sockaddr(vip, false))
	}))
	done, err := bal.RemoveBackend("web", backend, Reset|DestroySockets)
	require.NoError(t, err)
	require.Equal(t, Touched{Sockets: 3}, done)
	for name, fd := range fds {
		n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		require.NoError(t, err)
		if name[:3] == "web" {
			require.Equal(t, int(unix.ECONNABORTED), n, name)
		} else {
			require.Zero(t, n, name)
		}
	}
	_, err = bal.RemoveBackend("web", backend, Reset)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = bal.RemoveBackend("no such", backend, Reset)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = bal.RemoveBackend("other", backend, 9)
	require.ErrorIs(t, err, os.ErrInvalid)
}
