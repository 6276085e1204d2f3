// SPDX-License-Identifier: Apache-2.0

package netnstest_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// fakeTB is a test that may fail without failing the real one.
type fakeTB struct {
	testing.TB // for the methods that are not called

	mu       sync.Mutex
	errors   []string
	logs     []string
	skipped  bool
	cleanups []func()
}

func (f *fakeTB) Helper()      {}
func (f *fakeTB) Name() string { return "Fake/test one" }

func (f *fakeTB) Cleanup(fn func()) { f.cleanups = append(f.cleanups, fn) }

func (f *fakeTB) Errorf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errors = append(f.errors, fmt.Sprintf(format, args...))
}

func (f *fakeTB) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	runtime.Goexit()
}

func (f *fakeTB) Skipf(string, ...any) {
	f.skipped = true
	runtime.Goexit()
}

func (f *fakeTB) Logf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logs = append(f.logs, fmt.Sprintf(format, args...))
}

func (f *fakeTB) Failed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.errors) > 0
}

func (f *fakeTB) end() {
	for _, fn := range slices.Backward(f.cleanups) {
		fn()
	}
}

func (f *fakeTB) said() string { return strings.Join(f.errors, "\n") }

// fatal runs fn as a test of its own that can be stopped, and returns what it
// complained about.
func fatal(fn func(tb *fakeTB)) *fakeTB {
	tb := new(fakeTB)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer tb.end()
		fn(tb)
	}()
	<-done
	return tb
}
