// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"bytes"
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

// labelled returns the stacks of the goroutines that carry the label of a lab:
// those that its test started and that have not ended. The profile joins equal
// stacks, so there is one entry per place.
func labelled(id string) []string {
	var profile bytes.Buffer
	// In this form, 1, the profile shows the labels. Writing to memory cannot
	// fail.
	_ = pprof.Lookup("goroutine").WriteTo(&profile, 1)
	var found []string
	for block := range strings.SplitSeq(profile.String(), "\n\n") {
		if strings.Contains(block, `"`+labelKey+`":"`+id+`"`) && !ofRuntime(block) {
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

// alone tells whether no other test runs in the process at the moment. A test
// that waits for its subtests or for its turn has the testing package on top
// of its stack.
func alone() bool {
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
