// SPDX-License-Identifier: Apache-2.0

// Command cluster builds a cluster of network namespaces on this machine: nodes
// on a common underlay, endpoints on nodes, each node with the programs of this
// library. It probes the cluster from inside, shows the tables and takes
// everything away again.
//
//	sudo go run ./examples/cluster
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	// A closed terminal or pipe must not leave a cluster behind either.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
