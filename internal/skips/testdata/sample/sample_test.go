// SPDX-License-Identifier: Apache-2.0

// Package sample has tests that are skipped in many ways, for the tests of skips.
package sample

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/godatapath/datapath/devices/netnstest"
)

var errAbsent = fmt.Errorf("attach: %w", errors.ErrUnsupported)

func TestKernel(t *testing.T) {
	t.Log("a word before it")
	netnstest.SkipUnsupported(t, errAbsent)
}

// Two at once: the first says what the second should have said.
func TestNoisy(t *testing.T) {
	t.Parallel()
	for range 20 {
		t.Log("this kernel does not support it: not at all")
		time.Sleep(time.Millisecond)
	}
}

func TestBesideANoisyOne(t *testing.T) {
	t.Parallel()
	time.Sleep(10 * time.Millisecond)
	t.Skip("it is late\nand not supported")
}

func TestSilent(t *testing.T) { t.SkipNow() }

func TestInside(t *testing.T) {
	t.Run("sub", func(t *testing.T) {
		fmt.Print("no newline")
		t.Skip("no time")
	})
}

func BenchmarkKernel(b *testing.B) { netnstest.SkipUnsupported(b, errAbsent) }

func BenchmarkInside(b *testing.B) {
	b.Run("sub", func(b *testing.B) { b.Skip("no time") })
}

func BenchmarkRuns(b *testing.B) {
	for b.Loop() {
		time.Sleep(time.Microsecond)
	}
}

func FuzzSkipped(f *testing.F) { f.Skip("no time") }

func TestFails(t *testing.T) {
	t.Log("what it said")
	t.Fail()
}
