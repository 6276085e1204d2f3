// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// blue is an endpoint of both families.
func blue(ns Namespace) Endpoint {
	return Endpoint{
		Name:      "blue",
		Namespace: ns,
		Addrs:     addrs("10.0.1.2", "fd00:1::2"),
		Gateways:  both,
		RouteMTU:  1450,
	}
}

func withoutLinkLocal(all []netip.Prefix) (out []string) {
	for _, p := range all {
		if !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p.String())
		}
	}
	return out
}

func TestEndpoint(t *testing.T) {
	t.Parallel()
	node, workload := newNS(t), newNS(t)
	got, err := EnsureEndpoint(node, blue(workload))
	require.NoError(t, err)

	require.Equal(t, find(t, node, EndpointLinkName("blue")), got.Link)
	require.Equal(t, got.Index, got.Ifindex())
	require.True(t, got.Up)
	require.Equal(t, 1500, got.MTU)
	require.Empty(t, got.Addrs)
	require.Equal(t, "blue", got.EndpointName)
	require.Equal(t, addrs("10.0.1.2", "fd00:1::2"), got.EndpointAddrs)
	require.Equal(t, 1, sysctl(t, node, IPv6, got.Name, "disable_ipv6"))
	require.Zero(t, sysctl(t, node, IPv4, got.Name, "rp_filter"))

	peer := find(t, workload, "eth0")
	require.Equal(t, peer.Index, got.PeerIndex)
	require.Equal(t, peer.Name, got.PeerName)
	require.Equal(t, peer.MAC, got.PeerMAC)
	require.NotEqual(t, peer.MAC, got.MAC)
	require.True(t, peer.Up)
	require.Equal(t, []string{"10.0.1.2/32", "fd00:1::2/128"}, withoutLinkLocal(peer.Addrs))
	for name, want := range map[string]int{"accept_dad": 0, "dad_transmits": 0, "accept_ra": 0, "disable_ipv6": 0} {
		require.Equal(t, want, sysctl(t, workload, IPv6, "eth0", name), name)
	}
	routes, err := ListRoutes(workload, "eth0")
	require.NoError(t, err)
	require.Equal(t, []Route{
		{Prefix: prefix("0.0.0.0/0"), Via: both[0], Dev: "eth0", MTU: 1450, Onlink: true},
		{Prefix: prefix("::/0"), Via: both[1], Dev: "eth0", MTU: 1450, Onlink: true, Metric: 1024},
	}, routes)
	requireNothingLeft(t, node, got.Name)
	requireNothingLeft(t, workload, "eth0")

	list, err := ListEndpoints(node, "")
	require.NoError(t, err)
	require.Equal(t, []EndpointLink{got}, list)

	require.NoError(t, RemoveEndpoint(node, got))
	require.NoError(t, RemoveEndpoint(node, got))
	requireNothingLeft(t, node)
	requireNothingLeft(t, workload)
}

// An address of IPv6 is usual only after a second of duplicate detection. Ours
// can be used when the call returns.
func TestEndpointAddressesWorkAtOnce(t *testing.T) {
	t.Parallel()
	node, workload := newNS(t), newNS(t)
	_, err := EnsureEndpoint(node, blue(workload))
	require.NoError(t, err)
	listen(t, workload, "[fd00:1::2]:9")
	listen(t, workload, "10.0.1.2:9")
	with(t, workload, func(c conn) error {
		all, err := c.addrs(0)
		for _, a := range all {
			assert.Zero(t, a.Flags&unix.IFA_F_TENTATIVE, a.String())
		}
		return err
	})
}

func TestEndpointTwiceIsOnce(t *testing.T) {
	t.Parallel()
	node, workload := newNS(t), newNS(t)
	want := blue(workload)
	want.HostName, want.PeerName, want.MTU = "lxc1", "net0", 9000
	want.MAC, want.HostMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	first, err := EnsureEndpoint(node, want)
	require.NoError(t, err)
	require.Equal(t, want.MAC, first.PeerMAC)
	require.Equal(t, want.HostMAC, first.MAC)
	again := func() {
		got, err := EnsureEndpoint(node, want)
		require.NoError(t, err)
		require.Equal(t, first, got)
	}
	requireNoChange(t, node, again)
	requireNoChange(t, workload, again)
}

func TestEndpointRepairsDrift(t *testing.T) {
	t.Parallel()
	type drift struct {
		node   bool
		behind func(c conn, l netlink.Link) error
	}
	node := func(fn func(c conn, l netlink.Link) error) drift { return drift{true, fn} }
	peer := func(fn func(c conn, l netlink.Link) error) drift { return drift{false, fn} }
	mtu := func(n int) func(c conn, l netlink.Link) error {
		return func(c conn, l netlink.Link) error { return c.LinkSetMTU(l, n) }
	}
	down := func(c conn, l netlink.Link) error { return c.LinkSetDown(l) }
	mac := func(c conn, l netlink.Link) error { return c.LinkSetHardwareAddr(l, orRandom(nil)) }
	for what, d := range map[string]drift{
		"host MTU":       node(mtu(1400)),
		"host small MTU": node(mtu(1000)),
		"host down":      node(down),
		"host MAC":       node(mac),
		"host sysctls": node(func(c conn, l netlink.Link) error {
			return setSysctls([]Sysctl{{IPv4, l.Attrs().Name, "rp_filter", 2}, {IPv6, l.Attrs().Name, "disable_ipv6", 0}})
		}),
		"peer MTU":       peer(mtu(1400)),
		"peer small MTU": peer(mtu(1000)),
		"peer down":      peer(down),
		"peer MAC":       peer(mac),
		"peer renamed":   peer(func(c conn, l netlink.Link) error { return c.rename(l, "lost") }),
		"peer addresses": peer(func(c conn, l netlink.Link) error { return c.ensureAddrs(l, nil, true) }),
		"peer more addresses": peer(func(c conn, l netlink.Link) error {
			return c.ensureAddrs(l, addrs("10.9.9.9", "fd00:9::9"), true)
		}),
		"peer routes": peer(func(c conn, l netlink.Link) error { return c.syncRoutes(l, nil, true) }),
		"peer route MTU": peer(func(c conn, l netlink.Link) error {
			all, err := c.routes()
			for _, k := range all {
				if k.Protocol == RouteProtocol {
					k.MTU = 1300
					err = errors.Join(err, c.RouteReplace(&k))
				}
			}
			return err
		}),
		"peer IPv6": peer(func(c conn, l netlink.Link) error {
			return setSysctls([]Sysctl{{IPv6, "eth0", "disable_ipv6", 1}, {IPv6, "eth0", "accept_ra", 1}})
		}),
		"peer loopback": peer(func(c conn, l netlink.Link) error {
			return c.LinkSetDown(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: 1}})
		}),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ns, workload := newNS(t), newNS(t)
			want := blue(workload)
			want.MAC, want.HostMAC = orRandom(nil), orRandom(nil)
			first, err := EnsureEndpoint(ns, want)
			require.NoError(t, err)
			before := find(t, workload, "eth0")
			routes, err := ListRoutes(workload, "")
			require.NoError(t, err)
			if d.node {
				with(t, ns, change(first.Name, d.behind))
			} else {
				with(t, workload, change("eth0", d.behind))
			}
			again, err := EnsureEndpoint(ns, want)
			require.NoError(t, err)
			require.Equal(t, first, again, "repaired in place")
			after := find(t, workload, "eth0")
			require.Equal(t, withoutLinkLocal(before.Addrs), withoutLinkLocal(after.Addrs))
			before.Addrs, after.Addrs = nil, nil
			require.Equal(t, before, after)
			repaired, err := ListRoutes(workload, "")
			require.NoError(t, err)
			require.Equal(t, routes, repaired)
			require.True(t, find(t, workload, "lo").Up)
			require.Equal(t, endpointAlias("blue"), attrs(t, ns, first.Name).Alias)
			require.Equal(t, 1, sysctl(t, ns, IPv6, first.Name, "disable_ipv6"))
			require.Zero(t, sysctl(t, ns, IPv4, first.Name, "rp_filter"))
			require.Zero(t, sysctl(t, workload, IPv6, "eth0", "accept_ra"))
			require.Zero(t, sysctl(t, workload, IPv6, "eth0", "accept_dad"))
		})
	}
}

func TestEndpointChangesItsAddresses(t *testing.T) {
	t.Parallel()
	node, workload := newNS(t), newNS(t)
	first, err := EnsureEndpoint(node, blue(workload))
	require.NoError(t, err)
	want := blue(workload)
	want.Addrs, want.Gateways, want.MTU, want.RouteMTU = addrs("10.0.1.3"), addrs("10.0.0.9"), 1000, 0
	got, err := EnsureEndpoint(node, want)
	require.NoError(t, err)
	require.Equal(t, first.Index, got.Index)
	require.Equal(t, []string{"10.0.1.3/32"}, withoutLinkLocal(find(t, workload, "eth0").Addrs))
	routes, err := ListRoutes(workload, "")
	require.NoError(t, err)
	require.Equal(t, []Route{{Prefix: prefix("0.0.0.0/0"), Via: addr("10.0.0.9"), Dev: "eth0", Onlink: true}}, routes)
	back, err := EnsureEndpoint(node, blue(workload))
	require.NoError(t, err)
	require.Equal(t, first, back)
}

// The workload was restarted in a new namespace while the old one is still
// held by somebody.
func TestEndpointMovesToAnotherNamespace(t *testing.T) {
	t.Parallel()
	node, old, fresh := newNS(t), newNS(t), newNS(t)
	first, err := EnsureEndpoint(node, blue(old))
	require.NoError(t, err)
	got, err := EnsureEndpoint(node, blue(fresh))
	require.NoError(t, err)
	require.NotEqual(t, first.Index, got.Index)
	require.Equal(t, first.Name, got.Name)
	requireNothingLeft(t, old)
	requireNothingLeft(t, fresh, "eth0")
	require.ErrorIs(t, RemoveEndpoint(node, first), ErrForeign, "the old handle must not remove the new veth")
	requireNothingLeft(t, node, got.Name)

	// Into one where it can not go: the old one stays.
	busy := newNS(t)
	addVeth(t, busy, "eth0", "x")
	_, err = EnsureEndpoint(node, blue(busy))
	require.ErrorIs(t, err, ErrForeign)
	require.Equal(t, got.Link, find(t, node, got.Name))
}

func TestEndpointGoesWithItsNamespace(t *testing.T) {
	t.Parallel()
	node := newNS(t)
	workload, err := NewNamespace()
	require.NoError(t, err)
	got, err := EnsureEndpoint(node, blue(workload))
	require.NoError(t, err)
	require.NoError(t, workload.Close())
	require.Eventually(t, func() bool {
		_, err := FindLink(node, got.Name)
		return errors.Is(err, os.ErrNotExist)
	}, 10e9, 10e6, "the kernel ends a namespace that nobody holds, a while later")
	require.NoError(t, RemoveEndpoint(node, got))
	list, err := ListEndpoints(node, "")
	require.NoError(t, err)
	require.Empty(t, list)

	_, err = EnsureEndpoint(node, blue(workload))
	require.ErrorIs(t, err, os.ErrClosed)
	require.ErrorContains(t, err, "blue")
	requireNothingLeft(t, node)
}

// Each step that can fail fails here for a real reason, and leaves nothing.
func TestEndpointRollsBack(t *testing.T) {
	t.Parallel()
	for what, row := range map[string]struct {
		spoil func(t *testing.T, node, workload Namespace)
		left  []string // in the workload's namespace
	}{
		"the peer name is taken": {func(t *testing.T, _, workload Namespace) {
			addVeth(t, workload, "eth0", "x")
		}, []string{"eth0", "x"}},
		"the peer name is an alternative name": {func(t *testing.T, _, workload Namespace) {
			addVeth(t, workload, "y", "x")
			with(t, workload, change("y", func(c conn, l netlink.Link) error { return c.LinkAddAltName(l, "eth0") }))
		}, []string{"y", "x"}},
		"a default route exists": {func(t *testing.T, _, workload Namespace) {
			addVeth(t, workload, "eth1", "x")
			require.NoError(t, SetLinkUp(workload, find(t, workload, "eth1")))
			foreignRoute(t, workload, "0.0.0.0/0", "eth1", 0)
		}, []string{"eth1", "x"}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			node, workload := newNS(t), newNS(t)
			row.spoil(t, node, workload)
			with(t, workload, change("lo", func(c conn, l netlink.Link) error { return c.LinkSetDown(l) }))
			before, err := ListLinks(workload)
			require.NoError(t, err)
			_, err = EnsureEndpoint(node, blue(workload))
			require.ErrorIs(t, err, ErrForeign)
			requireNothingLeft(t, node)
			requireNothingLeft(t, workload, row.left...)
			after, err := ListLinks(workload)
			require.NoError(t, err)
			require.Equal(t, before, after, "also the loopback device is as it was")
		})
	}
}

func TestEndpointRollsBackAfterTheLoopback(t *testing.T) {
	t.Parallel()
	node, workload := newNS(t), newNS(t)
	with(t, workload, change("lo", func(c conn, l netlink.Link) error { return c.LinkSetDown(l) }))
	// A group address can not be given to a device. The check at the door would
	// refuse it, so this goes behind it: on a veth that exists, as the last of
	// all steps, with everything before it done.
	want, err := blue(workload).check()
	require.NoError(t, err)
	_, err = EnsureEndpoint(node, want)
	require.NoError(t, err)
	with(t, workload, change("lo", func(c conn, l netlink.Link) error { return c.LinkSetDown(l) }))
	want.HostMAC = net.HardwareAddr{1, 0, 0, 0, 0, 0}
	with(t, node, func(c conn) error {
		_, err := c.ensureEndpoint(want)
		require.ErrorIs(t, err, unix.EADDRNOTAVAIL)
		return nil
	})
	require.False(t, find(t, workload, "lo").Up)
}

func TestEndpointLeavesForeignDevicesAlone(t *testing.T) {
	t.Parallel()
	node, workload := newNS(t), newNS(t)
	addPlainVXLAN(t, node, "lxc1", 9999, false)
	addVeth(t, node, "lxc2", "other")
	green := newNS(t)
	taken, err := EnsureEndpoint(node, Endpoint{Name: "green", HostName: "lxc3", Namespace: green, Addrs: addrs("10.0.1.9")})
	require.NoError(t, err)
	before, err := ListLinks(node)
	require.NoError(t, err)
	for _, name := range []string{"lxc1", "lxc2", "lxc3"} {
		want := blue(workload)
		want.HostName = name
		_, err := EnsureEndpoint(node, want)
		require.ErrorIs(t, err, ErrForeign, name)
		require.ErrorContains(t, err, name)
	}
	after, err := ListLinks(node)
	require.NoError(t, err)
	require.Equal(t, before, after)
	requireNothingLeft(t, workload)

	list, err := ListEndpoints(node, "lxc")
	require.NoError(t, err)
	require.Equal(t, []EndpointLink{taken}, list, "only what is ours")
}

// addBlueVeth makes the veth of the endpoint blue, but without a mark.
func addBlueVeth(t *testing.T, node, workload Namespace) Link {
	t.Helper()
	fd, err := workload.dup()
	require.NoError(t, err)
	defer unix.Close(fd)
	with(t, node, func(c conn) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = EndpointLinkName("blue")
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(fd)
		return c.LinkAdd(veth)
	})
	return find(t, node, EndpointLinkName("blue"))
}

// What a process that died right after the creation leaves behind.
func TestEndpointAdoptsAnUnfinishedOne(t *testing.T) {
	t.Parallel()
	node, workload := newNS(t), newNS(t)
	l := addBlueVeth(t, node, workload)
	got, err := EnsureEndpoint(node, blue(workload))
	require.NoError(t, err)
	require.Equal(t, l.Index, got.Index)
	require.Equal(t, endpointAlias("blue"), attrs(t, node, l.Name).Alias)
}

// A veth in the right places without our mark, that somebody has done something
// to, is his.
func TestEndpointLeavesUnmarkedVethsInUseAlone(t *testing.T) {
	t.Parallel()
	name := EndpointLinkName("blue")
	address := func(c conn, l netlink.Link) error {
		return c.AddrAdd(l, &netlink.Addr{IPNet: ipNet(prefix("192.0.2.1/24"))})
	}
	for what, use := range map[string]func(t *testing.T, node, workload Namespace){
		"the node's end is up":              func(t *testing.T, node, _ Namespace) { with(t, node, change(name, conn.up)) },
		"the workload's end is up":          func(t *testing.T, _, workload Namespace) { with(t, workload, change("eth0", conn.up)) },
		"an address on the node's end":      func(t *testing.T, node, _ Namespace) { with(t, node, change(name, address)) },
		"an address on the workload's end":  func(t *testing.T, _, workload Namespace) { with(t, workload, change("eth0", address)) },
		"the workload's end is named other": func(t *testing.T, _, workload Namespace) { with(t, workload, change("eth0", renameTo("net0"))) },
		"ours, in use, that lost its mark": func(t *testing.T, node, workload Namespace) {
			_, err := EnsureEndpoint(node, blue(workload))
			require.NoError(t, err)
			with(t, node, change(name, func(c conn, l netlink.Link) error { return c.LinkSetAlias(l, "") }))
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			node, workload := newNS(t), newNS(t)
			addBlueVeth(t, node, workload)
			use(t, node, workload)
			state := func() (all []Link) {
				for _, ns := range []Namespace{node, workload} {
					links, err := ListLinks(ns)
					require.NoError(t, err)
					all = append(all, links...)
				}
				return all
			}
			before := state()
			_, err := EnsureEndpoint(node, blue(workload))
			require.ErrorIs(t, err, ErrForeign)
			require.ErrorContains(t, err, name)
			require.ErrorContains(t, err, "remove it or choose another name")
			require.Equal(t, withoutLinkLocals(before), withoutLinkLocals(state()))
		})
	}
}

func renameTo(name string) func(c conn, l netlink.Link) error {
	return func(c conn, l netlink.Link) error { return c.rename(l, name) }
}

// withoutLinkLocals leaves out what the kernel adds by itself a while after a
// device came up.
func withoutLinkLocals(all []Link) []Link {
	for i := range all {
		all[i].Addrs = slices.DeleteFunc(all[i].Addrs, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
	}
	return all
}

func TestEndpointHold(t *testing.T) {
	t.Parallel()
	node, workload := newNS(t), newNS(t)
	want := blue(workload)
	want.Hold = true
	got, err := EnsureEndpoint(node, want)
	require.NoError(t, err)
	require.False(t, got.Up)
	require.False(t, find(t, node, got.Name).Up)
	require.NoError(t, SetLinkUp(node, got.Link))
	require.True(t, find(t, node, got.Name).Up)
	got, err = EnsureEndpoint(node, want)
	require.NoError(t, err)
	require.True(t, got.Up, "Hold does not take down what is up")
}

func TestEndpointInTheNodesOwnNamespace(t *testing.T) {
	t.Parallel()
	node := newNS(t)
	_, err := EnsureEndpoint(node, blue(node))
	requireInput(t, err, "endpoint namespace")
	requireNothingLeft(t, node)
}

func TestEndpointBadInput(t *testing.T) {
	t.Parallel()
	node, workload := newNS(t), newNS(t)
	with := func(change func(e *Endpoint)) Endpoint {
		e := blue(workload)
		change(&e)
		return e
	}
	for field, bad := range map[string][]Endpoint{
		"endpoint name":      {with(func(e *Endpoint) { e.Name = "" })},
		"endpoint namespace": {with(func(e *Endpoint) { e.Namespace = Namespace{} })},
		"host device name":   {with(func(e *Endpoint) { e.HostName = "sixteen-bytes-xx" })},
		"peer device name":   {with(func(e *Endpoint) { e.PeerName = "a b" })},
		"endpoint address": {
			with(func(e *Endpoint) { e.Addrs = nil }),
			with(func(e *Endpoint) { e.Addrs = []netip.Addr{{}} }),
			with(func(e *Endpoint) { e.Addrs = addrs("10.0.0.1", "10.0.0.2") }),
			with(func(e *Endpoint) { e.Addrs = addrs("fe80::2") }),
			with(func(e *Endpoint) { e.Addrs = addrs("ff02::2") }),
		},
		"gateway": {
			with(func(e *Endpoint) { e.Addrs = addrs("10.0.1.2") }),
			with(func(e *Endpoint) { e.Addrs = addrs("fd00:1::2") }),
			with(func(e *Endpoint) { e.Gateways = addrs("10.0.0.1", "10.0.0.2") }),
			with(func(e *Endpoint) { e.Gateways = addrs("10.0.1.2") }),
			with(func(e *Endpoint) { e.Gateways = []netip.Addr{{}} }),
			with(func(e *Endpoint) { e.Gateways = addrs("fe80::1%x") }),
		},
		"endpoint MTU": {
			with(func(e *Endpoint) { e.MTU = 1279 }),
			with(func(e *Endpoint) { e.MTU = 65536 }),
			with(func(e *Endpoint) { e.Addrs, e.Gateways, e.MTU = addrs("10.0.1.2"), nil, 67 }),
		},
		"route MTU": {
			with(func(e *Endpoint) { e.RouteMTU = 1279 }),
			with(func(e *Endpoint) { e.RouteMTU = 1501 }),
			with(func(e *Endpoint) { e.RouteMTU = -1 }),
		},
		"endpoint MAC": {
			with(func(e *Endpoint) { e.MAC = net.HardwareAddr{1, 2, 3} }),
			with(func(e *Endpoint) {
				e.MAC, e.HostMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 1}
			}),
		},
		"host MAC": {with(func(e *Endpoint) { e.HostMAC = net.HardwareAddr{0, 0, 0, 0, 0, 0} })},
	} {
		for _, want := range bad {
			_, err := EnsureEndpoint(node, want)
			requireInput(t, err, field)
		}
	}
	requireNothingLeft(t, node)
	requireNothingLeft(t, workload)
}

func TestEndpointsOfAnyNameAreTold(t *testing.T) {
	t.Parallel()
	node := newNS(t)
	names := []string{"a", strings.Repeat("x", 300), strings.Repeat("x", 301), "white space", "sha256:1"}
	var want []EndpointLink
	for i, name := range names {
		e := Endpoint{Name: name, Namespace: newNS(t), Addrs: addrs(fmt.Sprintf("10.0.1.%d", i+1))}
		l, err := EnsureEndpoint(node, e)
		require.NoError(t, err, name)
		again, err := EnsureEndpoint(node, e)
		require.NoError(t, err, name)
		require.Equal(t, l, again)
		want = append(want, l)
	}
	got, err := ListEndpoints(node, EndpointPrefix)
	require.NoError(t, err)
	require.Equal(t, want, got)
	none, err := ListEndpoints(node, "other")
	require.NoError(t, err)
	require.Empty(t, none)
	one, err := ListEndpoints(node, EndpointLinkName("a"))
	require.NoError(t, err)
	require.Len(t, one, 1)
}

func TestEndpointsAtTheSameTime(t *testing.T) {
	t.Parallel()
	node := newNS(t)
	const count = 12
	var group sync.WaitGroup
	for i := range count {
		workload := newNS(t)
		// Each twice: one makes it and the other finds it.
		for range 2 {
			group.Go(func() {
				_, err := EnsureEndpoint(node, Endpoint{Name: fmt.Sprint(i), Namespace: workload, Addrs: addrs(fmt.Sprintf("10.0.1.%d", i+1))})
				assert.NoError(t, err)
			})
		}
	}
	group.Wait()
	all, err := ListEndpoints(node, "")
	require.NoError(t, err)
	require.Len(t, all, count)
}

func BenchmarkEnsureEndpoint(b *testing.B) {
	for _, count := range []int{0, 200} {
		b.Run(fmt.Sprintf("present=%d", count), func(b *testing.B) {
			node := newNS(b)
			for i := range count {
				_, err := EnsureEndpoint(node, Endpoint{Name: fmt.Sprint(i), Namespace: newNS(b), Addrs: addrs("10.0.1.2")})
				require.NoError(b, err)
			}
			workload := newNS(b)
			b.Run("new", func(b *testing.B) {
				for b.Loop() {
					l, err := EnsureEndpoint(node, blue(workload))
					require.NoError(b, err)
					b.StopTimer()
					require.NoError(b, RemoveEndpoint(node, l))
					b.StartTimer()
				}
			})
			b.Run("again", func(b *testing.B) {
				for b.Loop() {
					_, err := EnsureEndpoint(node, blue(workload))
					require.NoError(b, err)
				}
			})
		})
	}
}
