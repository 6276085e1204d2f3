// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/godatapath/datapath/examples/internal/cli"
)

// watch tells once a second what has been counted, until ctx or the cluster
// ends: on one line of a terminal, or in a log with a line for each change.
func watch(ctx context.Context, counters []*counter, messages io.Writer) error {
	start, terminal := time.Now(), cli.IsTerminal(messages)
	endpoints := 0
	for _, c := range counters {
		endpoints += len(c.attachments)
	}
	fmt.Fprintf(messages, "counting on %d endpoints of %d nodes; Ctrl-C ends it\n", endpoints, len(counters))
	second := time.NewTicker(time.Second)
	defer second.Stop()
	var told questions
	for {
		ended := false
		select {
		case <-ctx.Done():
			ended = true
		case <-second.C:
		}
		gone, err := look(counters)
		if err != nil {
			return err
		}
		now, err := sum(counters)
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%4.0fs  %d questions over UDP, %d connections over TCP", time.Since(start).Seconds(), now.UDP, now.TCP)
		if terminal {
			fmt.Fprintf(messages, "\r\033[K%s", line)
			if ended || gone {
				fmt.Fprintln(messages)
			}
		} else if now != told {
			fmt.Fprintln(messages, line)
		}
		told = now
		if gone {
			fmt.Fprintln(messages, "the cluster has ended: this is what was counted until then")
		}
		if ended || gone {
			return nil
		}
	}
}

// look has all counters look at their nodes. gone: one is no longer there.
func look(counters []*counter) (gone bool, err error) {
	for _, c := range counters {
		if err := c.look(); errors.Is(err, os.ErrNotExist) {
			gone = true
		} else if err != nil {
			return gone, fmt.Errorf("%s: %w", c.node.name, err)
		}
	}
	return gone, nil
}

// sum is what all endpoints have asked.
func sum(counters []*counter) (questions, error) {
	var all questions
	for _, c := range counters {
		for e, err := range c.table.All() {
			if err != nil {
				return all, fmt.Errorf("%s: %w", c.node.name, err)
			}
			all.UDP += e.Value.UDP
			all.TCP += e.Value.TCP
		}
	}
	return all, nil
}
