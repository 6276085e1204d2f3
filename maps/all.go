// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"iter"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// restarts bounds how often one walk may be thrown back or held up before it
// gives up with ebpf.ErrIterationAborted.
const restarts = 128

// rounds bounds a walk from key to key over a hash: it goes round the table no
// more than so often, and in one round passes over no more than so many times
// the keys it knows.
const rounds = 16

// All walks over the entries. While programs and other goroutines change the
// table, each entry that is there all the time is yielded, exactly once; one
// that comes or goes meanwhile is yielded once or not at all. A value is what
// it was when the walk came by. The order is the kernel's. The loop may call any
// method of the table, Delete and Close among them, and may end early. After an
// error nothing more is yielded; a walk that changes of the table keep throwing
// back ends with [ebpf.ErrIterationAborted].
//
// Kinds without batch look-up, such as tables of devices, are walked from key to
// key. There an entry can be missed if its value is replaced, again and again,
// just when the walk is in its bucket.
//
// An array yields its whole capacity. In a trie, an entry that is deleted while
// the kernel reads it may come with the value of the prefix that covers it.
func (m *Map[K, V]) All() iter.Seq2[Entry[K, V], error] {
	return func(yield func(Entry[K, V], error) bool) {
		err := m.walk(func(b *buffer[K, V], count int) bool {
			for i := range count {
				if !yield(Entry[K, V]{b.keys[i], b.value(i)}, nil) {
					return false
				}
			}
			return true
		})
		if err != nil {
			yield(Entry[K, V]{}, fmt.Errorf("walk over table %s: %w", m.name, err))
		}
	}
}

// walk hands the entries to visit in batches, until that returns false. The
// buffer is good for one call of visit.
func (m *Map[K, V]) walk(visit func(b *buffer[K, V], count int) bool) error {
	if err := m.enter(); err != nil {
		return err
	}
	b := m.takeBuffer()
	m.leave()
	defer func() { m.batches.Put(b) }()

	if !m.noBatch {
		err := m.walkBatches(&b, visit)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
		// The kind has no batch look-up. The kernel says so at the first call,
		// so nothing was visited yet.
	}
	return m.walkKeys(b, visit)
}

// walkBatches asks for many entries at once. In hashes the cursor is a bucket,
// and a bucket is read whole under its lock, which makes the walk immune to
// changes. In arrays nothing comes or goes. In tries the cursor is a key; if
// that is deleted the kernel starts again at the front, and the order of keys
// tells us.
func (m *Map[K, V]) walkBatches(buf **buffer[K, V], visit func(b *buffer[K, V], count int) bool) error {
	b := *buf
	trie := m.em.Type() == ebpf.LPMTrie
	cursor := make([]byte, max(4, m.lay.keySize)) // a u32 for hashes, a key for the others
	var in []byte
	var order trieOrder
	held := 0
	for {
		n, err := m.lookupBatch(b, in, cursor)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			// ENOENT is the end, also if entries came with it.
		case errors.Is(err, unix.ENOSPC):
			// A bucket is larger than the buffer. The cursor stands at it.
			if b.len() > 4*max(batchLeast, int(m.em.MaxEntries())) {
				return err
			}
			b = newBuffer[K, V](&m.lay, 2*b.len())
			*buf = b
			n = 0
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINTR):
			// Kernels before 6.15: the lock of a bucket was taken, or a key
			// went away under the cursor. What was copied so far is good, and
			// the cursor stands behind it.
			if held++; held > restarts {
				return fmt.Errorf("%w: %w", ebpf.ErrIterationAborted, err)
			}
			runtime.Gosched()
		default:
			return explainPermission(err)
		}
		if n > 0 || errors.Is(err, unix.ENOSPC) {
			in = cursor
		}
		if trie {
			if n = keepNew(&order, b, n); order.wraps > restarts {
				return ebpf.ErrIterationAborted
			}
		}
		if n > 0 && !visit(b, n) {
			return nil
		}
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
	}
}

// keepNew drops the entries of a trie that were visited before the kernel
// started again at the front, and returns how many are left.
func keepNew[K, V any](order *trieOrder, b *buffer[K, V], n int) int {
	kept := 0
	for i := range n {
		if !order.isNew(keyBytes(&b.keys[i])) {
			continue
		}
		if kept != i {
			b.keys[kept] = b.keys[i]
			copy(b.valueBytes(kept), b.valueBytes(i))
		}
		kept++
	}
	return kept
}

func (m *Map[K, V]) lookupBatch(b *buffer[K, V], in, out []byte) (int, error) {
	if err := m.enter(); err != nil {
		return 0, err
	}
	defer m.leave()
	return batch(unix.BPF_MAP_LOOKUP_BATCH, m.em, in, out, b.keyPointer(0), b.valuePointer(0), b.len())
}

// walkKeys goes from key to key, for kinds without batches. When the key it
// stands at is deleted, the kernel starts again at the front, and keys that were
// visited before are passed over. In tries the order of keys tells which those
// are. In hashes a set of them is kept, and there is one more trap: a value that
// is replaced moves to the front of its bucket, so a walk inside that bucket
// misses it. Therefore rounds are made until one finds nothing new.
func (m *Map[K, V]) walkKeys(b *buffer[K, V], visit func(b *buffer[K, V], count int) bool) error {
	if err := m.enter(); err != nil {
		return err
	}
	array, trie := isArray(m.em.Type()), m.em.Type() == ebpf.LPMTrie
	m.leave()
	switch {
	case array:
		_, _, err := m.round(b, visit, func([]byte, *K) (bool, bool) { return true, false })
		return err
	case trie:
		var order trieOrder
		_, _, err := m.round(b, visit, func(key []byte, _ *K) (isNew, giveUp bool) {
			isNew = order.isNew(key)
			return isNew, order.wraps > restarts
		})
		return err
	}
	seen := newIndex[K]()
	for range rounds {
		again := 0
		found, more, err := m.round(b, visit, func(_ []byte, key *K) (isNew, giveUp bool) {
			if _, isNew = seen.add(key); !isNew {
				again++
			}
			return isNew, again > rounds*(len(seen.keys)+batchLeast)
		})
		if err != nil || !more || found == 0 {
			return err
		}
	}
	return nil
}

// round goes over all keys once and visits those that judge calls new. It
// returns how many those were, and false if visit wants no more.
func (m *Map[K, V]) round(b *buffer[K, V], visit func(b *buffer[K, V], count int) bool, judge func(key []byte, at *K) (isNew, giveUp bool)) (found int, more bool, err error) {
	var at, next K
	err = m.nextKey(nil, &at)
	for ; err == nil; at = next {
		isNew, giveUp := judge(keyBytes(&at), &at)
		if giveUp {
			return found, false, ebpf.ErrIterationAborted
		}
		there := false
		if isNew {
			found++
			if there, err = m.read(b, &at); err != nil {
				break
			}
		}
		// The step is taken before the visit, which may well delete the entry.
		err = m.nextKey(&at, &next)
		if there && !visit(b, 1) {
			return found, false, nil
		}
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil
	}
	return found, true, explainPermission(err)
}

// nextKey finds the key behind at, or the first one if at is nil.
func (m *Map[K, V]) nextKey(at, next *K) error {
	if err := m.enter(); err != nil {
		return err
	}
	defer m.leave()
	var from any
	if at != nil {
		from = unsafe.Pointer(at)
	}
	return m.em.NextKey(from, unsafe.Pointer(next))
}

// read puts the entry of key at the front of b; false if it is gone.
func (m *Map[K, V]) read(b *buffer[K, V], key *K) (bool, error) {
	if err := m.enter(); err != nil {
		return false, err
	}
	defer m.leave()
	b.keys[0] = *key
	var err error
	if m.lay.cpus == 0 {
		err = m.em.Lookup(unsafe.Pointer(key), unsafe.Pointer(&b.values[0]))
	} else {
		var raw []byte
		if raw, err = m.em.LookupBytes(unsafe.Pointer(key)); raw == nil && err == nil {
			return false, nil
		}
		copy(b.valueBytes(0), raw)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return err == nil, err
}
