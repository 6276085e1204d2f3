// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/examples/internal/probe"
)

// errProbes says that the balancer works, but not as it should.
var errProbes = errors.New("probes failed")

// demonstrate builds, probes, shows and takes away.
func demonstrate(ctx context.Context, o options, asks <-chan os.Signal, stdout io.Writer) (err error) {
	start := time.Now()
	p := o.place()
	if err := p.claim(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.release()) }()
	fmt.Fprintf(stdout, "Building a client, a balancer and %s,", count(backends, "backend"))
	if err := errors.Join(clearScene(o.name), p.clear()); err != nil {
		fmt.Fprintln(stdout)
		return fmt.Errorf("clear away what an earlier run has left: %w", err)
	}
	d := &demonstration{scene: scene{name: o.name}, file: filepath.Join(p.dir, "services.json"), out: stdout, place: &p, hold: o.hold}
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.build(ctx); err != nil {
		fmt.Fprintln(stdout)
		return err
	}
	if err := d.serve(ctx, asks); err != nil {
		fmt.Fprintln(stdout)
		return err
	}
	fmt.Fprintf(stdout, " done in %s.\n", spell(time.Since(start)))
	return d.show(ctx)
}

// demonstration is one run.
type demonstration struct {
	scene
	place    *place
	file     string // of the services
	backends []*backend
	out      io.Writer
	hold     bool

	running *balancer  // until end
	news    chan news  // what becomes of a change of the file
	ended   chan error // the balancer's end
	stop    context.CancelFunc
}

// enoughNews is more than there can be before somebody listens.
const enoughNews = 16

// news is what the balancer tells of the file.
type news struct {
	changed string
	err     error
}

func (d *demonstration) build(ctx context.Context) error {
	if err := d.setUp(); err != nil {
		return err
	}
	for i, ns := range d.scene.backends {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := startBackend(ns, i+1)
		if err != nil {
			return err
		}
		d.backends = append(d.backends, b)
	}
	return writeFile(d.file, planServices())
}

// serve starts the balancer, as -config does, and waits until it is at work.
func (d *demonstration) serve(ctx context.Context, asks <-chan os.Signal) error {
	d.news, d.ended = make(chan news, enoughNews), make(chan error, 1)
	ctx, d.stop = context.WithCancel(ctx)
	up := make(chan *balancer, 1)
	tell := func(n news) {
		select {
		case d.news <- n:
		default:
		}
	}
	l := listener{
		up:      func(b *balancer, _ int) { up <- b },
		changed: func(line string) { tell(news{changed: line}) },
		trouble: func(err error) { tell(news{err: err}) },
		report:  func(b *balancer) error { return report(d.out, b) },
		asks:    asks,
	}
	cfg := settings{ns: d.balancer, devices: []string{front, back}, flows: conntrack.DefaultFlows}
	go func() { d.ended <- serve(ctx, cfg, d.place, d.file, l) }()
	select {
	case d.running = <-up:
		return ctx.Err()
	case err := <-d.ended:
		return d.noteEnd(err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// noteEnd is what it means that the balancer has ended, which it was not told to.
func (d *demonstration) noteEnd(err error) error {
	d.stop()
	d.stop = nil
	return errors.Join(errors.New("the balancer has ended"), err)
}

// show asks the services, changes the file and asks again.
func (d *demonstration) show(ctx context.Context) error {
	p := &prober{client: d.client, backends: d.backends}
	defer p.close()
	t := &table{out: d.out}
	first, all := d.backends[0].name, planServices()
	for _, step := range []struct {
		title string
		file  []Service // nil: it stays as it is
		rows  []row
	}{
		{"Three backends", nil, []row{
			{"TCP, each answers", p.askEach(probe.TCP, 0)},
			{"UDP, each answers", p.askEach(probe.UDP, 0)},
			{"HTTP, each tells its name and has seen the balancer", p.askNames},
			{"ping, answered by the balancer", func(ctx context.Context, family int) (time.Duration, error) {
				return probe.Ping(ctx, d.client, serviceAddrs[family/6].Addr(), 0)
			}},
			{"a port without a service, refused at once", p.refused},
			{"a connection to " + first + ", which is held", p.hold},
		}},
		{first + " is terminating", withState(all, "terminating"), []row{
			{"the connection goes on", p.goesOn},
			{fmt.Sprintf("%d new TCP connections, to the others", someAsks), p.askEach(probe.TCP, 1)},
			{fmt.Sprintf("%d new UDP flows, to the others", someAsks), p.askEach(probe.UDP, 1)},
		}},
		{first + " is gone from the file", without(all), []row{
			{"the connection is reset", p.isReset},
			{fmt.Sprintf("%d new TCP connections, to the others", someAsks), p.askEach(probe.TCP, 1)},
			{fmt.Sprintf("%d new UDP flows, to the others", someAsks), p.askEach(probe.UDP, 1)},
		}},
		{first + " is back", all, []row{
			{"TCP, each answers", p.askEach(probe.TCP, 0)},
			{"UDP, each answers", p.askEach(probe.UDP, 0)},
		}},
	} {
		if step.file != nil {
			if err := d.change(ctx, step.file); err != nil {
				return err
			}
		}
		if err := t.print(ctx, step.title, step.rows); err != nil {
			return err
		}
	}
	t.sum()
	err := report(d.out, d.running)
	if err != nil {
		return err
	}
	if d.hold {
		err = d.wait(ctx)
	}
	if t.failed > 0 {
		err = errors.Join(fmt.Errorf("%d %w", t.failed, errProbes), err)
	}
	return err
}

// change writes the file and waits until the balancer has followed.
func (d *demonstration) change(ctx context.Context, all []Service) error {
	const patience = 10 * time.Second
	if err := writeFile(d.file, all); err != nil {
		return err
	}
	select {
	case n := <-d.news:
		return n.err
	case err := <-d.ended:
		return d.noteEnd(err)
	case <-time.After(patience):
		return fmt.Errorf("the change of the file was not followed in %s", patience)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wait holds until ctx ends, and tells what the balancer does.
func (d *demonstration) wait(ctx context.Context) error {
	d.hint()
	for {
		select {
		case n := <-d.news:
			if n.err != nil {
				fmt.Fprintf(d.out, "%v; what runs goes on\n", n.err)
			} else {
				fmt.Fprintln(d.out, n.changed)
			}
		case err := <-d.ended:
			return d.noteEnd(err)
		case <-ctx.Done():
			fmt.Fprintln(d.out, "\nTaking everything away.")
			return nil
		}
	}
}

// hint says what to do with it.
func (d *demonstration) hint() {
	dpctl := "  sudo go run ./examples/dpctl -pins " + d.place.pins
	client := fmt.Sprintf("  sudo ip netns exec %s-client ", d.name)
	fmt.Fprintln(d.out, "\nIt stays up until Ctrl-C. In another terminal, if ip, curl and nc are installed:")
	fmt.Fprintf(d.out, "%scurl -s http://%s/\n", client, at(4, webPort).Addr())
	fmt.Fprintf(d.out, "%scurl -s http://[%s]/\n", client, at(6, webPort).Addr())
	fmt.Fprintf(d.out, "  echo hello | sudo ip netns exec %s-client nc -w 1 %s %d\n", d.name, at(4, echoPort).Addr(), echoPort)
	fmt.Fprintln(d.out, "The tables of the balancer:")
	fmt.Fprintf(d.out, "%s service list\n%s ct list -proto tcp\n%s metrics list\n", dpctl, dpctl, dpctl)
	fmt.Fprintf(d.out, "  sudo kill -USR1 %d\n", os.Getpid())
	fmt.Fprintf(d.out, "Its services, followed as soon as they are written:\n  %s\n", d.file)
}

// close ends the balancer and takes everything away but the place.
func (d *demonstration) close() error {
	var errs []error
	if d.stop != nil {
		d.stop()
		errs = append(errs, <-d.ended)
	}
	for _, b := range d.backends {
		errs = append(errs, b.close())
	}
	errs = append(errs, d.takeDown())
	for _, path := range []string{d.file, d.file + ".new"} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
