// SPDX-License-Identifier: Apache-2.0

// Command cluster builds a cluster of network namespaces on this machine: nodes
// on a common underlay, endpoints on nodes, each node with the programs of this
// library. It probes the cluster from inside, shows the tables and takes
// everything away again.
//
//	sudo go run ./examples/cluster
package main

import (
	"os"

	"github.com/godatapath/datapath/examples/internal/cli"
)

func main() {
	if text := os.Getenv(asChild); text != "" {
		os.Exit(childMain(text, os.Stdout, os.Stderr))
	}
	ctx, stop := cli.Context()
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
