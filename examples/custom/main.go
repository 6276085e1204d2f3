// SPDX-License-Identifier: Apache-2.0

// Custom puts a tc program of the user's own in front of ours: dns_count.c is
// compiled at run time with our public headers, attached before from_endpoint
// on every endpoint, and its table is read as a typed map. It needs clang, and
// root.
//
//	sudo go run ./examples/custom                 # builds a cluster of its own and asks some questions in it
//	sudo go run ./examples/custom -cluster dp     # counts on the cluster that "examples/cluster -hold" keeps up
//
// On a cluster that is up it counts until it is interrupted, or for the time
// of -for. Nothing of it is left afterwards, however it ends: the attachments
// are not pinned, so they end with the process.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/programs"
)

//go:embed dns_count.c
var source string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "custom:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, messages io.Writer) error {
	flags := flag.NewFlagSet("custom", flag.ContinueOnError)
	flags.SetOutput(messages)
	name := flags.String("cluster", "", "count on the cluster of that name, which is up; default: build one")
	howLong := flags.Duration("for", 0, "how long to count on it; 0: until interrupted")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("argument %q: there are only flags", flags.Arg(0))
	}

	spec, err := programs.Compile(ctx, programs.CompileConfig{Text: source, Name: "dns_count.c", Warnings: messages})
	if err != nil {
		return err
	}
	if *name != "" {
		return onRunningCluster(ctx, spec, *name, *howLong, out)
	}
	return onOwnCluster(ctx, spec, out, messages)
}

// onRunningCluster counts what the endpoints of others ask.
func onRunningCluster(ctx context.Context, spec *ebpf.CollectionSpec, name string, howLong time.Duration, out io.Writer) (err error) {
	nodes, err := findNodes(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(nodes)) }()
	counters, err := startAll(nodes, spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(counters)) }()
	if howLong > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, howLong)
		defer cancel()
	}
	<-ctx.Done()
	return printRows(out, counters)
}

// onOwnCluster builds a cluster and has its endpoints ask.
func onOwnCluster(ctx context.Context, spec *ebpf.CollectionSpec, out, messages io.Writer) (err error) {
	c, err := cluster.Start(ctx, cluster.Config{Name: "custom", Progress: func(format string, args ...any) {
		fmt.Fprintf(messages, format+"\n", args...)
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	counters, err := startAll(nodesOf(c), spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(counters)) }()
	if err := askAround(ctx, c.Endpoints()); err != nil {
		return err
	}
	return printRows(out, counters)
}
