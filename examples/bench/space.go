// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
)

// space is a namespace with the plain kernel in it.
type space struct {
	devices.Namespace
}

// namespace makes one that ends with the arena. It has no name, so it is gone
// even if this process is killed.
func (a *arena) namespace() (space, error) {
	ns, err := devices.NewNamespace()
	if err != nil {
		return space{}, err
	}
	a.push(ns.Close)
	// Duplicate detection would keep IPv6 addresses back for a second.
	err = devices.EnsureSysctls(ns, devices.Sysctl{Family: devices.IPv6, Device: devices.DefaultDevices, Name: "accept_dad", Value: 0})
	return space{ns}, err
}

func (s space) withNetlink(fn func(*netlink.Handle) error) error {
	return s.Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer nl.Close()
		return fn(nl)
	})
}

// withLink runs fn with a device.
func (s space) withLink(name string, fn func(*netlink.Handle, netlink.Link) error) error {
	return s.withNetlink(func(nl *netlink.Handle) error {
		dev, err := nl.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		return fn(nl, dev)
	})
}

// join makes a veth with the other end in another namespace, and both ends up.
func (s space) join(name string, other space, otherName string, mtu int) error {
	var file *os.File
	err := other.Do(func() (err error) {
		file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return fmt.Errorf("open the namespace: %w", err)
	}
	defer file.Close()
	err = s.withNetlink(func(nl *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, mtu
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerMTU, veth.PeerNamespace = otherName, uint32(mtu), netlink.NsFd(file.Fd())
		if err := nl.LinkAdd(veth); err != nil {
			return fmt.Errorf("make veth %s: %w", name, err)
		}
		return nl.LinkSetUp(veth)
	})
	if err != nil {
		return err
	}
	return other.withLink(otherName, func(nl *netlink.Handle, dev netlink.Link) error { return nl.LinkSetUp(dev) })
}

// setUp gives a device its address and brings it up.
func (s space) setUp(name string, addr netip.Prefix) error {
	return s.withLink(name, func(nl *netlink.Handle, dev netlink.Link) error {
		a := &netlink.Addr{IPNet: ipNet(addr)}
		if addr.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := nl.AddrAdd(dev, a); err != nil {
			return fmt.Errorf("set address %s: %w", addr, err)
		}
		if err := nl.LinkSetUp(dev); err != nil {
			return fmt.Errorf("bring %s up: %w", name, err)
		}
		return nil
	})
}

// route adds a route by way of a device.
func (s space) route(to netip.Prefix, via netip.Addr, name string) error {
	return s.withLink(name, func(nl *netlink.Handle, dev netlink.Link) error {
		err := nl.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: ipNet(to), Gw: via.AsSlice()})
		if err != nil {
			return fmt.Errorf("route %s via %s: %w", to, via, err)
		}
		return nil
	})
}

func (s space) addBridge(name string) error {
	return s.withNetlink(func(nl *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, devices.DefaultMTU
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := nl.LinkAdd(bridge); err != nil {
			return fmt.Errorf("make bridge %s: %w", name, err)
		}
		return nl.LinkSetUp(bridge)
	})
}

func (s space) enslave(port, bridge string) error {
	return s.withLink(bridge, func(nl *netlink.Handle, master netlink.Link) error {
		dev, err := nl.LinkByName(port)
		if err != nil {
			return fmt.Errorf("find %s: %w", port, err)
		}
		if err := nl.LinkSetMaster(dev, master); err != nil {
			return fmt.Errorf("put %s into %s: %w", port, bridge, err)
		}
		return nil
	})
}

func (s space) forward() error {
	return devices.EnsureSysctls(s.Namespace,
		devices.Sysctl{Family: devices.IPv4, Name: "ip_forward", Value: 1},
		devices.Sysctl{Family: devices.IPv6, Device: devices.AllDevices, Name: "forwarding", Value: 1})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
