// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/bpf"
)

// BenchmarkExpire is a pass over 1,000,000 entries of which half are due.
func BenchmarkExpire(b *testing.B) {
	const flows = 500_000
	table := newTable(b, Config{Flows: flows + 1000})
	var took time.Duration
	for b.Loop() {
		b.StopTimer()
		_, err := table.Flush(Filter{})
		require.NoError(b, err)
		old, now := ago(b, table, 7*3600), ago(b, table, 0)
		fill(b, table, flows, bpf.TableFlowStageFLOW_CONFIRMED, func(i int) uint32 {
			if i%2 == 0 {
				return old
			}
			return now
		})
		b.StartTimer()
		done, err := table.Expire()
		require.NoError(b, err)
		require.EqualValues(b, flows/2, done.Flows)
		require.EqualValues(b, flows, done.Entries)
		took = done.Duration
	}
	b.ReportMetric(took.Seconds(), "s/pass")
}

// BenchmarkAll lists 500,000 flows.
func BenchmarkAll(b *testing.B) {
	const flows = 500_000
	table := newTable(b, Config{Flows: flows + 1000})
	now := ago(b, table, 0)
	fill(b, table, flows, bpf.TableFlowStageFLOW_CONFIRMED, func(int) uint32 { return now })
	for b.Loop() {
		n := 0
		for _, err := range table.All() {
			require.NoError(b, err)
			n++
		}
		require.Equal(b, flows, n)
	}
}
