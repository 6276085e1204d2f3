// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/examples/internal/probe"
)

// Sizes of probes, in bytes.
const (
	echoSize      = 64   // payload of a TCP or UDP echo
	largePacket   = 1400 // an IP packet that fits every overlay
	tooBigPacket  = 1500 // one that fits the endpoint's device and no overlay
	narrowPacket  = 1450 // one that does not fit the path to the outside
	largeDatagram = 8000 // payload of a datagram that goes in fragments
	bulkSize      = 64 << 10
)

// What the probes of services are.
const (
	tcpEcho      = "TCP echo"
	udpEcho      = "UDP echo"
	datagramEcho = "UDP echo, unconnected,"
)

var bothFamilies = []int{4, 6}

type server = probe.Echo

// planner makes the list of probes and starts the servers that they need.
type planner struct {
	node    string // whose probes are planned now
	rows    []row
	echoes  map[place]*server
	servers map[netip.AddrPort]*server // of the services' backends
	trials  []trial
}

func newPlanner() *planner {
	return &planner{echoes: map[place]*server{}, servers: map[netip.AddrPort]*server{}}
}

// end is one side of a probe.
type end struct {
	name  string
	netns string
	ns    devices.Namespace
	addrs [2]netip.Addr // IPv4, IPv6
}

func (e end) addr(family int) netip.Addr { return e.addrs[family/6] }

func endpointEnd(e *cluster.Endpoint) end {
	return end{e.Name, e.Netns, e.Namespace, [2]netip.Addr{e.Addr(4), e.Addr(6)}}
}

func nodeEnd(n *cluster.Node, name string, addrs [2]netip.Addr) end {
	return end{n.Name + name, n.Netns, n.Namespace, addrs}
}

// plan lists, for each node, what its packets can do: each node with the next
// one, in a ring, so that the list grows with the nodes and not with their
// square.
func (p *planner) plan(c *cluster.Cluster) error {
	for i, n := range c.Nodes {
		p.node = n.Name
		next := c.Nodes[(i+1)%len(c.Nodes)]
		gateway := nodeEnd(n, " gateway", [2]netip.Addr{n.Gateway(4), n.Gateway(6)})
		if len(n.Endpoints) == 0 {
			continue
		}
		first := endpointEnd(n.Endpoints[0])
		if len(n.Endpoints) > 1 {
			if err := p.echo("same node", first, endpointEnd(n.Endpoints[1])); err != nil {
				return err
			}
		}
		far := endpointEnd(next.Endpoints[len(next.Endpoints)-1])
		if next != n {
			if err := p.echo("across nodes", first, far); err != nil {
				return err
			}
			p.sizes("across nodes", first, far, n)
		}
		if err := p.echo("node to endpoint", nodeEnd(n, "", gateway.addrs), first); err != nil {
			return err
		}
		if next != n {
			if err := p.echo("node to endpoint", nodeEnd(n, "", gateway.addrs), far); err != nil {
				return err
			}
		}
		targets := []end{gateway, nodeEnd(n, " underlay", [2]netip.Addr{n.Addrs[0].Addr(), n.Addrs[1].Addr()})}
		if next != n {
			targets = append(targets, nodeEnd(next, " gateway", [2]netip.Addr{next.Gateway(4), next.Gateway(6)}))
		}
		for _, to := range targets {
			if err := p.echo("endpoint to node", first, to); err != nil {
				return err
			}
		}
		if next != n {
			if err := p.echo("endpoint to node", first, nodeEnd(next, " underlay", [2]netip.Addr{next.Addrs[0].Addr(), next.Addrs[1].Addr()})); err != nil {
				return err
			}
		}
		if err := p.services(c, n, next); err != nil {
			return err
		}
		if err := p.outside(c, n); err != nil {
			return err
		}
	}
	return nil
}

// echo plans the three echoes from one end to another, in the families that are
// given, or in both.
func (p *planner) echo(relation string, from, to end, families ...int) error {
	if len(families) == 0 {
		families = bothFamilies
	}
	for _, family := range families {
		if err := p.serve(to, family); err != nil {
			return err
		}
	}
	p.add(relation, from, to, "ICMP echo", families, func(ctx context.Context, family int) (time.Duration, error) {
		return probe.Ping(ctx, from.ns, to.addr(family), 0)
	})
	p.add(relation, from, to, "TCP echo", families, func(ctx context.Context, family int) (time.Duration, error) {
		return probe.TCP(ctx, from.ns, p.at(to, family), echoSize)
	})
	p.add(relation, from, to, "UDP echo", families, func(ctx context.Context, family int) (time.Duration, error) {
		return probe.UDP(ctx, from.ns, p.at(to, family), echoSize)
	})
	return nil
}

// sizes plans packets that are near the limits of the path from an endpoint of
// the node into the overlay. Their servers are those of echo.
func (p *planner) sizes(relation string, from, to end, n *cluster.Node) {
	p.add(relation, from, to, fmt.Sprintf("packet of %d bytes", largePacket), bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
		return probe.Ping(ctx, from.ns, to.addr(family), largePacket)
	})
	if n.MTU < tooBigPacket {
		p.tooBig(relation, from, to, n)
	}
	p.add(relation, from, to, fmt.Sprintf("datagram of %d in fragments", largeDatagram), bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
		return probe.UDP(ctx, from.ns, p.at(to, family), largeDatagram)
	})
}

func (p *planner) tooBig(relation string, from, to end, n *cluster.Node) {
	p.add(relation, from, to, fmt.Sprintf("packet of %d, told MTU %d", tooBigPacket, n.MTU), bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
		return probe.TooBig(ctx, from.ns, to.addr(family), tooBigPacket, n.MTU, n.Gateway(family))
	})
}

func (p *planner) add(relation string, from, to end, what string, families []int, fn func(context.Context, int) (time.Duration, error)) {
	p.rows = append(p.rows, row{p.node, relation, from.name, to.name, what, families, fn})
}

func (p *planner) serve(to end, family int) error {
	key := place{to.netns, to.addr(family)}
	if p.echoes[key] != nil {
		return nil
	}
	e, err := probe.NewEcho(to.ns, key.addr)
	if err != nil {
		return err
	}
	p.echoes[key] = e
	return nil
}

func (p *planner) at(to end, family int) netip.AddrPort {
	return p.echoes[place{to.netns, to.addr(family)}].Addr()
}

func (p *planner) close() error {
	var errs []error
	for _, t := range p.trials {
		errs = append(errs, t.node.Services.DeleteService(t.service))
	}
	for _, e := range p.echoes {
		errs = append(errs, e.Close())
	}
	for _, e := range p.servers {
		errs = append(errs, e.Close())
	}
	return errors.Join(errs...)
}
