// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/examples/internal/cluster"
)

const usage = `Shows the tables of a running datapath. It reads what is pinned and changes nothing.

  sudo go run ./examples/dpctl [-pins DIR] [-json] COMMAND

Commands:
  endpoint list    the workloads of the node: addresses, identity, MACs
  tunnel list      the prefixes of other nodes
  ct list          connections: where they come from and where they are sent
  metrics list     what became of the packets, by outcome and program
  status           what is attached where and in which order, and how full it is

Flags:
  -pins DIR        folder of a node's pins, or a folder of several such folders:
                   then each node is shown under its name
                   (%s, where examples/cluster has them)
  -json            one JSON document: what a node has, or with several nodes an
                   object of that by their names
  -src, -dst ADDR  ct list: only from, to this address or prefix
  -port N          ct list: only with this port on either side
  -proto NAME      ct list: only tcp, udp, icmp, icmpv6 or sctp
  -netns PATH      status: the node's namespace, if it is not found by itself

Examples, once it is built (go build ./examples/dpctl):
  sudo ./dpctl endpoint list
  sudo ./dpctl -pins /run/datapath/dp/bpf/node1 ct list -proto tcp -dst 10.244.2.0/24
  sudo ./dpctl status -json | jq '.node1.hooks'

In rows, sent=12/3400 is 12 packets of 3400 bytes in all; vni=identity means that
packets carry the identity of who sends them.
`

var defaultPins = filepath.Join(cluster.DefaultDir, "dp", "bpf")

type options struct {
	pins, netns string
	json        bool
	command     *command
	match       func(conntrack.Tuple) bool // nil: all
}

// parse takes flags before, between and behind the words of the command.
func parse(args []string) (options, error) {
	var o options
	var src, dst, proto string
	var port uint
	fs := flag.NewFlagSet("dpctl", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.pins, "pins", defaultPins, "")
	fs.BoolVar(&o.json, "json", false, "")
	fs.StringVar(&o.netns, "netns", "", "")
	fs.StringVar(&src, "src", "", "")
	fs.StringVar(&dst, "dst", "", "")
	fs.StringVar(&proto, "proto", "", "")
	fs.UintVar(&port, "port", 0, "")
	var words []string
	for len(args) > 0 {
		if err := fs.Parse(args); err != nil {
			return o, err
		}
		if args = fs.Args(); len(args) > 0 {
			words, args = append(words, args[0]), args[1:]
		}
	}
	name := strings.Join(words, " ")
	for i := range commands {
		if commands[i].name == name {
			o.command = &commands[i]
		}
	}
	switch {
	case name == "":
		return o, errors.New("no command")
	case o.command == nil:
		return o, fmt.Errorf("%q is not a command", name)
	}
	var foreign error
	fs.Visit(func(f *flag.Flag) {
		only := map[string]string{"src": "ct list", "dst": "ct list", "port": "ct list", "proto": "ct list", "netns": "status"}[f.Name]
		if only != "" && only != name {
			foreign = fmt.Errorf("-%s is for %s", f.Name, only)
		}
	})
	if foreign != nil {
		return o, foreign
	}
	if name == "ct list" {
		var err error
		o.match, err = filter(src, dst, proto, port)
		return o, err
	}
	return o, nil
}

func filter(src, dst, proto string, port uint) (func(conntrack.Tuple) bool, error) {
	var f conntrack.Filter
	var err error
	if f.Src, err = prefixOf(src); err != nil {
		return nil, fmt.Errorf("-src: %w", err)
	}
	if f.Dst, err = prefixOf(dst); err != nil {
		return nil, fmt.Errorf("-dst: %w", err)
	}
	if port > 65535 {
		return nil, fmt.Errorf("-port %d: want 1 to 65535", port)
	}
	if proto != "" {
		if f.Protocol, err = conntrack.ParseProtocol(proto); err != nil {
			return nil, fmt.Errorf("-proto: %w", err)
		}
	}
	return func(t conntrack.Tuple) bool {
		return f.Match(t) && (port == 0 || uint(t.Src.Port()) == port || uint(t.Dst.Port()) == port)
	}, nil
}

// prefixOf reads an address or a prefix; "" is all.
func prefixOf(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a prefix", s)
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}
