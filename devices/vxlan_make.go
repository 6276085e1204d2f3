// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/godatapath/datapath/internal/undo"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// findVXLAN returns the device of that name if it is ours, nil if there is
// none, and ErrForeign otherwise.
func (c conn) findVXLAN(name string) (*netlink.Vxlan, error) {
	v, err := c.flowBased(name)
	if err != nil || v == nil {
		return nil, err
	}
	return v, checkMark(v, vxlanAlias)
}

// claimVXLAN is findVXLAN, but takes also one that was made as wanted and left
// without a mark.
func (c conn) claimVXLAN(want VXLAN) (*netlink.Vxlan, error) {
	v, err := c.flowBased(want.Name)
	if err != nil || v == nil {
		return nil, err
	}
	if !want.fits(v) {
		return v, checkMark(v, vxlanAlias)
	}
	return v, c.claim(v, vxlanAlias)
}

// flowBased returns the vxlan of that name, whosever it is. One that is not
// flow-based was never ours, even if it has our alias.
func (c conn) flowBased(name string) (*netlink.Vxlan, error) {
	l, err := c.findKind(name, "vxlan")
	if err != nil || l == nil {
		return nil, err
	}
	v, ok := l.(*netlink.Vxlan)
	if !ok || !v.FlowBased {
		return nil, fmt.Errorf("vxlan %s is not flow-based: %w; remove it or choose another name", name, ErrForeign)
	}
	return v, nil
}

// replaceVXLAN makes the wanted device, in the place of old if that is not nil.
func (c conn) replaceVXLAN(old *netlink.Vxlan, want VXLAN, back *undo.Stack) (netlink.Link, error) {
	if old == nil {
		return c.makeVXLAN(want, back)
	}
	if want.MAC == nil {
		want.MAC = old.HardwareAddr // peers may know it
	}
	if old.Port == int(want.Port) {
		if err := c.remove(old); err != nil {
			return nil, err
		}
		back.Push(func() error { return c.restoreVXLAN(old) })
		return c.makeVXLAN(want, back)
	}
	name := want.Name
	want.Name = asideName(name)
	l, err := c.makeVXLAN(want, back)
	if err != nil {
		return nil, err
	}
	if err := c.remove(old); err != nil {
		return nil, err
	}
	// The new one may have the name already.
	back.Push(func() error { return errors.Join(c.remove(l), c.restoreVXLAN(old)) })
	if err := c.rename(l, name); err != nil {
		return nil, err
	}
	return l, c.explainPort(c.up(l), want.Port, l.Attrs().Index)
}

// makeVXLAN makes the device and brings it up.
func (c conn) makeVXLAN(want VXLAN, back *undo.Stack) (netlink.Link, error) {
	if err := createVXLAN(want.device()); err != nil {
		return nil, fmt.Errorf("make the device: %w", c.explainPort(err, want.Port, 0))
	}
	l, err := c.find(want.Name)
	if err != nil {
		return nil, err
	}
	back.Push(func() error { return c.remove(l) })
	if err := c.mark(l, vxlanAlias); err != nil {
		return nil, err
	}
	if v, ok := l.(*netlink.Vxlan); !ok || !want.fits(v) {
		return nil, errors.New("the kernel made another device than it was asked for")
	}
	return l, c.setUpVXLAN(l, want)
}

// restoreVXLAN makes a device of ours that was removed again, with its ifindex,
// and goes on after an error to come as near as it can.
func (c conn) restoreVXLAN(old *netlink.Vxlan) error {
	err := createVXLAN(old)
	if err == nil {
		var l netlink.Link
		if l, err = c.byIndex(old.Index); err == nil {
			err = errors.Join(c.mark(l, vxlanAlias), quiet(old.Name))
			if old.RawFlags&unix.IFF_UP != 0 {
				err = errors.Join(err, c.explainPort(c.up(l), uint16(old.Port), old.Index))
			}
		}
	}
	if err != nil {
		return fmt.Errorf("make the old device %s again: %w", old.Name, err)
	}
	return nil
}

// removeAside removes the successor that a killed call has left.
func (c conn) removeAside(name string) error {
	aside, err := c.flowBased(asideName(name))
	if err != nil || aside == nil {
		return err
	}
	if err := c.claim(aside, vxlanAlias); err != nil {
		return err
	}
	return c.remove(aside)
}

// device is what the kernel is asked for.
func (v VXLAN) device() *netlink.Vxlan {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = v.Name, v.MTU, v.MAC
	return &netlink.Vxlan{
		LinkAttrs: attrs,
		FlowBased: true,
		Port:      int(v.Port),
		PortLow:   int(v.SourcePorts.Low), PortHigh: int(v.SourcePorts.High),
		UDPCSum:        v.UDPChecksum,
		UDP6ZeroCSumTx: !v.UDPChecksum,
		UDP6ZeroCSumRx: true,
	}
}

// fits compares what the kernel can not change in a device that exists.
func (v VXLAN) fits(old *netlink.Vxlan) bool {
	want := v.device()
	return old.FlowBased &&
		old.Port == want.Port &&
		old.PortLow == want.PortLow && old.PortHigh == want.PortHigh &&
		old.UDPCSum == want.UDPCSum &&
		old.UDP6ZeroCSumTx == want.UDP6ZeroCSumTx &&
		old.UDP6ZeroCSumRx == want.UDP6ZeroCSumRx &&
		!old.Learning && !old.GBP &&
		old.VtepDevIndex == 0 && old.SrcAddr == nil && old.Group == nil
}

// createVXLAN sends the request itself, since the library does not send the UDP
// checksum flag when it is off, and the kernel's default is on. It sends what
// devices of ours can have. The request goes out in the namespace of the calling
// thread.
func createVXLAN(v *netlink.Vxlan) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(v.Index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.MTU))))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, orRandom(v.HardwareAddr)))

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
	flag(nl.IFLA_VXLAN_FLOWBASED, v.FlowBased)
	flag(nl.IFLA_VXLAN_LEARNING, v.Learning)
	flag(nl.IFLA_VXLAN_UDP_CSUM, v.UDPCSum)
	flag(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_TX, v.UDP6ZeroCSumTx)
	flag(nl.IFLA_VXLAN_UDP_ZERO_CSUM6_RX, v.UDP6ZeroCSumRx)
	data.AddRtAttr(nl.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, uint16(v.Port)))
	if v.PortLow != 0 || v.PortHigh != 0 {
		ports := binary.BigEndian.AppendUint16(nil, uint16(v.PortLow))
		data.AddRtAttr(nl.IFLA_VXLAN_PORT_RANGE, binary.BigEndian.AppendUint16(ports, uint16(v.PortHigh)))
	}
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w (the kernel needs the vxlan module)", err)
	}
	return explainPermission(err)
}
