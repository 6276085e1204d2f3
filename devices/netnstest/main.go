// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"fmt"
	"io"
	"os"
)

// Main runs the tests of a package and then looks for what all of them left:
// file descriptors, BPF maps, programs and links with their names, goroutines,
// threads in a foreign namespace, network devices in the namespace of the
// process, names in /run/netns, and mounts of BPF filesystems. It prints what it
// finds to standard error and returns the exit code, which is not 0 if there
// was something. It is for TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }
//
// A [Lab] finds the leaks of its own test earlier, but cannot tell whose a BPF
// object is while tests run in parallel. In the same way Main cannot tell whose
// a name or a mount is while tests of other packages run on the machine; then it
// counts only those that have the number of this process (os.Getpid) in their
// path. m is a *testing.M.
func Main(m interface{ Run() int }) int {
	return run(m, os.Stderr)
}

func run(m interface{ Run() int }, report io.Writer) int {
	before, err := takeCensus()
	if err != nil {
		fmt.Fprintf(report, "netnstest: %v\n", err)
		return 1
	}
	aroundBefore, err := lookAround()
	if err != nil {
		fmt.Fprintf(report, "netnstest: %v\n", err)
		return 1
	}
	home, known := inodeOf("/proc/thread-self/ns/net"), stacks()
	code := m.Run()
	defer stopCollector()()
	leaks := untilNone(func() []string {
		now, err := takeCensus()
		if err != nil {
			return []string{err.Error()}
		}
		aroundNow, err := lookAround()
		if err != nil {
			return []string{err.Error()}
		}
		var found []string
		for _, d := range since(before.descriptors, now.descriptors) {
			found = append(found, d.describe())
		}
		found = append(found, linksSince(before.links, now.links)...)
		found = append(found, aroundNow.since(aroundBefore)...)
		for number, stack := range stacks() {
			if _, ok := known[number]; !ok && !ofRuntime(stack) {
				found = append(found, "goroutine "+number+"\n"+stack)
			}
		}
		return append(found, strayThreads(home)...)
	})
	for _, leak := range leaks {
		fmt.Fprintf(report, "netnstest: left behind by the tests of this package: %s\n", leak)
	}
	if len(leaks) > 0 && code == 0 {
		return 1
	}
	return code
}
