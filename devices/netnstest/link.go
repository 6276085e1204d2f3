// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddAddr puts addresses with their prefix lengths ("192.0.2.1/24") onto a
// device of the host; "" is [Host.Device], "lo" is fine.
func (h *Host) AddAddr(device string, cidrs ...string) {
	h.lab.t.Helper()
	var prefixes []netip.Prefix
	for _, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			h.lab.t.Fatalf("netnstest: add address %q to %s: %v", c, h.name, err)
		}
		prefixes = append(prefixes, p)
	}
	if device == "" {
		device = h.Device()
	}
	err := h.addAddrs(device, prefixes)
	if err == nil {
		err = settleHosts(h)
	}
	if err != nil {
		h.lab.t.Fatalf("netnstest: %v", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addrs = append(h.addrs, addrsOf(prefixes)...)
}

// Route sends traffic for a prefix ("198.51.100.0/24") to another host, which
// must have an address in a subnet that h is in. Adding a route again replaces
// it.
func (h *Host) Route(prefix string, via *Host) {
	h.lab.t.Helper()
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		h.lab.t.Fatalf("netnstest: route of %s: %v", h.name, err)
	}
	gateway := h.neighbor(via, p.Addr().Is4())
	if !gateway.IsValid() {
		h.lab.t.Fatalf("netnstest: route %v of %s: %s has no address of that family in a subnet of %s", p, h.name, via.name, h.name)
	}
	if err := h.addRoute(p, gateway, ""); err != nil {
		h.lab.t.Fatalf("netnstest: %v", err)
	}
}

// RouteVia sends traffic for a prefix to a gateway address.
func (h *Host) RouteVia(prefix string, gateway netip.Addr) {
	h.lab.t.Helper()
	p, err := netip.ParsePrefix(prefix)
	if err == nil {
		err = h.addRoute(p, gateway, "")
	}
	if err != nil {
		h.lab.t.Fatalf("netnstest: route %s of %s: %v", prefix, h.name, err)
	}
}

// RouteDevice sends traffic for a prefix out of a device, to neighbours.
func (h *Host) RouteDevice(prefix, device string) {
	h.lab.t.Helper()
	p, err := netip.ParsePrefix(prefix)
	if err == nil {
		err = h.addRoute(p, netip.Addr{}, device)
	}
	if err != nil {
		h.lab.t.Fatalf("netnstest: route %s of %s: %v", prefix, h.name, err)
	}
}

// SetLink sets a device up or down, and returns when it and its peer carry
// traffic, or do not. IPv4 routes through a gateway on it do not come back by
// themselves (the kernel drops them), addresses do.
func (h *Host) SetLink(device string, up bool) error {
	if err := h.setLink(device, up); err != nil || !up {
		return err
	}
	h.lab.mu.Lock()
	hosts := append([]*Host(nil), h.lab.hosts...) // the peer is in one of them
	h.lab.mu.Unlock()
	return settleHosts(hosts...)
}

// SetMTU sets the MTU of a device, in bytes.
func (h *Host) SetMTU(device string, mtu int) error {
	return h.withLink(device, func(nl *netlink.Handle, link netlink.Link) error {
		if err := nl.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("set the MTU of %s of %s to %d: %w", device, h.name, mtu, err)
		}
		return nil
	})
}

// MAC returns the Ethernet address of a device.
func (h *Host) MAC(device string) (net.HardwareAddr, error) {
	var mac net.HardwareAddr
	err := h.withLink(device, func(_ *netlink.Handle, link netlink.Link) error {
		mac = link.Attrs().HardwareAddr
		return nil
	})
	return mac, err
}

// Index returns the ifindex of a device in the namespace of the host.
func (h *Host) Index(device string) (int, error) {
	var index int
	err := h.withLink(device, func(_ *netlink.Handle, link netlink.Link) error {
		index = link.Attrs().Index
		return nil
	})
	return index, err
}

// neighbor returns an address of via that is in a subnet of h.
func (h *Host) neighbor(via *Host, is4 bool) netip.Addr {
	h.mu.Lock()
	prefixes := append([]netip.Prefix(nil), h.prefixes...)
	h.mu.Unlock()
	via.mu.Lock()
	defer via.mu.Unlock()
	for _, theirs := range via.prefixes {
		for _, ours := range prefixes {
			if theirs.Addr().Is4() == is4 && ours.Contains(theirs.Addr()) && ours.Addr() != theirs.Addr() {
				return theirs.Addr()
			}
		}
	}
	return netip.Addr{}
}

// netlink runs fn with a handle of the namespace.
func (h *Host) netlink(fn func(nl *netlink.Handle) error) error {
	return h.ns.Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer nl.Close()
		return fn(nl)
	})
}

func (h *Host) withLink(device string, fn func(nl *netlink.Handle, link netlink.Link) error) error {
	if device == "" {
		device = h.Device()
	}
	return h.netlink(func(nl *netlink.Handle) error {
		link, err := nl.LinkByName(device)
		if err != nil {
			return fmt.Errorf("find device %q of %s: %w", device, h.name, err)
		}
		return fn(nl, link)
	})
}

func (h *Host) setLink(device string, up bool) error {
	return h.withLink(device, func(nl *netlink.Handle, link netlink.Link) error {
		set, word := nl.LinkSetDown, "down"
		if up {
			set, word = nl.LinkSetUp, "up"
		}
		if err := set(link); err != nil {
			return fmt.Errorf("set %s of %s %s: %w", device, h.name, word, err)
		}
		return nil
	})
}

func (h *Host) addAddrs(device string, prefixes []netip.Prefix) error {
	err := h.withLink(device, func(nl *netlink.Handle, link netlink.Link) error {
		for _, p := range prefixes {
			addr := &netlink.Addr{IPNet: ipNet(p)}
			if p.Addr().Is6() {
				// Detection would keep the address unusable for a second.
				addr.Flags = unix.IFA_F_NODAD
			}
			if err := nl.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("add address %v to %s of %s: %w", p, device, h.name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.prefixes = append(h.prefixes, prefixes...)
	return nil
}

func (h *Host) addRoute(p netip.Prefix, gateway netip.Addr, device string) error {
	return h.netlink(func(nl *netlink.Handle) error {
		route := &netlink.Route{Dst: ipNet(p.Masked()), Family: family(p.Addr())}
		if gateway.IsValid() {
			route.Gw = gateway.AsSlice()
		}
		if device != "" {
			link, err := nl.LinkByName(device)
			if err != nil {
				return fmt.Errorf("find device %q of %s: %w", device, h.name, err)
			}
			route.LinkIndex = link.Attrs().Index
			if !gateway.IsValid() {
				route.Scope = netlink.SCOPE_LINK
			} else {
				route.Flags = int(netlink.FLAG_ONLINK)
			}
		}
		if err := nl.RouteReplace(route); err != nil {
			return fmt.Errorf("route %v via %v %s of %s: %w", p, gateway, device, h.name, err)
		}
		return nil
	})
}

// takeDeviceName returns the name of the next device of the host.
func (h *Host) takeDeviceName() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.devices++
	return fmt.Sprintf("eth%d", h.devices-1)
}

// adopt makes a device the one of the host if it is the first, and puts the
// addresses onto it that waited for one.
func (h *Host) adopt(device string) error {
	h.mu.Lock()
	prefixes := h.pending
	h.pending = nil
	if h.device == "" {
		h.device = device
	}
	h.mu.Unlock()
	return h.addAddrs(device, prefixes)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
