// SPDX-License-Identifier: Apache-2.0

package lb

// slot is one place of a table for a choice by weight in one step: take a slot at
// random, then its first backend with the probability that below has in 2^32, else
// its second.
type slot struct {
	first, second uint32
	below         uint32 // a random number below it, or equal, takes the first
}

// aliasTable makes as many slots as there are candidates, such that each is
// chosen with exactly the probability of its weight, to 2^-32 (Walker's alias
// method, in Vose's form). nil without candidates.
func aliasTable(all []candidate) []slot {
	n := uint64(len(all))
	var total uint64
	for _, c := range all {
		total += uint64(c.weight)
	}
	// In units in which a slot has room for total.
	left := make([]uint64, n)
	var small, large []int
	for i, c := range all {
		left[i] = uint64(c.weight) * n
		if left[i] < total {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	table := make([]slot, n)
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		table[s] = slot{first: all[s].id, second: all[l].id, below: part(left[s], total)}
		if left[l] -= total - left[s]; left[l] < total {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	// Those left over fill a slot of their own: the sums are exact.
	for _, i := range append(small, large...) {
		table[i] = slot{first: all[i].id, second: all[i].id, below: 1<<32 - 1}
	}
	return table
}

// part is a/b in 2^32ths, less one since "equal" counts as below; a < b. A part
// of nothing can not be told and is one 2^32th.
func part(a, b uint64) uint32 {
	p := a << 32 / b // a is below 2^16 backends of a weight below 2^16
	if p == 0 {
		return 0
	}
	return uint32(p - 1)
}
