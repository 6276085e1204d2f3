// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/probe"
	"github.com/godatapath/datapath/lb"
)

// routeAge is short, so that no test waits for long.
const routeAge = 300 * time.Millisecond

// soon is when a change of routes has been noticed, on a busy machine too.
const soon = 10 * routeAge

// The second segment of a node: a router that is the world by itself.
var (
	secondAddrs   = []netip.Prefix{prefix("172.16.17.11/24"), prefix("fd00:17::11/64")}
	secondRouters = []netip.Prefix{prefix("172.16.17.1/24"), prefix("fd00:17::1/64")}
	secondWorld   = []netip.Prefix{prefix("192.0.2.0/24"), prefix("2001:db8::/64")}
)

const (
	secondUplink = "eth1"
	secondMTU    = 1300
)

// another is a second uplink of a node, and the router at its end.
type another struct {
	c  *Cluster
	n  *Node
	ns devices.Namespace
}

func addUplink(t *testing.T, c *Cluster, n *Node) *another {
	t.Helper()
	ns, err := c.namespace("outside2")
	require.NoError(t, err)
	a := &another{c, n, ns}
	require.NoError(t, withNetlink(ns, func(nl *netlink.Handle) error {
		for _, p := range secondWorld {
			if err := setAddr(nl, "lo", netip.PrefixFrom(host(p, 10), p.Addr().BitLen())); err != nil {
				return err
			}
		}
		return nil
	}))
	a.plug(t)
	a.attach(t)
	a.route(t)
	return a
}

// plug makes the device, with its addresses.
func (a *another) plug(t *testing.T) {
	t.Helper()
	node, err := os.Open(a.n.Namespace.Path())
	require.NoError(t, err)
	defer node.Close()
	require.NoError(t, withNetlink(a.ns, func(nl *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = uplink, secondMTU
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerMTU, veth.PeerNamespace = secondUplink, secondMTU, netlink.NsFd(node.Fd())
		if err := nl.LinkAdd(veth); err != nil {
			return err
		}
		for _, p := range secondRouters {
			if err := setAddr(nl, uplink, p); err != nil {
				return err
			}
		}
		return nl.LinkSetUp(veth)
	}))
	require.NoError(t, withNetlink(a.n.Namespace, func(nl *netlink.Handle) error {
		for _, p := range secondAddrs {
			if err := setAddr(nl, secondUplink, p); err != nil {
				return err
			}
		}
		return nil
	}))
	setLink(t, a.n.Namespace, secondUplink, true)
	require.NoError(t, devices.EnsureForwarding(a.n.Namespace, devices.Forwarding{Devices: []string{uplink, secondUplink}}))
}

// attach makes it a way out.
func (a *another) attach(t *testing.T) devices.Link {
	t.Helper()
	dev, err := devices.FindLink(a.n.Namespace, secondUplink)
	require.NoError(t, err)
	require.NoError(t, a.n.Datapath.SetNodeAddrs(a.n.Addrs[0].Addr(), a.n.Addrs[1].Addr(), secondAddrs[0].Addr(), secondAddrs[1].Addr()))
	require.NoError(t, a.n.Datapath.AttachDevice(dev, secondAddrs[0].Addr(), secondAddrs[1].Addr()))
	return dev
}

// route sends what is for its world by it.
func (a *another) route(t *testing.T) {
	t.Helper()
	for f, p := range secondWorld {
		require.NoError(t, devices.EnsureRoute(a.n.Namespace, devices.Route{Prefix: p, Via: secondRouters[f].Addr(), Dev: secondUplink}))
	}
}

func setLink(t *testing.T, ns devices.Namespace, name string, up bool) {
	t.Helper()
	require.NoError(t, withNetlink(ns, func(nl *netlink.Handle) error {
		dev, err := nl.LinkByName(name)
		if err != nil {
			return err
		}
		if up {
			return nl.LinkSetUp(dev)
		}
		return nl.LinkSetDown(dev)
	}))
}

// setDefaults gives a node its default routes again, or takes them away.
func setDefaults(t *testing.T, n *Node, there bool) {
	t.Helper()
	require.NoError(t, withNetlink(n.Namespace, func(nl *netlink.Handle) error {
		if there {
			return setDefault(nl, routerAddrs)
		}
		for f, to := range []netip.Prefix{prefix("0.0.0.0/0"), prefix("::/0")} {
			if err := nl.RouteDel(&netlink.Route{Dst: ipNet(to), Gw: routerAddrs[f].Addr().AsSlice()}); err != nil {
				return err
			}
		}
		return nil
	}))
}

// forgetNeighbours makes a namespace ask again who has which address on a device.
func forgetNeighbours(t *testing.T, ns devices.Namespace, name string) {
	t.Helper()
	require.NoError(t, withNetlink(ns, func(nl *netlink.Handle) error {
		dev, err := nl.LinkByName(name)
		if err != nil {
			return err
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			all, err := nl.NeighList(dev.Attrs().Index, family)
			if err != nil {
				return err
			}
			for _, neigh := range all {
				if neigh.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) == 0 {
					if err := nl.NeighDel(&neigh); err != nil {
						return err
					}
				}
			}
		}
		return nil
	}))
}

// stream asks an echo server all the time, by one socket.
type stream struct {
	asked, answers atomic.Int64
}

func startStream(t *testing.T, from devices.Namespace, to netip.AddrPort) *stream {
	t.Helper()
	s := &stream{}
	var conn *net.UDPConn
	require.NoError(t, from.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", nil) // not connected: it goes on after errors
		return err
	}))
	var running sync.WaitGroup
	stop := make(chan struct{})
	t.Cleanup(func() {
		close(stop)
		require.NoError(t, conn.Close())
		running.Wait()
	})
	running.Go(func() {
		for tick := time.NewTicker(2 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
				_, _ = conn.WriteToUDPAddrPort([]byte("still there?"), to)
				s.asked.Add(1)
			}
		}
	})
	running.Go(func() {
		buf := make([]byte, 100)
		for {
			_, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) == to {
				s.answers.Add(1)
			}
		}
	})
	return s
}

// requireAnswers wants answers again, and soon.
func (s *stream) requireAnswers(t *testing.T, what string) {
	t.Helper()
	for _, more := range []int64{1, 10} {
		before := s.answers.Load()
		require.Eventually(t, func() bool { return s.answers.Load() >= before+more }, soon, 5*time.Millisecond, what)
	}
}

// requireSilence wants that there are no more of them, when a route has aged.
func (s *stream) requireSilence(t *testing.T, what string) {
	t.Helper()
	require.Eventually(t, func() bool {
		before := s.answers.Load()
		s.goOn()
		return s.answers.Load() == before
	}, soon, time.Millisecond, what)
}

// goOn returns when it has asked some times more. On a busy machine a time
// alone is no sign: for as long, nobody may have asked.
func (s *stream) goOn() {
	for before := s.asked.Load(); s.asked.Load() < before+15; {
		time.Sleep(2 * time.Millisecond)
	}
}

// requireDrops wants that the node drops for that reason now.
func requireDrops(t *testing.T, n *Node, reason string) {
	t.Helper()
	before := drops(t, n, reason)
	require.Eventually(t, func() bool { return drops(t, n, reason) > before }, soon, 5*time.Millisecond, "nothing is dropped for %q", reason)
}

// What leaves by an uplink has the address of that uplink and fits it; the routes
// choose which, also when they change.
func TestTwoUplinks(t *testing.T) {
	t.Parallel()
	inEachMode(t, "two", Config{Endpoints: 1, Services: 1, RouteAge: routeAge}, func(t *testing.T, c *Cluster) {
		n := c.Nodes[0]
		e := n.Endpoints[0]
		a := addUplink(t, c, n)
		serveAll(t, c)
		first, second := tap(t, c.underlay), tap(t, a.ns)
		for f, family := range families {
			own := []netip.Addr{n.Addrs[f].Addr(), secondAddrs[f].Addr()}
			out, there := echo(t, c.Outside.Namespace, c.Outside.Addr(family)), echo(t, a.ns, host(secondWorld[f], 10))
			requireSeen(t, e.Namespace, out, out.Addr(), own[0])
			requireSeen(t, e.Namespace, there, there.Addr(), own[1])
			_, err := probe.TooBig(t.Context(), e.Namespace, there.Addr().Addr(), secondMTU+20, secondMTU, n.Gateway(family))
			require.NoError(t, err)
			_, err = probe.TCP(t.Context(), e.Namespace, there.Addr(), 1<<20)
			require.NoError(t, err)
			_, err = probe.UDP(t.Context(), e.Namespace, there.Addr(), 5000) // in pieces
			require.NoError(t, err)
			_, seen := there.Asked()
			require.Equal(t, own[1], seen)
			trace(t, e, there.Addr().Addr(), n.Gateway(family), there.Addr().Addr())

			// A NodePort there is reached, and who has asked is answered by the way that leads to him.
			asked := netip.AddrPortFrom(own[1], 31001)
			for _, at := range c.Endpoints() {
				require.NoError(t, n.Services.SetService(lb.Service{
					Name: fmt.Sprint("port", family), Frontends: []lb.Frontend{{Addr: asked, Type: lb.NodePort}}, Backends: backends(family, at),
				}))
				conn, err := dialFrom(t.Context(), a.ns, from(there.Addr().Addr()), asked)
				require.NoError(t, err)
				require.Equal(t, at.Addr(family), conn.server.Addr())
				if at.Node == n {
					require.Equal(t, there.Addr().Addr(), conn.seen.Addr())
				} else {
					require.Equal(t, seenFor(n, family), conn.seen.Addr())
				}
				require.NoError(t, conn.ask("how are you?"))
				require.NoError(t, conn.Close())
			}

			// The second router takes over the outside.
			const port = 7000
			at := netip.AddrPortFrom(c.Outside.Addr(family), port)
			serve(t, c.Outside.Namespace, at)
			require.NoError(t, withNetlink(a.ns, func(nl *netlink.Handle) error {
				return setAddr(nl, "lo", netip.PrefixFrom(at.Addr(), at.Addr().BitLen()))
			}))
			serve(t, a.ns, at)
			old, err := dial(t.Context(), e.Namespace, at)
			require.NoError(t, err)
			defer old.Close()
			require.Equal(t, own[0], old.seen.Addr())
			require.NoError(t, devices.EnsureRoute(n.Namespace, devices.Route{Prefix: outsideSeen[f], Via: secondRouters[f].Addr(), Dev: secondUplink}))
			require.Eventually(t, func() bool {
				fresh, err := dial(t.Context(), e.Namespace, at)
				require.NoError(t, err)
				require.NoError(t, fresh.Close())
				return fresh.seen.Addr() == own[1]
			}, soon, routeAge/10, "IPv%d", family)
			require.Eventually(t, func() bool { return old.ask("still here?") != nil }, soon, routeAge/10)
			require.NoError(t, devices.RemoveRoute(n.Namespace, devices.Route{Prefix: outsideSeen[f], Dev: secondUplink}))
		}
		require.Positive(t, first.requireNoLeak(t, c))
		for _, p := range second.packets(t) {
			for _, one := range append(slices.Clone(n.PodCIDRs), routerAddrs...) {
				require.False(t, one.Masked().Contains(p.Src.Addr()), "%s to %s", p.Src, p.Dst)
			}
		}
	})
}

// An uplink goes down and comes up, is taken away and is made again: what goes on
// is what was going, and at no time does an endpoint's own address show.
func TestUplinkGoesAndComes(t *testing.T) {
	t.Parallel()
	inEachMode(t, "gone", Config{Endpoints: 1, RouteAge: routeAge}, func(t *testing.T, c *Cluster) {
		n := c.Nodes[0]
		outside := tap(t, c.underlay)
		var streams []*stream
		for _, family := range families {
			there := echo(t, c.Outside.Namespace, c.Outside.Addr(family))
			streams = append(streams, startStream(t, n.Endpoints[0].Namespace, there.Addr()))
		}
		answers := func(what string) {
			t.Helper()
			for _, s := range streams {
				s.requireAnswers(t, what)
			}
			require.Positive(t, outside.requireNoLeak(t, c))
		}
		silence := func(what string) {
			t.Helper()
			for _, s := range streams {
				s.requireSilence(t, what)
			}
			requireDrops(t, n, "no route")
			outside.requireNoLeak(t, c)
		}
		answers("at first")

		setLink(t, n.Namespace, uplink, false)
		silence("the uplink is down")
		setLink(t, n.Namespace, uplink, true)
		require.NoError(t, withNetlink(n.Namespace, func(nl *netlink.Handle) error { return setAddr(nl, uplink, n.Addrs[1]) }))
		silence("no route leads by it")
		setDefaults(t, n, true)
		answers("the uplink is up again")

		gone, err := devices.FindLink(n.Namespace, uplink)
		require.NoError(t, err)
		require.NoError(t, devices.RemoveLink(n.Namespace, gone))
		silence("the uplink is no more")
		require.NoError(t, n.Datapath.DetachDevice(gone))
		require.NoError(t, n.Datapath.DetachDevice(gone), "once more")
		require.NoError(t, c.joinUnderlay(n.Namespace, n.index, n.Addrs))
		require.NoError(t, devices.EnsureForwarding(n.Namespace, devices.Forwarding{Devices: []string{uplink}}))
		fresh, err := devices.FindLink(n.Namespace, uplink)
		require.NoError(t, err)
		require.NotEqual(t, gone.Index, fresh.Index)
		require.NoError(t, n.Datapath.AttachDevice(fresh, n.Addrs[0].Addr(), n.Addrs[1].Addr()))
		silence("no route leads by the new one")
		setDefaults(t, n, true)
		require.NoError(t, n.knowPeers(c.Nodes))
		answers("the new uplink")
		for _, family := range families {
			_, err := probe.Ping(t.Context(), n.Endpoints[0].Namespace, c.Nodes[1].Endpoints[0].Addr(family), 0)
			require.NoError(t, err, "to the other node")
		}
	})
}

// A device that nobody has named an uplink is no way out for those who are to
// leave in the node's name.
func TestNoWayOutByAForeignDevice(t *testing.T) {
	t.Parallel()
	inEachMode(t, "foreign", Config{Endpoints: 1, RouteAge: routeAge}, func(t *testing.T, c *Cluster) {
		n := c.Nodes[0]
		a := addUplink(t, c, n)
		dev, err := devices.FindLink(n.Namespace, secondUplink)
		require.NoError(t, err)
		require.NoError(t, n.Datapath.DetachDevice(dev))
		world := tap(t, a.ns)
		for f, family := range families {
			there := echo(t, a.ns, host(secondWorld[f], 10))
			ask := startStream(t, n.Endpoints[0].Namespace, there.Addr())
			time.Sleep(100 * time.Millisecond)
			for _, p := range world.packets(t) {
				require.False(t, n.PodCIDRs[f].Contains(p.Src.Addr()), "%s has left for %s", p.Src, p.Dst)
			}
			require.Zero(t, ask.answers.Load())
			// Whoever is to see it does.
			require.NoError(t, n.Flows.SetUnmasqueraded(secondWorld))
			require.NoError(t, withNetlink(a.ns, func(nl *netlink.Handle) error {
				return nl.RouteAdd(&netlink.Route{Dst: ipNet(n.PodCIDRs[f]), Gw: secondAddrs[f].Addr().AsSlice()})
			}))
			requireSeen(t, n.Endpoints[0].Namespace, there, there.Addr(), n.Endpoints[0].Addr(family))
			require.NoError(t, n.knowPeers(c.Nodes))
		}
	})
}

// Without a route nothing leaves, and that is said; with one again all goes on.
func TestNoRoute(t *testing.T) {
	t.Parallel()
	inEachMode(t, "noroute", Config{Endpoints: 1, RouteAge: routeAge}, func(t *testing.T, c *Cluster) {
		n := c.Nodes[0]
		e := n.Endpoints[0]
		outside := tap(t, c.underlay)
		var there []*probe.Echo
		var streams []*stream
		for _, family := range families {
			there = append(there, echo(t, c.Outside.Namespace, c.Outside.Addr(family)))
			streams = append(streams, startStream(t, e.Namespace, there[len(there)-1].Addr()))
		}
		for range 2 {
			for _, s := range streams {
				s.requireAnswers(t, "there is a route")
			}
			setDefaults(t, n, false)
			for _, s := range streams {
				s.requireSilence(t, "there is none")
			}
			requireDrops(t, n, "no route")
			for end, left := time.Now().Add(soon), 1; left > 0; {
				require.True(t, time.Now().Before(end), "something leaves")
				outside.requireNoLeak(t, c)
				for _, s := range streams {
					s.goOn()
				}
				left = outside.requireNoLeak(t, c)
			}
			for _, family := range families {
				_, err := probe.Ping(t.Context(), e.Namespace, c.Nodes[1].Endpoints[0].Addr(family), 0)
				require.NoError(t, err, "to the other node")
			}
			setDefaults(t, n, true)
			for f := range families {
				requireSeen(t, e.Namespace, there[f], there[f].Addr(), n.Addrs[f].Addr())
			}
		}
	})
}

// Whoever's address on the wire is not known yet is found for the first packet,
// and it is not lost.
func TestFirstPacketToAnUnknownNeighbour(t *testing.T) {
	t.Parallel()
	inEachMode(t, "neigh", Config{Endpoints: 1, Services: 1}, func(t *testing.T, c *Cluster) {
		n, other := c.Nodes[0], c.Nodes[1]
		forget := func() {
			t.Helper()
			for _, at := range c.Nodes {
				forgetNeighbours(t, at.Namespace, uplink)
			}
			forgetNeighbours(t, c.underlay, "segment")
			forgetNeighbours(t, c.underlay, "outside")
			forgetNeighbours(t, c.Outside.Namespace, uplink)
		}
		for _, family := range families {
			out := echo(t, c.Outside.Namespace, c.Outside.Addr(family))
			peer := echo(t, other.Endpoints[0].Namespace, other.Endpoints[0].Addr(family))
			for _, b := range c.ServiceAt(1, family).Backends {
				serveEcho(t, c, b.Addr)
			}
			for range 3 {
				for _, ask := range []struct {
					from devices.Namespace
					to   netip.AddrPort
				}{
					{n.Endpoints[0].Namespace, out.Addr()},
					{n.Endpoints[0].Namespace, peer.Addr()},
					{c.Outside.Namespace, nodePort(n, family, NodePort(1))},
				} {
					forget()
					_, err := probe.UDP(t.Context(), ask.from, ask.to, 100)
					require.NoError(t, err, "to %s", ask.to)
				}
			}
		}
	})
}

// A node that gets other addresses leaves with those, and what has left with the
// old ones ends.
func TestNodeAddressChanges(t *testing.T) {
	t.Parallel()
	inEachMode(t, "renumber", Config{Endpoints: 1, RouteAge: routeAge}, func(t *testing.T, c *Cluster) {
		const port = 7000
		n := c.Nodes[0]
		e := n.Endpoints[0]
		was := n.Addrs
		now := []netip.Prefix{prefix("172.16.16.111/24"), prefix("fd00:16::111/64")}
		var there []netip.AddrPort
		var old []client
		for f, family := range families {
			at := netip.AddrPortFrom(c.Outside.Addr(family), port)
			serve(t, c.Outside.Namespace, at)
			conn, err := dial(t.Context(), e.Namespace, at)
			require.NoError(t, err)
			defer conn.Close()
			require.Equal(t, was[f].Addr(), conn.seen.Addr())
			there, old = append(there, at), append(old, conn)
		}
		outside := tap(t, c.underlay)
		require.NoError(t, withNetlink(n.Namespace, func(nl *netlink.Handle) error {
			for _, a := range now {
				if err := setAddr(nl, uplink, a); err != nil {
					return err
				}
			}
			return nil
		}))
		require.NoError(t, n.Datapath.SetNodeAddrs(was[0].Addr(), was[1].Addr(), now[0].Addr(), now[1].Addr()))
		dev, err := devices.FindLink(n.Namespace, uplink)
		require.NoError(t, err)
		require.NoError(t, n.Datapath.AttachDevice(dev, now[0].Addr(), now[1].Addr()))
		if c.cfg.Native { // an overlay has its address for longer
			require.NoError(t, devices.EnsureSysctls(n.Namespace, devices.Sysctl{Family: devices.IPv4, Device: uplink, Name: "promote_secondaries", Value: 1}))
			require.NoError(t, withNetlink(n.Namespace, func(nl *netlink.Handle) error {
				dev, err := nl.LinkByName(uplink)
				for _, a := range was {
					if err == nil {
						err = nl.AddrDel(dev, &netlink.Addr{IPNet: ipNet(a)})
					}
				}
				return err
			}))
			require.NoError(t, n.Datapath.SetNodeAddrs(now[0].Addr(), now[1].Addr()))
			n.Addrs = now
			for _, other := range c.Nodes {
				require.NoError(t, other.knowPeers(c.Nodes))
			}
		}
		for f := range families {
			err := old[f].ask("still here?")
			require.ErrorIs(t, err, unix.ECONNRESET)
			fresh, err := dial(t.Context(), e.Namespace, there[f])
			require.NoError(t, err)
			require.Equal(t, now[f].Addr(), fresh.seen.Addr())
			require.NoError(t, fresh.ask("how are you?"))
			require.NoError(t, fresh.Close())
			_, err = probe.Ping(t.Context(), e.Namespace, c.Nodes[1].Endpoints[0].Addr(families[f]), 0)
			require.NoError(t, err, "to the other node")
		}
		require.Positive(t, outside.requireNoLeak(t, c))
	})
}

// The way to another node is narrower than the uplink, and its routes say so: who
// sends too much through the overlay is told.
func TestNarrowWayToAPeer(t *testing.T) {
	t.Parallel()
	for name, v6 := range map[string]bool{"IPv4 underlay": false, "IPv6 underlay": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := launch(t, fmt.Sprintf("narrow%t", v6), Config{Endpoints: 1, IPv6Underlay: v6})
			first, second := c.Nodes[0], c.Nodes[1]
			from, to := first.Endpoints[0], second.Endpoints[0]
			const narrow, size = 1400, 1400
			want := narrow - 50
			if v6 {
				want = narrow - 70
			}
			for _, family := range families {
				_, err := probe.Ping(t.Context(), from.Namespace, to.Addr(family), size)
				require.NoError(t, err)
			}
			require.NoError(t, withNetlink(first.Namespace, func(nl *netlink.Handle) error {
				dev, err := nl.LinkByName(uplink)
				if err != nil {
					return err
				}
				there := second.Underlay()
				return nl.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: ipNet(netip.PrefixFrom(there, there.BitLen())), MTU: narrow, MTULock: true})
			}))
			require.NoError(t, first.Datapath.Bump())
			for _, family := range families {
				_, err := probe.TooBig(t.Context(), from.Namespace, to.Addr(family), size, want, first.Gateway(family))
				require.NoError(t, err, "IPv%d", family)
				_, err = probe.TCP(t.Context(), from.Namespace, echo(t, to.Namespace, to.Addr(family)).Addr(), 1<<20)
				require.NoError(t, err, "IPv%d", family)
			}
		})
	}
}
