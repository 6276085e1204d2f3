// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func readVXLAN(t *testing.T, ns Namespace, name string) *netlink.Vxlan {
	t.Helper()
	var v *netlink.Vxlan
	with(t, ns, func(c conn) error {
		l, err := c.find(name)
		if err != nil {
			return err
		}
		v = l.(*netlink.Vxlan)
		return nil
	})
	return v
}

func TestVXLAN(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	got, err := EnsureVXLAN(ns, VXLAN{})
	require.NoError(t, err)
	require.Equal(t, find(t, ns, "dp_vxlan"), got.Link)
	require.True(t, got.Up)
	require.Equal(t, 1450, got.MTU)
	require.Equal(t, "vxlan", got.Kind)
	require.Empty(t, got.Addrs)

	v := readVXLAN(t, ns, "dp_vxlan")
	require.True(t, v.FlowBased)
	require.Equal(t, 8472, v.Port)
	require.False(t, v.UDPCSum)
	require.True(t, v.UDP6ZeroCSumTx)
	require.True(t, v.UDP6ZeroCSumRx)
	require.False(t, v.Learning)
	require.Equal(t, 1, sysctl(t, ns, IPv6, "dp_vxlan", "disable_ipv6"))
	require.Zero(t, sysctl(t, ns, IPv4, "dp_vxlan", "rp_filter"))

	// It listens in both families.
	require.NoError(t, ns.Do(func() error {
		for file, want := range map[string]string{"udp": "0.0.0.0:8472", "udp6": "[::]:8472"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			found := false
			for _, s := range parseUDPTable(text) {
				found = found || s.addr.String() == want
			}
			assert.True(t, found, want)
		}
		return nil
	}))
	require.NoError(t, RemoveVXLAN(ns, ""))
	require.NoError(t, RemoveVXLAN(ns, ""))
	requireNothingLeft(t, ns)
}

func TestVXLANTwiceIsOnce(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	want := VXLAN{Name: "v", Port: 4789, SourcePorts: PortRange{20000, 30000}, MTU: 1400, UDPChecksum: true, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}
	first, err := EnsureVXLAN(ns, want)
	require.NoError(t, err)
	v := readVXLAN(t, ns, "v")
	require.Equal(t, []int{4789, 20000, 30000, 1400}, []int{v.Port, v.PortLow, v.PortHigh, v.MTU})
	require.True(t, v.UDPCSum)
	require.False(t, v.UDP6ZeroCSumTx)
	require.Equal(t, want.MAC, first.MAC)
	requireNoChange(t, ns, func() {
		again, err := EnsureVXLAN(ns, want)
		require.NoError(t, err)
		require.Equal(t, first, again)
	})
}

func TestVXLANRepairsDriftInPlace(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	want := VXLAN{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	first, err := EnsureVXLAN(ns, want)
	require.NoError(t, err)
	for what, drift := range map[string]func(c conn, l netlink.Link) error{
		"MTU":            func(c conn, l netlink.Link) error { return c.LinkSetMTU(l, 1300) },
		"MTU below IPv6": func(c conn, l netlink.Link) error { return c.LinkSetMTU(l, 1000) },
		"MAC":            func(c conn, l netlink.Link) error { return c.LinkSetHardwareAddr(l, orRandom(nil)) },
		"down":           func(c conn, l netlink.Link) error { return c.LinkSetDown(l) },
		"IPv6": func(c conn, l netlink.Link) error {
			return setSysctls([]Sysctl{{IPv6, "dp_vxlan", "disable_ipv6", 0}})
		},
	} {
		with(t, ns, change("dp_vxlan", drift))
		again, err := EnsureVXLAN(ns, want)
		require.NoError(t, err, what)
		require.Equal(t, first, again, what)
		require.Equal(t, 1, sysctl(t, ns, IPv6, "dp_vxlan", "disable_ipv6"), what)
	}
	// Without a MAC of his own the caller gets the one that is there.
	again, err := EnsureVXLAN(ns, VXLAN{})
	require.NoError(t, err)
	require.Equal(t, first, again)
}

func TestVXLANIsMadeAnewWhenItMust(t *testing.T) {
	t.Parallel()
	for what, want := range map[string]VXLAN{
		"port":         {Port: 8473},
		"source ports": {SourcePorts: PortRange{30000, 40000}},
		"checksum":     {UDPChecksum: true},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ns := newNS(t)
			first, err := EnsureVXLAN(ns, VXLAN{})
			require.NoError(t, err)
			again, err := EnsureVXLAN(ns, want)
			require.NoError(t, err)
			require.NotEqual(t, first.Index, again.Index)
			require.Equal(t, first.MAC, again.MAC, "peers may know the MAC")
			require.True(t, again.Up)
			require.Equal(t, vxlanAlias, attrs(t, ns, "dp_vxlan").Alias)
			require.Equal(t, 1, sysctl(t, ns, IPv6, "dp_vxlan", "disable_ipv6"))
			require.Zero(t, sysctl(t, ns, IPv4, "dp_vxlan", "rp_filter"))
			back, err := EnsureVXLAN(ns, VXLAN{})
			require.NoError(t, err)
			require.NotEqual(t, again.Index, back.Index)
			requireNothingLeft(t, ns, "dp_vxlan")
		})
	}
}

func TestVXLANMTUFromTheUnderlay(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	addVeth(t, ns, "eth0", "x")
	addVeth(t, ns, "eth1", "y")
	with(t, ns, func(c conn) error {
		for name, mtu := range map[string]int{"eth0": 9000, "eth1": 1400} {
			l, err := c.find(name)
			if err != nil {
				return err
			}
			if err := errors.Join(c.LinkSetMTU(l, mtu), c.LinkSetUp(l)); err != nil {
				return err
			}
		}
		return nil
	})
	mtu := func(want VXLAN) int {
		l, err := EnsureVXLAN(ns, want)
		require.NoError(t, err)
		return l.MTU
	}
	require.Equal(t, 1450, mtu(VXLAN{}), "no default route")
	require.Equal(t, 1430, mtu(VXLAN{IPv6: true}), "no default route")
	require.Equal(t, 8950, mtu(VXLAN{Underlay: "eth0"}))
	require.Equal(t, 1330, mtu(VXLAN{Underlay: "eth1", IPv6: true}))

	require.NoError(t, EnsureRoute(ns, Route{Prefix: prefix("0.0.0.0/0"), Dev: "eth1", Metric: 200}))
	require.Equal(t, 1350, mtu(VXLAN{}))
	require.Equal(t, 1330, mtu(VXLAN{IPv6: true}), "the other family's default route is better than none")
	require.NoError(t, EnsureRoute(ns, Route{Prefix: prefix("0.0.0.0/0"), Dev: "eth0", Metric: 100}))
	require.Equal(t, 8950, mtu(VXLAN{}), "the lower metric counts")
	require.NoError(t, EnsureRoute(ns, Route{Prefix: prefix("::/0"), Dev: "eth1"}))
	require.Equal(t, 1330, mtu(VXLAN{IPv6: true}))
	require.Equal(t, 8950, mtu(VXLAN{}))

	_, err := EnsureVXLAN(ns, VXLAN{Underlay: "absent"})
	require.ErrorIs(t, err, os.ErrNotExist)
	with(t, ns, change("eth1", func(c conn, l netlink.Link) error { return c.LinkSetMTU(l, 100) }))
	_, err = EnsureVXLAN(ns, VXLAN{Underlay: "eth1"})
	requireInput(t, err, "underlay MTU")
	require.ErrorContains(t, err, "eth1")
}

// listen opens a UDP socket in a namespace.
func listen(t *testing.T, ns Namespace, at string) {
	t.Helper()
	require.NoError(t, ns.Do(func() error {
		pc, err := net.ListenPacket("udp", at)
		if err == nil {
			t.Cleanup(func() { pc.Close() })
		}
		return err
	}))
}

func requirePortInUse(t *testing.T, err error, port uint16, owner string) {
	t.Helper()
	var taken *PortInUseError
	require.ErrorAs(t, err, &taken)
	require.ErrorIs(t, err, unix.EADDRINUSE)
	require.Equal(t, port, taken.Port)
	require.Contains(t, taken.Owner, owner)
	require.ErrorContains(t, err, fmt.Sprint(port))
}

func TestVXLANNamesTheOwnerOfThePort(t *testing.T) {
	t.Parallel()
	us := fmt.Sprintf("process %d (", os.Getpid())
	for what, row := range map[string]struct {
		take  func(t *testing.T, ns Namespace)
		owner string
		left  []string
	}{
		"a process, IPv4":        {func(t *testing.T, ns Namespace) { listen(t, ns, "0.0.0.0:8472") }, us, nil},
		"a process, one address": {func(t *testing.T, ns Namespace) { listen(t, ns, "127.0.0.1:8472") }, "127.0.0.1:8472", nil},
		"a process, IPv6":        {func(t *testing.T, ns Namespace) { listen(t, ns, "[::1]:8472") }, us, nil},
		"another vxlan":          {func(t *testing.T, ns Namespace) { addPlainVXLAN(t, ns, "flannel.1", 8472, true) }, "vxlan device flannel.1", []string{"flannel.1"}},
		"another flow-based vxlan": {func(t *testing.T, ns Namespace) {
			_, err := EnsureVXLAN(ns, VXLAN{Name: "cilium_vxlan"})
			require.NoError(t, err)
		}, "vxlan device cilium_vxlan", []string{"cilium_vxlan"}},
		"another flow-based vxlan, down": {func(t *testing.T, ns Namespace) {
			_, err := EnsureVXLAN(ns, VXLAN{Name: "cilium_vxlan"})
			require.NoError(t, err)
			with(t, ns, change("cilium_vxlan", func(c conn, l netlink.Link) error { return c.LinkSetDown(l) }))
		}, "vxlan device cilium_vxlan", []string{"cilium_vxlan"}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ns := newNS(t)
			row.take(t, ns)
			_, err := EnsureVXLAN(ns, VXLAN{})
			requirePortInUse(t, err, 8472, row.owner)
			requireNothingLeft(t, ns, row.left...)

			// A device that works on another port is not lost over it.
			works, err := EnsureVXLAN(ns, VXLAN{Port: 8473})
			require.NoError(t, err)
			_, err = EnsureVXLAN(ns, VXLAN{Port: 8472})
			requirePortInUse(t, err, 8472, row.owner)
			require.Equal(t, works.Link, find(t, ns, "dp_vxlan"))
		})
	}
}

// A device that is down keeps its port number but not its port.
func TestVXLANComesUpOnlyIfThePortIsFree(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	first, err := EnsureVXLAN(ns, VXLAN{})
	require.NoError(t, err)
	with(t, ns, change("dp_vxlan", func(c conn, l netlink.Link) error { return c.LinkSetDown(l) }))
	listen(t, ns, "0.0.0.0:8472")
	_, err = EnsureVXLAN(ns, VXLAN{})
	requirePortInUse(t, err, 8472, "process")
	left := find(t, ns, "dp_vxlan")
	require.Equal(t, first.Index, left.Index)
	require.False(t, left.Up)
}

// The check beforehand can be overtaken. Then the kernel says it at link-up,
// and this is the same error.
func TestVXLANExplainsTheKernelsAnswer(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	l, err := EnsureVXLAN(ns, VXLAN{})
	require.NoError(t, err)
	with(t, ns, change("dp_vxlan", func(c conn, l netlink.Link) error { return c.LinkSetDown(l) }))
	listen(t, ns, "0.0.0.0:8472")
	with(t, ns, change("dp_vxlan", func(c conn, k netlink.Link) error {
		err := c.up(k)
		require.ErrorIs(t, err, unix.EADDRINUSE, "the kernel refuses at link-up")
		requirePortInUse(t, c.explainPort(err, 8472, l.Index), 8472, "process")
		requirePortInUse(t, c.explainPort(unix.EADDRINUSE, 9999, l.Index), 9999, "unknown")
		require.Equal(t, unix.EEXIST, c.explainPort(unix.EEXIST, 9999, l.Index))
		other := errors.New("other")
		require.Equal(t, other, c.explainPort(other, 8472, l.Index))
		return nil
	}))
}

func TestVXLANPortsOfOtherNamespacesDoNotMatter(t *testing.T) {
	t.Parallel()
	a, b := newNS(t), newNS(t)
	for _, ns := range []Namespace{a, b} {
		_, err := EnsureVXLAN(ns, VXLAN{})
		require.NoError(t, err)
	}
}

func TestVXLANBadInput(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	for field, bad := range map[string][]VXLAN{
		"vxlan device name":    {{Name: "sixteen-bytes-xx"}, {Name: "a/b"}},
		"underlay device name": {{Underlay: "a b"}},
		"source ports":         {{SourcePorts: PortRange{2, 1}}, {SourcePorts: PortRange{5, 5}}, {SourcePorts: PortRange{0, 5}}},
		"vxlan MTU":            {{MTU: 67}, {MTU: -1}, {MTU: 65536}},
		"vxlan MAC":            {{MAC: net.HardwareAddr{1, 0, 0, 0, 0, 1}}},
	} {
		for _, want := range bad {
			_, err := EnsureVXLAN(ns, want)
			requireInput(t, err, field)
		}
	}
	requireInput(t, RemoveVXLAN(ns, "a/b"), "vxlan device name")
	requireNothingLeft(t, ns)
}
