// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/godatapath/datapath/lb"
)

// The services of a cluster: number i has 10.96.x.y, where x.y is i, and
// fd00:96::i. These are two services, since one has addresses of one family.
const (
	MaxServices = 10_000
	MaxBackends = 100    // of each service
	maxServers  = 50_000 // services times backends
	maxMaglevs  = 500
	// ServicePort is where clients ask, by TCP and UDP.
	ServicePort = 80
	// Service i is at port firstNodePort+i of every node, as far as there are
	// NodePorts in the range of Kubernetes.
	firstNodePort = 30000
	lastNodePort  = 32767
	// firstServer is the port of an endpoint's first backend. Each has its own.
	firstServer = 8000
)

// ServiceAt is the n-th service, from 1, in a family, 4 or 6.
func (c *Cluster) ServiceAt(n, family int) lb.Service {
	return c.Services[2*(n-1)+family/6]
}

// Reach describes a service of TCP and UDP at an address.
func Reach(name string, at netip.Addr, backends ...lb.Backend) lb.Service {
	front := netip.AddrPortFrom(at, ServicePort)
	return lb.Service{Name: name, Frontends: []lb.Frontend{{Addr: front}, {Addr: front, Protocol: lb.UDP}}, Backends: backends}
}

// Backend describes a server on a port of the endpoint.
func (e *Endpoint) Backend(family int, port uint16) lb.Backend {
	return lb.Backend{Addr: netip.AddrPortFrom(e.Addr(family), port), Node: e.Node.Underlay()}
}

// NodePort is the port of every node at which the outside reaches the n-th
// service.
func NodePort(n int) uint16 { return uint16(firstNodePort + n) }

// planServices lists the services over the endpoints. Neighbours in the list of
// a service's backends are on different nodes.
func (c *Cluster) planServices() {
	var turn []*Endpoint
	for i := range c.cfg.Endpoints {
		for _, n := range c.Nodes {
			turn = append(turn, n.Endpoints[i])
		}
	}
	port := map[*Endpoint]uint16{} // the next one, from firstServer
	for i := 1; i <= c.cfg.Services; i++ {
		var backends [2][]lb.Backend
		for j := range c.cfg.Backends {
			// Each service begins with another endpoint.
			e := turn[(i-1+j)%len(turn)]
			for f, family := range []int{4, 6} {
				backends[f] = append(backends[f], e.Backend(family, firstServer+port[e]))
			}
			port[e]++
		}
		both := []lb.Service{
			Reach(fmt.Sprintf("service%d-ipv4", i), addr("10.96.%d.%d", i>>8, i&255), backends[0]...),
			Reach(fmt.Sprintf("service%d-ipv6", i), addr("fd00:96::%x", i), backends[1]...),
		}
		for f, s := range both {
			if c.cfg.Maglev {
				s.Algorithm = lb.Maglev
			}
			if port := firstNodePort + i; port <= lastNodePort && c.Outside != nil {
				at := netip.AddrPortFrom([]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[f], uint16(port))
				s.Frontends = append(s.Frontends, lb.Frontend{Addr: at, Type: lb.NodePort}, lb.Frontend{Addr: at, Type: lb.NodePort, Protocol: lb.UDP})
			}
			c.Services = append(c.Services, s)
		}
	}
}

func (cfg Config) checkServices() error {
	switch {
	case cfg.Services < 0 || cfg.Services > MaxServices:
		return fmt.Errorf("%d services: want up to %d", cfg.Services, MaxServices)
	case cfg.Services == 0:
		return nil
	case cfg.Backends < 1 || cfg.Backends > MaxBackends:
		return fmt.Errorf("%d backends of each service: want 1 to %d", cfg.Backends, MaxBackends)
	case cfg.Services*cfg.Backends > maxServers:
		return fmt.Errorf("%d services of %d backends: want up to %d backends in all", cfg.Services, cfg.Backends, maxServers)
	case cfg.Maglev && cfg.Services > maxMaglevs:
		return fmt.Errorf("%d services that choose by Maglev: want up to %d, each takes 250 KB on every node", cfg.Services, maxMaglevs)
	case cfg.Endpoints == 0:
		return errors.New("services without endpoints: nobody could serve")
	}
	return nil
}

// startServices makes the services' tables, and gives the block that makes the
// programs use them.
func (n *Node) startServices(cfg lb.Config) (err error) {
	cfg.Flows, cfg.Node = n.Flows, n.Underlay()
	for _, a := range n.Addrs {
		cfg.NodeAddrs = append(cfg.NodeAddrs, a.Addr())
	}
	cfg.Backends = max(lb.DefaultBackends, 2*n.cfg.Services*n.cfg.Backends)
	if n.cfg.Maglev {
		cfg.Maglevs = 2 * max(n.cfg.Services, 1)
	}
	n.Services, err = lb.New(cfg)
	return err
}

// sweepServices takes away backends that have drained, until ctx ends.
func (n *Node) sweepServices(ctx context.Context) error {
	err := n.Services.Run(ctx)
	if err == nil || ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("%s: backends that drain are no longer taken away: %w", n.Name, err)
}
