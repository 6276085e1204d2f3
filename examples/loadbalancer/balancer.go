// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/internal/undo"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
)

// settings are what a balancer is made of.
type settings struct {
	ns      devices.Namespace // of the devices
	devices []string
	flows   int // that are remembered
	xdp     bool
}

// balancer is the library's blocks, composed: who has asked whom (flows), who
// serves (services), what became of the packets (metrics), and the programs that
// use them on the devices.
type balancer struct {
	uplinks []uplink
	own     []netip.Addr // the machine's addresses
	adopted bool         // the programs of one that was killed have been at work all the time

	metrics  *maps.Metrics
	flows    *conntrack.Table
	services *lb.Balancer
	datapath *programs.Datapath
	ns       devices.Namespace
	xdp      bool
}

// load makes the tables and loads the programs, or takes over what is pinned.
// Nothing is attached yet. The caller closes or removes it; after an error he only
// has the place to release.
func load(cfg settings, p *place) (_ *balancer, err error) {
	b := &balancer{ns: cfg.ns, xdp: cfg.xdp}
	var u undo.Stack
	defer u.Run(&err)
	u.Push(b.close)
	if b.uplinks, b.own, err = findUplinks(cfg.ns, cfg.devices); err != nil {
		return nil, err
	}
	if err := b.adopt(p); err != nil {
		return nil, err
	}
	if err := forward(cfg.ns, cfg.devices); err != nil {
		return nil, err
	}

	// What is passed to Load is on: no endpoints, no overlay. A table of another
	// layout, of an older program, is made anew; the flows go over to one of another
	// size.
	pinned := maps.Config{Pins: p.pins, OnMismatch: maps.Replace}
	if b.metrics, err = maps.NewMetrics(pinned); err != nil {
		return nil, err
	}
	if b.flows, err = newFlows(cfg.flows, p.pins); err != nil {
		return nil, err
	}
	if b.services, err = lb.New(lb.Config{Config: pinned, Flows: b.flows, NodeAddrs: b.own}); err != nil {
		return nil, err
	}
	b.datapath, err = programs.Load(programs.Config{Namespace: cfg.ns, Pins: p.pins, XDP: cfg.xdp}, b.metrics, b.flows, b.services)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// newFlows makes the flow table. With NAT a flow to a backend leaves with an
// address of this machine.
func newFlows(flows int, pins string) (*conntrack.Table, error) {
	cfg := conntrack.Config{Config: maps.Config{Pins: pins, OnMismatch: maps.Migrate}, Flows: flows, NAT: &conntrack.NAT{}}
	t, err := conntrack.New(cfg)
	if mismatch := (*maps.IncompatibleError)(nil); errors.As(err, &mismatch) {
		cfg.OnMismatch = maps.Replace
		return conntrack.New(cfg)
	}
	return t, err
}

// adopt finds out whether a killed balancer of this namespace is still at work
// here. The pins of one elsewhere, or without a node, are of no use.
func (b *balancer) adopt(p *place) error {
	state, err := programs.ReadNode(p.pins)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	cookie, cookieErr := b.ns.Cookie()
	if cookieErr != nil {
		return cookieErr
	}
	if err != nil || state.NetnsCookie != cookie {
		return p.clear()
	}
	b.adopted = true
	return nil
}

// attach puts the programs on the devices: from now on packets are balanced. trouble
// is told of devices that have to do without XDP.
func (b *balancer) attach(trouble func(error)) error {
	if err := b.datapath.SetNodeAddrs(b.own...); err != nil {
		return err
	}
	wanted := map[int]bool{}
	for _, u := range b.uplinks {
		wanted[u.Index] = true
		if err := b.datapath.AttachDevice(u, u.as...); err != nil {
			return fmt.Errorf("device %s: %w", u.Name, err)
		}
		if !b.xdp {
			continue
		}
		err := b.datapath.AttachXDP(u)
		if errors.Is(err, ebpf.ErrNotSupported) {
			trouble(fmt.Errorf("device %s goes without XDP: %w", u.Name, err))
		} else if err != nil {
			return fmt.Errorf("device %s: %w", u.Name, err)
		}
	}
	if !b.adopted {
		return nil
	}
	// The killed one may have had others.
	links, err := devices.ListLinks(b.ns)
	if err != nil {
		return err
	}
	for _, l := range links {
		if !wanted[l.Index] {
			if err := b.datapath.DetachDevice(l); err != nil {
				return fmt.Errorf("device %s: %w", l.Name, err)
			}
		}
	}
	return nil
}

// close drops the handles; what is pinned goes on. Idempotent.
func (b *balancer) close() error {
	var errs []error
	if b.datapath != nil {
		errs = append(errs, b.datapath.Close())
	}
	if b.services != nil {
		errs = append(errs, b.services.Close())
	}
	if b.flows != nil {
		errs = append(errs, b.flows.Close())
	}
	if b.metrics != nil {
		errs = append(errs, b.metrics.Close())
	}
	return errors.Join(errs...)
}

// remove takes the programs off the devices, and all tables away.
func (b *balancer) remove() error {
	return errors.Join(b.datapath.Remove(), b.services.Remove(), b.flows.Remove(), b.metrics.Remove())
}
