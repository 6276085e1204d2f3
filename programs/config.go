// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"time"

	"github.com/cilium/ebpf/link"

	"github.com/godatapath/datapath/internal/block"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/ticks"
	"github.com/godatapath/datapath/internal/wire"
)

// Namespace is where devices live: a devices.Namespace, or anything that can
// run a function inside a network namespace. Nil means the namespace of the
// calling thread.
type Namespace interface {
	// Do runs fn on a thread inside the namespace and returns its error.
	Do(fn func() error) error
}

// Block is an owner of tables that takes part in the datapath: maps.Endpoints,
// maps.Metrics, conntrack.Table, tunnel.Peers, lb.Balancer. Only this module makes
// blocks.
type Block = block.Block

// Config describes the datapath of one node. The zero Config is a node without
// a gateway whose programs live as long as the process.
type Config struct {
	// Namespace is where the node's devices are; nil: where Load is called.
	Namespace Namespace
	// Gateways are the node's own addresses in the overlay, at most one per
	// family. The endpoints have them as their gateways: ARP and NDP for them
	// are answered, and ICMP errors come from them.
	Gateways []netip.Addr
	// Pins is a folder on a bpf filesystem where attachments and the node's
	// state are pinned, so that they outlive the process; use the same one for
	// the blocks. The next Load with it takes over. Empty: nothing is pinned,
	// and Close takes the programs off the devices.
	Pins string
	// EndpointRoutes says that the node's stack, or another program, may put
	// packets straight on an endpoint's device, for example because it has a
	// route to each. Then to_endpoint is attached too and judges them. Without
	// it, all that an endpoint receives has been judged where it came in, and
	// nothing is attached that would look again.
	EndpointRoutes bool
	// StackRouting leaves the way out of the node to its stack, with its netfilter
	// rules: what endpoints send there goes up the host pair and not straight to an
	// uplink, with the source that it came with, and what comes in for an endpoint goes
	// up to the stack first. It rules out masquerade. Packets of
	// services for clients from outside, which the stack could not turn back, go
	// straight all the same.
	StackRouting bool
	// XDP loads the program of AttachXDP too. Without it AttachDevice takes off one
	// that an earlier load has pinned.
	XDP bool
	// RouteAge is how long a way out that the node's routes have told is believed;
	// 0: 5 s, up to 1 h. It is how late a change of routes is noticed that nobody
	// has told by Bump.
	RouteAge time.Duration
	// Order is the place of our programs among others on the same hook; nil:
	// behind all of them, since ours have the last word.
	Order link.Anchor
}

// settings turns the configuration into load-time constants.
func (c Config) settings() (map[string]any, error) {
	out := map[string]any{}
	for _, a := range c.Gateways {
		a, err := wire.CheckAddr(a)
		if err != nil {
			return nil, fmt.Errorf("gateway: %w", err)
		}
		name := "gateway_ipv6"
		if a.Is4() {
			name = "gateway_ipv4"
		}
		if _, ok := out[name]; ok {
			return nil, invalid.Errorf("gateway %s: a second one of its family", a)
		}
		out[name] = wire.Addr(a)
	}
	if c.RouteAge == 0 {
		c.RouteAge = 5 * time.Second
	}
	if c.RouteAge < 0 || c.RouteAge > time.Hour {
		return nil, invalid.Errorf("RouteAge is %s, want up to 1 h", c.RouteAge)
	}
	clock, err := ticks.Kernel()
	if err != nil {
		return nil, err
	}
	out["route_age"] = clock.Of(c.RouteAge)
	if c.StackRouting {
		out["stack_routing"] = uint8(1)
	}
	return out, nil
}

func (c Config) do(fn func() error) error {
	if c.Namespace == nil {
		return fn()
	}
	return c.Namespace.Do(fn)
}

// parts collects what the blocks bring.
func parts(blocks []Block, settings map[string]any) (block.Parts, []func(func() error), error) {
	all := block.Parts{Maps: map[string]*ebpfMap{}, Settings: settings}
	var binds []func(func() error)
	seen := map[string]bool{}
	for i, b := range blocks {
		if v := reflect.ValueOf(b); b == nil || v.Kind() == reflect.Pointer && v.IsNil() {
			return all, nil, invalid.Errorf("block %d is nil", i)
		}
		p := b.DatapathParts()
		if seen[p.Name] {
			return all, nil, invalid.Errorf("block %s is given twice", p.Name)
		}
		seen[p.Name] = true
		for name, m := range p.Maps {
			if m == nil || m.FD() < 0 {
				return all, nil, fmt.Errorf("block %s: table %s: %w", p.Name, name, os.ErrClosed)
			}
			all.Maps[name] = m
		}
		for name, v := range p.Settings {
			all.Settings[name] = v
		}
		if p.Bind != nil {
			binds = append(binds, p.Bind)
		}
	}
	if seen["services"] && !seen["flows"] {
		return all, nil, invalid.Errorf("block services: it needs the flow table, which remembers what a packet was turned into: pass a conntrack.Table too")
	}
	if settings["stack_routing"] != nil && all.Settings["with_masquerade"] != nil {
		return all, nil, invalid.Errorf("Config.StackRouting and conntrack.NAT.Masquerade are both set: the stack would send what endpoints send as it came")
	}
	if seen["peers"] && all.Settings["overlay_mtu"] == nil {
		return all, nil, invalid.Errorf("block peers: no MTU")
	}
	return all, binds, nil
}

// hook is a place where one of our programs is attached.
type hook struct {
	name      string
	program   bpf.TableProgram
	direction Direction
	load      loader
}
