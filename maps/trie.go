// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"math/bits"
)

// compareTrie orders the keys of a trie (struct bpf_lpm_trie_key: 32 bits of
// prefix length, then the address) as the kernel walks them: what lies below a
// prefix comes before the prefix itself, and a 0 bit before a 1 bit. The order
// does not depend on what else is in the trie, so a walk that was thrown back
// to the start is noticed, and nothing is seen twice.
func compareTrie(a, b []byte) int {
	la, lb := trieLength(a), trieLength(b)
	if at := commonBits(a[4:], b[4:]); at < min(la, lb) {
		if a[4+at/8]&(0x80>>(at%8)) == 0 {
			return -1
		}
		return 1
	}
	return lb - la // the longer one lies below the other
}

// trieLength is the prefix length of a key in bits, no more than it has.
func trieLength(key []byte) int {
	return int(min(binary.NativeEndian.Uint32(key), uint32(8*(len(key)-4))))
}

// commonBits counts the bits that a and b, of one length, share at the start.
func commonBits(a, b []byte) int {
	for i := range a {
		if x := a[i] ^ b[i]; x != 0 {
			return 8*i + bits.LeadingZeros8(x)
		}
	}
	return 8 * len(a)
}

// trieOrder follows a walk over a trie.
type trieOrder struct {
	prev  []byte // the key that the kernel gave last
	last  []byte // the greatest key so far
	wraps int    // how often the kernel started again at the front
}

// isNew tells whether the walk comes by key for the first time.
func (o *trieOrder) isNew(key []byte) bool {
	if o.prev != nil && compareTrie(key, o.prev) <= 0 {
		o.wraps++
	}
	o.prev = append(o.prev[:0], key...)
	if o.last != nil && compareTrie(key, o.last) <= 0 {
		return false
	}
	o.last = append(o.last[:0], key...)
	return true
}
