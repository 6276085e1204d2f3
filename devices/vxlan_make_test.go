// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"net"
	"os"
	"testing"

	"github.com/godatapath/datapath/internal/undo"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addVXLAN makes what EnsureVXLAN would make, but neither marks it nor brings
// it up.
func addVXLAN(t *testing.T, ns Namespace, want VXLAN) Link {
	t.Helper()
	want, err := want.check()
	require.NoError(t, err)
	want.MTU = 1450
	with(t, ns, func(conn) error { return createVXLAN(want.device()) })
	return find(t, ns, want.Name)
}

func alias(text string) func(c conn, l netlink.Link) error {
	return func(c conn, l netlink.Link) error { return c.LinkSetAlias(l, text) }
}

func TestVXLANLeavesForeignDevicesAlone(t *testing.T) {
	t.Parallel()
	plain := func(port int, up bool) func(t *testing.T, ns Namespace) {
		return func(t *testing.T, ns Namespace) { addPlainVXLAN(t, ns, "dp_vxlan", port, up) }
	}
	flowBased := func(v VXLAN) func(t *testing.T, ns Namespace) {
		return func(t *testing.T, ns Namespace) { addVXLAN(t, ns, v) }
	}
	and := func(add func(t *testing.T, ns Namespace), fn func(c conn, l netlink.Link) error) func(t *testing.T, ns Namespace) {
		return func(t *testing.T, ns Namespace) {
			add(t, ns)
			with(t, ns, change("dp_vxlan", fn))
		}
	}
	for what, add := range map[string]func(t *testing.T, ns Namespace){
		"a veth":                          func(t *testing.T, ns Namespace) { addVeth(t, ns, "dp_vxlan", "other") },
		"not flow-based":                  plain(4790, false),
		"not flow-based, up, on our port": plain(8472, true),
		"not flow-based, with our mark":   and(plain(4790, false), alias(vxlanAlias)),
		"on another port":                 flowBased(VXLAN{Port: 4790}),
		"other source ports":              flowBased(VXLAN{SourcePorts: PortRange{1000, 2000}}),
		"other checksum flags":            flowBased(VXLAN{UDPChecksum: true}),
		"as wanted, in use":               and(flowBased(VXLAN{}), conn.up),
		"as wanted, marked by another":    and(flowBased(VXLAN{}), alias("mine")),
		"as wanted, with an address": and(flowBased(VXLAN{}), func(c conn, l netlink.Link) error {
			return c.AddrAdd(l, &netlink.Addr{IPNet: ipNet(prefix("192.0.2.1/24"))})
		}),
		"an alternative name": func(t *testing.T, ns Namespace) {
			addVXLAN(t, ns, VXLAN{Name: "other"})
			with(t, ns, change("other", func(c conn, l netlink.Link) error { return c.LinkAddAltName(l, "dp_vxlan") }))
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ns := newNS(t)
			add(t, ns)
			before, err := ListLinks(ns)
			require.NoError(t, err)
			_, err = EnsureVXLAN(ns, VXLAN{})
			require.ErrorIs(t, err, ErrForeign)
			require.ErrorContains(t, err, "dp_vxlan")
			_, err = FindVXLAN(ns, "")
			require.ErrorIs(t, err, ErrForeign)
			require.ErrorIs(t, RemoveVXLAN(ns, ""), ErrForeign)
			after, err := ListLinks(ns)
			require.NoError(t, err)
			require.Equal(t, withoutLinkLocals(before), withoutLinkLocals(after))
		})
	}
}

// What a process that died right after the creation leaves behind. Without the
// mark it may still be somebody else's, so it is not removed.
func TestVXLANAdoptsAnUnfinishedOne(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	l := addVXLAN(t, ns, VXLAN{})
	require.ErrorIs(t, RemoveVXLAN(ns, ""), ErrForeign)
	got, err := EnsureVXLAN(ns, VXLAN{})
	require.NoError(t, err)
	require.Equal(t, l.Index, got.Index)
	require.Equal(t, vxlanAlias, attrs(t, ns, "dp_vxlan").Alias)
	require.NoError(t, RemoveVXLAN(ns, ""))
	requireNothingLeft(t, ns)
}

// worksOn8472 makes a device with settings that are not the usual ones, and an
// alternative name that only this very device has.
func worksOn8472(t *testing.T, ns Namespace) VXLANLink {
	t.Helper()
	_, err := EnsureVXLAN(ns, VXLAN{SourcePorts: PortRange{20000, 30000}, MTU: 1400, UDPChecksum: true})
	require.NoError(t, err)
	with(t, ns, change("dp_vxlan", func(c conn, l netlink.Link) error { return c.LinkAddAltName(l, "witness") }))
	v, err := FindVXLAN(ns, "")
	require.NoError(t, err)
	return v
}

// requireAsBefore wants the device, its mark and its port to be as they were,
// and nothing beside it.
func requireAsBefore(t *testing.T, ns Namespace, before VXLANLink) {
	t.Helper()
	after, err := FindVXLAN(ns, "")
	require.NoError(t, err)
	require.Equal(t, before, after)
	requireNothingLeft(t, ns, "dp_vxlan")
	require.Equal(t, 1, sysctl(t, ns, IPv6, "dp_vxlan", "disable_ipv6"))
	require.ErrorIs(t, ns.Do(func() error {
		pc, err := net.ListenPacket("udp4", "0.0.0.0:8472")
		if err == nil {
			pc.Close()
		}
		return err
	}), unix.EADDRINUSE, "the port is the device's again")
}

func requireVeryDevice(t *testing.T, ns Namespace, before VXLANLink) {
	t.Helper()
	requireAsBefore(t, ns, before)
	require.Equal(t, []string{"witness"}, attrs(t, ns, "dp_vxlan").AltNames)
}

// With another port the working device is not touched before the new one works.
func TestVXLANIsKeptWhenTheNewPortIsTaken(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	before := worksOn8472(t, ns)
	listen(t, ns, "0.0.0.0:8473")
	with(t, ns, func(c conn) error {
		old, err := c.findVXLAN("dp_vxlan")
		require.NoError(t, err)
		// Behind the check that would have found the socket: somebody came in between.
		_, err = replace(c, old, VXLAN{Name: "dp_vxlan", Port: 8473, MTU: 1400})
		requirePortInUse(t, err, 8473, "process")
		return nil
	})
	requireVeryDevice(t, ns, before)
}

func replace(c conn, old *netlink.Vxlan, want VXLAN) (l netlink.Link, err error) {
	var back undo.Stack
	defer back.Run(&err)
	return c.replaceVXLAN(old, want, &back)
}

// groupMAC is one that no device can have. The check at the door would refuse
// it, so it goes behind it.
var groupMAC = net.HardwareAddr{1, 0, 0, 0, 0, 1}

func TestVXLANIsKeptWhenTheKernelRefusesTheNewOne(t *testing.T) {
	t.Parallel()
	for what, row := range map[string]struct {
		want    VXLAN
		require func(t *testing.T, ns Namespace, before VXLANLink)
	}{
		"another port":                          {VXLAN{Port: 8473}, requireVeryDevice},
		"the same port, which two can not have": {VXLAN{Port: 8472}, requireAsBefore},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ns := newNS(t)
			before := worksOn8472(t, ns)
			row.want.Name, row.want.MTU, row.want.MAC = "dp_vxlan", 1450, groupMAC
			with(t, ns, func(c conn) error {
				_, err := c.ensureVXLAN(row.want)
				require.ErrorIs(t, err, unix.EADDRNOTAVAIL)
				return nil
			})
			row.require(t, ns, before)
		})
	}
}

// A container has often no right to write settings. There the new device is
// made and can not be set up.
func TestVXLANIsKeptWhenTheNewOneCanNotBeSetUp(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	before := worksOn8472(t, ns)
	readOnly := func(want VXLAN) error {
		return ns.Do(func() error {
			if err := readOnlySysctls(); err != nil {
				return err
			}
			_, err := EnsureVXLAN(Namespace{}, want)
			return err
		})
	}
	require.ErrorIs(t, readOnly(VXLAN{Port: 8473}), unix.EROFS)
	requireVeryDevice(t, ns, before)

	// The old one comes back as far as that is possible, and the error tells both.
	err := readOnly(VXLAN{Port: 8472})
	require.ErrorIs(t, err, unix.EROFS)
	require.ErrorContains(t, err, "make the old device dp_vxlan again")
	require.NoError(t, EnsureSysctls(ns, Sysctl{IPv6, "dp_vxlan", "disable_ipv6", 1}))
	requireAsBefore(t, ns, before)
}

// readOnlySysctls works on the thread of the caller alone.
func readOnlySysctls() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
}

// A device that was down comes back down.
func TestVXLANRestoresADeviceThatIsDown(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	before := worksOn8472(t, ns)
	with(t, ns, change("dp_vxlan", func(c conn, l netlink.Link) error { return c.LinkSetDown(l) }))
	with(t, ns, func(c conn) error {
		_, err := c.ensureVXLAN(VXLAN{Name: "dp_vxlan", Port: 8472, MTU: 1450, MAC: groupMAC})
		require.ErrorIs(t, err, unix.EADDRNOTAVAIL)
		return nil
	})
	before.Up = false
	after, err := FindVXLAN(ns, "")
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// A call that is killed may leave the new device aside, with the port.
func TestVXLANTakesAwayWhatAKilledCallLeft(t *testing.T) {
	t.Parallel()
	for what, spoil := range map[string]func(c conn, l netlink.Link) error{
		"before the mark": func(conn, netlink.Link) error { return nil },
		"after the mark":  alias(vxlanAlias),
		"up": func(c conn, l netlink.Link) error {
			if err := c.mark(l, vxlanAlias); err != nil {
				return err
			}
			return c.up(l)
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ns := newNS(t)
			leave := func() {
				addVXLAN(t, ns, VXLAN{Name: asideName("dp_vxlan"), Port: 8473})
				with(t, ns, change(asideName("dp_vxlan"), spoil))
			}
			worksOn8472(t, ns)
			leave()
			_, err := EnsureVXLAN(ns, VXLAN{Port: 8473})
			require.NoError(t, err)
			requireNothingLeft(t, ns, "dp_vxlan")
			require.NoError(t, RemoveVXLAN(ns, ""))
			leave()
			require.NoError(t, RemoveVXLAN(ns, ""))
			requireNothingLeft(t, ns)
		})
	}
}

func TestFindVXLAN(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	_, err := FindVXLAN(ns, "")
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "find vxlan dp_vxlan")
	_, err = FindVXLAN(ns, "a/b")
	requireInput(t, err, "vxlan device name")

	first, err := EnsureVXLAN(ns, VXLAN{})
	require.NoError(t, err)
	got, err := FindVXLAN(ns, "")
	require.NoError(t, err)
	require.Equal(t, VXLANLink{Link: first.Link, Port: 8472}, got)

	second, err := EnsureVXLAN(ns, VXLAN{Name: "v", Port: 4789, SourcePorts: PortRange{20000, 30000}, UDPChecksum: true})
	require.NoError(t, err)
	got, err = FindVXLAN(ns, "v")
	require.NoError(t, err)
	require.Equal(t, VXLANLink{Link: second.Link, Port: 4789, SourcePorts: PortRange{20000, 30000}, UDPChecksum: true}, got)
	require.Equal(t, second.Index, got.Ifindex())
}
