// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"fmt"
	"time"
)

// clock turns the kernel's ticks into time. The programs keep time in jiffies,
// which cost nothing to read, and how many there are in a second is a build
// option of the kernel that it does not tell.
type clock struct{ hz uint64 }

// The values of CONFIG_HZ that Linux offers on some architecture.
var possibleHZ = []uint64{24, 32, 48, 64, 100, 128, 200, 250, 256, 300, 500, 512, 1000, 1024, 1200}

// newClock finds the ticks in a second from the two clocks read together. The
// jiffies start five minutes before the 32-bit counter wraps, so each possible
// value predicts another number of them for the time since boot, even at boot.
func newClock(jiffies, nanoseconds uint64) (clock, error) {
	uptime := float64(nanoseconds) / 1e9
	var best uint64
	least := 60.0 // seconds of disagreement that are too many for any machine
	for _, hz := range possibleHZ {
		expect := float64(uint64(1)<<32) - 300*float64(hz) + uptime*float64(hz)
		off := (float64(jiffies) - expect) / float64(hz)
		if off < 0 {
			off = -off
		}
		if off < least {
			best, least = hz, off
		}
	}
	if best == 0 {
		return clock{}, fmt.Errorf("find the kernel's ticks per second: %d jiffies %.3f s after boot fit none", jiffies, uptime)
	}
	return clock{hz: best}, nil
}

// ticks rounds up, so that nothing lives shorter than asked.
func (c clock) ticks(d time.Duration) uint32 {
	return uint32((uint64(d)*c.hz + uint64(time.Second) - 1) / uint64(time.Second))
}

// since is the time from a tick to now, both the lower half of the counter.
func (c clock) since(now, then uint32) time.Duration {
	ticks := int32(now - then)
	if ticks < 0 { // another CPU was a tick ahead
		return 0
	}
	return time.Duration(uint64(ticks) * uint64(time.Second) / c.hz)
}
