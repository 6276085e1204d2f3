// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"net/netip"

	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/lb"
)

// Document is what -json writes. Other tools read it: fields are added, never
// changed or removed, and no list is null. Addresses are without a prefix length
// and IPv4 first, MACs in lower case with colons.
type Document struct {
	Nodes    []Node    `json:"nodes"`
	Outside  []Host    `json:"outside"`  // hosts that are on no node
	Services []Service `json:"services"` // the same on every node; one is of one family
}

// Node is a namespace that plays a host.
type Node struct {
	Name      string         `json:"name"`
	Netns     string         `json:"netns"`     // name in /run/netns
	Addresses []netip.Addr   `json:"addresses"` // in the underlay: where other nodes reach it
	PodCIDRs  []netip.Prefix `json:"podCIDRs"`  // its endpoints' addresses; the first address of each is the node's own
	Pins      string         `json:"pins"`      // folder of its pinned tables
	Cgroup    string         `json:"cgroup"`    // folder of its cgroup; "" if it has none
	Endpoints []Endpoint     `json:"endpoints"`
}

// Endpoint is a namespace that plays a workload.
type Endpoint struct {
	Name      string       `json:"name"`
	Netns     string       `json:"netns"` // name in /run/netns
	Addresses []netip.Addr `json:"addresses"`
	Ifindex   int          `json:"ifindex"` // of the host-side device, in the node's namespace
	ID        uint32       `json:"id"`      // unique on its node
	Identity  uint32       `json:"identity"`
	MAC       string       `json:"mac"`     // of the device inside
	NodeMAC   string       `json:"nodemac"` // of the host-side device
}

// Host is a namespace outside of the cluster.
type Host struct {
	Name      string       `json:"name"`
	Netns     string       `json:"netns"`     // name in /run/netns
	Addresses []netip.Addr `json:"addresses"` // at which it sees endpoints with the address of their node
	Trusted   []netip.Addr `json:"trusted"`   // at which it sees their own
}

// Service is addresses that lead to whichever backend is chosen.
type Service struct {
	Name      string     `json:"name"`
	Frontends []Frontend `json:"frontends"`
	Backends  []string   `json:"backends"` // addr:port
}

// Frontend is where clients reach a service.
type Frontend struct {
	Address  string `json:"address"`  // ip:port; of a NodePort the ip is 0.0.0.0 or ::, which is all of every node
	Type     string `json:"type"`     // ClusterIP or NodePort
	Protocol string `json:"protocol"` // TCP or UDP
}

func describe(c *cluster.Cluster) Document {
	doc := Document{Nodes: []Node{}, Outside: []Host{}, Services: []Service{}}
	for _, n := range c.Nodes {
		node := Node{
			Name: n.Name, Netns: n.Netns, Addresses: []netip.Addr{}, PodCIDRs: n.PodCIDRs, Pins: n.Pins, Cgroup: n.Cgroup, Endpoints: []Endpoint{},
		}
		for _, a := range n.Addrs {
			node.Addresses = append(node.Addresses, a.Addr())
		}
		for _, e := range n.Endpoints {
			node.Endpoints = append(node.Endpoints, Endpoint{
				Name: e.Name, Netns: e.Netns, Addresses: e.Addrs, Ifindex: e.Link.Index, ID: e.ID,
				Identity: uint32(e.Identity), MAC: e.Link.PeerMAC.String(), NodeMAC: e.Link.MAC.String(),
			})
		}
		doc.Nodes = append(doc.Nodes, node)
	}
	if o := c.Outside; o != nil {
		doc.Outside = append(doc.Outside, Host{Name: o.Name, Netns: o.Netns, Addresses: o.Addrs, Trusted: o.Trusted})
	}
	for _, s := range c.Services {
		service := Service{Name: s.Name, Frontends: []Frontend{}, Backends: []string{}}
		for _, f := range s.Frontends {
			service.Frontends = append(service.Frontends, Frontend{
				Address: f.Addr.String(), Type: cmp.Or(f.Type, lb.ClusterIP).String(), Protocol: cmp.Or(f.Protocol, lb.TCP).String(),
			})
		}
		for _, b := range s.Backends {
			service.Backends = append(service.Backends, b.Addr.String())
		}
		doc.Services = append(doc.Services, service)
	}
	return doc
}
