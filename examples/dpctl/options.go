// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/examples/internal/cluster"
)

const usage = `Shows the tables of a running datapath. It reads what is pinned and changes nothing.

  sudo go run ./examples/dpctl [-pins DIR] [-json] COMMAND

Root is needed.

Commands:
  endpoint list    the workloads of the node: addresses, identity, MACs
  tunnel list      the prefixes of other nodes, and those nodes' own addresses
  ct list          connections: where they come from and where they are sent,
                   those to services, and those that leave in the node's name,
                   with the tuple under which they go on
  nat list         the connections that leave in the node's name: who began them,
                   and as whom the destination sees him
  nat ports        how many ports of the node's addresses they have, by destination,
                   and how long ports were looked for
  service list     services: their frontends and the backends of each
  service backends who serves: how many services, by state
  service maglev ID
                   how new connections to a service are spread, if it chooses
                   by Maglev: the slots of each backend; service list has the IDs
  metrics list     what became of the packets, by outcome and program
  status           what is attached where and in which order, and how full it is

Flags:
  -pins DIR        folder of a node's pins, or a folder of several such folders:
                   then each node is shown under its name
                   (%s, where examples/cluster has them)
  -json            one JSON document: what a node has, or with several nodes an
                   object of that by their names
  -src, -dst ADDR  ct list, nat list: only from, to this address or prefix
  -port N          ct list, nat list: only with this port on either side, 1 to
                   65535; one of the node's counts, and one of a backend
  -proto NAME      ct list, nat list: only tcp, udp, icmp, icmpv6 or sctp
  -state NAME      ct list, nat list: only new, established or closing
  -netns PATH      status: the node's namespace, if it is not found by itself

Examples, once it is built (go build ./examples/dpctl):
  sudo ./dpctl endpoint list
  sudo ./dpctl -pins /run/datapath/dp/bpf/node1 ct list -proto tcp -dst 10.244.2.0/24
  sudo ./dpctl -pins /run/datapath/dp/bpf/node1 service list
  sudo ./dpctl -pins /run/datapath/dp/bpf/node1 nat list -port 1024
  sudo ./dpctl status -json | jq '.node1.hooks'

In rows, sent=12/3400 is 12 packets of 3400 bytes in all. vni=identity means that
packets carry the identity of who sends them; in JSON that is "vni": 0. MACs are
in capitals in rows and in lower case in JSON.

A flow is new until the side that began has answered a reply (one question and
one answer of UDP stay new), then established; it is closing when both sides
have closed it or one has broken it off.

A flow that leaves in the node's name keeps its port if that is one that flows may
get and free, else it gets another: nat ports counts the two, the tries that
it took, and as exhausted the packets for which no port was found. Of what is no
TCP and UDP any port, or identifier, may stay.

Of the outcomes, answered is what a program has answered itself: questions of
endpoints for their gateway (ARP, NDP) and echoes to an address of services.
Multicast is dropped; kernels send some unasked.

The direction of a hook is the device's: what an endpoint sends is ingress of
its device on the node. In the JSON of metrics it is the endpoint's: the same
packets are egress.

The exit code is 0, 1 if something could not be read, 2 for a bad command line.
`

var defaultPins = filepath.Join(cluster.DefaultDir, "dp", "bpf")

type options struct {
	pins, netns string
	json        bool
	id          uint32 // of a service
	command     *command
	match       func(conntrack.Flow) bool
}

// takenBy has the commands that a flag is for; all others are for all.
var takenBy = map[string][]string{
	"src": flowLists, "dst": flowLists, "port": flowLists, "proto": flowLists, "state": flowLists, "netns": {"status"},
}

var flowLists = []string{"ct list", "nat list"}

// parse takes flags before, between and behind the words of the command.
func parse(args []string) (options, error) {
	var o options
	var src, dst, proto, state string
	var port uint
	fs := flag.NewFlagSet("dpctl", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.pins, "pins", defaultPins, "")
	fs.BoolVar(&o.json, "json", false, "")
	fs.StringVar(&o.netns, "netns", "", "")
	fs.StringVar(&src, "src", "", "")
	fs.StringVar(&dst, "dst", "", "")
	fs.StringVar(&proto, "proto", "", "")
	fs.StringVar(&state, "state", "", "")
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
	id := ""
	if len(words) == 3 && words[0] == "service" && words[1] == "maglev" {
		words, id = words[:2], words[2]
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
		return o, fmt.Errorf("%q is not a command%s", name, suggestion(words[0]))
	case o.pins == "":
		return o, errors.New("-pins: want a folder")
	case name == "service maglev":
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil || n == 0 {
			return o, fmt.Errorf("service maglev: want the ID of a service, as service list shows it, and not %q", id)
		}
		o.id = uint32(n)
	}
	// What was given, and not what a default would say.
	var f filter
	var err error
	fs.Visit(func(given *flag.Flag) {
		if only := takenBy[given.Name]; only != nil && !slices.Contains(only, name) {
			err = fmt.Errorf("-%s is for %s", given.Name, strings.Join(only, " and "))
		}
		if err != nil {
			return
		}
		switch given.Name {
		case "src":
			f.Src, err = prefixOf(src)
		case "dst":
			f.Dst, err = prefixOf(dst)
		case "proto":
			f.Protocol, err = conntrack.ParseProtocol(proto)
		case "state":
			f.state, err = stateOf(state)
		case "port":
			if f.port = port; port < 1 || port > 65535 {
				err = fmt.Errorf("want 1 to 65535 and not %d", port)
			}
		case "netns":
			if o.netns == "" {
				err = errors.New("want the path of a namespace")
			}
		}
		if err != nil {
			err = fmt.Errorf("-%s: %w", given.Name, err)
		}
	})
	o.match = f.match
	return o, err
}

// suggestion is the commands that begin with the word, or that it begins.
func suggestion(word string) string {
	var near []string
	for _, c := range commands {
		first, _, _ := strings.Cut(c.name, " ")
		if strings.HasPrefix(first, word) || strings.HasPrefix(word, first) {
			near = append(near, c.name)
		}
	}
	if len(near) == 0 {
		return ""
	}
	return ": do you mean " + strings.Join(near, " or ") + "?"
}

// filter is which flows are wanted: the zero filter is all.
type filter struct {
	conntrack.Filter
	port  uint // of either side, before or behind a translation
	state conntrack.State
}

func (f filter) match(flow conntrack.Flow) bool {
	return f.Match(flow.Original) && (f.port == 0 || f.hasPort(flow.Original) || f.hasPort(flow.Reply)) &&
		(f.state == 0 || flow.State == f.state)
}

func (f filter) hasPort(t conntrack.Tuple) bool {
	return uint(t.Src.Port()) == f.port || uint(t.Dst.Port()) == f.port
}

func stateOf(s string) (conntrack.State, error) {
	for _, state := range []conntrack.State{conntrack.StateNew, conntrack.StateEstablished, conntrack.StateClosing} {
		if strings.EqualFold(s, state.String()) {
			return state, nil
		}
	}
	return 0, fmt.Errorf("%q: want new, established or closing", s)
}

// prefixOf reads an address or a prefix.
func prefixOf(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		if p != p.Masked() {
			return netip.Prefix{}, fmt.Errorf("%s has bits behind the prefix: want %s, or the address alone", s, p.Masked())
		}
		return p, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is neither an address nor a prefix", s)
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}
