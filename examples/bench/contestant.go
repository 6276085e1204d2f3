// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/internal/undo"
)

// contestant is a way from a client's namespace to a server's.
type contestant struct {
	name   string // in the JSON document
	title  string
	ours   bool
	client devices.Namespace
	server devices.Namespace
	addr   netip.Addr // of the server
	front  netip.Addr // where the client asks for it, if that is a service
	cgroup string     // of the client, if its sockets are to be translated
}

// The names of those that others are compared with.
const (
	nameVeth        = "veth"
	nameForwarding  = "kernel-forwarding"
	nameKernelVXLAN = "kernel-vxlan"
	nameSameNode    = "same-node"
	nameOverlay     = "overlay"
	nameIPTables    = "iptables-of-many"
	nameNFTables    = "nftables-of-many"
	nameService     = "service"
	nameServices    = "service-of-many"
	nameSocket      = "service-by-socket"

	nameNodePort         = "node-port"
	nameNodePorts        = "node-port-of-many"
	nameIPTablesNodePort = "iptables-node-port-of-many"
	nameNFTablesNodePort = "nftables-node-port-of-many"
)

// arena holds what the contestants are made of.
type arena struct {
	contestants []contestant
	ipv6        bool
	bridged     bool     // a bridge is between the nodes, not a wire
	services    int      // of the contestants with many
	only        []string // contestants; empty: all
	cluster     cluster.Config
	undo        []func() error
}

// newArena builds all contestants.
func newArena(ctx context.Context, s settings, p *progress) (_ *arena, err error) {
	a := &arena{ipv6: s.ipv6, services: s.services, only: s.only, bridged: s.underlay == underlayBridge, cluster: s.cluster()}
	var u undo.Stack
	defer u.Run(&err)
	u.Push(a.close)
	many := thousands(s.services) + " services"
	for _, c := range []struct {
		name  string
		build func(context.Context) error
		adds  []string
	}{
		{"two namespaces and a veth", a.addVeth, []string{nameVeth}},
		{"kernel forwarding", a.addForwarding, []string{nameForwarding}},
		{"kernel vxlan", a.addKernelVXLAN, []string{nameKernelVXLAN}},
		{many + " in iptables, as kube-proxy has them", a.addIPTables, []string{nameIPTables}},
		{many + " in nftables, as kube-proxy has them", a.addNFTables, []string{nameNFTables}},
		{"the datapath: two nodes, two endpoints each", a.addOurs, []string{nameSameNode, nameOverlay}},
		{"the datapath with one service", a.addService, []string{nameService, nameSocket}},
		{"the datapath with " + many, a.addServices, []string{nameServices}},
		{"a NodePort in iptables", a.addIPTablesNodePort, []string{nameIPTablesNodePort}},
		{"a NodePort in nftables", a.addNFTablesNodePort, []string{nameNFTablesNodePort}},
		{"a NodePort of the datapath", a.addNodePort, []string{nameNodePort}},
		{"a NodePort of the datapath, of " + many, a.addNodePorts, []string{nameNodePorts}},
	} {
		if !slices.ContainsFunc(c.adds, a.wants) {
			continue
		}
		p.say("building " + c.name)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := c.build(ctx)
		if errors.Is(err, errLeftOut) {
			p.say(err.Error())
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("build %s: %w", c.name, err)
		}
	}
	for _, c := range a.contestants {
		if err := errors.Join(tune(c.client), tune(c.server)); err != nil {
			return nil, fmt.Errorf("prepare %s: %w", c.title, err)
		}
	}
	return a, nil
}

func (a *arena) add(c contestant) {
	if a.wants(c.name) {
		a.contestants = append(a.contestants, c)
	}
}

func (a *arena) wants(name string) bool { return len(a.only) == 0 || slices.Contains(a.only, name) }

// names lists all contestants. The limit is always among those that are measured:
// the others are compared with it.
var names = []string{
	nameVeth, nameForwarding, nameKernelVXLAN, nameIPTables, nameNFTables, nameSameNode, nameOverlay, nameService, nameSocket, nameServices,
	nameIPTablesNodePort, nameNFTablesNodePort, nameNodePort, nameNodePorts,
}

func selectContestants(list string) ([]string, error) {
	if list == "" {
		return nil, nil
	}
	only := []string{nameVeth}
	for name := range strings.SplitSeq(list, ",") {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("%q is none of %s", name, strings.Join(names, ", "))
		}
		only = append(only, name)
	}
	return only, nil
}

func (a *arena) push(step func() error) { a.undo = append(a.undo, step) }

// close takes everything away, the last first. Idempotent.
func (a *arena) close() error {
	var errs []error
	for len(a.undo) > 0 {
		step := a.undo[len(a.undo)-1]
		a.undo = a.undo[:len(a.undo)-1]
		errs = append(errs, step())
	}
	return errors.Join(errs...)
}

// addr picks the address of the family that is measured.
func (a *arena) addr(ipv4, ipv6 string) netip.Prefix {
	if a.ipv6 {
		return netip.MustParsePrefix(ipv6)
	}
	return netip.MustParsePrefix(ipv4)
}

// serviceAddr is where contestants with services have the one that is asked.
func (a *arena) serviceAddr() netip.Addr {
	return a.addr("10.97.0.1/32", "fd00:97::1/128").Addr()
}

// thousands writes a number below a million.
func thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

// tune lets a client open new connections for as long as it likes: with as
// many ports as there are, and with those that it used a moment ago.
func tune(ns devices.Namespace) error {
	return ns.Do(func() error {
		for file, value := range map[string]string{
			"/proc/sys/net/ipv4/ip_local_port_range": "1024 65535",
			"/proc/sys/net/ipv4/tcp_tw_reuse":        "1",
		} {
			if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
				return fmt.Errorf("set %s: %w", file, err)
			}
		}
		return nil
	})
}
