// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"unsafe"
)

const (
	batchEntries = 8192    // at most this many entries in one system call
	batchBytes   = 1 << 20 // and about this many bytes, but not fewer than batchLeast
	batchLeast   = 64
)

// buffer is room for a batch of entries.
type buffer[K, V any] struct {
	lay    *layout
	keys   []K
	values []V      // not per-CPU
	raw    []uint64 // per-CPU, as the kernel lays them out
}

// batchSize is how many entries a batch has for a start.
func (m *Map[K, V]) batchSize() int {
	n := batchBytes / (m.lay.keySize + m.lay.stride*max(1, m.lay.cpus))
	n = min(max(n, batchLeast), batchEntries)
	return max(1, min(n, int(m.em.MaxEntries())))
}

func (m *Map[K, V]) takeBuffer() *buffer[K, V] {
	if b, ok := m.batches.Get().(*buffer[K, V]); ok {
		return b
	}
	return newBuffer[K, V](&m.lay, m.batchSize())
}

func newBuffer[K, V any](lay *layout, n int) *buffer[K, V] {
	b := &buffer[K, V]{lay: lay, keys: make([]K, n)}
	if lay.cpus == 0 {
		b.values = make([]V, n)
	} else {
		b.raw = make([]uint64, n*lay.cpus*lay.stride/8)
	}
	return b
}

func (b *buffer[K, V]) len() int { return len(b.keys) }

func (b *buffer[K, V]) keyPointer(i int) unsafe.Pointer { return unsafe.Pointer(&b.keys[i]) }

func (b *buffer[K, V]) valuePointer(i int) unsafe.Pointer {
	if b.lay.cpus == 0 {
		return unsafe.Pointer(&b.values[i])
	}
	return unsafe.Pointer(&b.raw[i*b.lay.cpus*b.lay.stride/8])
}

// valueBytes is the value of entry i as the kernel has it.
func (b *buffer[K, V]) valueBytes(i int) []byte {
	if b.lay.cpus == 0 {
		return valueBytes(&b.values[i])
	}
	words := b.lay.cpus * b.lay.stride / 8
	return wordBytes(b.raw[i*words : (i+1)*words])
}

func (b *buffer[K, V]) value(i int) V {
	if b.lay.cpus == 0 {
		return b.values[i]
	}
	return decodeCPUs[V](b.lay, b.valueBytes(i))
}

// set writes entry i as the kernel wants it.
func (b *buffer[K, V]) set(i int, key K, value V) error {
	b.keys[i] = key
	if b.lay.cpus > 0 {
		slice := value // this copy moves to the heap, and only for these kinds
		return encodeCPUs(b.lay, b.valueBytes(i), &slice)
	}
	b.values[i] = value
	b.lay.clearBlank(b.valueBytes(i))
	return nil
}
