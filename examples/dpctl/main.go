// SPDX-License-Identifier: Apache-2.0

// Command dpctl reads the pinned tables of a running datapath: endpoints, the
// tunnel's peers, connections and those that leave in the node's name, services,
// metrics, and what is attached where. It changes nothing.
//
//	sudo go run ./examples/dpctl -pins /run/datapath/dp/bpf endpoint list
package main

import "os"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }
