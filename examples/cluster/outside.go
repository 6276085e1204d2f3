// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/examples/internal/probe"
)

// outside plans what goes between the node's endpoints and the host that is on no
// node: out with the node's address, or with the endpoint's own where it is
// trusted, and in by the node's port of a service.
func (p *planner) outside(c *cluster.Cluster, n *cluster.Node) error {
	if c.Outside == nil || len(n.Endpoints) == 0 {
		return nil
	}
	first := endpointEnd(n.Endpoints[0])
	node := [2]netip.Addr{n.Addrs[0].Addr(), n.Addrs[1].Addr()}
	out := end{"outside", c.Outside.Netns, c.Outside.Namespace, [2]netip.Addr{c.Outside.Addr(4), c.Outside.Addr(6)}}
	trusting := end{"outside, trusted", c.Outside.Netns, c.Outside.Namespace, [2]netip.Addr{c.Outside.TrustedAddr(4), c.Outside.TrustedAddr(6)}}
	for _, far := range []struct {
		to   end
		as   [2]netip.Addr
		what string
	}{{out, node, "as the node"}, {trusting, first.addrs, "as itself"}} {
		for _, family := range bothFamilies {
			if err := p.serve(far.to, family); err != nil {
				return err
			}
		}
		p.add("endpoint to world", first, far.to, "ICMP echo", bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
			return probe.Ping(ctx, first.ns, far.to.addr(family), 0)
		})
		for _, by := range []struct {
			name string
			ask  asker
		}{{tcpEcho, probe.TCP}, {udpEcho, probe.UDP}} {
			p.add("endpoint to world", first, far.to, by.name+" "+far.what, bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
				return p.askAs(ctx, by.ask, first, far.to, family, far.as[family/6])
			})
		}
		fragments := bothFamilies
		if far.to.name == out.name {
			fragments = []int{4} // in IPv6 the sender is told of the narrow path, and the datagram is lost
		}
		p.add("endpoint to world", first, far.to, fmt.Sprintf("datagram of %d in fragments", largeDatagram), fragments, func(ctx context.Context, family int) (time.Duration, error) {
			return probe.UDP(ctx, first.ns, p.at(far.to, family), largeDatagram)
		})
		p.add("endpoint to world", first, far.to, "traceroute", bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
			return probe.Trace(ctx, first.ns, far.to.addr(family), []netip.Addr{n.Gateway(family), cluster.Router(family), far.to.addr(family)})
		})
	}
	p.add("endpoint to world", first, out, fmt.Sprintf("packet of %d, told MTU %d", cluster.OutsideMTU+50, cluster.OutsideMTU), bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
		return probe.TooBig(ctx, first.ns, out.addr(family), cluster.OutsideMTU+50, cluster.OutsideMTU, cluster.Router(family))
	})
	if n.Services == nil {
		return nil
	}
	port := end{name: fmt.Sprintf("%s:%d", n.Name, cluster.NodePort(1)), addrs: node}
	for _, by := range []struct {
		name string
		ask  asker
	}{{tcpEcho, probe.TCP}, {udpEcho, probe.UDP}} {
		p.add("world to service", out, port, by.name+" of each backend", bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
			at := netip.AddrPortFrom(node[family/6], cluster.NodePort(1))
			var backends []*server
			for _, b := range c.ServiceAt(1, family).Backends {
				backends = append(backends, p.servers[b.Addr])
			}
			return askEach(ctx, by.ask, out, at, backends)
		})
	}
	return nil
}

// askAs asks an echo server and checks as whom it has seen the asker.
func (p *planner) askAs(ctx context.Context, ask asker, from, to end, family int, want netip.Addr) (time.Duration, error) {
	took, err := ask(ctx, from.ns, p.at(to, family), echoSize)
	if err != nil {
		return 0, err
	}
	if _, seen := p.echoes[place{to.netns, to.addr(family)}].Asked(); seen != want {
		return 0, fmt.Errorf("it is seen as %s, want %s", seen, want)
	}
	return took, nil
}

// mostAsks is how often a service is asked until each backend must have answered:
// of a hundred, chance misses one in some 10 of 1,000 runs.
const mostAsks = 1000

// askEach asks until each of the backends has been asked, and returns how long one
// answer took on average.
func askEach(ctx context.Context, ask asker, from end, at netip.AddrPort, backends []*server) (time.Duration, error) {
	before := make([]int, len(backends))
	for i, b := range backends {
		before[i], _ = b.Asked()
	}
	var all time.Duration
	for n := 1; n <= mostAsks; n++ {
		took, err := ask(ctx, from.ns, at, echoSize)
		if err != nil {
			return 0, fmt.Errorf("question %d: %w", n, err)
		}
		all += took
		left := 0
		for i, b := range backends {
			if now, _ := b.Asked(); now == before[i] {
				left++
			}
		}
		if left == 0 {
			return all / time.Duration(n), nil
		}
	}
	return 0, fmt.Errorf("one of %d backends was not asked once in %d questions", len(backends), mostAsks)
}
