// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routed returns a namespace with the host pair and a device eth0 that is up.
func routed(t *testing.T) Namespace {
	t.Helper()
	ns := newNS(t)
	_, err := EnsureHostPair(ns, HostPair{Addrs: both})
	require.NoError(t, err)
	addVeth(t, ns, "eth0", "x")
	// No link-local addresses, which would come and add routes at some time.
	require.NoError(t, EnsureSysctls(ns, Sysctl{IPv6, "eth0", "addr_gen_mode", 1}, Sysctl{IPv6, "x", "disable_ipv6", 1}))
	require.NoError(t, SetLinkUp(ns, find(t, ns, "eth0")))
	require.NoError(t, SetLinkUp(ns, find(t, ns, "x")))
	with(t, ns, change("eth0", func(c conn, l netlink.Link) error {
		return c.ensureAddrs(l, addrs("192.0.2.1", "2001:db8::1"), true)
	}))
	return ns
}

// foreignRoute adds one with the mark of an administrator.
func foreignRoute(t *testing.T, ns Namespace, p string, dev string, metric int) {
	t.Helper()
	with(t, ns, change(dev, func(c conn, l netlink.Link) error {
		k := netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(prefix(p)), Protocol: unix.RTPROT_STATIC, Priority: metric}
		if prefix(p).Addr().Is4() {
			k.Scope = netlink.SCOPE_LINK
		}
		return c.RouteAdd(&k)
	}))
}

func allRoutes(t *testing.T, ns Namespace) []netlink.Route {
	t.Helper()
	var all []netlink.Route
	with(t, ns, func(c conn) (err error) { all, err = c.routes(); return err })
	return all
}

var nodeRoutes = []Route{
	{Prefix: prefix("10.0.2.0/24"), Via: both[0], Dev: "dp_host", MTU: 1450},
	{Prefix: prefix("10.0.3.0/24"), Via: both[0], Metric: 50},
	{Prefix: prefix("10.0.3.0/24"), Metric: 60, Source: both[0]},
	{Prefix: prefix("fd00:2::/64"), Via: both[1], MTU: 1430},
	{Prefix: prefix("fd00:3::/64"), Metric: 50, Source: both[1]},
}

func TestSyncRoutes(t *testing.T) {
	t.Parallel()
	ns := routed(t)
	foreignRoute(t, ns, "10.0.9.0/24", "dp_host", 0)
	foreignRoute(t, ns, "fd00:9::/64", "dp_host", 0)
	require.NoError(t, EnsureRoute(ns, Route{Prefix: prefix("10.0.8.0/24"), Dev: "eth0"}))
	before := len(allRoutes(t, ns))

	require.NoError(t, SyncRoutes(ns, "dp_host", nodeRoutes))
	got, err := ListRoutes(ns, "dp_host")
	require.NoError(t, err)
	require.Equal(t, []Route{
		{Prefix: prefix("10.0.2.0/24"), Via: both[0], Dev: "dp_host", MTU: 1450},
		{Prefix: prefix("10.0.3.0/24"), Via: both[0], Dev: "dp_host", Metric: 50},
		{Prefix: prefix("10.0.3.0/24"), Dev: "dp_host", Metric: 60, Source: both[0]},
		// The kernel refuses a gateway which is an address of its own in IPv6.
		{Prefix: prefix("fd00:2::/64"), Dev: "dp_host", Metric: 1024, MTU: 1430},
		{Prefix: prefix("fd00:3::/64"), Dev: "dp_host", Metric: 50, Source: both[1]},
	}, got)
	requireNoChange(t, ns, func() { require.NoError(t, SyncRoutes(ns, "dp_host", nodeRoutes)) })
	requireNoChange(t, ns, func() { require.NoError(t, SyncRoutes(ns, "dp_host", got)) })
	requireNoChange(t, ns, func() { require.NoError(t, EnsureRoutes(ns, "dp_host", nodeRoutes[:2])) })
	requireNoChange(t, ns, func() { require.NoError(t, EnsureRoute(ns, nodeRoutes[0])) })

	everywhere, err := ListRoutes(ns, "")
	require.NoError(t, err)
	require.Len(t, everywhere, len(nodeRoutes)+1)

	require.NoError(t, SyncRoutes(ns, "dp_host", nodeRoutes[:1]))
	got, err = ListRoutes(ns, "dp_host")
	require.NoError(t, err)
	require.Len(t, got, 1)
	require.NoError(t, SyncRoutes(ns, "dp_host", nil))
	require.Len(t, allRoutes(t, ns), before, "foreign routes and those of other devices stay")
}

func TestRouteDriftIsRepaired(t *testing.T) {
	t.Parallel()
	ns := routed(t)
	want := []Route{
		{Prefix: prefix("10.1.0.0/16"), Via: addr("192.0.2.2"), Onlink: true, MTU: 1400},
		{Prefix: prefix("fd01::/64"), Via: addr("2001:db8::2"), Onlink: true, MTU: 1400},
	}
	require.NoError(t, SyncRoutes(ns, "eth0", want))
	right, err := ListRoutes(ns, "eth0")
	require.NoError(t, err)
	require.Len(t, right, 2)
	require.Equal(t, addr("2001:db8::2"), right[1].Via)
	require.True(t, right[1].Onlink)
	for what, drift := range map[string]func(k *netlink.Route){
		"MTU":     func(k *netlink.Route) { k.MTU = 1300 },
		"gateway": func(k *netlink.Route) { k.Gw = k.Gw[:len(k.Gw):len(k.Gw)]; k.Gw[len(k.Gw)-1]++ },
		"source": func(k *netlink.Route) {
			k.Src = addr("192.0.2.1").AsSlice()
			if k.Gw.To4() == nil {
				k.Src = addr("2001:db8::1").AsSlice()
			}
		},
	} {
		with(t, ns, func(c conn) error {
			routes, err := c.routes()
			if err != nil {
				return err
			}
			for _, k := range routes {
				if k.Protocol == RouteProtocol {
					drift(&k)
					if err := c.RouteReplace(&k); err != nil {
						return err
					}
				}
			}
			return nil
		})
		wrong, err := ListRoutes(ns, "eth0")
		require.NoError(t, err)
		require.NotEqual(t, right, wrong, what)
		require.NoError(t, EnsureRoutes(ns, "eth0", want), what)
		again, err := ListRoutes(ns, "eth0")
		require.NoError(t, err)
		require.Equal(t, right, again, what)
	}
	// A route that is gone comes back, alone and in the set.
	for _, r := range want {
		r.Dev = "eth0"
		require.NoError(t, RemoveRoute(ns, r))
		require.NoError(t, EnsureRoute(ns, r))
	}
	again, err := ListRoutes(ns, "eth0")
	require.NoError(t, err)
	require.Equal(t, right, again)
}

func TestRouteMovesToAnotherDevice(t *testing.T) {
	t.Parallel()
	ns := routed(t)
	for _, p := range []string{"10.1.0.0/16", "fd01::/64"} {
		require.NoError(t, EnsureRoute(ns, Route{Prefix: prefix(p), Dev: "eth0"}))
		require.NoError(t, EnsureRoute(ns, Route{Prefix: prefix(p), Dev: "dp_host"}))
	}
	got, err := ListRoutes(ns, "")
	require.NoError(t, err)
	require.Len(t, got, 2)
	require.Equal(t, "dp_host", got[0].Dev)
	require.Equal(t, "dp_host", got[1].Dev)
}

func TestForeignRoutesAreLeftAlone(t *testing.T) {
	t.Parallel()
	ns := routed(t)
	foreignRoute(t, ns, "10.0.2.0/24", "eth0", 0)
	foreignRoute(t, ns, "fd00:2::/64", "eth0", 0)
	before := allRoutes(t, ns)
	for _, p := range []string{"10.0.2.0/24", "fd00:2::/64"} {
		r := Route{Prefix: prefix(p), Dev: "dp_host"}
		require.ErrorIs(t, EnsureRoute(ns, r), ErrForeign)
		// Also in a set, and then nothing of the set is done.
		require.ErrorIs(t, SyncRoutes(ns, "dp_host", append([]Route{r}, nodeRoutes[1:3]...)), ErrForeign)
		require.NoError(t, RemoveRoute(ns, Route{Prefix: prefix(p), Dev: "eth0"}))
		require.Equal(t, before, allRoutes(t, ns))
		r.Metric = 7
		require.NoError(t, EnsureRoute(ns, r), "another metric is another route")
		require.NoError(t, RemoveRoute(ns, r))
		require.Equal(t, before, allRoutes(t, ns))
	}
}

func TestRoutesAreAllOrNothing(t *testing.T) {
	t.Parallel()
	ns := routed(t)
	old := []Route{{Prefix: prefix("10.0.2.0/24"), MTU: 1400}}
	require.NoError(t, SyncRoutes(ns, "dp_host", old))
	before := allRoutes(t, ns)
	err := SyncRoutes(ns, "dp_host", []Route{
		{Prefix: prefix("10.0.2.0/24"), MTU: 1300},
		{Prefix: prefix("10.0.3.0/24")},
		{Prefix: prefix("10.0.4.0/24"), Via: addr("203.0.113.1")}, // not on any link
	})
	require.ErrorIs(t, err, unix.ENETUNREACH)
	require.ErrorContains(t, err, "10.0.4.0/24")
	require.ErrorContains(t, err, "Onlink")
	require.Equal(t, before, allRoutes(t, ns))
}

func TestRemoveRoute(t *testing.T) {
	t.Parallel()
	ns := routed(t)
	low := Route{Prefix: prefix("10.0.2.0/24"), Dev: "dp_host"}
	high := Route{Prefix: prefix("10.0.2.0/24"), Dev: "dp_host", Metric: 9}
	require.NoError(t, RemoveRoute(ns, low))
	require.NoError(t, EnsureRoute(ns, high))
	require.NoError(t, RemoveRoute(ns, low), "metric 0 is a metric and not any")
	require.NoError(t, RemoveRoute(ns, Route{Prefix: high.Prefix, Metric: 9, Dev: "eth0"}), "another device")
	require.NoError(t, RemoveRoute(ns, Route{Prefix: high.Prefix, Metric: 9, Dev: "absent"}))
	got, err := ListRoutes(ns, "")
	require.NoError(t, err)
	require.Equal(t, []Route{high}, got)
	require.NoError(t, RemoveRoute(ns, high))
	got, err = ListRoutes(ns, "")
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestRouteErrors(t *testing.T) {
	t.Parallel()
	ns := routed(t)
	before := allRoutes(t, ns)
	ok := prefix("10.0.2.0/24")
	for field, bad := range map[string][]Route{
		"route prefix": {
			{Dev: "dp_host"},
			{Dev: "dp_host", Prefix: prefix("10.0.2.1/24")},
			{Dev: "dp_host", Prefix: prefix("224.0.0.0/8")},
		},
		"route device": {{Prefix: ok}, {Prefix: ok, Dev: "sixteen-bytes-xx"}},
		"route gateway": {
			{Prefix: ok, Dev: "dp_host", Via: addr("fd00::1")},
			{Prefix: ok, Dev: "dp_host", Via: addr("0.0.0.0")},
			{Prefix: ok, Dev: "dp_host", Via: addr("fe80::1%x")},
			{Prefix: prefix("fd00:2::/64"), Dev: "dp_host", Via: addr("::ffff:10.0.0.1")},
		},
		"route source": {{Prefix: ok, Dev: "dp_host", Source: addr("fd00::1")}, {Prefix: ok, Dev: "dp_host", Source: addr("224.0.0.1")}},
		"route":        {{Prefix: ok, Dev: "dp_host", Onlink: true}},
		"route metric": {{Prefix: ok, Dev: "dp_host", Metric: -1}, {Prefix: ok, Dev: "dp_host", Metric: 1 << 32}},
		"route MTU":    {{Prefix: ok, Dev: "dp_host", MTU: 67}, {Prefix: prefix("fd00:2::/64"), Dev: "dp_host", MTU: 1279}},
	} {
		for _, r := range bad {
			requireInput(t, EnsureRoute(ns, r), field)
		}
	}
	requireInput(t, SyncRoutes(ns, "dp_host", []Route{{Prefix: ok}, {Prefix: ok, MTU: 1400}}), "route prefix")
	requireInput(t, SyncRoutes(ns, "dp_host", []Route{{Prefix: ok, Dev: "eth0"}}), "route device")
	requireInput(t, RemoveRoute(ns, Route{Prefix: netip.Prefix{}, Dev: "x"}), "route prefix")
	_, err := ListRoutes(ns, "a/b")
	requireInput(t, err, "route device")

	require.ErrorIs(t, EnsureRoute(ns, Route{Prefix: ok, Dev: "absent"}), os.ErrNotExist)
	_, err = ListRoutes(ns, "absent")
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorIs(t, EnsureRoute(ns, Route{Prefix: ok, Dev: "dp_host", Source: addr("203.0.113.9")}), unix.EINVAL)

	addVeth(t, ns, "down0", "down1")
	require.ErrorIs(t, EnsureRoute(ns, Route{Prefix: ok, Dev: "down0"}), unix.ENETDOWN)
	require.Equal(t, before, allRoutes(t, ns))

	mapped := Route{Prefix: netip.PrefixFrom(addr("::ffff:10.0.7.0"), 120), Via: addr("::ffff:10.0.0.1"), Dev: "dp_host"}
	require.NoError(t, EnsureRoute(ns, mapped))
	got, err := ListRoutes(ns, "")
	require.NoError(t, err)
	require.Equal(t, []Route{{Prefix: prefix("10.0.7.0/24"), Via: both[0], Dev: "dp_host"}}, got)
}
