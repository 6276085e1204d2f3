// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"github.com/godatapath/datapath/internal/undo"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
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

// EnsureVXLAN makes the overlay device exist as described and be up, without
// IPv6 of its own. MTU, MAC and a device that is down are repaired in place.
// Port, source ports, checksum flags and flow-based mode can not be changed by
// the kernel, so if one differs the device is made anew with a new ifindex.
//
// If somebody else has the UDP port the error is a [*PortInUseError], and this
// is found out before anything is touched. A device of that name which is not a
// vxlan answers [ErrForeign].
func EnsureVXLAN(ns Namespace, want VXLAN) (Link, error) {
	want, err := want.check()
	if err != nil {
		return Link{}, fmt.Errorf("ensure vxlan: %w", err)
	}
	var got Link
	err = withConn(ns, func(c conn) error {
		var err error
		got, err = c.ensureVXLAN(want)
		return err
	})
	if err != nil {
		return Link{}, fmt.Errorf("ensure vxlan %s: %w", want.Name, err)
	}
	return got, nil
}

// RemoveVXLAN removes the overlay device of that name ("" means dp_vxlan). Nil
// if it is absent; a device that is not a vxlan answers [ErrForeign].
func RemoveVXLAN(ns Namespace, name string) error {
	if name == "" {
		name = DefaultVXLANName
	}
	if err := checkName("vxlan device name", name); err != nil {
		return fmt.Errorf("remove vxlan: %w", err)
	}
	err := withConn(ns, func(c conn) error {
		l, err := c.findOurs(name, "vxlan")
		if err != nil || l == nil {
			return err
		}
		return c.remove(l)
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
	l, err := c.findOurs(want.Name, "vxlan")
	if err != nil {
		return Link{}, err
	}
	var old *netlink.Vxlan
	if l != nil {
		old = l.(*netlink.Vxlan)
	}
	fits := old != nil && want.fits(old)
	if !fits || old.RawFlags&unix.IFF_UP == 0 {
		if err := c.checkPort(want.Port, old); err != nil {
			return Link{}, err
		}
	}
	if !fits {
		if want.MAC == nil && old != nil {
			want.MAC = old.HardwareAddr // peers may know it
		}
		if old != nil {
			if err := c.remove(old); err != nil {
				return Link{}, err
			}
		}
		if err := want.create(); err != nil {
			return Link{}, fmt.Errorf("make the device: %w", c.explainPort(err, want.Port, 0))
		}
		if l, err = c.find(want.Name); err != nil {
			return Link{}, err
		}
		made := l
		back.Push(func() error { return c.remove(made) })
		v, ok := l.(*netlink.Vxlan)
		if !ok || !want.fits(v) {
			return Link{}, errors.New("the kernel made another device than it was asked for")
		}
	}
	if err := c.reshape(l, shape{mtu: want.MTU, mac: want.MAC}); err != nil {
		return Link{}, err
	}
	if err := quiet(want.Name); err != nil {
		return Link{}, err
	}
	if err := c.up(l); err != nil {
		return Link{}, c.explainPort(err, want.Port, l.Attrs().Index)
	}
	return c.again(l)
}

// fits compares what the kernel can not change in a device that exists.
func (v VXLAN) fits(old *netlink.Vxlan) bool {
	return old.FlowBased &&
		old.Port == int(v.Port) &&
		old.PortLow == int(v.SourcePorts.Low) && old.PortHigh == int(v.SourcePorts.High) &&
		old.UDPCSum == v.UDPChecksum &&
		old.UDP6ZeroCSumTx == !v.UDPChecksum &&
		old.UDP6ZeroCSumRx &&
		!old.Learning && !old.GBP &&
		old.VtepDevIndex == 0 && old.SrcAddr == nil && old.Group == nil
}

// create sends the request itself, since the library does not send the UDP
// checksum flag when it is off, and the kernel's default is on. The request
// goes out in the namespace of the calling thread.
func (v VXLAN) create() error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.MTU))))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, orRandom(v.MAC)))

	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	data := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
	flag := func(attr int, on bool) {
		var b byte
		if on {
			b = 1
		}
		data.AddRtAttr(attr, []byte{b})
	}
	data.AddRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(0))
	flag(nl.IFLA_VXLAN_FLOWBASED, true)
	flag(nl.IFLA_VXLAN_LEARNING, false)
	flag(nl.IFLA_VXLAN_UDP_CSUM, v.UDPChecksum)
	flag(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, !v.UDPChecksum)
	flag(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, true)
	data.AddRtAttr(nl.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, v.Port))
	if v.SourcePorts != (PortRange{}) {
		ports := binary.BigEndian.AppendUint16(nil, v.SourcePorts.Low)
		data.AddRtAttr(nl.IFLA_VXLAN_PORT_RANGE, binary.BigEndian.AppendUint16(ports, v.SourcePorts.High))
	}
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w (the kernel needs the vxlan module)", err)
	}
	return explainPermission(err)
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
		return 0, fmt.Errorf("compute the MTU from underlay device %q with MTU %s: %w", underlay, strconv.Itoa(mtu), err)
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
