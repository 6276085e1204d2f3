// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails the run if a test has left a descriptor, a goroutine or a
// mount behind.
func TestMain(m *testing.M) {
	// A folder of our own tells our mounts from those of other packages' tests,
	// which run at the same time.
	tmp, err := os.MkdirTemp("", "maps-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Setenv("TMPDIR", tmp)
	before := strings.Join(descriptors(), "\n")
	code := m.Run()
	fuzzing := flag.Lookup("test.fuzz").Value.String() != "" || flag.Lookup("test.fuzzworker").Value.String() == "true"
	if code == 0 && !fuzzing { // its workers and pipes are not ours
		if left := leftovers(before, tmp); left != "" {
			fmt.Fprintln(os.Stderr, "left behind:", left)
			code = 1
		}
	}
	if err := os.RemoveAll(tmp); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// leftovers waits for what is on its way out, then names what stays beside
// the descriptors of before.
func leftovers(before, tmp string) string {
	var left []string
	for range 50 {
		left = extraGoroutines()
		for _, d := range descriptors() {
			if !strings.Contains(before, d) {
				left = append(left, d)
			}
		}
		left = append(left, mountsBelow(tmp)...)
		if len(left) == 0 {
			return ""
		}
		runtime.GC()
		time.Sleep(20 * time.Millisecond)
	}
	return strings.Join(left, ", ")
}

// descriptors lists what is open. The poller of the runtime and the page that
// cilium/ebpf maps may come with the first test and stay.
func descriptors() []string {
	var found []string
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return []string{err.Error()}
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" || strings.HasSuffix(target, "/fd") {
			continue
		}
		found = append(found, "fd "+e.Name()+" "+target)
	}
	return found
}

func extraGoroutines() []string {
	if n := runtime.NumGoroutine(); n > 1 {
		buf := make([]byte, 1<<16)
		return []string{fmt.Sprintf("%d goroutines: %s", n, buf[:runtime.Stack(buf, true)])}
	}
	return nil
}

func mountsBelow(dir string) []string {
	var found []string
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], dir+"/") {
			found = append(found, "mount "+f[4])
		}
	}
	return found
}
