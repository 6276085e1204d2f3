// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var both = addrs("10.0.0.1", "fd00::1")

func TestHostPair(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	got, err := EnsureHostPair(ns, HostPair{Addrs: addrs("::ffff:10.0.0.1", "fd00::1")})
	require.NoError(t, err)
	require.Equal(t, find(t, ns, "dp_host"), got.Host)
	require.Equal(t, find(t, ns, "dp_net"), got.Net)
	require.Equal(t, got.Host.Index, got.HostIfindex())
	require.Equal(t, got.Net.Index, got.NetIfindex())
	require.Equal(t, got.Host.MAC, got.HostMAC())
	require.NotEqual(t, got.Host.MAC, got.Net.MAC)

	for _, l := range []Link{got.Host, got.Net} {
		require.True(t, l.Up)
		require.Equal(t, 1500, l.MTU)
		require.NotZero(t, attrs(t, ns, l.Name).RawFlags&unix.IFF_NOARP, l.Name)
		require.Zero(t, sysctl(t, ns, IPv4, l.Name, "rp_filter"))
		require.Zero(t, sysctl(t, ns, IPv4, l.Name, "send_redirects"))
		require.Equal(t, byte(2), l.MAC[0]&3)
	}
	require.Equal(t, 1, sysctl(t, ns, IPv4, "dp_host", "accept_local"))
	require.Equal(t, 1, sysctl(t, ns, IPv6, "dp_net", "disable_ipv6"))
	require.Equal(t, 0, sysctl(t, ns, IPv6, "dp_host", "disable_ipv6"))
	// The carrier has been there for a while, and still nothing was born.
	time.Sleep(100 * time.Millisecond)
	require.Equal(t, "10.0.0.1/32", find(t, ns, "dp_host").Addrs[0].String())
	require.Equal(t, "fd00::1/128", find(t, ns, "dp_host").Addrs[1].String())
	require.Len(t, find(t, ns, "dp_host").Addrs, 2)
	require.Empty(t, find(t, ns, "dp_net").Addrs)

	same, err := FindHostPair(ns, HostPair{})
	require.NoError(t, err)
	require.Equal(t, got, same)
}

func TestHostPairIPv4Only(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	// Below 1280 the kernel takes IPv6 away, settings and all.
	got, err := EnsureHostPair(ns, HostPair{Addrs: addrs("10.0.0.1"), MTU: 1000})
	require.NoError(t, err)
	require.Equal(t, 1000, got.Net.MTU)
	more, err := EnsureHostPair(ns, HostPair{Addrs: both, MTU: 9000})
	require.NoError(t, err)
	require.Equal(t, got.Host.Index, more.Host.Index)
	require.Len(t, more.Host.Addrs, 2)
	less, err := EnsureHostPair(ns, HostPair{Addrs: addrs("10.0.0.2")})
	require.NoError(t, err)
	require.Equal(t, "10.0.0.2/32", less.Host.Addrs[0].String())
	require.Len(t, less.Host.Addrs, 1)
	require.Equal(t, 1, sysctl(t, ns, IPv6, "dp_host", "disable_ipv6"))
}

func TestHostPairTwiceIsOnce(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	want := HostPair{HostName: "h", NetName: "n", Addrs: both, MTU: 9000}
	first, err := EnsureHostPair(ns, want)
	require.NoError(t, err)
	requireNoChange(t, ns, func() {
		again, err := EnsureHostPair(ns, want)
		require.NoError(t, err)
		require.Equal(t, first, again)
	})
}

func TestHostPairRepairsDrift(t *testing.T) {
	t.Parallel()
	want := HostPair{Addrs: both}
	arpOn := func(c conn, l netlink.Link) error { return c.LinkSetARPOn(l) }
	for what, drift := range map[string]func(c conn) error{
		"host MTU":     change("dp_host", func(c conn, l netlink.Link) error { return c.LinkSetMTU(l, 1400) }),
		"net MTU":      change("dp_net", func(c conn, l netlink.Link) error { return c.LinkSetMTU(l, 1400) }),
		"small MTU":    change("dp_host", func(c conn, l netlink.Link) error { return c.LinkSetMTU(l, 1000) }),
		"host down":    change("dp_host", func(c conn, l netlink.Link) error { return c.LinkSetDown(l) }),
		"net down":     change("dp_net", func(c conn, l netlink.Link) error { return c.LinkSetDown(l) }),
		"host ARP":     change("dp_host", arpOn),
		"net ARP":      change("dp_net", arpOn),
		"no addresses": change("dp_host", func(c conn, l netlink.Link) error { return c.ensureAddrs(l, nil, false) }),
		"more addresses": change("dp_host", func(c conn, l netlink.Link) error {
			return c.AddrAdd(l, &netlink.Addr{IPNet: ipNet(prefix("10.9.9.9/24"))})
		}),
		"wrong length": change("dp_host", func(c conn, l netlink.Link) error {
			if err := c.ensureAddrs(l, nil, false); err != nil {
				return err
			}
			return c.AddrAdd(l, &netlink.Addr{IPNet: ipNet(prefix("fd00::1/64")), Flags: unix.IFA_F_NODAD})
		}),
		"link-local address": change("dp_host", func(c conn, l netlink.Link) error {
			return c.AddrAdd(l, &netlink.Addr{IPNet: ipNet(prefix("fe80::1/64")), Flags: unix.IFA_F_NODAD})
		}),
		"sysctls": func(conn) error {
			return setSysctls([]Sysctl{
				{IPv4, "dp_host", "rp_filter", 1}, {IPv4, "dp_host", "accept_local", 0},
				{IPv6, "dp_host", "disable_ipv6", 1}, {IPv6, "dp_net", "disable_ipv6", 0},
			})
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ns := newNS(t)
			first, err := EnsureHostPair(ns, want)
			require.NoError(t, err)
			with(t, ns, drift)
			again, err := EnsureHostPair(ns, want)
			require.NoError(t, err)
			require.Equal(t, first, again, "repaired in place")
			for _, name := range []string{"dp_host", "dp_net"} {
				assert.NotZero(t, attrs(t, ns, name).RawFlags&unix.IFF_NOARP)
				assert.Zero(t, sysctl(t, ns, IPv4, name, "rp_filter"))
			}
			assert.Equal(t, hostPairAlias, attrs(t, ns, "dp_host").Alias)
			assert.Equal(t, 1, sysctl(t, ns, IPv4, "dp_host", "accept_local"))
			assert.Equal(t, 1, sysctl(t, ns, IPv6, "dp_net", "disable_ipv6"))
		})
	}
}

func TestHostPairIsMadeAnewWithoutItsPeer(t *testing.T) {
	t.Parallel()
	elsewhere := newNS(t)
	for what, drift := range map[string]func(c conn) error{
		"removed": change("dp_net", func(c conn, l netlink.Link) error { return c.LinkDel(l) }),
		"renamed": change("dp_net", func(c conn, l netlink.Link) error { return c.rename(l, "lost") }),
		"moved": change("dp_net", func(c conn, l netlink.Link) error {
			fd, err := elsewhere.dup()
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return c.LinkSetNsFd(l, fd)
		}),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ns := newNS(t)
			first, err := EnsureHostPair(ns, HostPair{Addrs: both})
			require.NoError(t, err)
			with(t, ns, drift)
			again, err := EnsureHostPair(ns, HostPair{Addrs: both})
			require.NoError(t, err)
			require.NotEqual(t, first.Host.Index, again.Host.Index)
			require.Equal(t, first.Host.Addrs, again.Host.Addrs)
			requireNothingLeft(t, ns, "dp_host", "dp_net")
		})
	}
}

func TestHostPairLeavesForeignDevicesAlone(t *testing.T) {
	t.Parallel()
	for what, foreign := range map[string]func(t *testing.T, ns Namespace) []string{
		"host name is a vxlan": func(t *testing.T, ns Namespace) []string {
			addPlainVXLAN(t, ns, "dp_host", 9999, false)
			return []string{"dp_host"}
		},
		"net name is a vxlan": func(t *testing.T, ns Namespace) []string {
			addPlainVXLAN(t, ns, "dp_net", 9999, false)
			return []string{"dp_net"}
		},
		"host name is a veth": func(t *testing.T, ns Namespace) []string {
			addVeth(t, ns, "dp_host", "other")
			return []string{"dp_host", "other"}
		},
		"net name is a veth": func(t *testing.T, ns Namespace) []string {
			addVeth(t, ns, "dp_net", "other")
			return []string{"dp_net", "other"}
		},
		"the right veth with the mark of another": func(t *testing.T, ns Namespace) []string {
			addVeth(t, ns, "dp_host", "dp_net")
			with(t, ns, change("dp_host", func(c conn, l netlink.Link) error { return c.LinkSetAlias(l, "mine") }))
			return []string{"dp_host", "dp_net"}
		},
		"the right veth with an address": func(t *testing.T, ns Namespace) []string {
			addVeth(t, ns, "dp_host", "dp_net")
			with(t, ns, change("dp_host", func(c conn, l netlink.Link) error {
				return c.AddrAdd(l, &netlink.Addr{IPNet: ipNet(prefix("192.0.2.1/24"))})
			}))
			return []string{"dp_host", "dp_net"}
		},
		"the right veth with an address on the other end": func(t *testing.T, ns Namespace) []string {
			addVeth(t, ns, "dp_host", "dp_net")
			with(t, ns, change("dp_net", func(c conn, l netlink.Link) error {
				return c.AddrAdd(l, &netlink.Addr{IPNet: ipNet(prefix("2001:db8::1/64"))})
			}))
			return []string{"dp_host", "dp_net"}
		},
		"the right veth in use": func(t *testing.T, ns Namespace) []string {
			addVeth(t, ns, "dp_host", "dp_net")
			with(t, ns, change("dp_net", conn.up))
			return []string{"dp_host", "dp_net"}
		},
		"the right veth that has lost its mark": func(t *testing.T, ns Namespace) []string {
			_, err := EnsureHostPair(ns, HostPair{Addrs: both})
			require.NoError(t, err)
			with(t, ns, change("dp_host", func(c conn, l netlink.Link) error { return c.LinkSetAlias(l, "") }))
			return []string{"dp_host", "dp_net"}
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ns := newNS(t)
			names := foreign(t, ns)
			before, err := ListLinks(ns)
			require.NoError(t, err)
			_, err = EnsureHostPair(ns, HostPair{Addrs: both})
			require.ErrorIs(t, err, ErrForeign)
			require.ErrorContains(t, err, names[0])
			require.ErrorContains(t, err, "remove it or choose another name")
			if names[0] == "dp_host" {
				require.ErrorIs(t, RemoveHostPair(ns, HostPair{}), ErrForeign)
				_, err = FindHostPair(ns, HostPair{})
				require.ErrorIs(t, err, ErrForeign)
			} else {
				require.NoError(t, RemoveHostPair(ns, HostPair{}), "our end is absent")
			}
			after, err := ListLinks(ns)
			require.NoError(t, err)
			require.Equal(t, before, after)
		})
	}
}

// What a process that died right after the creation leaves behind. Without the
// mark it may still be somebody else's, so it is not removed.
func TestHostPairAdoptsAnUnfinishedOne(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	l := addVeth(t, ns, "dp_host", "dp_net")
	require.ErrorIs(t, RemoveHostPair(ns, HostPair{}), ErrForeign)
	got, err := EnsureHostPair(ns, HostPair{Addrs: both})
	require.NoError(t, err)
	require.Equal(t, l.Index, got.Host.Index)
	require.Equal(t, hostPairAlias, attrs(t, ns, "dp_host").Alias)
	require.NoError(t, RemoveHostPair(ns, HostPair{}))
}

// Our own pair is lost and its other name is taken: nothing may be torn down
// before that is known.
func TestHostPairKeepsWhatItHasWhenTheNameIsTaken(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	first, err := EnsureHostPair(ns, HostPair{Addrs: both})
	require.NoError(t, err)
	with(t, ns, change("dp_net", func(c conn, l netlink.Link) error { return c.rename(l, "lost") }))
	addVeth(t, ns, "dp_net", "other")
	_, err = EnsureHostPair(ns, HostPair{Addrs: both})
	require.ErrorIs(t, err, ErrForeign)
	require.Equal(t, first.Host.Index, find(t, ns, "dp_host").Index)
}

func TestHostPairRemove(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	require.NoError(t, RemoveHostPair(ns, HostPair{}))
	_, err := FindHostPair(ns, HostPair{})
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = EnsureHostPair(ns, HostPair{Addrs: both})
	require.NoError(t, err)
	require.NoError(t, RemoveHostPair(ns, HostPair{}))
	require.NoError(t, RemoveHostPair(ns, HostPair{}))
	requireNothingLeft(t, ns)
}

func TestHostPairBadInput(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	for field, bad := range map[string][]HostPair{
		"host address": {
			{},
			{Addrs: addrs("10.0.0.1", "10.0.0.2")},
			{Addrs: addrs("224.0.0.1")},
			{Addrs: addrs("fe80::1")},
			{Addrs: addrs("fd00::1%x")},
			{Addrs: append(addrs("10.0.0.1"), addr("::").Prev())},
		},
		"host device name": {{Addrs: both, HostName: "sixteen-bytes-xx"}, {Addrs: both, HostName: "a b"}},
		"net device name":  {{Addrs: both, NetName: "a/b"}, {Addrs: both, HostName: "x", NetName: "x"}},
		"host MTU": {
			{Addrs: both, MTU: -1}, {Addrs: both, MTU: 1279}, {Addrs: both, MTU: 65536},
			{Addrs: addrs("10.0.0.1"), MTU: 67},
		},
	} {
		for _, want := range bad {
			_, err := EnsureHostPair(ns, want)
			requireInput(t, err, field)
		}
	}
	requireInput(t, RemoveHostPair(ns, HostPair{HostName: "a/b"}), "host device name")
	requireNothingLeft(t, ns)

	closed, err := NewNamespace()
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	_, err = EnsureHostPair(closed, HostPair{Addrs: both})
	require.ErrorIs(t, err, os.ErrClosed)
}

// The use of it all: a packet of the node's stack for a pod network comes out
// of the other end at once, in both families and without a neighbour look-up.
func TestHostPairCarriesRoutedTraffic(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	host, err := EnsureHostPair(ns, HostPair{Addrs: both})
	require.NoError(t, err)
	require.NoError(t, SyncRoutes(ns, "dp_host", []Route{
		{Prefix: prefix("10.0.2.0/24"), Via: both[0]},
		{Prefix: prefix("fd00:2::/64"), Via: both[1]},
	}))
	for _, to := range []string{"10.0.2.9:9", "[fd00:2::9]:9"} {
		before := attrs(t, ns, "dp_net").Statistics.RxPackets
		var conn net.Conn
		require.NoError(t, ns.Do(func() error {
			var err error
			conn, err = net.Dial("udp", to)
			return err
		}))
		const packets = 50
		for range packets {
			_, err := conn.Write([]byte("x"))
			require.NoError(t, err)
		}
		require.NoError(t, conn.Close())
		require.GreaterOrEqual(t, attrs(t, ns, "dp_net").Statistics.RxPackets-before, uint64(packets), to)
	}
	require.Equal(t, host.Host.Index, find(t, ns, "dp_host").Index)
}

// udev leaves a MAC alone that was given in the request (NET_ADDR_SET, 3).
func requireMACWasSet(t *testing.T, ns Namespace, names ...string) {
	t.Helper()
	require.NoError(t, ns.Do(func() error {
		// A sysfs of this namespace is needed; the mount is of this thread only.
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
			return err
		}
		for _, name := range names {
			text, err := os.ReadFile("/sys/class/net/" + name + "/addr_assign_type")
			if err != nil {
				return err
			}
			assert.Equal(t, "3\n", string(text), name)
		}
		return nil
	}))
}

func TestMACsAreSetAtCreation(t *testing.T) {
	t.Parallel()
	ns, workload := newNS(t), newNS(t)
	_, err := EnsureHostPair(ns, HostPair{Addrs: both})
	require.NoError(t, err)
	_, err = EnsureVXLAN(ns, VXLAN{})
	require.NoError(t, err)
	l, err := EnsureEndpoint(ns, Endpoint{Name: "blue", Namespace: workload, Addrs: addrs("10.0.1.2")})
	require.NoError(t, err)
	requireMACWasSet(t, ns, "dp_host", "dp_net", "dp_vxlan", l.Name)
	requireMACWasSet(t, workload, "eth0")
}
