// SPDX-License-Identifier: Apache-2.0

// Bench measures what a datapath costs in traffic: two endpoints of one node
// and two endpoints on two nodes over VXLAN, against the limit (two namespaces
// joined by one veth) and against what the kernel does alone (forwarding
// between two veths, and a vxlan device with static entries). It builds all of
// them itself, in namespaces of its own, and leaves nothing behind.
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
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// childFlag tells a process of ours that it is one end of a measurement.
const childFlag = "-child"

func main() {
	if len(os.Args) == 3 && os.Args[1] == childFlag {
		os.Exit(childMain(os.Args[2]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

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
	exitInterrupted = 130 // as a shell has it
)

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return exitUsage
	}
	rep, err := o.settings.measureAll(ctx, newProgress(stderr))
	if ctx.Err() != nil {
		fmt.Fprintln(stderr, "bench: interrupted, everything is taken away again")
		return exitInterrupted
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

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.IntVar(&o.rounds, "rounds", 5, "how often each contestant is measured")
	f.DurationVar(&o.time, "time", 2*time.Second, "length of one measurement, without its warm-up")
	names := f.String("measures", strings.Join(measureNames(), ","), "what to measure")
	f.IntVar(&o.cpu, "cpu", -1, "CPU for both ends; -1: the last one that this process may use")
	f.BoolVar(&o.ipv6, "6", false, "IPv6 between the endpoints (the underlay stays IPv4)")
	f.StringVar(&o.underlay, "underlay", underlayWire, "between the nodes: a wire (one veth), or a bridge as in examples/cluster")
	f.StringVar(&o.svg, "svg", "", "write a chart to this file")
	f.BoolVar(&o.json, "json", false, "print one JSON document to stdout, and the table to stderr")
	f.BoolVar(&o.check, "check", false, "exit with 1 if a target is missed")
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
	if o.underlay != underlayWire && o.underlay != underlayBridge {
		return o, fmt.Errorf("-underlay %q: want %s or %s", o.underlay, underlayWire, underlayBridge)
	}
	var err error
	if o.measures, err = selectMeasures(*names); err != nil {
		return o, fmt.Errorf("-measures: %w", err)
	}
	if o.cpu, err = chooseCPU(o.cpu); err != nil {
		return o, fmt.Errorf("-cpu: %w", err)
	}
	return o, nil
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
