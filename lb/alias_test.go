// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// The probability of each candidate, added up over the table, is its weight's.
func TestAliasTable(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 3, 10, 100, 1000, 65535} {
		for _, heaviest := range []uint32{1, 2, 100, 65535} {
			all := make([]candidate, n)
			var total uint64
			for i := range all {
				all[i] = candidate{id: uint32(i + 1), weight: 1 + rnd.Uint32N(heaviest)}
				total += uint64(all[i].weight)
			}
			table := aliasTable(all)
			require.Len(t, table, n)
			chance := map[uint32]uint64{} // in 2^32ths of a slot
			for _, s := range table {
				chance[s.first] += uint64(s.below) + 1
				chance[s.second] += 1<<32 - 1 - uint64(s.below)
			}
			require.NotContains(t, chance, uint32(0))
			for _, c := range all {
				want := float64(c.weight) / float64(total)
				got := float64(chance[c.id]) / float64(n) / (1 << 32)
				require.InDelta(t, want, got, 1e-8, "%d candidates, weight %d of %d", n, c.weight, total)
			}
		}
	}
	require.Empty(t, aliasTable(nil))
}
