// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// job tells a child what to do. It is started inside its namespace.
type job struct {
	Measure string
	Server  bool
	Addr    netip.AddrPort // of the server
	CPU     int
	WarmUp  time.Duration
	Time    time.Duration
}

// outcome is what a child prints when it is done. A server prints a line with
// readyWord before.
type outcome struct {
	P50   float64 // µs
	Count int
	Rate  float64 // datagrams or bits a second, from a server
}

const readyWord = "ready"

// childEnv makes a Go process behave as a plain one: it waits in system calls
// that the runtime does not know of, so nothing may want to stop it there.
var childEnv = []string{"GOMAXPROCS=1", "GOGC=off", "GODEBUG=asyncpreemptoff=1"}

// childMain is one end of a measurement.
func childMain(text string) int {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		fmt.Fprintf(os.Stderr, "read the job: %v\n", err)
		return exitUsage
	}
	// Only the thread that does the work is pinned; those of the runtime may
	// find another CPU.
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(j.CPU)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		fmt.Fprintf(os.Stderr, "pin to CPU %d: %v\n", j.CPU, err)
		return exitFailed
	}
	out, err := j.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		return exitFailed
	}
	return exitOK
}

func (j job) run() (outcome, error) {
	work := map[string]struct{ server, client func(job) (outcome, error) }{
		"rr":     {serveRR, callRR},
		"crr":    {serveCRR, callCRR},
		"udp":    {receiveUDP, sendUDP},
		"stream": {receiveStream, sendStream},
	}[j.Measure]
	switch {
	case work.client == nil:
		return outcome{}, fmt.Errorf("no such measure: %q", j.Measure)
	case j.Server:
		return work.server(j)
	default:
		return work.client(j)
	}
}

// ready tells the parent that the client may start.
func ready() error {
	_, err := fmt.Println(readyWord)
	return err
}
