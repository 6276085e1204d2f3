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

// The world outside: the underlay's segment has a router, and behind that is a
// host with two addresses in each family. Hosts of the second prefixes see the
// endpoints' own addresses, all others that of a node.
var (
	routerAddrs  = []netip.Prefix{prefix("172.16.16.1/24"), prefix("fd00:16::1/64")}
	outsideSeen  = []netip.Prefix{prefix("198.51.100.0/24"), prefix("fd00:98::/64")}
	outsideTrust = []netip.Prefix{prefix("203.0.113.0/24"), prefix("fd00:99::/64")}
)

// OutsideMTU is the longest packet that the router sends to the outside.
const OutsideMTU = 1400

// Router returns the address of a family, 4 or 6, of the router before the
// outside.
func Router(family int) netip.Addr { return routerAddrs[family/6].Addr() }

// OutsideRouter is the router's address of a family on the side of the outside.
func OutsideRouter(family int) netip.Addr { return host(outsideSeen[family/6], 1) }

// Outside is a host that is on no node.
type Outside struct {
	Name      string
	Netns     string // name under /run/netns
	Namespace devices.Namespace
	Addrs     []netip.Addr // where it sees a node, IPv4 and IPv6
	Trusted   []netip.Addr // where it sees the endpoints' own addresses
}

// Addr returns an address of a family, 4 or 6, at which a node is seen.
func (o *Outside) Addr(family int) netip.Addr { return ofFamily(o.Addrs, family) }

// TrustedAddr returns one at which endpoints are seen as they are.
func (o *Outside) TrustedAddr(family int) netip.Addr { return ofFamily(o.Trusted, family) }

// host is the n-th address of a prefix.
func host(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// makeOutside makes the router, which is the underlay's namespace, and the host.
func (c *Cluster) makeOutside() error {
	o := &Outside{Name: "outside", Netns: c.Name + "-outside"}
	var err error
	if o.Namespace, err = c.namespace(o.Name); err != nil {
		return err
	}
	end, err := os.Open(o.Namespace.Path())
	if err != nil {
		return err
	}
	defer end.Close()
	if err := devices.EnsureForwarding(c.underlay, devices.Forwarding{}); err != nil {
		return err
	}
	// The router answers each traceroute, however many of them there are.
	if err := devices.EnsureSysctls(c.underlay, devices.Sysctl{Family: devices.IPv4, Name: "icmp_ratelimit"}, devices.Sysctl{Family: devices.IPv6, Name: "icmp/ratelimit"}); err != nil {
		return err
	}
	nets := append(append([]netip.Prefix{}, outsideSeen...), outsideTrust...)
	err = withNetlink(c.underlay, func(nl *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "outside", c.cfg.UnderlayMTU
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerMTU, veth.PeerNamespace = uplink, uint32(c.cfg.UnderlayMTU), netlink.NsFd(end.Fd())
		if err := nl.LinkAdd(veth); err != nil {
			return err
		}
		dev, err := nl.LinkByName("outside")
		if err != nil {
			return err
		}
		index := dev.Attrs().Index
		for _, p := range nets {
			if err := setAddr(nl, "outside", netip.PrefixFrom(host(p, 1), p.Bits())); err != nil {
				return err
			}
		}
		if err := nl.LinkSetUp(veth); err != nil {
			return err
		}
		// A path that is narrower than the devices on it.
		for _, p := range nets {
			to := host(p, 10)
			route := &netlink.Route{Dst: ipNet(netip.PrefixFrom(to, to.BitLen())), LinkIndex: index, MTU: OutsideMTU, MTULock: true}
			if err := nl.RouteAdd(route); err != nil {
				return fmt.Errorf("route to %s: %w", to, err)
			}
		}
		for _, p := range routerAddrs {
			if err := setAddr(nl, "segment", p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make the outside: %w", err)
	}
	err = withNetlink(o.Namespace, func(nl *netlink.Handle) error {
		for _, p := range nets {
			if err := setAddr(nl, uplink, netip.PrefixFrom(host(p, 10), p.Bits())); err != nil {
				return err
			}
		}
		dev, err := nl.LinkByName(uplink)
		if err != nil {
			return err
		}
		if err := nl.LinkSetUp(dev); err != nil {
			return err
		}
		// With a source, so that it is clear as whom it asks.
		return setDefault(nl, outsideSeen, host(outsideSeen[0], 10), host(outsideSeen[1], 10))
	})
	if err != nil {
		return fmt.Errorf("make the outside: %w", err)
	}
	for i := range outsideSeen {
		o.Addrs = append(o.Addrs, host(outsideSeen[i], 10))
		o.Trusted = append(o.Trusted, host(outsideTrust[i], 10))
	}
	c.Outside = o
	return nil
}

// leadOut gives a node its default routes, and the router the way to its
// endpoints, which it takes where it is told to, as for the trusted prefixes.
func (c *Cluster) leadOut(n *Node) error {
	if c.Outside == nil {
		return nil
	}
	if err := withNetlink(n.Namespace, func(nl *netlink.Handle) error { return setDefault(nl, routerAddrs) }); err != nil {
		return fmt.Errorf("set the default routes: %w", err)
	}
	return withNetlink(c.underlay, func(nl *netlink.Handle) error {
		for i, p := range n.PodCIDRs {
			if err := nl.RouteAdd(&netlink.Route{Dst: ipNet(p), Gw: n.Addrs[i].Addr().AsSlice()}); err != nil {
				return fmt.Errorf("route %s to %s: %w", p, n.Name, err)
			}
		}
		return nil
	})
}

// setDefault sets the default routes of both families to the first host of each
// prefix.
func setDefault(nl *netlink.Handle, nets []netip.Prefix, as ...netip.Addr) error {
	for i, p := range nets {
		to := prefix("0.0.0.0/0")
		if p.Addr().Is6() {
			to = prefix("::/0")
		}
		route := &netlink.Route{Dst: ipNet(to), Gw: host(p.Masked(), 1).AsSlice()}
		if len(as) > 0 {
			route.Src = as[i].AsSlice()
		}
		if err := nl.RouteAdd(route); err != nil {
			return fmt.Errorf("set the default route: %w", err)
		}
	}
	return nil
}

func setAddr(nl *netlink.Handle, name string, p netip.Prefix) error {
	dev, err := nl.LinkByName(name)
	if err != nil {
		return err
	}
	// Duplicate detection would keep the address back for a second.
	if err := nl.AddrAdd(dev, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}); err != nil {
		return fmt.Errorf("set address %s: %w", p, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
