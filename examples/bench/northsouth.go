// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/lb"
)

func (a *arena) addNodePort(ctx context.Context) error {
	return a.addNodePortOf(ctx, 1, nameNodePort, "ours, a NodePort")
}

func (a *arena) addNodePorts(ctx context.Context) error {
	return a.addNodePortOf(ctx, a.services, nameNodePorts, "ours, NodePort of "+thousands(a.services))
}

// addNodePortOf adds a contestant whose client is a machine beside a node, and asks
// for a service at the node's address. The server is an endpoint there.
func (a *arena) addNodePortOf(ctx context.Context, services int, name, title string) error {
	cfg := a.cluster
	cfg.Name, cfg.Wire, cfg.Services = fmt.Sprint(cfg.Name, "-np", services), true, services
	c, err := cluster.Start(ctx, cfg)
	if err != nil {
		return err
	}
	a.push(c.Close)
	node, machine := c.Nodes[0], c.Nodes[1]
	// The other node plays a machine that has no datapath.
	eth0, err := devices.FindLink(machine.Namespace, "eth0")
	if err != nil {
		return err
	}
	if err := machine.Datapath.DetachDevice(eth0); err != nil {
		return err
	}
	front, server := node.Addrs[a.family()/6].Addr(), node.Endpoints[0]
	for _, p := range []lb.Protocol{lb.TCP, lb.UDP} {
		if err := node.Services.SetService(lb.Service{
			Name:      fmt.Sprint("node-port/", p),
			Frontends: []lb.Frontend{{Addr: netip.AddrPortFrom(front, port), Type: lb.NodePort, Protocol: p}},
			Backends:  []lb.Backend{server.Backend(a.family(), port)},
		}); err != nil {
			return err
		}
	}
	a.add(contestant{
		name: name, title: title, ours: true,
		client: machine.Namespace, server: server.Namespace, addr: server.Addr(a.family()), front: front,
	})
	return nil
}

func (a *arena) addIPTablesNodePort(ctx context.Context) error {
	tool := "iptables-restore"
	if a.ipv6 {
		tool = "ip6tables-restore"
	}
	return a.addRules(ctx, rules{name: nameIPTablesNodePort, title: "iptables, NodePort of " + thousands(a.services), nodePort: true, text: ruleSet.iptables, tool: tool})
}

func (a *arena) addNFTablesNodePort(ctx context.Context) error {
	return a.addRules(ctx, rules{name: nameNFTablesNodePort, title: "nftables, NodePort of " + thousands(a.services), nodePort: true, text: ruleSet.nftables, tool: "nft", args: []string{"-f", "-"}})
}
