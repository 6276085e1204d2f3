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

// signals end the cluster. A closed terminal or pipe must not leave one behind
// either.
var signals = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
