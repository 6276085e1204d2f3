// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/godatapath/datapath/examples/internal/cli"
)

// run is the program: it returns its exit code.
func run(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp), len(args) == 0:
		fmt.Fprintf(stdout, usage, defaultPins)
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "dpctl: %v (see -h)\n", err)
		return 2
	}
	err = cli.Need("to read pinned tables", cli.SysAdmin)
	if err == nil {
		err = report(o, stdout)
	}
	if err != nil {
		fmt.Fprintln(stderr, "dpctl:", err)
		return 1
	}
	return 0
}

// report runs the command on each node. What can be shown is, also when something
// else can not be read.
func report(o options, stdout io.Writer) error {
	nodes, several, err := findNodes(o.pins)
	if err != nil {
		return err
	}
	if o.netns != "" && len(nodes) > 1 {
		return fmt.Errorf("-netns names one namespace, and %s has %d nodes: choose one with -pins", o.pins, len(nodes))
	}
	var errs []error
	all := map[string]any{}
	for i, n := range nodes {
		value, err := o.command.read(o, n.pins)
		if err != nil {
			if several {
				err = fmt.Errorf("%s: %w", n.name, err)
			}
			errs = append(errs, err)
		}
		if value == nil {
			continue
		}
		if o.json {
			all[n.name] = value
			continue
		}
		indent := ""
		if several {
			if i > 0 {
				fmt.Fprintln(stdout)
			}
			fmt.Fprintln(stdout, n.name)
			indent = "  "
		}
		if err := value.print(stdout, indent); err != nil {
			return err
		}
	}
	if o.json && len(all) > 0 {
		var document any = all
		if !several {
			document = all[nodes[0].name]
		}
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		errs = append(errs, enc.Encode(document))
	}
	return errors.Join(errs...)
}
