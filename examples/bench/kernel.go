// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
)

// addVeth joins two namespaces directly: nothing that has a veth in it can be
// faster.
func (a *arena) addVeth(context.Context) error {
	client, err := a.namespace()
	if err != nil {
		return err
	}
	server, err := a.namespace()
	if err != nil {
		return err
	}
	clientAddr, serverAddr := a.addr("10.99.0.1/24", "fd00:99::1/64"), a.addr("10.99.0.2/24", "fd00:99::2/64")
	if err := client.join("eth0", server, "eth0", devices.DefaultMTU); err != nil {
		return err
	}
	if err := client.setUp("eth0", clientAddr); err != nil {
		return err
	}
	if err := server.setUp("eth0", serverAddr); err != nil {
		return err
	}
	a.add(contestant{
		name: nameVeth, title: "veth (the limit)",
		client: client.Namespace, server: server.Namespace, addr: serverAddr.Addr(),
	})
	return nil
}

// addForwarding puts a router between the two.
func (a *arena) addForwarding(context.Context) error {
	_, c, err := a.routed()
	if err != nil {
		return err
	}
	c.name, c.title = nameForwarding, "kernel forwarding"
	a.add(c)
	return nil
}

// routed is a contestant with a router between its ends.
func (a *arena) routed() (router space, c contestant, err error) {
	if router, err = a.namespace(); err != nil {
		return router, c, err
	}
	if err := router.forward(); err != nil {
		return router, c, err
	}
	client, _, err := a.host(router, 1, devices.DefaultMTU)
	if err != nil {
		return router, c, err
	}
	server, addr, err := a.host(router, 2, devices.DefaultMTU)
	return router, contestant{client: client.Namespace, server: server.Namespace, addr: addr}, err
}

// addKernelVXLAN is the overlay as the kernel has it, at its fastest: nothing
// is learned, the other node's prefix is one route, its device one neighbour
// and one forwarding entry.
func (a *arena) addKernelVXLAN(context.Context) error {
	mtu, err := devices.OverlayMTU(devices.DefaultMTU, false)
	if err != nil {
		return err
	}
	var nodes, ends [2]space
	var addrs [2]netip.Addr
	for i := range nodes {
		if nodes[i], err = a.namespace(); err != nil {
			return err
		}
	}
	if err := a.joinNodes(nodes); err != nil {
		return err
	}
	for i, node := range nodes {
		n := vtep(i + 1)
		if err := node.setUp("eth0", netip.PrefixFrom(n.underlay(), 24)); err != nil {
			return err
		}
		if err := node.forward(); err != nil {
			return err
		}
		if ends[i], addrs[i], err = a.host(node, int(n), mtu); err != nil {
			return err
		}
		if err := a.tunnel(node, n, vtep(2-i), mtu); err != nil {
			return err
		}
	}
	a.add(contestant{
		name: nameKernelVXLAN, title: "kernel vxlan",
		client: ends[0].Namespace, server: ends[1].Namespace, addr: addrs[1],
	})
	return nil
}

// joinNodes gives each of two nodes an uplink to the other.
func (a *arena) joinNodes(nodes [2]space) error {
	if !a.bridged {
		return nodes[0].join("eth0", nodes[1], "eth0", devices.DefaultMTU)
	}
	underlay, err := a.namespace()
	if err != nil {
		return err
	}
	if err := underlay.addBridge("segment"); err != nil {
		return err
	}
	for i, node := range nodes {
		port := fmt.Sprintf("node%d", i+1)
		if err := underlay.join(port, node, "eth0", devices.DefaultMTU); err != nil {
			return err
		}
		if err := underlay.enslave(port, "segment"); err != nil {
			return err
		}
	}
	return nil
}

// host makes an endpoint behind a router: with prefix n, of which the router
// has the first address and the endpoint the tenth.
func (a *arena) host(router space, n, mtu int) (host space, addr netip.Addr, err error) {
	if host, err = a.namespace(); err != nil {
		return host, addr, err
	}
	gateway := a.gateway(n)
	own := a.addr(fmt.Sprintf("10.99.%d.10/24", n), fmt.Sprintf("fd00:99:%d::10/64", n))
	port := fmt.Sprintf("port%d", n)
	if err := router.join(port, host, "eth0", mtu); err != nil {
		return host, addr, err
	}
	if err := router.setUp(port, gateway); err != nil {
		return host, addr, err
	}
	if err := host.setUp("eth0", own); err != nil {
		return host, addr, err
	}
	everywhere := a.addr("0.0.0.0/0", "::/0")
	return host, own.Addr(), host.route(everywhere, gateway.Addr(), "eth0")
}

func (a *arena) gateway(n int) netip.Prefix {
	return a.addr(fmt.Sprintf("10.99.%d.1/24", n), fmt.Sprintf("fd00:99:%d::1/64", n))
}

// routerAddr is the address that a router has for its n-th host.
func (a *arena) routerAddr(n int) netip.Addr { return a.gateway(n).Addr() }

// vtep is the number of a node with a vxlan device.
type vtep int

func (v vtep) underlay() netip.Addr {
	return netip.AddrFrom4([4]byte{172, 16, 99, byte(v)})
}

func (v vtep) mac() []byte { return []byte{0x02, 0, 0, 0, 9, byte(v)} }

func (v vtep) inner(a *arena) netip.Prefix {
	return a.addr(fmt.Sprintf("10.99.100.%d/24", v), fmt.Sprintf("fd00:99:100::%d/64", v))
}

func (v vtep) pods(a *arena) netip.Prefix {
	return a.addr(fmt.Sprintf("10.99.%d.0/24", v), fmt.Sprintf("fd00:99:%d::/64", v))
}

// tunnel gives a node its vxlan device and what it must know of the other one.
func (a *arena) tunnel(node space, own, other vtep, mtu int) error {
	const name = "vxlan0"
	err := node.withNetlink(func(nl *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = name, mtu, own.mac()
		err := nl.LinkAdd(&netlink.Vxlan{
			LinkAttrs: attrs, VxlanId: 99, Port: devices.DefaultVXLANPort,
			SrcAddr: own.underlay().AsSlice(), Learning: false,
		})
		if err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := node.setUp(name, own.inner(a)); err != nil {
		return err
	}
	err = node.withNetlink(func(nl *netlink.Handle) error {
		dev, err := nl.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		err = nl.NeighSet(&netlink.Neigh{
			LinkIndex: dev.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: other.inner(a).Addr().AsSlice(), HardwareAddr: other.mac(),
		})
		if err != nil {
			return fmt.Errorf("set the neighbour: %w", err)
		}
		err = nl.NeighSet(&netlink.Neigh{
			LinkIndex: dev.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
			IP: other.underlay().AsSlice(), HardwareAddr: other.mac(),
		})
		if err != nil {
			return fmt.Errorf("set the forwarding entry: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return node.route(other.pods(a), other.inner(a).Addr(), name)
}
