// SPDX-License-Identifier: Apache-2.0

// Command loadbalancer balances connections over backends on other machines, by
// the programs of this library on the devices of this one: no endpoints, no
// overlay, no cluster. Without flags it shows itself at work in network
// namespaces of its own.
//
//	sudo go run ./examples/loadbalancer
//	sudo go run ./examples/loadbalancer -config services.json -device eth0
package main

import (
	"os"

	"github.com/godatapath/datapath/examples/internal/cli"
)

func main() {
	ctx, stop := cli.Context()
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
