// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/godatapath/datapath/examples/internal/cli"
	"github.com/godatapath/datapath/examples/internal/cluster"
)

// run is the program: it returns its exit code. When ctx ends it takes
// everything away and returns early.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(stdout, usage, cluster.MaxNodes, cluster.MaxEndpoints, cluster.MaxServices, cluster.MaxBackends)
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "cluster:", err)
		return 2
	}
	if err := cli.Need("to make namespaces and load programs", cli.NetAdmin, cli.SysAdmin, cli.NetRaw); err != nil {
		fmt.Fprintln(stderr, "cluster:", err)
		return 1
	}
	out := stdout // for people
	if o.json {
		out = stderr
	}
	err = demonstrate(ctx, o, out, stdout)
	switch {
	case err == nil:
		return 0
	case cli.Interrupted(err):
		fmt.Fprintln(stderr, "cluster: interrupted; everything is taken away again")
	default:
		fmt.Fprintln(stderr, "cluster:", err)
	}
	return 1
}

// errProbes says that the cluster works, but not as it should.
var errProbes = errors.New("probes failed")

// demonstrate builds, probes, shows and takes away.
func demonstrate(ctx context.Context, o options, out, document io.Writer) (err error) {
	start := time.Now()
	line := lineOf(out)
	line("Building a cluster of %s, %s each:", count(o.cluster.Nodes, "node"), count(max(o.cluster.Endpoints, 0), "endpoint"))
	o.cluster.Progress = func(format string, args ...any) {
		// "node 1 of 2": the line has said how many.
		step, _, _ := strings.Cut(fmt.Sprintf(format, args...), " of ")
		line(" %s,", step)
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
	line(" done in %s.", spell(time.Since(start)))
	fmt.Fprintln(out)

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
		servers, err := serveHeld(c)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, servers.close()) }()
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

// lineOf writes parts of one line, and goes on in the next one where it would be
// too long.
func lineOf(out io.Writer) func(format string, args ...any) {
	const longest = 96
	width := 0
	return func(format string, args ...any) {
		part := fmt.Sprintf(format, args...)
		if width > 0 && width+len(part) > longest {
			fmt.Fprint(out, "\n ")
			width = 1
		}
		fmt.Fprint(out, part)
		width += len(part)
	}
}

// hint says what to do with a cluster that stays up.
func hint(c *cluster.Cluster, out io.Writer) {
	fmt.Fprintln(out, "\nThe cluster stays up until Ctrl-C. In another terminal:")
	fmt.Fprintf(out, "  sudo go run ./examples/dpctl -pins %s status\n", filepath.Dir(c.Nodes[0].Pins))
	fmt.Fprintf(out, "  sudo go run ./examples/dpctl -pins %s ct list -proto tcp\n", c.Nodes[0].Pins)
	if c.Outside != nil {
		fmt.Fprintf(out, "  sudo go run ./examples/dpctl -pins %s nat list\n", c.Nodes[0].Pins)
	}
	if len(c.Services) > 0 {
		fmt.Fprintf(out, "  sudo go run ./examples/dpctl -pins %s service list\n", c.Nodes[0].Pins)
	}
	if all := c.Endpoints(); len(all) > 1 {
		fmt.Fprintln(out, "and if ip and ping are installed:")
		fmt.Fprintf(out, "  sudo ip netns exec %s ping %s\n", all[0].Netns, all[len(all)-1].Addr(4))
		if c.Outside != nil {
			fmt.Fprintf(out, "  sudo ip netns exec %s ping %s\n", all[0].Netns, c.Outside.Addr(4))
		}
	}
	if held := min(len(c.Services)/2, heldServices); held > 0 {
		what := "Service 1 repeats"
		if held > 1 {
			what = fmt.Sprintf("Services 1 to %d repeat", held)
		}
		front := c.ServiceAt(1, 4).Frontends[0].Addr
		fmt.Fprintf(out, "%s what they are told, by TCP and UDP; with nc, from an endpoint by its packets:\n", what)
		fmt.Fprintf(out, "  echo hello | sudo ip netns exec %s nc -w 1 %s %d\n", c.Nodes[0].Endpoints[0].Netns, front.Addr(), front.Port())
		if c.Outside != nil {
			fmt.Fprintln(out, "from the host outside, at a port of a node:")
			fmt.Fprintf(out, "  echo hello | sudo ip netns exec %s nc -w 1 %s %d\n", c.Outside.Netns, c.Nodes[0].Addrs[0].Addr(), cluster.NodePort(1))
		}
		if cgroup := c.Nodes[0].Cgroup; cgroup != "" {
			fmt.Fprintf(out, "and from the node, by the socket of a process in %s:\n", cgroup)
			fmt.Fprintf(out, "  sudo sh -c 'echo $$ > %s/cgroup.procs; echo hello | ip netns exec %s nc -w 1 %s %d'\n", cgroup, c.Nodes[0].Netns, front.Addr(), front.Port())
		}
	}
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
