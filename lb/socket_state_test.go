// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/maps"
)

// connected makes a socket of the client, for the caller to close.
func (l socketLab) connected(t *testing.T, to netip.AddrPort, kind int) (fd int) {
	t.Helper()
	require.NoError(t, l.groups.do(l.client, func() (err error) {
		family := unix.AF_INET6
		if to.Addr().Is4() {
			family = unix.AF_INET
		}
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Connect(fd, sockaddr(to, false))
	}))
	return fd
}

func peerOf(t *testing.T, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getpeername(fd)
	require.NoError(t, err)
	return addrPort(sa)
}

func (l socketLab) attach(t *testing.T, b *Balancer) *Sockets {
	t.Helper()
	s, err := b.AttachSockets(SocketConfig{Cgroup: l.groups.path, Namespace: l.client.Namespace()})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	return s
}

// What is remembered of a connected socket stays as long as it is open, whatever
// others do, and is gone with it.
func TestConnectedSocketsAreRemembered(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	const room = 128
	bal := newBal(t, Config{Sockets: room})
	vip, backend := netip.MustParseAddrPort("198.51.100.1:80"), netip.AddrPortFrom(l.server.Addr4(), 8080)
	require.NoError(t, bal.SetService(service("web", vip, backend)))
	l.attach(t, bal)
	remembered := func() int {
		n, err := bal.tables.peers.Len()
		require.NoError(t, err)
		return n
	}
	stays := l.connected(t, vip, unix.SOCK_STREAM)
	defer unix.Close(stays)
	require.NoError(t, l.groups.do(l.client, func() error {
		for range 4 * room {
			if _, err := ask(vip, false); err != nil {
				return err
			}
			if _, err := connect(vip, false, unix.SOCK_DGRAM); err != nil {
				return err
			}
		}
		return nil
	}))
	require.Equal(t, vip, peerOf(t, stays))
	require.Equal(t, 1, remembered(), "of those that are closed nothing is left")
	n, err := bal.SocketEvents()
	require.NoError(t, err)
	require.Zero(t, n["table full"])

	// One that has gone on to the backend itself talks to that.
	moved := l.connected(t, vip, unix.SOCK_DGRAM)
	defer unix.Close(moved)
	require.Equal(t, vip, peerOf(t, moved))
	require.NoError(t, l.groups.do(l.client, func() error { return unix.Connect(moved, sockaddr(backend, false)) }))
	require.Equal(t, backend, peerOf(t, moved))

	// More of them than fit are connected all the same, and it is counted.
	for range room + 3 {
		defer unix.Close(l.connected(t, vip, unix.SOCK_DGRAM))
	}
	n, err = bal.SocketEvents()
	require.NoError(t, err)
	require.Equal(t, uint64(4), n["table full"])
}

// A datagram to a backend itself, after others to a service, is answered by the
// backend.
func TestDatagramsToTheBackendItself(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	bal := newBal(t, Config{})
	vip, backend := netip.MustParseAddrPort("198.51.100.1:80"), netip.AddrPortFrom(l.server.Addr4(), 8080)
	require.NoError(t, bal.SetService(service("web", vip, backend)))
	l.attach(t, bal)
	require.NoError(t, l.groups.do(l.client, func() error {
		return socket(vip, false, unix.SOCK_DGRAM, func(fd int) error {
			for _, to := range []netip.AddrPort{vip, backend, vip, backend, backend} {
				if err := unix.Sendto(fd, []byte("hello"), 0, sockaddr(to, false)); err != nil {
					return err
				}
				_, from, err := unix.Recvfrom(fd, make([]byte, 64), 0)
				if err != nil {
					return err
				}
				require.Equal(t, to, addrPort(from))
			}
			return nil
		})
	}))
}

// However a service loses a backend, no socket goes on talking to it, unless it is
// to drain.
func TestNoSocketStaysWithALostBackend(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	bal := newBal(t, Config{})
	l.attach(t, bal)
	for vip, backend := range map[netip.AddrPort]netip.AddrPort{
		netip.MustParseAddrPort("198.51.100.1:80"):    netip.AddrPortFrom(l.server.Addr4(), 8080),
		netip.MustParseAddrPort("[2001:db8:1::1]:80"): netip.AddrPortFrom(l.server.Addr6(), 8080),
	} {
		l.noSocketStays(t, bal, vip, backend)
	}
}

func (l socketLab) noSocketStays(t *testing.T, bal *Balancer, vip, backend netip.AddrPort) {
	s := service("web", vip, backend)
	for name, row := range map[string]struct {
		how  Removal
		lose func() error
		ends bool
	}{
		"SetService, reset":  {Reset, func() error { return bal.SetService(service("web", vip, netip.AddrPort{})) }, true},
		"SetService, purge":  {Purge, func() error { return bal.SetService(service("web", vip, netip.AddrPort{})) }, true},
		"Sync":               {Reset, func() error { _, err := bal.Sync(nil); return err }, true},
		"DeleteService":      {Drain, func() error { return bal.DeleteService("web") }, true},
		"RemoveBackend":      {Drain, func() error { _, err := bal.RemoveBackend("web", backend, Reset); return err }, true},
		"drained":            {Reset, func() error { _, err := bal.RemoveBackend("web", backend, Drain); return err }, false},
		"drained, destroyed": {Reset, func() error { _, err := bal.RemoveBackend("web", backend, Drain|DestroySockets); return err }, true},
	} {
		s.OnRemove = row.how
		require.NoError(t, bal.DeleteService("web"))
		require.NoError(t, bal.SetService(s))
		stream, datagram, half := l.connected(t, vip, unix.SOCK_STREAM), l.connected(t, vip, unix.SOCK_DGRAM), l.connected(t, vip, unix.SOCK_STREAM)
		require.NoError(t, unix.Shutdown(half, unix.SHUT_WR))
		require.NoError(t, row.lose(), name)
		for _, fd := range []int{stream, datagram, half} {
			n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			require.NoError(t, err)
			if row.ends && fd != half {
				require.Equal(t, int(unix.ECONNABORTED), n, name)
			}
			if !row.ends {
				require.Zero(t, n, name)
			}
		}
		_, err := unix.Getpeername(stream)
		require.Equal(t, row.ends, err != nil, name)
		require.NoError(t, unix.Close(stream))
		require.NoError(t, unix.Close(datagram))
		require.NoError(t, unix.Close(half))
	}
}

// A drain waits for sockets as it waits for flows.
func TestDrainWaitsForSockets(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	bal := newBal(t, Config{Flows: noFlows{}})
	now := time.Now()
	bal.ids.now = func() time.Time { return now }
	vip, backend := netip.MustParseAddrPort("198.51.100.1:80"), netip.AddrPortFrom(l.server.Addr4(), 8080)
	require.NoError(t, bal.SetService(service("web", vip, backend)))
	l.attach(t, bal)
	fd := l.connected(t, vip, unix.SOCK_STREAM)
	_, err := bal.RemoveBackend("web", backend, Drain)
	require.NoError(t, err)
	now = now.Add(time.Minute)
	n, err := bal.Sweep()
	require.NoError(t, err)
	require.Zero(t, n)
	require.NoError(t, unix.Close(fd))
	require.Eventually(t, func() bool {
		n, err := bal.Sweep()
		require.NoError(t, err)
		return n == 1
	}, 5*time.Second, 10*time.Millisecond)
}

// noFlows is a flow table that is empty.
type noFlows struct{}

func (noFlows) FlushTranslated(uint8, netip.AddrPort, netip.AddrPort) (int, error) { return 0, nil }
func (noFlows) CountTranslated(uint8, netip.AddrPort, netip.AddrPort) (int, error) { return 0, nil }

// Pinned programs are in one cgroup, and not where the next process thinks.
func TestSocketPinsOfAnotherCgroup(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	bal, err := New(Config{Config: maps.Config{Pins: filepath.Join(l.lab.PinDir(), "node")}})
	require.NoError(t, err)
	s, err := bal.AttachSockets(SocketConfig{Cgroup: l.groups.path, Namespace: l.client.Namespace()})
	require.NoError(t, err)
	_, err = bal.AttachSockets(SocketConfig{Cgroup: l.groups.root, Namespace: l.client.Namespace()})
	require.ErrorIs(t, err, os.ErrInvalid)
	require.ErrorContains(t, err, "are attached to another cgroup")
	again, err := bal.AttachSockets(SocketConfig{Cgroup: l.groups.path, Namespace: l.client.Namespace()})
	require.NoError(t, err, "it is as it was")
	require.NoError(t, again.Close())
	require.NoError(t, s.Remove())
	require.NoError(t, bal.Remove())
	require.NoError(t, os.Remove(filepath.Join(l.lab.PinDir(), "node")))
}

// A service is changed to and fro under sockets that connect: none is refused.
func TestUpdatesUnderSockets(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	bal := newBal(t, Config{})
	vip := netip.MustParseAddrPort("198.51.100.1:80")
	one, two := netip.AddrPortFrom(l.server.Addr4(), 8080), netip.AddrPortFrom(l.server.Addr4(), 8081)
	l.server.Echo(two)
	l.attach(t, bal)
	var sides []Service
	for _, x := range [][]Backend{{{Addr: one}}, {{Addr: two}}, {{Addr: one, State: Maintenance}, {Addr: two}}, {{Addr: one}, {Addr: two, State: Quarantined}}} {
		s := service("web", vip, netip.AddrPort{})
		s.Backends, s.OnRemove = x, Drain
		sides = append(sides, s)
	}
	require.NoError(t, bal.SetService(sides[0]))
	stop, done := make(chan struct{}), make(chan error, 1)
	updates := 0
	go func() {
		for ; ; updates++ {
			select {
			case <-stop:
				done <- nil
				return
			case <-time.After(100 * time.Microsecond):
			}
			if err := bal.SetService(sides[updates%len(sides)]); err != nil {
				done <- err
				return
			}
		}
	}()
	conns := 0
	err := l.groups.do(l.client, func() error {
		for end := time.Now().Add(time.Second); time.Now().Before(end); conns++ {
			if _, err := connect(vip, false, unix.SOCK_STREAM); err != nil {
				return err
			}
			if _, err := ask(vip, false); err != nil {
				return err
			}
		}
		return nil
	})
	close(stop)
	require.NoError(t, <-done)
	require.NoError(t, err, "connection %d, %d updates", conns, updates)
	require.Greater(t, updates, 100)
	require.Greater(t, conns, 100)
}

// Sockets stay with the backend that their namespace has had, and a new one is none
// that is about to go.
func TestAffinityOfSockets(t *testing.T) {
	t.Parallel()
	l := newSocketLab(t)
	other := l.lab.Host("other", "192.0.3.1/24")
	bal := newBal(t, Config{})
	vip := netip.MustParseAddrPort("198.51.100.1:53")
	s := Service{Name: "dns", Frontends: []Frontend{{Addr: vip, Protocol: UDP}}, Affinity: time.Hour}
	for i := range uint16(32) {
		s.Backends = append(s.Backends, Backend{Addr: netip.AddrPortFrom(l.server.Addr4(), 9000+i)})
	}
	require.NoError(t, bal.SetService(s))
	l.attach(t, bal)
	ask := func(h *netnstest.Host) (backends []netip.AddrPort) {
		client := l
		client.client = h
		for range 12 {
			fd := client.connected(t, vip, unix.SOCK_DGRAM)
			for e, err := range bal.tables.peers.All() {
				require.NoError(t, err)
				at := goAddrPort(e.Value.Backend, e.Value.BackendPort)
				if !slices.Contains(backends, at) {
					backends = append(backends, at)
				}
			}
			require.NoError(t, unix.Close(fd))
		}
		return backends
	}
	l.lab.Wire(other, l.server)
	other.RouteVia("0.0.0.0/0", netip.MustParseAddr("192.0.3.2"))
	first := ask(l.client)
	require.Len(t, first, 1)
	second := ask(other)
	require.Len(t, second, 1)

	// The backend is about to go: what is new goes elsewhere, and stays there.
	for i := range s.Backends {
		if s.Backends[i].Addr == first[0] {
			s.Backends[i].State = Terminating
		}
	}
	require.NoError(t, bal.SetService(s))
	now := ask(l.client)
	require.Len(t, now, 1)
	require.NotEqual(t, first, now)
}
