// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/godatapath/datapath/internal/undo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Defaults of the overlay device.
const (
	DefaultVXLANName = "dp_vxlan"
	DefaultVXLANPort = 8472 // what Linux had before RFC 7348 gave 4789
)

// PortRange are UDP source ports from Low up to and without High, as the kernel
// draws them by the hash of the inner flow. The zero PortRange leaves the choice
// to the kernel, which then uses net.ipv4.ip_local_port_range.
type PortRange struct {
	Low, High uint16
}

// VXLAN is a flow-based ("external") vxlan device: remote address and VNI come
// with each packet from the program that sends it, so one device serves all
// peers of both families.
type VXLAN struct {
	Name        string    // "" means dp_vxlan
	Port        uint16    // UDP destination port and the port listened on; 0 means 8472
	SourcePorts PortRange // see there
	// MTU of the inner packets in bytes. 0 computes it from the device Underlay
	// by [OverlayMTU].
	MTU int
	// Underlay is the device whose MTU counts when MTU is 0. "" means the device
	// of the default route; a namespace without one is taken to have 1500.
	Underlay string
	// MAC of the device; nil chooses one at creation and leaves it then.
	MAC net.HardwareAddr
	// IPv6 says that peers are reached over IPv6, which has the larger outer
	// header. The device itself always serves both families.
	IPv6 bool
	// UDPChecksum makes the device fill the outer UDP checksum. Without it the
	// checksum is 0 also over IPv6, where both ends must agree (RFC 6935): zero
	// checksums are always accepted here. A program that sends by
	// bpf_skb_set_tunnel_key decides for its own packets.
	UDPChecksum bool
}

func (v VXLAN) check() (VXLAN, error) {
	if v.Name == "" {
		v.Name = DefaultVXLANName
	}
	if v.Port == 0 {
		v.Port = DefaultVXLANPort
	}
	if err := checkName("vxlan device name", v.Name); err != nil {
		return v, err
	}
	if v.Underlay != "" {
		if err := checkName("underlay device name", v.Underlay); err != nil {
			return v, err
		}
	}
	if s := v.SourcePorts; s != (PortRange{}) && (s.Low == 0 || s.Low >= s.High) {
		// The kernel would take such a range and quietly use another one.
		return v, &InputError{
			Field: "source ports", Value: fmt.Sprintf("%d-%d", s.Low, s.High),
			Reason: "is no range: low must be at least 1 and below high",
		}
	}
	if err := checkMAC("vxlan MAC", v.MAC); err != nil {
		return v, err
	}
	if v.MTU != 0 {
		return v, checkMTU("vxlan MTU", v.MTU, false)
	}
	return v, nil
}

// VXLANLink is an overlay device and what it was made with.
type VXLANLink struct {
	Link
	Port        uint16    // UDP destination port and the port listened on
	SourcePorts PortRange // see there
	UDPChecksum bool      // whether the device fills the outer UDP checksum
}

// OverlayPort is Port, for whoever attaches programs and has been told a port of
// his own: the two must be one.
func (l VXLANLink) OverlayPort() uint16 { return l.Port }

// EnsureVXLAN makes the overlay device exist as described and be up, without
// IPv6 of its own. MTU, MAC and a device that is down are repaired in place.
// Port, source ports and checksum flags can not be changed by the kernel, so if
// one differs the device is made anew with a new ifindex, and programs that were
// attached to the old one go with it.
//
// If somebody else has the UDP port the error is a [*PortInUseError], and this
// is found out before anything is touched. A device of that name which is not
// ours answers [ErrForeign]; ours carries an alias, see the text of the package.
//
// A failure leaves the old device as it was. With another port the new one is
// made aside and takes the place only when it is up. Two devices can not have
// one port; there the old one is removed first, and after a failure made again
// with its ifindex, MAC, MTU and settings, but without programs.
func EnsureVXLAN(ns Namespace, want VXLAN) (VXLANLink, error) {
	want, err := want.check()
	if err != nil {
		return VXLANLink{}, fmt.Errorf("ensure vxlan: %w", err)
	}
	got := VXLANLink{Port: want.Port, SourcePorts: want.SourcePorts, UDPChecksum: want.UDPChecksum}
	err = withConn(ns, func(c conn) error {
		var err error
		got.Link, err = c.ensureVXLAN(want)
		return err
	})
	if err != nil {
		return VXLANLink{}, fmt.Errorf("ensure vxlan %s: %w", want.Name, err)
	}
	return got, nil
}

// FindVXLAN returns the overlay device of that name ("" means dp_vxlan) with
// its settings. If there is none, errors.Is(err, os.ErrNotExist); a device that
// is not ours answers [ErrForeign].
func FindVXLAN(ns Namespace, name string) (VXLANLink, error) {
	if name == "" {
		name = DefaultVXLANName
	}
	if err := checkName("vxlan device name", name); err != nil {
		return VXLANLink{}, fmt.Errorf("find vxlan: %w", err)
	}
	var got VXLANLink
	err := withConn(ns, func(c conn) error {
		v, err := c.findVXLAN(name)
		if err != nil {
			return err
		}
		if v == nil {
			return os.ErrNotExist
		}
		got = VXLANLink{
			Port:        uint16(v.Port),
			SourcePorts: PortRange{uint16(v.PortLow), uint16(v.PortHigh)},
			UDPChecksum: v.UDPCSum,
		}
		got.Link, err = c.describe(v)
		return err
	})
	if err != nil {
		return VXLANLink{}, fmt.Errorf("find vxlan %s: %w", name, err)
	}
	return got, nil
}

// RemoveVXLAN removes the overlay device of that name ("" means dp_vxlan). Nil
// if it is absent; a device that is not ours answers [ErrForeign].
func RemoveVXLAN(ns Namespace, name string) error {
	if name == "" {
		name = DefaultVXLANName
	}
	if err := checkName("vxlan device name", name); err != nil {
		return fmt.Errorf("remove vxlan: %w", err)
	}
	err := withConn(ns, func(c conn) error {
		v, err := c.findVXLAN(name)
		if err != nil {
			return err
		}
		if v != nil {
			if err := c.remove(v); err != nil {
				return err
			}
		}
		return c.removeAside(name)
	})
	if err != nil {
		return fmt.Errorf("remove vxlan %s: %w", name, err)
	}
	return nil
}

func (c conn) ensureVXLAN(want VXLAN) (got Link, err error) {
	var back undo.Stack
	defer back.Run(&err)

	if want.MTU == 0 {
		if want.MTU, err = c.overlayMTU(want.Underlay, want.IPv6); err != nil {
			return Link{}, err
		}
	}
	old, err := c.claimVXLAN(want)
	if err != nil {
		return Link{}, err
	}
	// It may hold the port.
	if err := c.removeAside(want.Name); err != nil {
		return Link{}, err
	}
	fits := old != nil && want.fits(old)
	if !fits || old.RawFlags&unix.IFF_UP == 0 {
		if err := c.checkPort(want.Port, old); err != nil {
			return Link{}, err
		}
	}
	if fits {
		if err := c.setUpVXLAN(old, want); err != nil {
			return Link{}, err
		}
		return c.again(old)
	}
	l, err := c.replaceVXLAN(old, want, &back)
	if err != nil {
		return Link{}, err
	}
	return c.again(l)
}

// setUpVXLAN makes a device that fits be as wanted, and up.
func (c conn) setUpVXLAN(l netlink.Link, want VXLAN) error {
	if err := c.reshape(l, shape{mtu: want.MTU, mac: want.MAC}); err != nil {
		return err
	}
	if err := quiet(l.Attrs().Name); err != nil {
		return err
	}
	return c.explainPort(c.up(l), want.Port, l.Attrs().Index)
}

// overlayMTU computes the MTU from the underlay device, or from the default
// route of the underlay's family, or else of the other one.
func (c conn) overlayMTU(underlay string, ipv6 bool) (int, error) {
	mtu := DefaultMTU
	if underlay != "" {
		l, err := c.find(underlay)
		if err != nil {
			return 0, fmt.Errorf("read the underlay MTU: %w", err)
		}
		mtu = l.Attrs().MTU
	} else {
		l, err := c.defaultDevice(ipv6)
		if err != nil {
			return 0, fmt.Errorf("read the underlay MTU: %w", err)
		}
		if l != nil {
			underlay, mtu = l.Attrs().Name, l.Attrs().MTU
		}
	}
	inner, err := OverlayMTU(min(mtu, MaxMTU), ipv6)
	if err != nil {
		return 0, fmt.Errorf("compute the MTU from device device %q with MTU %s: %w", underlay, strconv.Itoa(mtu), err)
	}
	return inner, nil
}

// defaultDevice returns the device of the best default route, or nil.
func (c conn) defaultDevice(ipv6 bool) (netlink.Link, error) {
	families := []int{netlink.FAMILY_V4, netlink.FAMILY_V6}
	if ipv6 {
		families[0], families[1] = families[1], families[0]
	}
	for _, family := range families {
		all, err := retryDump(func() ([]netlink.Route, error) { return c.RouteList(nil, family) })
		if err != nil {
			return nil, err
		}
		best := -1
		for i, r := range all {
			if r.Dst == nil || fromIPNet(r.Dst).Bits() != 0 || r.LinkIndex == 0 {
				continue
			}
			if best < 0 || r.Priority < all[best].Priority {
				best = i
			}
		}
		if best < 0 {
			continue
		}
		l, err := c.byIndex(all[best].LinkIndex)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		return l, err
	}
	return nil, nil
}
