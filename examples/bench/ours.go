// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/lb"
)

// clusterName has our devices and pins under it, unless -name says otherwise. It
// is the same each time, so that what is left of a run that was killed is found by
// the next one.
const clusterName = "dpbench"

func (s settings) cluster() cluster.Config {
	return cluster.Config{
		Name: s.name,
		Wire: s.underlay == underlayWire,
	}
}

func (a *arena) family() int {
	if a.ipv6 {
		return 6
	}
	return 4
}

// addOurs adds two contestants on one cluster.
func (a *arena) addOurs(ctx context.Context) error {
	c, err := cluster.Start(ctx, a.cluster)
	if err != nil {
		return err
	}
	a.push(c.Close)
	family := a.family()
	near, far := c.Nodes[0].Endpoints, c.Nodes[1].Endpoints
	a.add(contestant{
		name: nameSameNode, title: "ours, same node", ours: true,
		client: near[0].Namespace, server: near[1].Namespace, addr: near[1].Addr(family),
	})
	a.add(contestant{
		name: nameOverlay, title: "ours, over vxlan", ours: true,
		client: near[0].Namespace, server: far[0].Namespace, addr: far[0].Addr(family),
	})
	return nil
}

func (a *arena) addService(ctx context.Context) error {
	return a.addServiceOf(ctx, 1, nameService, "ours, a service")
}

func (a *arena) addServices(ctx context.Context) error {
	return a.addServiceOf(ctx, a.services, nameServices, "ours, of "+thousands(a.services))
}

// addServiceOf adds a contestant whose client asks for a service, of many that
// are there. They are in a cluster of their own, of one node.
func (a *arena) addServiceOf(ctx context.Context, services int, name, title string) error {
	cfg := a.cluster
	cfg.Name, cfg.Wire, cfg.Nodes, cfg.Services = fmt.Sprint(cfg.Name, "-", services), false, 1, services
	c, err := cluster.Start(ctx, cfg)
	if err != nil {
		return err
	}
	a.push(c.Close)
	node := c.Nodes[0]
	one, other := node.Endpoints[0], node.Endpoints[1]
	byPacket, err := a.serviceFor(node, a.serviceAddr(), one, other)
	if err != nil {
		return err
	}
	byPacket.name, byPacket.title = name, title
	a.add(byPacket)
	if services > 1 {
		return nil
	}
	if c.NoSockets != nil {
		return fmt.Errorf("%w: %w", errLeftOut, c.NoSockets)
	}
	// The other way round: its connections to the server are between the same two
	// addresses as those of the packets, and would find theirs in TIME_WAIT.
	bySocket, err := a.serviceFor(node, a.serviceAddr().Next(), other, one)
	if err != nil {
		return err
	}
	bySocket.name, bySocket.title, bySocket.cgroup = nameSocket, "ours, by its socket", node.Cgroup
	a.add(bySocket)
	return nil
}

// serviceFor is a client that asks for a service with one server.
func (a *arena) serviceFor(node *cluster.Node, front netip.Addr, client, server *cluster.Endpoint) (contestant, error) {
	for _, p := range []lb.Protocol{lb.TCP, lb.UDP} {
		at := netip.AddrPortFrom(front, port)
		if err := node.Services.SetService(lb.Service{
			Name:      fmt.Sprint(at, "/", p),
			Frontends: []lb.Frontend{{Addr: at, Protocol: p}},
			Backends:  []lb.Backend{server.Backend(a.family(), port)},
		}); err != nil {
			return contestant{}, err
		}
	}
	return contestant{
		ours: true, client: client.Namespace, server: server.Namespace, addr: server.Addr(a.family()), front: front,
	}, nil
}
