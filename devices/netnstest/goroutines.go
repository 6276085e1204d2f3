// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"runtime/pprof"
	"strings"
)

// labelKey marks the goroutines of a lab.
const labelKey = "netnstest"

// ofRuntime tells whether a stack is one that the standard library starts once
// and keeps, or one of the testing package.
func ofRuntime(stack string) bool {
	for _, known := range []string{
		"os/signal.loop", "os/signal.signal_recv", "runtime.ensureSigM",
		"testing.(*T).Run", "testing.tRunner", "testing.runFuzzing", "testing.(*M).",
		"runtime/pprof.profileWriter", "runtime/trace.", "runtime.goexit0",
	} {
		if strings.Contains(stack, known) {
			return true
		}
	}
	return false
}

// start runs fn on a goroutine of the lab itself, whichever lab the caller's
// label names.
func (l *Lab) start(fn func()) {
	go pprof.Do(context.Background(), pprof.Labels(labelKey, l.id), func(context.Context) { fn() })
}

// exists is a goroutine that is there as long as the lab is, for [Lab.alone] of
// another one to see. The package keeps no list of labs.
func (l *Lab) exists() { <-l.over }

// profile returns the goroutines of the process with their labels. It joins
// those that are equal, so there is one entry per place and label.
func profile() []string {
	var text bytes.Buffer
	// Only this form, 1, shows the labels. Writing to memory cannot fail.
	_ = pprof.Lookup("goroutine").WriteTo(&text, 1)
	return strings.Split(text.String(), "\n\n")
}

// label is how the profile shows the label of a lab.
func (l *Lab) label() string { return fmt.Sprintf("%q:%q", labelKey, l.id) }

// goroutines returns the stacks of those that carry the label of the lab: the
// ones that its test started and that have not ended.
func (l *Lab) goroutines() []string {
	var found []string
	for _, block := range profile() {
		if strings.Contains(block, l.label()) && !ofRuntime(block) {
			found = append(found, shorten(block))
		}
	}
	return found
}

// shorten keeps the functions and places of a block of the profile.
func shorten(block string) string {
	var lines []string
	for line := range strings.Lines(block) {
		if rest, ok := strings.CutPrefix(line, "#\t0x"); ok {
			fields := strings.Fields(rest)
			if len(fields) >= 3 {
				lines = append(lines, "\t"+fields[1]+" "+fields[2])
			}
		}
	}
	return strings.Join(lines, "\n")
}

// stacks returns the goroutines of the process by their number.
func stacks() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := make(map[string]string)
	for block := range strings.SplitSeq(string(buf), "\n\n") {
		header, stack, ok := strings.Cut(block, "\n")
		number, _, found := strings.Cut(strings.TrimPrefix(header, "goroutine "), " ")
		if ok && found {
			all[number] = stack
		}
	}
	return all
}

// alone tells whether no other test and no other lab is there at the moment. A
// test that waits for its subtests or for its turn has the testing package on
// top of its stack.
func (l *Lab) alone() bool {
	for _, block := range profile() {
		if strings.Contains(block, "netnstest.(*Lab).exists") && !strings.Contains(block, l.label()) {
			return false
		}
	}
	own := make([]byte, 64)
	own = own[:runtime.Stack(own, false)]
	me, _, _ := strings.Cut(strings.TrimPrefix(string(own), "goroutine "), " ")
	for number, stack := range stacks() {
		if number != me && strings.Contains(stack, "testing.tRunner(") && !strings.HasPrefix(stack, "testing.") {
			return false
		}
	}
	return true
}
