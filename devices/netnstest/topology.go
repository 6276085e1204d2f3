// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	bridgeNodes   = "nodes"
	bridgeOutside = "outside"
)

// Node makes a host on the underlay, which all nodes share: one Ethernet
// segment with the addresses of [Config].Underlay4 and Underlay6. Its device
// is eth0 and its default routes lead to [Lab.Router].
func (l *Lab) Node(name string) *Host {
	l.t.Helper()
	l.nodes++
	return l.attach(name, bridgeNodes, l.cfg.Underlay4, l.cfg.Underlay6, l.nodes)
}

// Outside makes a host that is not on the underlay: a client of the world, in
// a subnet of its own behind [Lab.Router]. Nodes and outside hosts reach one
// another; what else the router should know, such as the way to the endpoints
// of a node, is told to it by l.Router().Route.
func (l *Lab) Outside(name string) *Host {
	l.t.Helper()
	l.outsides++
	return l.attach(name, bridgeOutside, l.cfg.Outside4, l.cfg.Outside6, l.outsides)
}

// Router returns the host that joins the underlay ("nodes") and the outside
// ("outside"). Those are bridges, which also carry the frames between nodes, so
// a capture of "nodes" sees what the router itself is sent and what is flooded.
func (l *Lab) Router() *Host {
	l.t.Helper()
	if l.router != nil {
		return l.router
	}
	r, err := l.newHost("router")
	if err == nil {
		err = r.becomeRouter()
	}
	if err != nil {
		l.t.Fatalf("netnstest: make the router: %v", err)
	}
	l.router = r
	return r
}

func (h *Host) becomeRouter() error {
	if err := h.Sysctl(map[string]string{
		"net/ipv4/ip_forward":                  "1",
		"net/ipv6/conf/all/forwarding":         "1",
		"net/ipv4/conf/all/send_redirects":     "0",
		"net/ipv4/conf/default/send_redirects": "0",
	}); err != nil {
		return err
	}
	cfg := h.lab.cfg
	for _, b := range []struct {
		name   string
		v4, v6 netip.Prefix
	}{{bridgeNodes, cfg.Underlay4, cfg.Underlay6}, {bridgeOutside, cfg.Outside4, cfg.Outside6}} {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = b.name, cfg.MTU
		// A bridge without an address of its own takes that of a port, and
		// changes it under the feet of its neighbours when ports come.
		attrs.HardwareAddr = randomMAC()
		snooping := false
		err := h.netlink(func(nl *netlink.Handle) error {
			bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
			if err := nl.LinkAdd(bridge); err != nil {
				return fmt.Errorf("add bridge %s: %w", b.name, err)
			}
			if err := nl.LinkSetUp(bridge); err != nil {
				return fmt.Errorf("set bridge %s up: %w", b.name, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
		prefixes := []netip.Prefix{nth(b.v4, 1), nth(b.v6, 1)}
		if b.name == bridgeNodes {
			h.device, h.addrs = b.name, addrsOf(prefixes)
		}
		if err := h.addAddrs(b.name, prefixes); err != nil {
			return err
		}
	}
	return nil
}

// attach makes the n-th host of a bridge.
func (l *Lab) attach(name, bridge string, v4, v6 netip.Prefix, n int) *Host {
	l.t.Helper()
	r := l.Router()
	h, err := l.newHost(name)
	if err != nil {
		l.t.Fatalf("netnstest: make host %s: %v", name, err)
	}
	h.pending = []netip.Prefix{nth(v4, 10+n), nth(v6, 10+n)}
	if !v4.Contains(h.pending[0].Addr()) {
		l.t.Fatalf("netnstest: make host %s: %v has no address for it", name, v4)
	}
	h.addrs = addrsOf(h.pending)
	port := fmt.Sprintf("%s%d", bridge, n)
	device := h.takeDeviceName()
	err = l.wire(h, device, r, port)
	if err == nil {
		err = r.enslave(port, bridge)
	}
	if err == nil {
		err = h.adopt(device)
	}
	for _, p := range []netip.Prefix{v4, v6} {
		if err == nil {
			everything := netip.PrefixFrom(unspecified(p.Addr()), 0)
			err = h.addRoute(everything, nth(p, 1).Addr(), "")
		}
	}
	if err == nil {
		err = settleHosts(h, r)
	}
	if err != nil {
		l.t.Fatalf("netnstest: make host %s: %v", name, err)
	}
	return h
}

// wire makes a veth with its ends at once where they belong, so that no end
// ever shows in the namespace of the test process.
func (l *Lab) wire(a *Host, nameA string, b *Host, nameB string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = nameA, l.cfg.MTU
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU = nameB, uint32(l.cfg.MTU)
	veth.PeerNamespace = netlink.NsFd(b.fd)
	err := a.netlink(func(nl *netlink.Handle) error {
		if err := nl.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth %s: %w", nameA, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := a.setLink(nameA, true); err != nil {
		return err
	}
	return b.setLink(nameB, true)
}

func (h *Host) enslave(port, bridge string) error {
	return h.netlink(func(nl *netlink.Handle) error {
		p, err := nl.LinkByName(port)
		if err != nil {
			return fmt.Errorf("find %s: %w", port, err)
		}
		b, err := nl.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("find %s: %w", bridge, err)
		}
		if err := nl.LinkSetMaster(p, b); err != nil {
			return fmt.Errorf("put %s onto %s: %w", port, bridge, err)
		}
		return nil
	})
}

// nth returns address n of a subnet, with the length of the subnet.
func nth(p netip.Prefix, n int) netip.Prefix {
	b := p.Addr().AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += int(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, p.Bits())
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

func addrsOf(prefixes []netip.Prefix) []netip.Addr {
	var addrs []netip.Addr
	for _, p := range prefixes {
		addrs = append(addrs, p.Addr())
	}
	return addrs
}

// randomMAC returns a locally administered unicast address.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails (crypto/rand)
	mac[0] = mac[0]&^1 | 2
	return mac
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
