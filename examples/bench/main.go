// SPDX-License-Identifier: Apache-2.0

// Bench measures what a datapath costs in traffic: two endpoints of one node
// and two endpoints on two nodes over VXLAN, against the limit (two namespaces
// joined by one veth) and against what the kernel does alone (forwarding
// between two veths, a vxlan device with static entries, services in the rules of
// iptables and nftables as kube-proxy has them). It builds all of them itself, in
// namespaces of its own, and leaves nothing behind.
//
//	sudo go run ./examples/bench -svg bench.svg
//
// Client and server are two processes on one CPU: with two CPUs the wake-ups
// between them cost more than the datapath and hide it. The contestants take
// turns, and what is compared is the median of the rounds, so a noisy machine
// disturbs all of them alike.
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

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/examples/internal/cli"
	"github.com/godatapath/datapath/examples/internal/cluster"
)

// childFlag tells a process of ours that it is one end of a measurement.
const childFlag = "-child"

func main() {
	if len(os.Args) == 3 && os.Args[1] == childFlag {
		os.Exit(childMain(os.Args[2]))
	}
	ctx, stop := cli.Context()
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

const usage = `Measures what traffic costs through the programs of this library, beside the limit
(two namespaces joined by one veth) and what the kernel does alone: forwarding, a
vxlan device, and services in the rules of iptables and nftables where those tools
are installed. It builds all of them in namespaces of its own and leaves nothing
behind, also after Ctrl-C. What a killed run has left, the next one of the same
-name clears away.

  sudo go run ./examples/bench [flags]

Root is needed. It takes some ten minutes as it is: every contestant is measured
in every round, for -time and a short warm-up. A run of a few seconds, to see it:
  sudo go run ./examples/bench -rounds 1 -time 200ms -services 100

Flags:
  -rounds N        how often each contestant is measured, at least 1 (5)
  -time D          length of one measurement, 10ms to 10m (2s)
  -measures LIST   what to measure, of these, with commas between (all):
                   rr      a byte there and one back over one TCP connection: µs
                   crr     the same with a new connection each time: µs
                   udp     datagrams of 64 bytes that arrive: thousands a second
                   stream  a TCP connection that is kept full: Gbit/s
  -only LIST       contestants beside the veth, by their names in the document of
                   -json, with commas between: same-node, overlay, service, … (all)
  -cpu N           CPU for both ends; -1: the last one that this process may use (-1)
  -6               IPv6 between the endpoints (the underlay stays IPv4)
  -services N      how many the contestants "of many" have, 2 to %d (10000)
  -underlay KIND   between the nodes: wire (one veth), or bridge as in
                   examples/cluster (wire)
  -svg FILE        write a chart
  -json            one JSON document on standard output, and the table on standard
                   error
  -check           exit with 1 if a target is missed
  -name NAME       prefix of the names of the datapath's namespaces (%s)

The exit code is 0; 1 after an error, after Ctrl-C, or with -check; 2 for a bad
command line.
`

// options are the command line.
type options struct {
	settings
	svg   string
	json  bool
	check bool
}

// Exit codes.
const (
	exitOK = iota
	exitFailed
	exitUsage
)

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(stdout, usage, cluster.MaxServices, clusterName)
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v (see -h)\n", err)
		return exitUsage
	}
	if err := cli.Need("to make namespaces and load programs", cli.NetAdmin, cli.SysAdmin); err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return exitFailed
	}
	rep, err := o.settings.measureAll(ctx, newProgress(stderr))
	if cli.Interrupted(err) {
		fmt.Fprintln(stderr, "bench: interrupted; everything is taken away again")
		return exitFailed
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return exitFailed
	}
	if err := o.show(rep, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return exitFailed
	}
	if missed := rep.missed(); o.check && missed > 0 {
		fmt.Fprintf(stderr, "bench: %d of %d targets missed\n", missed, len(rep.Targets))
		return exitFailed
	}
	return exitOK
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.IntVar(&o.rounds, "rounds", 5, "")
	f.DurationVar(&o.time, "time", 2*time.Second, "")
	names := f.String("measures", strings.Join(measureNames(), ","), "")
	only := f.String("only", "", "")
	f.IntVar(&o.cpu, "cpu", -1, "")
	f.BoolVar(&o.ipv6, "6", false, "")
	f.IntVar(&o.services, "services", 10_000, "")
	f.StringVar(&o.underlay, "underlay", underlayWire, "")
	f.StringVar(&o.svg, "svg", "", "")
	f.BoolVar(&o.json, "json", false, "")
	f.BoolVar(&o.check, "check", false, "")
	f.StringVar(&o.name, "name", clusterName, "")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.rounds < 1 {
		return o, fmt.Errorf("-rounds %d: want at least 1", o.rounds)
	}
	if o.time < 10*time.Millisecond || o.time > 10*time.Minute {
		return o, fmt.Errorf("-time %s: want 10ms to 10m", o.time)
	}
	if o.services < 2 || o.services > cluster.MaxServices {
		return o, fmt.Errorf("-services %d: want 2 to %d", o.services, cluster.MaxServices)
	}
	if o.underlay != underlayWire && o.underlay != underlayBridge {
		return o, fmt.Errorf("-underlay %q: want %s or %s", o.underlay, underlayWire, underlayBridge)
	}
	if o.name == "" {
		return o, errors.New("-name: want a name")
	}
	if err := o.cluster().Check(); err != nil {
		return o, err
	}
	if err := checkFile(o.svg); err != nil {
		return o, fmt.Errorf("-svg: %w", err)
	}
	var err error
	if o.measures, err = selectMeasures(*names); err != nil {
		return o, fmt.Errorf("-measures: %w", err)
	}
	if o.only, err = selectContestants(*only); err != nil {
		return o, fmt.Errorf("-only: %w", err)
	}
	if o.cpu, err = chooseCPU(o.cpu); err != nil {
		return o, fmt.Errorf("-cpu: %w", err)
	}
	return o, nil
}

// checkFile tells whether a file can be written, before the minutes that it takes
// to know what to write. "" is none.
func checkFile(path string) error {
	if path == "" {
		return nil
	}
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		return fmt.Errorf("%s is a folder", path)
	}
	dir := filepath.Dir(path)
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("write into folder %s: %w", dir, err)
	}
	return nil
}

func (o options) show(rep *report, stdout, stderr io.Writer) error {
	table := stdout
	if o.json {
		table = stderr
		doc := json.NewEncoder(stdout)
		doc.SetIndent("", "  ")
		if err := doc.Encode(rep); err != nil {
			return fmt.Errorf("print the numbers: %w", err)
		}
	}
	if err := writeTable(table, rep); err != nil {
		return fmt.Errorf("print the table: %w", err)
	}
	if o.svg == "" {
		return nil
	}
	if err := os.WriteFile(o.svg, chart(rep), 0o644); err != nil {
		return fmt.Errorf("write the chart: %w", err)
	}
	return nil
}

// chooseCPU returns want if this process may run there. The last one is the
// default: devices of the machine itself rather interrupt the first.
func chooseCPU(want int) (int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0, fmt.Errorf("read the CPUs of this process: %w", err)
	}
	last := -1
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			last = i
		}
	}
	if want == -1 {
		return last, nil
	}
	if want < 0 || !set.IsSet(want) {
		return 0, fmt.Errorf("this process may not run on CPU %d (the last one it may is %d)", want, last)
	}
	return want, nil
}
