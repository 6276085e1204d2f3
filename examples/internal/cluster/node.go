// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
	"github.com/godatapath/datapath/tunnel"
)

// Node is a namespace that plays a host, with its datapath.
type Node struct {
	Name      string
	Netns     string // name under /run/netns
	Namespace devices.Namespace
	Addrs     []netip.Prefix // in the underlay
	Gateways  []netip.Addr   // in the overlay
	PodCIDRs  []netip.Prefix
	Pins      string
	Cgroup    string // its sockets reach the services; "" if there is none
	Endpoints []*Endpoint

	Table    *maps.Endpoints
	Metrics  *maps.Metrics
	Flows    *conntrack.Table
	Peers    *tunnel.Peers // nil without an overlay
	Services *lb.Balancer  // nil without services
	Sockets  *lb.Sockets   // nil without a cgroup
	Datapath *programs.Datapath
	Host     devices.HostLinks
	VXLAN    devices.VXLANLink // zero without an overlay
	MTU      int               // longest packet that an endpoint can send to another node

	cfg     Config
	index   int
	expired func() error // waits for the end of the expiry
}

// Endpoint is a workload's namespace.
type Endpoint struct {
	Name      string
	Netns     string // name under /run/netns
	Namespace devices.Namespace
	Node      *Node
	Addrs     []netip.Addr
	Link      devices.EndpointLink
	ID        uint32
	Identity  maps.Identity
}

// Addr returns the endpoint's address of a family, 4 or 6.
func (e *Endpoint) Addr(family int) netip.Addr { return ofFamily(e.Addrs, family) }

// Gateway returns the node's overlay address of a family, 4 or 6.
func (n *Node) Gateway(family int) netip.Addr { return ofFamily(n.Gateways, family) }

func ofFamily(all []netip.Addr, family int) netip.Addr {
	for _, a := range all {
		if a.Is4() == (family == 4) {
			return a
		}
	}
	return netip.Addr{}
}

func (c *Cluster) addNode(ctx context.Context, index int) error {
	n := &Node{
		Name:     fmt.Sprintf("node%d", index),
		Netns:    fmt.Sprintf("%s-node%d", c.Name, index),
		Addrs:    []netip.Prefix{prefix("172.16.16.%d/24", 10+index), prefix("fd00:16::%x/64", 16+index)},
		Gateways: []netip.Addr{addr("10.244.%d.1", index), addr("fd00:244:%x::1", index)},
		PodCIDRs: []netip.Prefix{prefix("10.244.%d.0/24", index), prefix("fd00:244:%x::/64", index)},
		Pins:     filepath.Join(c.dir, "bpf", fmt.Sprintf("node%d", index)),
		cfg:      c.cfg,
		index:    index,
	}
	var err error
	if n.Namespace, err = c.namespace(n.Name); err != nil {
		return err
	}
	if err := c.joinUnderlay(n.Namespace, index, n.Addrs); err != nil {
		return err
	}
	if err := c.leadOut(n); err != nil {
		return err
	}
	c.push(n.close)
	if err := n.start(); err != nil {
		return err
	}
	if n.Services != nil {
		if err := n.translateSockets(c); err != nil {
			return err
		}
	}
	for i := 1; i <= c.cfg.Endpoints; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		e := &Endpoint{
			Name:     fmt.Sprintf("%s-ep%d", n.Name, i),
			Netns:    fmt.Sprintf("%s-%s-ep%d", c.Name, n.Name, i),
			Node:     n,
			Addrs:    []netip.Addr{addr("10.244.%d.%d", index, 9+i), addr("fd00:244:%x::%x", index, 0x0f+i)},
			ID:       uint32(i),
			Identity: maps.Identity(FirstIdentity + (index-1)*MaxEndpoints + i - 1),
		}
		if e.Namespace, err = c.namespace(e.Name); err != nil {
			return err
		}
		if err := n.addEndpoint(e); err != nil {
			return fmt.Errorf("endpoint %s: %w", e.Name, err)
		}
	}
	c.Nodes = append(c.Nodes, n)
	return nil
}

// start composes the node's datapath from the blocks: devices, tables,
// programs, attachments.
func (n *Node) start() (err error) {
	pinned := maps.Config{Pins: n.Pins}

	// What the kernel needs around the programs.
	if err := devices.EnsureForwarding(n.Namespace, devices.Forwarding{Devices: []string{uplink}}); err != nil {
		return err
	}
	if n.Host, err = devices.EnsureHostPair(n.Namespace, devices.HostPair{Addrs: n.Gateways, MTU: n.cfg.UnderlayMTU}); err != nil {
		return err
	}
	n.MTU = n.cfg.UnderlayMTU
	if !n.cfg.Native {
		if n.MTU, err = devices.OverlayMTU(n.cfg.UnderlayMTU, n.cfg.IPv6Underlay); err != nil {
			return err
		}
		if n.VXLAN, err = devices.EnsureVXLAN(n.Namespace, devices.VXLAN{Port: n.cfg.Port, MTU: n.MTU, IPv6: n.cfg.IPv6Underlay}); err != nil {
			return err
		}
	}

	// The tables. What is passed to Load is on.
	if n.Table, err = maps.NewEndpoints(maps.EndpointsConfig{Config: pinned}); err != nil {
		return err
	}
	if n.Metrics, err = maps.NewMetrics(pinned); err != nil {
		return err
	}
	flows := n.cfg.Flows
	flows.Config = pinned
	if !n.cfg.Wire {
		flows.NAT = &conntrack.NAT{Masquerade: !n.cfg.StackRouting}
	}
	if n.Flows, err = conntrack.New(flows); err != nil {
		return err
	}
	blocks := []programs.Block{n.Table, n.Metrics, n.Flows}
	if !n.cfg.Native {
		n.Peers, err = tunnel.New(tunnel.Config{Config: pinned, Port: n.cfg.Port, MTU: n.MTU, IPv6: n.cfg.IPv6Underlay, Node: n.Underlay()})
		if err != nil {
			return err
		}
		blocks = append(blocks, n.Peers)
	}
	if n.cfg.Services > 0 {
		if err := n.startServices(lb.Config{Config: pinned}); err != nil {
			return err
		}
		blocks = append(blocks, n.Services)
	}
	n.Datapath, err = programs.Load(programs.Config{
		Namespace: n.Namespace, Gateways: n.Gateways, Pins: n.Pins,
		StackRouting: n.cfg.StackRouting, EndpointRoutes: n.cfg.EndpointRoutes, RouteAge: n.cfg.RouteAge,
	}, blocks...)
	if err != nil {
		return err
	}
	if err := n.Datapath.AttachHost(n.Host); err != nil {
		return err
	}
	if !n.cfg.Native {
		if err := n.Datapath.AttachOverlay(n.VXLAN); err != nil {
			return err
		}
	}

	// The way out, and the addresses that packets leave it with.
	own := []netip.Addr{n.Addrs[0].Addr(), n.Addrs[1].Addr()}
	if err := n.Datapath.SetNodeAddrs(own...); err != nil {
		return err
	}
	uplink, err := devices.FindLink(n.Namespace, uplink)
	if err != nil {
		return err
	}
	if err := n.Datapath.AttachDevice(uplink, own...); err != nil {
		return err
	}

	return n.route(nil)
}

// route has the node's own packets go down the host pair: to its endpoints, and
// to those prefixes, and to no others.
func (n *Node) route(prefixes []netip.Prefix) error {
	var routes []devices.Route
	for _, p := range append(slices.Clone(n.PodCIDRs), prefixes...) {
		family := 6
		if p.Addr().Is4() {
			family = 4
		}
		routes = append(routes, devices.Route{Prefix: p, Via: n.Gateway(family), MTU: n.MTU})
	}
	return devices.SyncRoutes(n.Namespace, devices.DefaultHostName, routes)
}

// knowPeers tells the node where the prefixes of the others are.
func (n *Node) knowPeers(all []*Node) error {
	if n.cfg.Native {
		return n.knowRoutes(all)
	}
	return n.knowTunnels(all)
}

// knowRoutes: by the uplink, to the other node's address there. Whoever is in the
// cluster, or trusted, sees the endpoints' own addresses.
func (n *Node) knowRoutes(all []*Node) error {
	var routes []devices.Route
	seen := slices.Clone(outsideTrust)
	for _, other := range all {
		if other != n {
			for i, p := range other.PodCIDRs {
				routes = append(routes, devices.Route{Prefix: p, Via: other.Addrs[i].Addr()})
			}
		}
		seen = append(seen, other.PodCIDRs...)
		for _, a := range other.Addrs {
			seen = append(seen, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
		}
	}
	if err := n.Flows.SetUnmasqueraded(seen); err != nil {
		return err
	}
	return devices.SyncRoutes(n.Namespace, uplink, routes)
}

// knowTunnels: by the overlay. An endpoint reaches the other nodes themselves by
// it too, in the family of the underlay. This node itself reaches them without.
func (n *Node) knowTunnels(all []*Node) error {
	if !n.cfg.Wire {
		if err := n.Flows.SetUnmasqueraded(outsideTrust); err != nil {
			return err
		}
	}
	var peers []tunnel.Peer
	var prefixes []netip.Prefix
	for _, other := range all {
		if other == n {
			continue
		}
		for _, p := range other.PodCIDRs {
			peers = append(peers, tunnel.Peer{Prefix: p, Node: other.Underlay()})
			prefixes = append(prefixes, p)
		}
		own := other.Underlay()
		peers = append(peers, tunnel.Peer{Prefix: netip.PrefixFrom(own, own.BitLen()), Node: own})
	}
	if _, err := n.Peers.Sync(peers); err != nil {
		return err
	}
	return n.route(prefixes)
}

// Underlay is the node's address in the underlay, of the family that carries
// the overlay.
func (n *Node) Underlay() netip.Addr {
	if n.cfg.IPv6Underlay {
		return n.Addrs[1].Addr()
	}
	return n.Addrs[0].Addr()
}

// addEndpoint joins a namespace to the node.
func (n *Node) addEndpoint(e *Endpoint) (err error) {
	e.Link, err = devices.EnsureEndpoint(n.Namespace, devices.Endpoint{
		Name: e.Name, Namespace: e.Namespace, Addrs: e.Addrs, Gateways: n.Gateways,
		MTU: n.cfg.UnderlayMTU, RouteMTU: n.MTU,
		Hold: true, // nothing passes before the programs are there
	})
	if err != nil {
		return err
	}
	err = n.Table.Set(maps.Endpoint{
		ID: e.ID, Identity: e.Identity, Ifindex: e.Link.Index, Addrs: e.Addrs, MAC: e.Link.PeerMAC, NodeMAC: e.Link.MAC,
	})
	if err != nil {
		return err
	}
	if err := n.Datapath.AttachEndpoint(e.Link); err != nil {
		return err
	}
	if err := devices.SetLinkUp(n.Namespace, e.Link.Link); err != nil {
		return err
	}
	n.Endpoints = append(n.Endpoints, e)
	if n.cfg.EndpointRoutes {
		return n.routeTo(e)
	}
	return nil
}

// routeTo has the node's own packets, and what its stack forwards, go straight to
// the endpoint's device. Who is at the other end is known: the endpoint is not
// asked for it, and so IPv6, which must be on there, needs no address.
func (n *Node) routeTo(e *Endpoint) error {
	err := devices.EnsureSysctls(n.Namespace,
		devices.Sysctl{Family: devices.IPv6, Device: e.Link.Name, Name: "addr_gen_mode", Value: 1},
		devices.Sysctl{Family: devices.IPv6, Device: e.Link.Name, Name: "accept_ra", Value: 0},
		devices.Sysctl{Family: devices.IPv6, Device: e.Link.Name, Name: "disable_ipv6", Value: 0},
	)
	if err != nil {
		return err
	}
	for _, a := range e.Addrs {
		err := devices.EnsureRoute(n.Namespace, devices.Route{Prefix: netip.PrefixFrom(a, a.BitLen()), Dev: e.Link.Name})
		if err != nil {
			return err
		}
	}
	return withNetlink(n.Namespace, func(nl *netlink.Handle) error {
		for _, a := range e.Addrs {
			neigh := &netlink.Neigh{LinkIndex: e.Link.Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: e.Link.PeerMAC}
			if err := nl.NeighSet(neigh); err != nil {
				return fmt.Errorf("set neighbour %s: %w", a, err)
			}
		}
		return nil
	})
}

// expire lets idle flows go, and backends that have drained, until ctx ends. If
// that fails it calls broken, and close tells why.
func (n *Node) expire(ctx context.Context, broken func()) {
	flows, done := n.Flows, make(chan error, 2)
	var running sync.WaitGroup
	running.Go(func() {
		err := flows.Run(ctx)
		if err != nil && !errors.Is(err, os.ErrClosed) {
			done <- fmt.Errorf("%s: idle flows are no longer expired: %w", n.Name, err)
			broken()
		}
	})
	if n.Services != nil {
		running.Go(func() {
			if err := n.sweepServices(ctx); err != nil {
				done <- err
				broken()
			}
		})
	}
	n.expired = func() error {
		running.Wait()
		close(done)
		var errs []error
		for err := range done {
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}
}

func (n *Node) close() error {
	var errs []error
	if n.expired != nil {
		errs = append(errs, n.expired())
	}
	if n.Sockets != nil {
		errs = append(errs, n.Sockets.Remove())
	}
	if n.Datapath != nil {
		errs = append(errs, n.Datapath.Remove())
	}
	if n.Services != nil {
		errs = append(errs, n.Services.Remove())
	}
	if n.Peers != nil {
		errs = append(errs, n.Peers.Remove())
	}
	if n.Flows != nil {
		errs = append(errs, n.Flows.Remove())
	}
	if n.Metrics != nil {
		errs = append(errs, n.Metrics.Remove())
	}
	if n.Table != nil {
		errs = append(errs, n.Table.Remove())
	}
	if err := os.Remove(n.Pins); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("%s: a pin is left: %w", n.Name, err))
	}
	return errors.Join(errs...)
}
