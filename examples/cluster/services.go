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
	"github.com/godatapath/datapath/lb"
)

// trial is a service that is there while the probes are made.
type trial struct {
	node    *cluster.Node
	service string
}

// asker makes one probe: see probe.TCP.
type asker func(ctx context.Context, from devices.Namespace, to netip.AddrPort, size int) (time.Duration, error)

// services plans what the first endpoint of the node, by its packets and by its
// sockets, and the node itself, by its sockets, can ask of services. Where the
// backend is matters, so there is a service for each place while that is probed.
func (p *planner) services(c *cluster.Cluster, n, next *cluster.Node) error {
	if n.Services == nil {
		return nil
	}
	first := endpointEnd(n.Endpoints[0])
	numbers := []int{1}
	if last := len(c.Services) / 2; last > 1 {
		numbers = append(numbers, last)
	}
	for _, i := range numbers {
		vip := end{name: fmt.Sprintf("service%d", i)}
		for f, family := range bothFamilies {
			s := c.ServiceAt(i, family)
			vip.addrs[f] = s.Frontends[0].Addr.Addr()
			if err := p.serveAll(c, s); err != nil {
				return err
			}
		}
		p.ask("service", n, first, vip)
		p.askBySocket("service", n, nodeEnd(n, "", [2]netip.Addr{}), vip)
	}

	type placed struct {
		relation string
		backend  *cluster.Endpoint
	}
	all := []placed{{"service, hairpin", n.Endpoints[0]}}
	if len(n.Endpoints) > 1 {
		all = append(all, placed{"service, same node", n.Endpoints[1]})
	}
	if next != n {
		all = append(all, placed{"service, across nodes", next.Endpoints[len(next.Endpoints)-1]})
	}
	for i, at := range all {
		backend, vip := endpointEnd(at.backend), end{name: at.backend.Name}
		for f, family := range bothFamilies {
			if err := p.serve(backend, family); err != nil {
				return err
			}
			vip.addrs[f] = trialAddr(i, family)
			s := cluster.Reach(fmt.Sprintf("probe%d-ipv%d", i+1, family), vip.addrs[f], at.backend.Backend(family, p.at(backend, family).Port()))
			p.trials = append(p.trials, trial{n, s.Name})
			if err := n.Services.SetService(s); err != nil {
				return err
			}
		}
		p.ask(at.relation, n, first, vip)
	}
	return nil
}

func trialAddr(i, family int) netip.Addr {
	if family == 4 {
		return netip.AddrFrom4([4]byte{10, 97, 0, byte(i + 1)})
	}
	return netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x97, 15: byte(i + 1)})
}

// serveAll starts the backends of a service, on their ports.
func (p *planner) serveAll(c *cluster.Cluster, s lb.Service) error {
	for _, b := range s.Backends {
		if p.servers[b.Addr] != nil {
			continue
		}
		for _, e := range c.Endpoints() {
			if e.Addr(4) != b.Addr.Addr() && e.Addr(6) != b.Addr.Addr() {
				continue
			}
			server, err := probe.NewEchoAt(e.Namespace, b.Addr)
			if err != nil {
				return fmt.Errorf("serve %s: %w", s.Name, err)
			}
			p.servers[b.Addr] = server
		}
	}
	return nil
}

// heldServices are so many services whose backends serve while a cluster is held.
const heldServices = 20

// held are servers that run while a cluster is held.
type held []*probe.Echo

// serveHeld starts the backends of the first services.
func serveHeld(c *cluster.Cluster) (all held, err error) {
	p := newPlanner()
	defer func() {
		for _, s := range p.servers {
			all = append(all, s)
		}
		if err != nil {
			err = errors.Join(err, all.close())
		}
	}()
	for i := 1; i <= min(len(c.Services)/2, heldServices); i++ {
		for _, family := range bothFamilies {
			if err := p.serveAll(c, c.ServiceAt(i, family)); err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

func (h held) close() error {
	var errs []error
	for _, s := range h {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

// ask plans the questions to a service. Each checks that it is the service that
// answers, as far as the client can see.
func (p *planner) ask(relation string, n *cluster.Node, from, vip end) {
	by := func(what string, fn asker) {
		p.add(relation, from, vip, what, bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
			return fn(ctx, from.ns, netip.AddrPortFrom(vip.addr(family), cluster.ServicePort), echoSize)
		})
	}
	by(tcpEcho, probe.TCP)
	by(udpEcho, probe.UDP)
	p.askBySocket(relation, n, from, vip)
}

func (p *planner) askBySocket(relation string, n *cluster.Node, from, vip end) {
	if n.Cgroup == "" {
		return
	}
	for _, what := range []string{tcpEcho, udpEcho, datagramEcho} {
		p.add(relation, from, vip, what+" by socket", bothFamilies, func(ctx context.Context, family int) (time.Duration, error) {
			to := netip.AddrPortFrom(vip.addr(family), cluster.ServicePort)
			return askInCgroup(ctx, n.Cgroup, from.ns, job{Probe: what, To: to, Size: echoSize})
		})
	}
}
