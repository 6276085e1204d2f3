// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"fmt"
	"net/netip"

	"github.com/godatapath/datapath/devices"
	"github.com/vishvananda/netlink"
)

// EndpointNamespace makes the bare namespace of an endpoint: a host with
// nothing but a loopback device. The test joins it to the node itself, with
// [devices.EnsureEndpoint] and the addresses given here. Device returns eth0,
// which is what that function makes by default.
func (h *Host) EndpointNamespace(name string, addrs ...netip.Addr) *Host {
	h.lab.t.Helper()
	e, err := h.lab.newHost(name)
	if err != nil {
		h.lab.t.Fatalf("netnstest: make endpoint %s of %s: %v", name, h.name, err)
	}
	e.device = devices.DefaultPeerName
	e.addrs = addrs
	return e
}

// Endpoint makes a namespace and joins it to the node by
// [devices.EnsureEndpoint]: a veth, the addresses, and a default route for each
// family to the first address of the /24 or /64 around its address
// (10.244.1.10 has 10.244.1.1). Its Link is for whoever attaches a program;
// until then, or until [Host.ForwardByKernel], nobody answers for the gateway
// and nothing passes.
func (h *Host) Endpoint(name string, addrs ...netip.Addr) *Host {
	h.lab.t.Helper()
	want := devices.Endpoint{Name: name, Addrs: addrs, MTU: h.lab.cfg.MTU}
	for _, a := range addrs {
		if a = a.Unmap(); a.IsValid() {
			want.Gateways = append(want.Gateways, gatewayOf(a))
		}
	}
	return h.EndpointWith(want)
}

// EndpointWith is [Host.Endpoint] with everything but the namespace as the
// caller wants it.
func (h *Host) EndpointWith(want devices.Endpoint) *Host {
	h.lab.t.Helper()
	e := h.EndpointNamespace(want.Name, want.Addrs...)
	want.Namespace = e.ns
	link, err := devices.EnsureEndpoint(h.ns, want)
	if err == nil && !want.Hold {
		err = settleHosts(e, h)
	}
	if err != nil {
		h.lab.t.Fatalf("netnstest: join endpoint %s to %s: %v", want.Name, h.name, err)
	}
	e.device, e.link = link.PeerName, link
	return e
}

// Link returns the veth of an endpoint that [Host.Endpoint] or
// [Host.EndpointWith] joined, else the zero EndpointLink.
func (h *Host) Link() devices.EndpointLink { return h.link }

// ForwardByKernel makes the node carry the traffic of endpoints that
// [Host.Endpoint] made, without any program: their gateway addresses and routes
// are put on its devices and forwarding is on. It is what a datapath is
// compared with. [Host.Route] of other nodes brings traffic here.
func (h *Host) ForwardByKernel(endpoints ...*Host) {
	h.lab.t.Helper()
	for _, e := range endpoints {
		if err := h.forward(e); err != nil {
			h.lab.t.Fatalf("netnstest: forward for endpoint %s on %s: %v", e.name, h.name, err)
		}
	}
}

func (h *Host) forward(e *Host) error {
	device := e.link.Name
	if device == "" {
		return fmt.Errorf("%s is not joined to a node by the lab", e.name)
	}
	if err := h.Sysctl(map[string]string{
		"net/ipv4/ip_forward":                       "1",
		"net/ipv6/conf/all/forwarding":              "1",
		"net/ipv6/conf/" + device + "/disable_ipv6": "0",
	}); err != nil {
		return err
	}
	// The node answers NDP only for what is on the device that was asked.
	var gateways []netip.Prefix
	for _, a := range e.addrs {
		g := gatewayOf(a.Unmap())
		gateways = append(gateways, netip.PrefixFrom(g, g.BitLen()))
	}
	if err := h.addAddrs(device, gateways); err != nil {
		return err
	}
	err := h.withLink(device, func(nl *netlink.Handle, link netlink.Link) error {
		for _, a := range e.addrs {
			a = a.Unmap()
			route := &netlink.Route{
				LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Family: family(a),
				Dst: ipNet(netip.PrefixFrom(a, a.BitLen())),
			}
			if err := nl.RouteReplace(route); err != nil {
				return fmt.Errorf("route %v dev %s: %w", a, device, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return settleHosts(h)
}

// gatewayOf returns the first address of the /24 or /64 around a.
func gatewayOf(a netip.Addr) netip.Addr {
	bits := 24
	if a.Is6() {
		bits = 64
	}
	return nth(netip.PrefixFrom(a, bits).Masked(), 1).Addr()
}
