// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/examples/internal/probe"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/lb"
)

var families = []int{4, 6}

// launch starts a cluster that ends with the test.
func launch(t *testing.T, name string, cfg Config) *Cluster {
	t.Helper()
	cfg.Name = fmt.Sprintf("%s%d", name, os.Getpid())
	c, err := Start(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// inEachMode runs fn in a cluster with an overlay and in one without.
func inEachMode(t *testing.T, name string, cfg Config, fn func(t *testing.T, c *Cluster)) {
	t.Helper()
	for mode, native := range map[string]bool{"vxlan": false, "native": true} {
		cfg := cfg
		cfg.Native = native
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			fn(t, launch(t, name+mode, cfg))
		})
	}
}

// echo starts an echo server that ends with the test.
func echo(t *testing.T, ns devices.Namespace, at netip.Addr) *probe.Echo {
	t.Helper()
	e, err := probe.NewEcho(ns, at)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// serveEcho starts one where an endpoint is to serve.
func serveEcho(t *testing.T, c *Cluster, at netip.AddrPort) {
	t.Helper()
	for _, e := range c.Endpoints() {
		if e.Addrs[0] == at.Addr() || e.Addrs[1] == at.Addr() {
			server, err := probe.NewEchoAt(e.Namespace, at)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, server.Close()) })
			return
		}
	}
	t.Fatalf("nobody has %s", at)
}

// requireSeen asks a server by TCP and by UDP, and wants it to see the asker at as.
func requireSeen(t *testing.T, from devices.Namespace, server *probe.Echo, at netip.AddrPort, as netip.Addr) {
	t.Helper()
	_, err := probe.TCP(t.Context(), from, at, 1000)
	require.NoError(t, err, "TCP to %s", at)
	_, seen := server.Asked()
	require.Equal(t, as, seen, "TCP to %s", at)
	_, err = probe.UDP(t.Context(), from, at, 1000)
	require.NoError(t, err, "UDP to %s", at)
	_, seen = server.Asked()
	require.Equal(t, as, seen, "UDP to %s", at)
}

// trace wants the hops between an endpoint and an address to be those.
func trace(t *testing.T, from *Endpoint, to netip.Addr, hops ...netip.Addr) {
	t.Helper()
	_, err := probe.Trace(t.Context(), from.Namespace, to, hops)
	require.NoError(t, err)
}

// nodePort is a port of a node, at its address in the underlay.
func nodePort(n *Node, family int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(n.Addrs[family/6].Addr(), port)
}

// drops counts what a node has dropped for a reason.
func drops(t *testing.T, n *Node, reason string) uint64 {
	t.Helper()
	count, err := n.Metrics.Drops(reason)
	require.NoError(t, err)
	return count
}

// outcomes counts what a program of a node has done with packets.
func outcomes(t *testing.T, n *Node, program, outcome string) (packets uint64) {
	t.Helper()
	for m, err := range n.Metrics.All() {
		require.NoError(t, err)
		if m.Program == program && m.Outcome == outcome {
			packets += m.Packets
		}
	}
	return packets
}

// wiretap keeps what passes any device of a namespace.
type wiretap struct {
	fd int
}

func tap(t *testing.T, ns devices.Namespace) *wiretap {
	t.Helper()
	w := &wiretap{}
	require.NoError(t, ns.Do(func() (err error) {
		const everything = unix.ETH_P_ALL
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, everything<<8&0xff00|everything>>8); err != nil {
			return err
		}
		return unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
	}))
	t.Cleanup(func() { require.NoError(t, unix.Close(w.fd)) })
	return w
}

// packets are those that have come since the last call.
func (w *wiretap) packets(t *testing.T) (out []netnstest.Summary) {
	t.Helper()
	buf := make([]byte, 1<<17)
	for {
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		if errors.Is(err, unix.ENETDOWN) {
			continue // one of the devices
		}
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		require.NoError(t, err)
		out = append(out, netnstest.Frame{Bytes: append([]byte(nil), buf[:n]...)}.Summary())
	}
	stats, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	require.NoError(t, err)
	require.Zero(t, stats.Drops, "packets have passed unseen")
	return out
}

// requireNoLeak wants that no endpoint's own address has left for somebody who is
// not to see it. It returns how many packets have left for such.
func (w *wiretap) requireNoLeak(t *testing.T, c *Cluster) (left int) {
	t.Helper()
	for _, p := range w.packets(t) {
		to := p.Dst.Addr()
		if !outsideSeen[0].Contains(to) && !outsideSeen[1].Contains(to) {
			continue
		}
		left++
		for _, n := range c.Nodes {
			for _, own := range n.PodCIDRs {
				require.False(t, own.Contains(p.Src.Addr()), "%s to %s", p.Src, p.Dst)
			}
		}
	}
	return left
}

// serverPort is where each endpoint serves, see serveAll.
const serverPort = 9000

// serveAll has every endpoint serve, by TCP and by UDP.
func serveAll(t *testing.T, c *Cluster) {
	t.Helper()
	for _, e := range c.Endpoints() {
		for _, a := range e.Addrs {
			serve(t, e.Namespace, netip.AddrPortFrom(a, serverPort))
			serveUDP(t, e.Namespace, netip.AddrPortFrom(a, serverPort))
		}
	}
}

// serveUDP repeats what it is sent.
func serveUDP(t *testing.T, ns devices.Namespace, at netip.AddrPort) {
	t.Helper()
	var conn *net.UDPConn
	require.NoError(t, ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}))
	var running sync.WaitGroup
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		running.Wait()
	})
	running.Go(func() {
		for buf := make([]byte, 1<<16); ; {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = conn.WriteToUDPAddrPort(buf[:n], from)
			}
		}
	})
}

// backends are the servers of endpoints.
func backends(family int, all ...*Endpoint) (out []lb.Backend) {
	for _, e := range all {
		out = append(out, e.Backend(family, serverPort))
	}
	return out
}

// setService sets a service on all nodes.
func setService(t *testing.T, c *Cluster, s lb.Service) {
	t.Helper()
	for _, n := range c.Nodes {
		require.NoError(t, n.Services.SetService(s), n.Name)
	}
}

// atAll is a NodePort, or a port of another type, at all addresses of a node, by
// TCP and by UDP.
func atAll(family int, port uint16, kind lb.FrontendType) []lb.Frontend {
	at := netip.AddrPortFrom([]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[family/6], port)
	return []lb.Frontend{{Addr: at, Type: kind}, {Addr: at, Type: kind, Protocol: lb.UDP}}
}

// from is an address of the outside, with a port of the kernel's choice.
func from(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 0) }

// visit connects from outside, has a word repeated, and returns who has answered
// and as whom the client is seen.
func visit(t *testing.T, c *Cluster, as, to netip.AddrPort) (server, seen netip.AddrPort) {
	t.Helper()
	conn, err := dialFrom(t.Context(), c.Outside.Namespace, as, to)
	require.NoError(t, err, "%s to %s", as, to)
	require.NoError(t, conn.ask("how are you?"))
	require.NoError(t, conn.Close())
	return conn.server, conn.seen
}

// requireNoAnswer wants a connection from outside to be dropped for a reason, or
// refused.
func requireNoAnswer(t *testing.T, c *Cluster, n *Node, as, to netip.AddrPort, reason string, refused bool) {
	t.Helper()
	before := drops(t, n, reason)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := dialFrom(ctx, c.Outside.Namespace, as, to)
	if refused {
		require.ErrorIs(t, err, unix.ECONNREFUSED)
	} else {
		var timeout net.Error
		require.ErrorAs(t, err, &timeout)
		require.True(t, timeout.Timeout(), "%v", err)
	}
	require.Greater(t, drops(t, n, reason), before)
}

// routeBy has the router lead an address by a node.
func routeBy(t *testing.T, c *Cluster, to netip.Addr, n *Node) {
	t.Helper()
	via := n.Addrs[0].Addr()
	if to.Is6() {
		via = n.Addrs[1].Addr()
	}
	require.NoError(t, withNetlink(c.underlay, func(nl *netlink.Handle) error {
		return nl.RouteReplace(&netlink.Route{Dst: ipNet(netip.PrefixFrom(to, to.BitLen())), Gw: via.AsSlice()})
	}))
}

// As whom a backend on another node sees the outside's clients of a node.
func seenFor(n *Node, family int) netip.Addr {
	if n.cfg.Native {
		return n.Addrs[family/6].Addr()
	}
	return n.Gateway(family)
}

// What the outside reaches, and how it is seen.
func TestServicesForTheOutside(t *testing.T) {
	t.Parallel()
	inEachMode(t, "outside", Config{Services: 1, Maglev: true, Endpoints: 2}, func(t *testing.T, c *Cluster) {
		serveAll(t, c)
		for _, part := range []struct {
			name string
			test func(t *testing.T, c *Cluster, family int)
		}{
			{"node ports", nodePortsFromOutside},
			{"addresses of services", addressesFromOutside},
			{"host ports", hostPortsFromOutside},
			{"policy local", localForTheOutside},
			{"source ranges", rangesForTheOutside},
			{"affinity", affinityOfTheOutside},
			{"maglev", maglevOnEachNode},
			{"one port of the client", onePortThroughTwoAddresses},
		} {
			for _, family := range families {
				t.Run(fmt.Sprintf("%s/IPv%d", part.name, family), func(t *testing.T) { part.test(t, c, family) })
			}
		}
	})
}

// A NodePort is at each address of each node. A client is seen as it is by a
// backend of that node, and as the node by one of another.
func nodePortsFromOutside(t *testing.T, c *Cluster, family int) {
	const port = 31001
	first, second := c.Nodes[0], c.Nodes[1]
	client := c.Outside.Addr(family)
	for _, at := range []*Endpoint{first.Endpoints[0], second.Endpoints[1]} {
		setService(t, c, lb.Service{Name: fmt.Sprint("port", family), Frontends: atAll(family, port, lb.NodePort), Backends: backends(family, at)})
		for _, n := range c.Nodes {
			server, seen := visit(t, c, from(client), nodePort(n, family, port))
			require.Equal(t, at.Backend(family, serverPort).Addr, server)
			if n == at.Node {
				require.Equal(t, client, seen.Addr())
			} else {
				require.Equal(t, seenFor(n, family), seen.Addr())
			}
			_, err := probe.UDP(t.Context(), c.Outside.Namespace, nodePort(n, family, port), 1000)
			require.NoError(t, err)
			_, err = probe.UDP(t.Context(), c.Outside.Namespace, nodePort(n, family, port), 5000) // in pieces
			if family == 4 {                                                                      // in IPv6 the sender is told of the narrow path, and the datagram is lost
				require.NoError(t, err)
			}
		}
	}
	// A port beside it is the node's own affair.
	_, err := dial(t.Context(), c.Outside.Namespace, nodePort(first, family, port+1))
	require.ErrorIs(t, err, unix.ECONNREFUSED)
	at := echo(t, first.Namespace, first.Addrs[family/6].Addr())
	_, err = probe.TCP(t.Context(), c.Outside.Namespace, at.Addr(), 1000)
	require.NoError(t, err)
}

// An address that only services have is served by the node that the router leads
// it to. It answers echoes, and refuses what is not there.
func addressesFromOutside(t *testing.T, c *Cluster, family int) {
	for i, kind := range []lb.FrontendType{lb.LoadBalancer, lb.ExternalIP} {
		at := netip.AddrPortFrom([]netip.Addr{addr("192.0.2.%d", 100+i), addr("2001:db8::%x", 0x100+i)}[family/6], 80)
		setService(t, c, lb.Service{
			Name: fmt.Sprint(kind, family), Backends: backends(family, c.Endpoints()...),
			Frontends: []lb.Frontend{{Addr: at, Type: kind}, {Addr: at, Type: kind, Protocol: lb.UDP}},
		})
		for _, n := range c.Nodes {
			routeBy(t, c, at.Addr(), n)
			found := map[netip.AddrPort]bool{}
			for range 200 {
				server, _ := visit(t, c, netip.AddrPort{}, at)
				if found[server] = true; len(found) == len(c.Endpoints()) {
					break
				}
			}
			require.Len(t, found, len(c.Endpoints()))
			_, err := probe.UDP(t.Context(), c.Outside.Namespace, at, 1000)
			require.NoError(t, err)
			_, err = probe.Ping(t.Context(), c.Outside.Namespace, at.Addr(), 0)
			require.NoError(t, err)
			nowhere := netip.AddrPortFrom(at.Addr(), 81)
			requireNoAnswer(t, c, n, netip.AddrPort{}, nowhere, "no such port", true)
			_, err = probe.UDP(t.Context(), c.Outside.Namespace, nowhere, 1000)
			require.ErrorIs(t, err, unix.ECONNREFUSED)
		}
	}
	// A ClusterIP is for the inside, also if somebody leads it here.
	inside := c.ServiceAt(1, family).Frontends[0].Addr
	routeBy(t, c, inside.Addr(), c.Nodes[0])
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := dial(ctx, c.Outside.Namespace, inside)
	require.Error(t, err)
}

// A HostPort is at the node that has the workload.
func hostPortsFromOutside(t *testing.T, c *Cluster, family int) {
	const port = 31080
	first, second := c.Nodes[0], c.Nodes[1]
	require.NoError(t, first.Services.SetService(lb.Service{
		Name: fmt.Sprint("hostport", family), Frontends: atAll(family, port, lb.HostPort), Backends: backends(family, first.Endpoints[0]),
	}))
	server, seen := visit(t, c, from(c.Outside.Addr(family)), nodePort(first, family, port))
	require.Equal(t, first.Endpoints[0].Addr(family), server.Addr())
	require.Equal(t, c.Outside.Addr(family), seen.Addr())
	_, err := probe.UDP(t.Context(), c.Outside.Namespace, nodePort(first, family, port), 1000)
	require.NoError(t, err)
	_, err = dial(t.Context(), c.Outside.Namespace, nodePort(second, family, port))
	require.ErrorIs(t, err, unix.ECONNREFUSED)
}

// With the policy Local a client from outside is always seen as it is, and a node
// without a backend has nobody for it.
func localForTheOutside(t *testing.T, c *Cluster, family int) {
	const port = 31002
	first, second := c.Nodes[0], c.Nodes[1]
	vip := netip.AddrPortFrom([]netip.Addr{addr("192.0.2.110"), addr("2001:db8::110")}[family/6], 80)
	s := lb.Service{
		Name: fmt.Sprint("local", family), External: lb.Local, Backends: backends(family, c.Endpoints()...),
		Frontends: append(atAll(family, port, lb.NodePort), lb.Frontend{Addr: vip, Type: lb.LoadBalancer}),
	}
	setService(t, c, s)
	for _, n := range c.Nodes {
		routeBy(t, c, vip.Addr(), n)
		for range 12 {
			for _, to := range []netip.AddrPort{nodePort(n, family, port), vip} {
				server, seen := visit(t, c, from(c.Outside.Addr(family)), to)
				require.Contains(t, []netip.Addr{n.Endpoints[0].Addr(family), n.Endpoints[1].Addr(family)}, server.Addr())
				require.Equal(t, c.Outside.Addr(family), seen.Addr())
			}
		}
	}
	s.Backends = backends(family, first.Endpoints...)
	setService(t, c, s)
	visit(t, c, netip.AddrPort{}, nodePort(first, family, port))
	requireNoAnswer(t, c, second, netip.AddrPort{}, nodePort(second, family, port), "no backend", true)
	requireNoAnswer(t, c, second, netip.AddrPort{}, vip, "no backend", true)
	s.NoBackend = lb.Drop
	setService(t, c, s)
	requireNoAnswer(t, c, second, netip.AddrPort{}, nodePort(second, family, port), "no backend", false)
	// Who asks from inside is not outside.
	conn, err := dial(t.Context(), second.Endpoints[0].Namespace, vip)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

// Source ranges say who is served, or who is not; the others hear nothing.
func rangesForTheOutside(t *testing.T, c *Cluster, family int) {
	const port = 31003
	in, out := c.Outside.TrustedAddr(family), c.Outside.Addr(family)
	s := lb.Service{
		Name: fmt.Sprint("ranges", family), Frontends: atAll(family, port, lb.NodePort), Backends: backends(family, c.Endpoints()...),
		SourceRanges: outsideTrust[family/6 : family/6+1],
	}
	for range 2 {
		setService(t, c, s)
		for _, n := range c.Nodes {
			visit(t, c, from(in), nodePort(n, family, port))
			requireNoAnswer(t, c, n, from(out), nodePort(n, family, port), "source range", false)
		}
		s.DenySources = true
		in, out = out, in
	}
}

// A client stays with its backend, with other ports too, on each node that it
// asks.
func affinityOfTheOutside(t *testing.T, c *Cluster, family int) {
	const port = 31004
	setService(t, c, lb.Service{
		Name: fmt.Sprint("affinity", family), Frontends: atAll(family, port, lb.NodePort), Backends: backends(family, c.Endpoints()...), Affinity: time.Hour,
	})
	for _, n := range c.Nodes {
		for _, client := range []netip.Addr{c.Outside.Addr(family), c.Outside.TrustedAddr(family)} {
			first, _ := visit(t, c, from(client), nodePort(n, family, port))
			for range 12 {
				server, _ := visit(t, c, from(client), nodePort(n, family, port))
				require.Equal(t, first, server)
			}
		}
	}
}

// A connection that comes to another node has the same backend there.
func maglevOnEachNode(t *testing.T, c *Cluster, family int) {
	at := netip.AddrPortFrom([]netip.Addr{addr("192.0.2.120"), addr("2001:db8::120")}[family/6], 80)
	setService(t, c, lb.Service{
		Name: fmt.Sprint("maglev", family), Frontends: []lb.Frontend{{Addr: at, Type: lb.LoadBalancer}}, Backends: backends(family, c.Endpoints()...), Algorithm: lb.Maglev,
	})
	found := map[netip.AddrPort]bool{}
	for i := range 16 {
		as := netip.AddrPortFrom(c.Outside.Addr(family), uint16(20000+i))
		var server netip.AddrPort
		for j, n := range c.Nodes {
			routeBy(t, c, at.Addr(), n)
			conn, err := dialFrom(t.Context(), c.Outside.Namespace, as, at)
			require.NoError(t, err)
			require.NoError(t, conn.Conn.(*net.TCPConn).SetLinger(0)) // the port is free again at once
			require.NoError(t, conn.Close())
			if j == 0 {
				server = conn.server
			}
			require.Equal(t, server, conn.server)
		}
		found[server] = true
	}
	require.Greater(t, len(found), 1)
}

// Connections of one port of a client through several addresses to one backend are
// different ones there.
func onePortThroughTwoAddresses(t *testing.T, c *Cluster, family int) {
	const port = 31005
	first, second := c.Nodes[0], c.Nodes[1]
	// The first node has a second address.
	another := []netip.Addr{addr("172.16.16.77"), addr("fd00:16::77")}[family/6]
	require.NoError(t, withNetlink(first.Namespace, func(nl *netlink.Handle) error {
		return setAddr(nl, uplink, netip.PrefixFrom(another, another.BitLen()))
	}))
	for i, at := range []*Endpoint{first.Endpoints[0], second.Endpoints[0]} {
		s := lb.Service{Name: fmt.Sprint("one", family), Frontends: atAll(family, port, lb.NodePort), Backends: backends(family, at)}
		require.NoError(t, second.Services.SetService(s))
		s.Frontends = append(s.Frontends, lb.Frontend{Addr: netip.AddrPortFrom(another, port), Type: lb.NodePort})
		require.NoError(t, first.Services.SetService(s))
		as := netip.AddrPortFrom(c.Outside.Addr(family), uint16(21000+i))
		var all []client
		seen := map[netip.AddrPort]bool{}
		for _, to := range []netip.Addr{first.Addrs[family/6].Addr(), another, second.Addrs[family/6].Addr()} {
			conn, err := dialFrom(t.Context(), c.Outside.Namespace, as, netip.AddrPortFrom(to, port))
			require.NoError(t, err, "%s to %s for %s", as, to, at.Name)
			defer conn.Close()
			require.Equal(t, at.Backend(family, serverPort).Addr, conn.server)
			require.False(t, seen[conn.seen], "%s twice", conn.seen)
			all, seen[conn.seen] = append(all, conn), true
		}
		for range 3 {
			for j, conn := range all {
				require.NoError(t, conn.ask(fmt.Sprint("number ", j)))
			}
		}
	}
}

// inCgroup calls fn on a thread that is in the node, and in its cgroup.
func inCgroup(t *testing.T, c *Cluster, n *Node, fn func() error) error {
	t.Helper()
	require.NoError(t, c.NoSockets)
	mount, own := c.cgroups()
	for _, group := range []string{own, n.Cgroup} {
		require.NoError(t, os.WriteFile(filepath.Join(group, "cgroup.type"), []byte("threaded"), 0))
	}
	move := func(group string) error {
		return os.WriteFile(filepath.Join(group, "cgroup.threads"), fmt.Append(nil, unix.Gettid()), 0)
	}
	return n.Namespace.Do(func() error {
		if err := move(n.Cgroup); err != nil {
			return err
		}
		return errors.Join(fn(), move(mount))
	})
}

// An endpoint, a process of the node and one whose sockets are translated reach the
// NodePorts of their own node and of others.
func TestNodePortsFromInside(t *testing.T) {
	t.Parallel()
	inEachMode(t, "inside", Config{Services: 1, Endpoints: 1}, func(t *testing.T, c *Cluster) {
		const port = 31001
		serveAll(t, c)
		first, second := c.Nodes[0], c.Nodes[1]
		for _, family := range families {
			for _, at := range c.Endpoints() {
				setService(t, c, lb.Service{Name: fmt.Sprint("port", family), Frontends: atAll(family, port, lb.NodePort), Backends: backends(family, at)})
				require.NoError(t, first.Datapath.Bump())
				for _, n := range c.Nodes {
					to := nodePort(n, family, port)
					for _, client := range c.Endpoints() {
						conn, err := dial(t.Context(), client.Namespace, to)
						require.NoError(t, err, "%s to %s for %s", client.Name, to, at.Name)
						require.Equal(t, at.Addr(family), conn.server.Addr())
						require.NoError(t, conn.ask("how are you?"))
						require.NoError(t, conn.Close())
						_, err = probe.UDP(t.Context(), client.Namespace, to, 1000)
						require.NoError(t, err, "%s to %s for %s", client.Name, to, at.Name)
					}
					require.NoError(t, inCgroup(t, c, first, func() error {
						here, err := devices.CurrentNamespace()
						if err != nil {
							return err
						}
						defer here.Close()
						d := net.Dialer{Timeout: 3 * time.Second}
						conn, err := d.DialContext(t.Context(), "tcp", to.String())
						if err != nil {
							return err
						}
						if peer := conn.RemoteAddr().String(); peer != to.String() {
							return fmt.Errorf("the peer is %s, want %s", peer, to)
						}
						return conn.Close()
					}), "socket of %s to %s for %s", first.Name, to, at.Name)
				}
				conn, err := dial(t.Context(), first.Namespace, nodePort(second, family, port))
				require.NoError(t, err, "%s to %s for %s", first.Name, second.Name, at.Name)
				require.Equal(t, at.Addr(family), conn.server.Addr())
				require.NoError(t, conn.ask("how are you?"))
				require.NoError(t, conn.Close())
			}
		}
	})
}

// A port that a service has is not for a socket of the node; one that a socket has
// already is the service's for whoever comes from outside.
func TestNodePortAndSocket(t *testing.T) {
	t.Parallel()
	c := launch(t, "bind", Config{Services: 1, Nodes: 1, Endpoints: 1})
	serveAll(t, c)
	n := c.Nodes[0]
	for _, family := range families {
		own := n.Addrs[family/6].Addr()
		for _, at := range []netip.Addr{own, []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[family/6]} {
			for network, listen := range map[string]func(at string) (io.Closer, error){
				"tcp": func(at string) (io.Closer, error) { return net.Listen("tcp", at) },
				"udp": func(at string) (io.Closer, error) { return net.ListenPacket("udp", at) },
			} {
				require.ErrorIs(t, inCgroup(t, c, n, func() error {
					l, err := listen(netip.AddrPortFrom(at, NodePort(1)).String())
					if err == nil {
						l.Close()
					}
					return err
				}), unix.EADDRINUSE, "%s at %s", network, at)
			}
		}

		const port = 31009
		taken := netip.AddrPortFrom(own, port)
		serve(t, n.Namespace, taken)
		server, _ := visit(t, c, netip.AddrPort{}, taken)
		require.Equal(t, taken, server)
		setService(t, c, lb.Service{Name: fmt.Sprint("taken", family), Frontends: atAll(family, port, lb.NodePort), Backends: backends(family, n.Endpoints[0])})
		server, _ = visit(t, c, netip.AddrPort{}, taken)
		require.Equal(t, n.Endpoints[0].Addr(family), server.Addr())
		conn, err := dial(t.Context(), n.Namespace, taken) // by no socket that is translated
		require.NoError(t, err)
		require.Equal(t, taken, conn.server)
		require.NoError(t, conn.Close())
		require.NoError(t, n.Services.DeleteService(fmt.Sprint("taken", family)))
		server, _ = visit(t, c, netip.AddrPort{}, taken)
		require.Equal(t, taken, server)
	}
}

// openDatagrams opens a flow from the outside that ends with the test.
func openDatagrams(t *testing.T, c *Cluster, to netip.AddrPort) *probe.Datagrams {
	t.Helper()
	family := 6
	if to.Addr().Is4() {
		family = 4
	}
	d, err := probe.OpenDatagrams(c.Outside.Namespace, c.Outside.Addr(family), to)
	require.NoError(t, err)
	t.Cleanup(d.Close)
	return d
}

// requireTooBig wants a packet of size bytes to be answered with this MTU.
func requireTooBig(t *testing.T, d *probe.Datagrams, size, mtu int, teller netip.Addr) {
	t.Helper()
	_, err := d.Ask(t.Context(), size, 64)
	var icmp *probe.Error
	require.ErrorAs(t, err, &icmp)
	require.True(t, icmp.TooBig(), "%v", err)
	require.Equal(t, mtu, icmp.MTU)
	require.Equal(t, teller, icmp.From)
}

// A traceroute from outside shows the node, on the way to an endpoint by its
// address and to a service by the node's; what is beyond the node of a service
// answers in terms of the service.
func TestTracerouteFromOutside(t *testing.T) {
	t.Parallel()
	inEachMode(t, "trace", Config{Services: 1, Endpoints: 1}, func(t *testing.T, c *Cluster) {
		const port = 31001
		serveAll(t, c)
		first, second := c.Nodes[0], c.Nodes[1]
		for f, family := range families {
			to := first.Endpoints[0].Addr(family)
			_, err := probe.Trace(t.Context(), c.Outside.Namespace, to, []netip.Addr{OutsideRouter(family), first.Addrs[f].Addr(), to})
			require.NoError(t, err)

			for _, at := range []*Endpoint{first.Endpoints[0], second.Endpoints[0]} {
				setService(t, c, lb.Service{Name: fmt.Sprint("port", family), Frontends: atAll(family, port, lb.NodePort), Backends: backends(family, at)})
				to := nodePort(first, family, port)
				for range 2 { // the second time by a flow that is known
					hops, err := openDatagrams(t, c, to).Trace(t.Context(), 3)
					require.NoError(t, err)
					require.Equal(t, []netip.Addr{OutsideRouter(family), first.Addrs[f].Addr()}, hops[:2])
					if at.Node == first {
						require.Len(t, hops, 2)
					} else {
						require.Len(t, hops, 3, "%v", hops)
						require.Contains(t, []netip.Addr{second.Gateway(family), second.Addrs[f].Addr()}, hops[2])
					}
				}
			}
		}
	})
}

// A client that sends more than the way behind the node takes is told so.
func TestPathMTUFromOutside(t *testing.T) {
	t.Parallel()
	inEachMode(t, "mtu", Config{Services: 1, Endpoints: 1}, func(t *testing.T, c *Cluster) {
		const port, narrow = 31001, 1350
		serveAll(t, c)
		first, second := c.Nodes[0], c.Nodes[1]
		mtu := first.MTU
		if c.cfg.Native { // there the route to the other node is as narrow
			mtu = narrow
			require.NoError(t, withNetlink(first.Namespace, func(nl *netlink.Handle) error {
				for f, p := range second.PodCIDRs {
					route := &netlink.Route{Dst: ipNet(netip.PrefixFrom(second.Endpoints[0].Addrs[f], p.Addr().BitLen())), Gw: second.Addrs[f].Addr().AsSlice(), MTU: mtu, MTULock: true}
					if err := nl.RouteAdd(route); err != nil {
						return err
					}
				}
				return nil
			}))
			require.NoError(t, first.Datapath.Bump())
		}
		for f, family := range families {
			setService(t, c, lb.Service{Name: fmt.Sprint("port", family), Frontends: atAll(family, port, lb.NodePort), Backends: backends(family, second.Endpoints[0])})
			ask := openDatagrams(t, c, nodePort(first, family, port))
			for range 2 { // the second time by a flow that is known
				requireTooBig(t, ask, mtu+20, mtu, first.Addrs[f].Addr())
				_, err := ask.Ask(t.Context(), 1320, 64)
				require.NoError(t, err)
			}
		}
	})
}

// A megabyte goes both ways by each way that there is.
func TestBulk(t *testing.T) {
	t.Parallel()
	inEachMode(t, "bulk", Config{Services: 1, Endpoints: 1}, func(t *testing.T, c *Cluster) {
		const port, size = 31001, 1 << 20
		first, second := c.Nodes[0], c.Nodes[1]
		for _, family := range families {
			out := echo(t, c.Outside.Namespace, c.Outside.Addr(family))
			there := echo(t, second.Endpoints[0].Namespace, second.Endpoints[0].Addr(family))
			s := lb.Service{Name: fmt.Sprint("port", family), Frontends: atAll(family, port, lb.NodePort)}
			s.Backends = []lb.Backend{second.Endpoints[0].Backend(family, there.Addr().Port())}
			setService(t, c, s)
			for what, ask := range map[string]struct {
				ns devices.Namespace
				to netip.AddrPort
			}{
				"masquerade":   {first.Endpoints[0].Namespace, out.Addr()},
				"to a peer":    {first.Endpoints[0].Namespace, there.Addr()},
				"by two nodes": {c.Outside.Namespace, nodePort(first, family, port)},
				"by one node":  {c.Outside.Namespace, nodePort(second, family, port)},
			} {
				_, err := probe.TCP(t.Context(), ask.ns, ask.to, size)
				require.NoError(t, err, "%s, IPv%d", what, family)
			}
		}
	})
}

// The backends of a service change all the time under clients from outside, on the
// node that they ask and on the other one: none of them fails, and who stays
// connected keeps its server.
func TestUpdatesUnderTheOutside(t *testing.T) {
	t.Parallel()
	inEachMode(t, "updout", Config{Services: 1, Endpoints: 2}, func(t *testing.T, c *Cluster) {
		const port, conns = 31001, 1000
		serveAll(t, c)
		all := c.Endpoints()
		s := lb.Service{Name: "hammered", Frontends: atAll(4, port, lb.NodePort), Backends: backends(4, all...), OnRemove: lb.Drain}
		setService(t, c, s)
		at := []netip.AddrPort{nodePort(c.Nodes[0], 4, port), nodePort(c.Nodes[1], 4, port)}
		var stay []client
		for i := range 8 {
			conn, err := dial(t.Context(), c.Outside.Namespace, at[i%2])
			require.NoError(t, err)
			defer conn.Close()
			stay = append(stay, conn)
		}
		stop, done := make(chan struct{}), make(chan error, 1)
		updates := 0
		go func() {
			for tick := time.NewTicker(time.Millisecond); ; updates++ {
				select {
				case <-stop:
					tick.Stop()
					done <- nil
					return
				case <-tick.C:
				}
				s := s
				s.Backends = backends(4, all[updates%2], all[2+updates%2]) // one of each node
				for _, n := range c.Nodes {
					if err := n.Services.SetService(s); err != nil {
						done <- err
						return
					}
				}
			}
		}()
		seen := map[netip.AddrPort]int{}
		failed := func() error {
			for i := range conns {
				conn, err := dial(t.Context(), c.Outside.Namespace, at[i%2])
				if err != nil {
					return fmt.Errorf("connection %d: %w", i, err)
				}
				seen[conn.server]++
				if err := errors.Join(conn.ask("one"), conn.ask("two"), conn.Close()); err != nil {
					return fmt.Errorf("connection %d to %s: %w", i, conn.server, err)
				}
				one := stay[i%len(stay)]
				if err := one.ask("still here?"); err != nil {
					return fmt.Errorf("ask %s, connected from the beginning: %w", one.server, err)
				}
			}
			return nil
		}()
		close(stop)
		require.NoError(t, <-done)
		require.NoError(t, failed, "%d updates", updates)
		require.Len(t, seen, len(all))
		require.Greater(t, updates, 20)
	})
}

// Whoever is outside has no address of those who are inside: not towards them, nor
// towards a service, nor towards the node itself.
func TestForgedFromOutside(t *testing.T) {
	t.Parallel()
	inEachMode(t, "forged", Config{Services: 1, Endpoints: 2}, func(t *testing.T, c *Cluster) {
		const port, own = 31001, 7001
		serveAll(t, c)
		n, red := c.Nodes[0], c.Nodes[1].Endpoints[0]
		blue, green := n.Endpoints[0], n.Endpoints[1]
		inside := tap(t, blue.Namespace)
		for f, family := range families {
			setService(t, c, lb.Service{Name: fmt.Sprint("port", family), Frontends: atAll(family, port, lb.NodePort), Backends: backends(family, blue)})
			var socket *net.UDPConn
			at := netip.AddrPortFrom(n.Addrs[f].Addr(), own)
			require.NoError(t, n.Namespace.Do(func() (err error) {
				socket, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
				return err
			}))
			defer socket.Close()
			sources := []netip.Addr{green.Addr(family), n.Gateway(family), n.Addrs[f].Addr()}
			if !c.cfg.Native { // without an overlay only the underlay could tell it from another node
				sources = append(sources, red.Addr(family))
			}
			for what, to := range map[string]netip.AddrPort{
				"an endpoint": blue.Backend(family, serverPort).Addr, "a service": nodePort(n, family, port), "the node": at,
			} {
				sources := slices.Clone(sources)
				if to != at { // the node itself may have asked a service by another node, and is answered as from the service
					sources = append(sources, c.ServiceAt(1, family).Frontends[0].Addr.Addr())
				}
				for _, source := range sources {
					t.Run(fmt.Sprintf("%s/%s", what, source), func(t *testing.T) {
						before := drops(t, n, "spoofed source")
						sendTo(t, c, n, netip.AddrPortFrom(source, 1234), to, "forged")
						require.Eventually(t, func() bool { return drops(t, n, "spoofed source") == before+1 }, time.Second, time.Millisecond)
					})
				}
			}
			// What is honest has arrived, and before it nothing else.
			sendTo(t, c, n, netip.AddrPortFrom(c.Outside.Addr(family), 1234), at, "honest")
			require.NoError(t, socket.SetReadDeadline(time.Now().Add(3*time.Second)))
			buf := make([]byte, 100)
			read, err := socket.Read(buf)
			require.NoError(t, err)
			require.Equal(t, "honest", string(buf[:read]))
		}
		for _, p := range inside.packets(t) {
			require.NotEqual(t, uint16(1234), p.Src.Port(), "%s has come to %s", p.Src, p.Dst)
		}
	})
}

// sendTo puts a datagram on the wire of a node.
func sendTo(t *testing.T, c *Cluster, n *Node, from, to netip.AddrPort, payload string) {
	t.Helper()
	var ip packet.Layer = packet.IPv4{Src: from.Addr(), Dst: to.Addr()}
	if to.Addr().Is6() {
		ip = packet.IPv6{Src: from.Addr(), Dst: to.Addr()}
	}
	frame := packet.Build(packet.Ethernet{Dst: packet.MAC(uplinkMAC(n.index)), Src: packet.MAC{2, 0, 0, 0, 9, 9}}, ip,
		packet.UDP{SrcPort: from.Port(), DstPort: to.Port()}, packet.Payload(payload))
	putOnWire(t, c, n, frame)
}

// putOnWire puts a frame on the wire of a node.
func putOnWire(t *testing.T, c *Cluster, n *Node, frame []byte) {
	t.Helper()
	require.NoError(t, c.underlay.Do(func() error {
		dev, err := net.InterfaceByName(n.Name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: dev.Index})
	}))
}
