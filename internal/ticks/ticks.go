// SPDX-License-Identifier: Apache-2.0

// Package ticks turns the kernel's jiffies into time and back. The programs keep
// time in them, which cost nothing to read, in the lower 32 bits of the counter.
package ticks

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Clock knows how many ticks a second has.
type Clock struct{ hz uint64 }

// HZ is the number of ticks in a second.
func (c Clock) HZ() uint64 { return c.hz }

// Ahead is how many ticks an entry may be younger than the moment it is looked
// at: it is used while we read. The same as in expire.c.
const Ahead = 1 << 24

// Kernel asks for the kernel's ticks in a second, CONFIG_HZ. Linux does not
// tell that number, but its coarse clocks move once a tick, and it does tell how
// far they move.
func Kernel() (Clock, error) {
	var tick unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick); err != nil {
		return Clock{}, fmt.Errorf("find the kernel's ticks per second: %w", err)
	}
	return newClock(time.Duration(tick.Nano()))
}

// newClock makes the clock of a tick, which the kernel rounds to nanoseconds.
func newClock(tick time.Duration) (Clock, error) {
	if tick < 100*time.Microsecond || tick > 100*time.Millisecond {
		return Clock{}, fmt.Errorf("find the kernel's ticks per second: a tick of %s can not be", tick)
	}
	return Clock{hz: uint64((time.Second + tick/2) / tick)}, nil
}

// Of rounds up, so that nothing lives shorter than asked.
func (c Clock) Of(d time.Duration) uint32 {
	return uint32((uint64(d)*c.hz + uint64(time.Second) - 1) / uint64(time.Second))
}

// Since is the time from a tick to now, both the lower half of the counter. It
// wraps with that: at 1000 ticks a second after 49 days.
func (c Clock) Since(now, then uint32) time.Duration {
	ticks := now - then
	if ticks > ^uint32(0)-Ahead+1 {
		return 0
	}
	// Whole seconds apart, or the product would not fit 64 bits at the end.
	return time.Duration(uint64(ticks)/c.hz)*time.Second +
		time.Duration(uint64(ticks)%c.hz*uint64(time.Second)/c.hz)
}
