// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestLossMeterCounting(t *testing.T) {
	t.Parallel()
	start := time.Unix(100, 0)
	for name, c := range map[string]struct {
		arrivals []uint64
		want     LossReport
	}{
		"in order":       {[]uint64{0, 1, 2}, LossReport{Sent: 200, Received: 3, Missing: 197, LongestGap: time.Second}},
		"swapped":        {[]uint64{1, 0, 2}, LossReport{Sent: 200, Received: 3, Missing: 197, Reordered: 1, LongestGap: time.Second}},
		"late duplicate": {[]uint64{0, 5, 0}, LossReport{Sent: 200, Received: 2, Missing: 198, Duplicated: 1, LongestGap: time.Second}},
		"far apart":      {[]uint64{199, 64, 63}, LossReport{Sent: 200, Received: 3, Missing: 197, Reordered: 2, LongestGap: time.Second}},
		"never sent":     {[]uint64{200, 1 << 60}, LossReport{Sent: 200, Missing: 200}},
	} {
		m := &LossMeter{last: start, highest: -1, arrived: make(chan struct{}), report: LossReport{Sent: 200}}
		for i, number := range c.arrivals {
			m.note(number, start.Add(time.Duration(i+1)*time.Second))
		}
		assert.Equal(t, c.want, m.Report(), name)
	}
}
