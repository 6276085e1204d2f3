// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// listener is told what a balancer does, by one goroutine.
type listener struct {
	up      func(b *balancer, n int) // it is at work, with so many services
	changed func(line string)        // what is new in the file is done
	trouble func(err error)          // what is wrong; what runs goes on
	report  func(b *balancer) error  // somebody has asked how it is
	asks    <-chan os.Signal
}

// serve balances until ctx ends, and takes everything away again but the place,
// which the caller has claimed and releases. If it does not get to work where a
// killed one has been, that one's programs go on as they were.
func serve(ctx context.Context, cfg settings, p *place, config string, tell listener) (err error) {
	file := &watched{path: config}
	services, err := file.first()
	if err != nil {
		return file.explain(err)
	}
	b, err := load(cfg, p)
	if err != nil {
		return err
	}
	defer func() {
		end := b.remove
		if p.keep {
			end = b.close
		}
		err = errors.Join(err, end())
	}()
	if _, err := b.apply(services); err != nil {
		return file.explain(err)
	}
	if err := b.attach(tell.trouble); err != nil {
		return err
	}
	p.keep = false
	tell.up(b, len(services))

	ctx, stop := context.WithCancel(ctx)
	tired := make(chan error, 2)
	var running sync.WaitGroup
	defer func() { stop(); running.Wait() }()
	running.Go(func() {
		if err := b.flows.Run(ctx); err != nil {
			tired <- fmt.Errorf("idle connections are no longer forgotten: %w", err)
		}
	})
	running.Go(func() {
		if err := b.services.Run(ctx); err != nil && ctx.Err() == nil {
			tired <- fmt.Errorf("backends that drain are no longer taken away: %w", err)
		}
	})
	return b.watch(ctx, file, tired, tell)
}

// watch follows the file, and answers who asks, until ctx ends. What has gone wrong
// beside it is told at once, and is the error at the end.
func (b *balancer) watch(ctx context.Context, file *watched, tired <-chan error, tell listener) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	var failed []error
	for {
		select {
		case <-ctx.Done():
			return errors.Join(failed...)
		case err := <-tired:
			tell.trouble(err)
			failed = append(failed, err)
		case <-tell.asks:
			if err := tell.report(b); err != nil {
				tell.trouble(err)
			}
		case <-tick.C:
			b.follow(file, tell)
		}
	}
}

// follow applies what is new in the file.
func (b *balancer) follow(file *watched, tell listener) {
	services, isNew, err := file.look()
	if !isNew {
		return
	}
	changed := ""
	if err == nil {
		changed, err = b.apply(services)
	}
	if err != nil {
		tell.trouble(file.explain(err))
	}
	if changed != "" {
		tell.changed(fmt.Sprintf("%s: %s", filepath.Base(file.path), changed))
	}
}

// explain says that an error is about the file.
func (w *watched) explain(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return err // has said it
	}
	return fmt.Errorf("%s: %w", filepath.Base(w.path), err)
}
