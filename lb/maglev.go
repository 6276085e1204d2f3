// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"
)

// candidate is a backend that may be chosen, with its share.
type candidate struct {
	id     uint32
	addr   netip.AddrPort
	weight uint32 // not 0
}

// maglevTable fills a table of size slots, a prime, with the ids of the
// candidates: each has a share of the slots close to its weight's, and few slots
// change their owner when a candidate comes or goes (Eisenbud et al., NSDI 2016,
// section 3.4, with turns by weight). The same candidates and seed give the same
// table on every node, in whatever order they come, up to the ids. nil without
// candidates.
func maglevTable(all []candidate, size, seed uint32) []uint32 {
	if len(all) == 0 {
		return nil
	}
	// The order of the turns must not depend on that of the input.
	order := slices.Clone(all)
	slices.SortFunc(order, func(a, b candidate) int { return a.addr.Compare(b.addr) })
	heaviest := uint32(0)
	for _, c := range order {
		heaviest = max(heaviest, c.weight)
	}
	type turn struct{ next, skip, credit uint32 }
	turns := make([]turn, len(order))
	for i, c := range order {
		offset, skip := maglevHash(c.addr, seed)
		turns[i] = turn{next: offset % size, skip: skip%(size-1) + 1}
	}
	table := make([]uint32, size)
	for filled := uint32(0); ; {
		for i := range turns {
			t := &turns[i]
			// A full turn for the heaviest, and a part of one for the others.
			t.credit += order[i].weight
			if t.credit < heaviest {
				continue
			}
			t.credit -= heaviest
			for table[t.next] != 0 {
				t.next = step(t.next, t.skip, size)
			}
			table[t.next] = order[i].id
			t.next = step(t.next, t.skip, size)
			if filled++; filled == size {
				return table
			}
		}
	}
}

func step(at, skip, size uint32) uint32 {
	if at += skip; at >= size { // both are below size, which is below 2^31
		at -= size
	}
	return at
}

// maglevHash is the place in the table where a backend starts, and its stride.
// The two halves of a hash that is mixed once more, since FNV spreads addresses
// that differ in their last bits too little.
func maglevHash(addr netip.AddrPort, seed uint32) (offset, skip uint32) {
	h := fnv.New64a()
	var b [22]byte
	binary.BigEndian.PutUint32(b[:], seed)
	a := addr.Addr().As16()
	copy(b[4:], a[:])
	binary.BigEndian.PutUint16(b[20:], addr.Port())
	h.Write(b[:])
	x := mix(h.Sum64())
	return uint32(x >> 32), uint32(x)
}

// mix is the finalizer of SplitMix64: each bit of the result depends on all of x.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// isPrime tells whether n is a prime, for sizes of tables.
func isPrime(n uint32) bool {
	if n < 2 {
		return false
	}
	for d := uint32(2); uint64(d)*uint64(d) <= uint64(n); d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}
