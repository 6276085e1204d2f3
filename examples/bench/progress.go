// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"time"

	"github.com/godatapath/datapath/examples/internal/cli"
)

// progress tells a person what happens and how long it takes: on one line of a
// terminal, or with a line for each round in a log.
type progress struct {
	w        io.Writer
	terminal bool
	rounds   int
	steps    int           // in a round
	each     time.Duration // how long a step takes, until one has been made
	taken    int
	start    time.Time
}

func newProgress(w io.Writer) *progress { return &progress{w: w, terminal: cli.IsTerminal(w)} }

func (p *progress) say(text string) {
	if p.terminal {
		fmt.Fprintf(p.w, "\r\033[K%s", text)
		return
	}
	fmt.Fprintln(p.w, text)
}

// begin is followed by that many rounds of that many steps of about that length.
func (p *progress) begin(rounds, steps int, each time.Duration) {
	p.rounds, p.steps, p.each, p.start = rounds, steps, each, time.Now()
}

func (p *progress) step(text string) {
	each := p.each
	if p.taken > 0 {
		each = time.Since(p.start) / time.Duration(p.taken)
	}
	left := (each * time.Duration(p.rounds*p.steps-p.taken)).Round(time.Second)
	round, first := p.taken/p.steps+1, p.taken%p.steps == 0
	p.taken++
	switch {
	case p.terminal:
		p.say(fmt.Sprintf("round %d of %d  %-30s  %s left", round, p.rounds, text, left))
	case first:
		p.say(fmt.Sprintf("round %d of %d, %s left", round, p.rounds, left))
	}
}

// done leaves a clean line.
func (p *progress) done() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\033[K")
	}
}
