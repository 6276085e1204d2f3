// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/godatapath/datapath/examples/internal/cluster"
)

const usage = `Builds a cluster of network namespaces, probes it and shows its tables.
Root is needed, and nothing but Go. Nothing is left behind, also after Ctrl-C.
What a killed run has left, the next one of the same -name clears away.

  sudo go run ./examples/cluster [flags]

Flags:
  -nodes N         nodes, 1 to %d (2)
  -endpoints N     endpoints on each node, 0 to %d (2)
  -mode MODE       how nodes reach one another's endpoints: vxlan, or native, by
                   routes of the underlay (vxlan)
  -services N      services over the endpoints, 0 to %d (0): number i is reached
                   at 10.96.x.y:80 (x.y is i) and [fd00:96::i]:80, TCP and UDP,
                   and from outside at port 30000+i of every node, up to 32767
  -backends M      backends of each service, 1 to %d (3)
  -maglev          choose them by Maglev, and not at random; for up to 500 services
  -port N          UDP port of the overlay, 1 to 65535 (8472)
  -ipv6-underlay   the nodes reach one another over IPv6
  -hold            stay up until Ctrl-C
  -json            describe the cluster as one JSON document on standard output;
                   everything else goes to standard error. Its fields are those
                   of Document in examples/cluster/document.go. With -services a
                   node has a "cgroup", if the machine has cgroup2: the sockets
                   of processes in it reach services without translated packets
  -name NAME       prefix of the names of the namespaces (dp): up to 64 letters,
                   digits, '-', '_' and '.', a letter or digit first

Look at it, while one is up (-hold):
  sudo go run ./examples/dpctl status

The exit code is 0 if all probes got through, also when Ctrl-C then ends a
cluster that is held; 1 if one did not, after another error and after Ctrl-C
before all is built and probed; 2 for a bad command line.
`

// options are the flags.
type options struct {
	cluster cluster.Config
	hold    bool
	json    bool
}

// errUsage is an error in the command line.
var errUsage = errors.New("see -h")

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("cluster", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	nodes := fs.Int("nodes", 2, "")
	endpoints := fs.Int("endpoints", 2, "")
	fs.IntVar(&o.cluster.Services, "services", 0, "")
	backends := fs.Int("backends", 3, "")
	fs.BoolVar(&o.cluster.Maglev, "maglev", false, "")
	mode := fs.String("mode", "vxlan", "")
	port := fs.Int("port", 8472, "")
	fs.BoolVar(&o.cluster.IPv6Underlay, "ipv6-underlay", false, "")
	fs.BoolVar(&o.hold, "hold", false, "")
	fs.BoolVar(&o.json, "json", false, "")
	fs.StringVar(&o.cluster.Name, "name", "dp", "")
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return o, err
	case err != nil:
	case fs.NArg() > 0:
		err = fmt.Errorf("%q is not a flag", fs.Arg(0))
	case *nodes < 1 || *nodes > cluster.MaxNodes:
		err = fmt.Errorf("-nodes %d: want 1 to %d", *nodes, cluster.MaxNodes)
	case *endpoints < 0 || *endpoints > cluster.MaxEndpoints:
		err = fmt.Errorf("-endpoints %d: want 0 to %d", *endpoints, cluster.MaxEndpoints)
	case o.cluster.Services < 0 || o.cluster.Services > cluster.MaxServices:
		err = fmt.Errorf("-services %d: want 0 to %d", o.cluster.Services, cluster.MaxServices)
	case *backends < 1 || *backends > cluster.MaxBackends:
		err = fmt.Errorf("-backends %d: want 1 to %d", *backends, cluster.MaxBackends)
	case *mode != "vxlan" && *mode != "native":
		err = fmt.Errorf("-mode %s: want vxlan or native", *mode)
	case *port < 1 || *port > 65535:
		err = fmt.Errorf("-port %d: want 1 to 65535", *port)
	case o.cluster.Name == "":
		err = errors.New("-name: want a name")
	default:
		o.cluster.Native = *mode == "native"
		o.cluster.Nodes, o.cluster.Endpoints, o.cluster.Port = *nodes, *endpoints, uint16(*port)
		if *endpoints == 0 {
			o.cluster.Endpoints = -1 // 0 is the default there
		}
		o.cluster.Backends = *backends
		err = o.cluster.Check()
	}
	if err != nil {
		return o, fmt.Errorf("%w (%w)", err, errUsage)
	}
	return o, nil
}
