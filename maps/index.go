// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"bytes"
	"hash/maphash"
)

// index finds keys by their bytes, which is how the kernel compares them. A Go
// map would need comparable keys and would compare them as Go does.
type index[K any] struct {
	seed  maphash.Seed
	keys  []K
	slots []uint32 // 1 + position in keys; 0: free. A power of two, half full at most.
}

func newIndex[K any]() *index[K] {
	return &index[K]{seed: maphash.MakeSeed(), slots: make([]uint32, 16)}
}

// find returns the position of key, or -1.
func (x *index[K]) find(key *K) int {
	return int(x.slots[x.slot(key)]) - 1
}

// add returns the position of key and whether it is new.
func (x *index[K]) add(key *K) (int, bool) {
	s := x.slot(key)
	if at := x.slots[s]; at != 0 {
		return int(at) - 1, false
	}
	x.keys = append(x.keys, *key)
	x.slots[s] = uint32(len(x.keys))
	if 2*len(x.keys) > len(x.slots) {
		x.slots = make([]uint32, 2*len(x.slots))
		for i := range x.keys {
			x.slots[x.slot(&x.keys[i])] = uint32(i + 1)
		}
	}
	return len(x.keys) - 1, true
}

// slot is where key is, or the free place where it belongs.
func (x *index[K]) slot(key *K) int {
	b := keyBytes(key)
	mask := len(x.slots) - 1
	for s := int(maphash.Bytes(x.seed, b)) & mask; ; s = (s + 1) & mask {
		if at := x.slots[s]; at == 0 || bytes.Equal(b, keyBytes(&x.keys[at-1])) {
			return s
		}
	}
}
