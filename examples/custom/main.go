// SPDX-License-Identifier: Apache-2.0

// Custom puts a tc program of the user's own in front of ours: dns_count.c is
// compiled at run time with our public headers, attached before from_endpoint
// on every endpoint, and its table is read as a typed map. It needs clang, and
// root.
//
//	sudo go run ./examples/custom                 # builds a cluster of its own and asks some questions in it
//	sudo go run ./examples/custom -cluster dp     # counts on the cluster that "examples/cluster -hold" keeps up
//
// On a cluster that is up it counts until it is interrupted, until the cluster
// ends, or for the time of -for. Nothing of it is left afterwards, however it
// ends: the attachments are not pinned, so they end with the process.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/cilium/ebpf"

	"github.com/godatapath/datapath/examples/internal/cli"
	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/programs"
)

//go:embed dns_count.c
var source string

func main() {
	ctx, stop := cli.Context()
	code := command(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// command is the program: it returns its exit code.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := run(ctx, args, stdout, stderr)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, usage, defaultName)
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintln(stderr, "custom:", err)
		return 2
	case cli.Interrupted(err):
		fmt.Fprintln(stderr, "custom: interrupted; everything is taken away again")
	default:
		fmt.Fprintln(stderr, "custom:", err)
	}
	return 1
}

func run(ctx context.Context, args []string, out, messages io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	rights := []cli.Right{cli.SysAdmin}
	if o.cluster == "" {
		rights = append(rights, cli.NetAdmin, cli.NetBindService)
	}
	if err := cli.Need("to attach programs in namespaces", rights...); err != nil {
		return err
	}
	spec, err := programs.Compile(ctx, programs.CompileConfig{Text: source, Name: "dns_count.c", Warnings: messages})
	if err != nil {
		return err
	}
	if o.cluster != "" {
		return onRunningCluster(ctx, spec, o, out, messages)
	}
	return onOwnCluster(ctx, spec, o.name, out, messages)
}

// onRunningCluster counts what the endpoints of others ask.
func onRunningCluster(ctx context.Context, spec *ebpf.CollectionSpec, o options, out, messages io.Writer) (err error) {
	nodes, err := findNodes(o.cluster)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(nodes)) }()
	counters, err := startAll(nodes, spec)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(counters)) }()
	if o.howLong > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.howLong)
		defer cancel()
	}
	if err := watch(ctx, counters, messages); err != nil {
		return err
	}
	return printRows(out, counters)
}

// onOwnCluster builds a cluster and has its endpoints ask.
func onOwnCluster(ctx context.Context, spec *ebpf.CollectionSpec, name string, out, messages io.Writer) (err error) {
	c, err := cluster.Start(ctx, cluster.Config{Name: name, Progress: func(format string, args ...any) {
		fmt.Fprintf(messages, "building "+format+"\n", args...)
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
	fmt.Fprintln(messages, "asking")
	err = askAround(ctx, c.Endpoints())
	if ctx.Err() != nil {
		return ctx.Err() // and not what became of a question
	}
	if err != nil {
		return err
	}
	if _, err := look(counters); err != nil {
		return err
	}
	return printRows(out, counters)
}
