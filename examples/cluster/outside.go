// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
		p.add("endpoint to world", first, far.to, fmt.Sprintf("packet of %d, told MTU %d", narrowPacket, cluster.OutsideMTU), bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
			return probe.TooBig(ctx, first.ns, far.to.addr(family), narrowPacket, cluster.OutsideMTU, cluster.Router(family))
		})
		// The sender knows the path's MTU by now, which in IPv6 it must.
		p.add("endpoint to world", first, far.to, fmt.Sprintf("datagram of %d in fragments", largeDatagram), bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
			return probe.UDP(ctx, first.ns, p.at(far.to, family), largeDatagram)
		})
		p.add("endpoint to world", first, far.to, "traceroute", bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
			return probe.Trace(ctx, first.ns, far.to.addr(family), []netip.Addr{n.Gateway(family), cluster.Router(family), far.to.addr(family)})
		})
	}
	if n.Services == nil {
		return nil
	}
	p.nodePort(c, n, out)
	return nil
}

// nodePort plans what the outside asks at the node's port of the first service: of
// each of its backends, on this node and on others.
func (p *planner) nodePort(c *cluster.Cluster, n *cluster.Node, out end) {
	port := end{name: fmt.Sprintf("%s:%d", n.Name, cluster.NodePort(1)), addrs: [2]netip.Addr{n.Addrs[0].Addr(), n.Addrs[1].Addr()}}
	at := func(family int) netip.AddrPort { return netip.AddrPortFrom(port.addr(family), cluster.NodePort(1)) }
	for _, by := range []struct {
		name string
		ask  asker
	}{{tcpEcho, probe.TCP}, {udpEcho, probe.UDP}} {
		p.add("world to service", out, port, by.name+" of each backend", bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
			var backends []*server
			for _, b := range c.ServiceAt(1, family).Backends {
				backends = append(backends, p.servers[b.Addr])
			}
			return askEach(ctx, by.ask, out, at(family), backends)
		})
	}
	// The answers meet a path that is narrower than the backend's device.
	p.add("world to service", out, port, fmt.Sprintf("%d KiB by a path of %d", bulkSize>>10, cluster.OutsideMTU), bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
		return probe.TCP(ctx, out.ns, at(family), bulkSize)
	})
	here, away := false, false
	for _, b := range c.ServiceAt(1, 4).Backends {
		here = here || b.Node == n.Underlay()
		away = away || b.Node != n.Underlay()
	}
	if here {
		p.add("world to service", out, port, "traceroute, backend here", bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
			flow, took, err := flowBy(ctx, c, n, out, at(family), 0)
			if err == nil {
				flow.Close()
			}
			return took, err
		})
	}
	if !away {
		return
	}
	p.add("world to service", out, port, "traceroute, backend on another node", bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
		flow, took, err := flowBy(ctx, c, n, out, at(family), 1)
		if err == nil {
			flow.Close()
		}
		return took, err
	})
	if n.MTU >= tooBigPacket {
		return // the way to another node is as wide as the one to this node
	}
	p.add("world to service", out, port, fmt.Sprintf("packet of %d, told MTU %d", tooBigPacket, n.MTU), bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
		flow, _, err := flowBy(ctx, c, n, out, at(family), 1)
		if err != nil {
			return 0, err
		}
		defer flow.Close()
		start := time.Now()
		_, err = flow.Ask(ctx, tooBigPacket, 64)
		var icmp *probe.Error
		if !errors.As(err, &icmp) || !icmp.TooBig() || icmp.MTU != n.MTU || icmp.From != port.addr(family) {
			return 0, fmt.Errorf("what came is %w, want too big, MTU %d, from %s", err, n.MTU, port.addr(family))
		}
		return time.Since(start), nil
	})
}

// flowBy opens flows to the node's port until one leads to a backend that is as many
// nodes further as beyond says, and returns that flow, to be closed, and how long it
// took to see its way.
// Each way must be by the router and the node, and then by another node or by none.
func flowBy(ctx context.Context, c *cluster.Cluster, n *cluster.Node, out end, at netip.AddrPort, beyond int) (*probe.Datagrams, time.Duration, error) {
	family := 4
	if at.Addr().Is6() {
		family = 6
	}
	for range mostAsks {
		start := time.Now()
		flow, err := probe.OpenDatagrams(out.ns, out.addr(family), at)
		if err != nil {
			return nil, 0, err
		}
		hops, err := flow.Trace(ctx, 3)
		if err == nil {
			err = checkWay(c, n, family, hops)
		}
		if err == nil && len(hops) == 2+beyond {
			return flow, time.Since(start), nil
		}
		flow.Close()
		if err != nil {
			return nil, 0, err
		}
	}
	return nil, 0, fmt.Errorf("none of %d flows has gone by %d nodes", mostAsks, 1+beyond)
}

// checkWay wants the way from the outside to a backend, as traceroute tells it, to be
// one that is there.
func checkWay(c *cluster.Cluster, n *cluster.Node, family int, hops []netip.Addr) error {
	want := []netip.Addr{cluster.OutsideRouter(family), n.Addrs[family/6].Addr()}
	if len(hops) == 3 && slices.Equal(hops[:2], want) {
		for _, other := range c.Nodes {
			if other != n && (hops[2] == other.Gateway(family) || hops[2] == other.Addrs[family/6].Addr()) {
				return nil
			}
		}
	}
	if !slices.Equal(hops, want) {
		return fmt.Errorf("the way is %v, want %v and then no node, or another one", hops, want)
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
