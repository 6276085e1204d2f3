// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/godatapath/datapath/examples/internal/cluster"
)

// run is the program: it returns its exit code. When ctx ends it takes
// everything away and returns early.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "cluster:", err)
		return 2
	}
	out := stdout // for people
	if o.json {
		out = stderr
	}
	err = demonstrate(ctx, o, out, stdout)
	switch {
	case err == nil:
		return 0
	case interrupted(err):
		fmt.Fprintln(stderr, "cluster: interrupted; everything is taken away again")
	case errors.Is(err, os.ErrPermission) && os.Geteuid() != 0:
		fmt.Fprintln(stderr, "cluster: this needs root, to make namespaces and load programs: sudo go run ./examples/cluster")
	default:
		fmt.Fprintln(stderr, "cluster:", err)
	}
	return 1
}

// interrupted tells whether that is all there is to say: errors of taking things
// away are joined to it.
func interrupted(err error) bool {
	var several interface{ Unwrap() []error }
	return errors.Is(err, context.Canceled) && !errors.As(err, &several)
}

// errProbes says that the cluster works, but not as it should.
var errProbes = errors.New("probes failed")

// demonstrate builds, probes, shows and takes away.
func demonstrate(ctx context.Context, o options, out, document io.Writer) (err error) {
	start := time.Now()
	fmt.Fprintf(out, "Building a cluster of %s, %s:", count(o.cluster.Nodes, "node"), count(max(o.cluster.Endpoints, 0), "endpoint")+" each")
	o.cluster.Progress = func(format string, args ...any) {
		// "node 1 of 2": the line has said how many.
		step, _, _ := strings.Cut(fmt.Sprintf(format, args...), " of ")
		fmt.Fprintf(out, " %s,", step)
	}
	c, err := cluster.Start(ctx, o.cluster)
	if err != nil {
		fmt.Fprintln(out)
		return err
	}
	defer func() {
		if e := c.Close(); e != nil {
			err = errors.Join(err, e)
		}
	}()
	fmt.Fprintf(out, " done in %s.\n", spell(time.Since(start)))

	failed, err := probeAll(ctx, c, out)
	if err != nil {
		return err
	}
	if err := showTables(c, out); err != nil {
		return err
	}
	if o.json {
		enc := json.NewEncoder(document)
		enc.SetIndent("", "  ")
		if err := enc.Encode(describe(c)); err != nil {
			return fmt.Errorf("write the JSON document: %w", err)
		}
	}
	if o.hold {
		hint(c, out)
		select {
		case <-ctx.Done():
		case <-c.Broken(): // Close tells why
		}
		fmt.Fprintln(out, "\nTaking everything away.")
	}
	if failed > 0 {
		return fmt.Errorf("%d %w", failed, errProbes)
	}
	return nil
}

// hint says what to do with a cluster that stays up.
func hint(c *cluster.Cluster, out io.Writer) {
	fmt.Fprintln(out, "\nThe cluster stays up until Ctrl-C. In another terminal:")
	all := c.Endpoints()
	if len(all) > 1 {
		fmt.Fprintf(out, "  sudo ip netns exec %s ping %s\n", all[0].Netns, all[len(all)-1].Addr(4))
	}
	fmt.Fprintf(out, "  sudo go run ./examples/dpctl -pins %s status\n", filepath.Dir(c.Nodes[0].Pins))
	fmt.Fprintf(out, "  sudo go run ./examples/dpctl -pins %s ct list -proto tcp\n", c.Nodes[0].Pins)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// spell writes a short time with three digits.
func spell(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1e3)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
