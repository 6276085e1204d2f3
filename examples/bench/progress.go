// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// progress tells a person what happens and how long it takes: on one line of a
// terminal, or on a line of its own now and then.
type progress struct {
	w        io.Writer
	terminal bool
	total    int
	taken    int
	start    time.Time
	spoken   time.Time
}

// pause is how long a log that is not a terminal stays silent.
const pause = 10 * time.Second

func newProgress(w io.Writer) *progress {
	p := &progress{w: w}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.terminal = err == nil
	}
	return p
}

func (p *progress) say(text string) {
	if p.terminal {
		fmt.Fprintf(p.w, "\r\033[K%s", text)
		return
	}
	fmt.Fprintln(p.w, text)
}

// begin is followed by that many steps of about the same length.
func (p *progress) begin(steps int) { p.total, p.start = steps, time.Now() }

func (p *progress) step(text string) {
	left := ""
	if p.taken > 0 {
		each := time.Since(p.start) / time.Duration(p.taken)
		left = fmt.Sprintf("  %s left", (each * time.Duration(p.total-p.taken)).Round(time.Second))
	}
	p.taken++
	if !p.terminal && time.Since(p.spoken) < pause {
		return
	}
	p.spoken = time.Now()
	p.say(fmt.Sprintf("%-46s%s", text, left))
}

// done leaves a clean line.
func (p *progress) done() {
	if p.terminal {
		fmt.Fprint(p.w, "\r\033[K")
	}
}
