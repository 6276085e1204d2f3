// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/examples/internal/cli"
)

// run is the program: it returns its exit code. When ctx ends it takes everything
// away.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, help())
		return 0
	}
	if err != nil {
		complain(stderr, err)
		return 2
	}
	rights := []cli.Right{cli.NetAdmin, cli.SysAdmin}
	if o.config == "" {
		rights = append(rights, cli.NetRaw)
	}
	if err := cli.Need("to load programs", rights...); err != nil {
		complain(stderr, err)
		return 1
	}
	asks := make(chan os.Signal, 1)
	signal.Notify(asks, unix.SIGUSR1)
	defer signal.Stop(asks)
	if o.config == "" {
		err = demonstrate(ctx, o, asks, stdout)
	} else {
		err = balance(ctx, o, asks, stdout, stderr)
	}
	switch {
	case err == nil:
		return 0
	case cli.Interrupted(err):
		complain(stderr, errors.New("interrupted; everything is taken away again"))
	default:
		complain(stderr, err)
	}
	return 1
}

// complain writes an error, with our name before each line.
func complain(stderr io.Writer, err error) {
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(stderr, "loadbalancer: %s\n", strings.TrimRight(line, "\n"))
	}
}

// balance is the real thing.
func balance(ctx context.Context, o options, asks <-chan os.Signal, stdout, stderr io.Writer) (err error) {
	ns, err := o.namespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	p := o.place()
	if err := p.claim(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.release()) }()
	return serve(ctx, settings{ns, o.devices, o.flows, o.xdp}, &p, o.config, listener{
		up:      func(b *balancer, n int) { introduce(stdout, b, n, p.pins) },
		changed: func(line string) { fmt.Fprintln(stdout, line) },
		trouble: func(err error) { complain(stderr, fmt.Errorf("%w; what runs goes on", err)) },
		report:  func(b *balancer) error { return report(stdout, b) },
		asks:    asks,
	})
}

// introduce says what is at work, and how to look at it.
func introduce(out io.Writer, b *balancer, services int, pins string) {
	var on []string
	for _, u := range b.uplinks {
		on = append(on, u.String())
	}
	if b.adopted {
		fmt.Fprintln(out, "One that was killed has left its programs at work: they are taken over, with all connections.")
	}
	fmt.Fprintf(out, "Balancing %s on %s until Ctrl-C.\n", count(services, "service"), strings.Join(on, " and "))
	fmt.Fprintf(out, "  sudo kill -USR1 %d\n", os.Getpid())
	fmt.Fprintf(out, "  sudo go run ./examples/dpctl -pins %s service list\n", pins)
}
