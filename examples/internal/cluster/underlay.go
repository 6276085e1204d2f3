// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
)

const uplink = "eth0"

// makeUnderlay makes the segment that the nodes are on: a bridge in a namespace
// of its own, or nothing yet if they are to be joined by a wire.
func (c *Cluster) makeUnderlay() (err error) {
	if c.underlay, err = c.namespace("underlay"); err != nil || c.cfg.Wire {
		return err
	}
	return withNetlink(c.underlay, func(nl *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "segment", c.cfg.UnderlayMTU
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := nl.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make the underlay's bridge: %w", err)
		}
		return nl.LinkSetUp(bridge)
	})
}

// joinUnderlay gives a node its uplink.
func (c *Cluster) joinUnderlay(ns devices.Namespace, index int, addrs []netip.Prefix) error {
	node, err := os.Open(ns.Path())
	if err != nil {
		return err
	}
	defer node.Close()
	plug := c.plugIntoBridge
	if c.cfg.Wire {
		plug = c.plugIntoWire
	}
	if err := plug(ns, node, index); err != nil {
		return fmt.Errorf("join the underlay: %w", err)
	}
	return withNetlink(ns, func(nl *netlink.Handle) error {
		for _, a := range addrs {
			if err := setAddr(nl, uplink, a); err != nil {
				return err
			}
		}
		dev, err := nl.LinkByName(uplink)
		if err != nil {
			return err
		}
		return nl.LinkSetUp(dev)
	})
}

func uplinkMAC(index int) net.HardwareAddr { return net.HardwareAddr{0x02, 0, 0, 0, 0, byte(index)} }

func (c *Cluster) plugIntoBridge(_ devices.Namespace, node *os.File, index int) error {
	return withNetlink(c.underlay, func(nl *netlink.Handle) error {
		bridge, err := nl.LinkByName("segment")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.MasterIndex = fmt.Sprintf("node%d", index), c.cfg.UnderlayMTU, bridge.Attrs().Index
		attrs.HardwareAddr = net.HardwareAddr{0x02, 0, 0, 0, 1, byte(index)}
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerMTU, veth.PeerNamespace = uplink, uint32(c.cfg.UnderlayMTU), netlink.NsFd(node.Fd())
		veth.PeerHardwareAddr = uplinkMAC(index)
		if err := nl.LinkAdd(veth); err != nil {
			return err
		}
		return nl.LinkSetUp(veth)
	})
}

// plugIntoWire gives the first node one end of a veth. The other end waits in
// the underlay for the second node.
func (c *Cluster) plugIntoWire(ns devices.Namespace, node *os.File, index int) error {
	const loose = "wire"
	err := withNetlink(c.underlay, func(nl *netlink.Handle) error {
		if index == 2 {
			end, err := nl.LinkByName(loose)
			if err != nil {
				return err
			}
			return nl.LinkSetNsFd(end, int(node.Fd()))
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = loose, c.cfg.UnderlayMTU, uplinkMAC(2)
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerMTU, veth.PeerNamespace = uplink, uint32(c.cfg.UnderlayMTU), netlink.NsFd(node.Fd())
		veth.PeerHardwareAddr = uplinkMAC(1)
		return nl.LinkAdd(veth)
	})
	if err != nil || index != 2 {
		return err
	}
	return withNetlink(ns, func(nl *netlink.Handle) error {
		end, err := nl.LinkByName(loose)
		if err != nil {
			return err
		}
		return nl.LinkSetName(end, uplink)
	})
}

func withNetlink(ns devices.Namespace, fn func(*netlink.Handle) error) error {
	return ns.Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer nl.Close()
		return fn(nl)
	})
}
