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

const (
	// rounds bounds how often a walk goes round the table before it finds
	// nothing new. Where thousands of keys come and go all the time, tens are
	// usual.
	rounds = 256
	// repeats bounds one round: it passes over no more than so many times the keys
	// that the walk knows.
	repeats = 16
	// holdups bounds how often in a row the kernel may hold a walk up without
	// giving it an entry.
	holdups = 1024
)

// All walks over the entries. While programs and other goroutines change the
// table, each entry that is there all the time is yielded, exactly once; one
// that comes or goes meanwhile is yielded once or not at all. A value is what
// it was when the walk came by. The order is the kernel's. The loop may call any
// method of the table, Delete and Close among them, and may end early. After an
// error nothing more is yielded; a walk that changes of the table keep throwing
// back, or that finds something new each time it goes round, ends with
// [ebpf.ErrIterationAborted]: what was yielded need not be all.
//
// An array yields its whole capacity. In tries, and in kinds without batch
// look-up such as tables of devices, the kernel can lose its place when an entry
// is replaced or deleted under it; there the walk goes round until it finds
// nothing new, at least twice, and keeps the keys in memory meanwhile. In a trie,
// an entry that is deleted while the kernel reads it may come with the value of
// the prefix that covers it.
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
//
// One pass is exact for arrays, where nothing comes or goes, and for hashes by
// batch, where the cursor is a bucket and a bucket is read whole under its lock.
// Elsewhere the cursor is a key. If that is deleted, the kernel starts again at
// the front. And if an entry is replaced at the wrong moment, others are passed
// over without a sign: the step from a trie's left child takes a new node in its
// place for the right child, and a new value in a bucket's list goes to the
// front. So passes are repeated until one finds nothing new.
func (m *Map[K, V]) walk(visit func(b *buffer[K, V], count int) bool) error {
	if err := m.enter(); err != nil {
		return err
	}
	b := m.takeBuffer()
	kind := m.em.Type()
	m.leave()
	defer func() { m.batches.Put(b) }()

	w := walker[K, V]{m: m, b: b, visit: visit, byKey: m.noBatch}
	defer func() { b = w.b }()
	if kind == ebpf.LPMTrie || w.byKey && !isArray(kind) {
		w.seen = newIndex[K]()
	}
	for range rounds {
		more, err := w.pass()
		if errors.Is(err, ebpf.ErrNotSupported) && !w.byKey {
			// The kind has no batch look-up. The kernel says so at the first
			// call, so nothing was visited yet.
			w.byKey = true
			if !isArray(kind) {
				w.seen = newIndex[K]()
			}
			more, err = w.pass()
		}
		if err != nil || !more || w.seen == nil || w.found == 0 {
			return err
		}
	}
	return fmt.Errorf("%w: something new was found in each of %d rounds, try again when the table changes less", ebpf.ErrIterationAborted, rounds)
}

// walker is one walk over a table.
type walker[K, V any] struct {
	m     *Map[K, V]
	b     *buffer[K, V]
	visit func(b *buffer[K, V], count int) bool
	byKey bool
	seen  *index[K] // nil if a pass is exact
	found int       // new keys in this pass
	again int       // keys in this pass that were seen before
}

// pass goes over the table once. It returns false if visit wants no more.
func (w *walker[K, V]) pass() (more bool, err error) {
	w.found, w.again = 0, 0
	if w.byKey {
		more, err = w.passKeys()
	} else {
		more, err = w.passBatches()
	}
	return more, explainPermission(err)
}

// isNew tells whether the walk comes by key for the first time.
func (w *walker[K, V]) isNew(key *K) bool {
	if w.seen == nil {
		return true
	}
	_, isNew := w.seen.add(key)
	if isNew {
		w.found++
	} else {
		w.again++
	}
	return isNew
}

// lost tells whether the pass is thrown back to the front for ever.
func (w *walker[K, V]) lost() bool {
	return w.seen != nil && w.again > repeats*(len(w.seen.keys)+batchEntries)
}

func (w *walker[K, V]) passBatches() (bool, error) {
	cursor := make([]byte, max(4, w.m.lay.keySize)) // a u32 for hashes, a key for the others
	var in []byte
	held := 0
	for {
		n, err := w.m.lookupBatch(w.b, in, cursor)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			// ENOENT is the end, also if entries came with it.
			held = 0
		case errors.Is(err, unix.ENOSPC):
			// A bucket is larger than the buffer. The cursor stands at it.
			if w.b.len() > 4*max(batchLeast, w.m.Capacity()) {
				return false, err
			}
			w.b = newBuffer[K, V](&w.m.lay, 2*w.b.len())
			n, in = 0, cursor
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINTR):
			// Kernels before 6.15: the lock of a bucket was taken, or a key
			// went away under the cursor. What was copied so far is good, and
			// the cursor stands behind it.
			if held++; n > 0 {
				held = 0
			}
			if held > holdups {
				return false, fmt.Errorf("%w: %w", ebpf.ErrIterationAborted, err)
			}
			runtime.Gosched()
		default:
			return false, err
		}
		if n > 0 {
			in = cursor
			n = w.keepNew(n)
		}
		if w.lost() {
			return false, ebpf.ErrIterationAborted
		}
		if n > 0 && !w.visit(w.b, n) {
			return false, nil
		}
		if errors.Is(err, unix.ENOENT) {
			return true, nil
		}
	}
}

// keepNew moves the entries that were not seen before to the front of the
// buffer, and returns how many they are.
func (w *walker[K, V]) keepNew(n int) int {
	if w.seen == nil {
		return n
	}
	kept := 0
	for i := range n {
		if !w.isNew(&w.b.keys[i]) {
			continue
		}
		if kept != i {
			w.b.keys[kept] = w.b.keys[i]
			copy(w.b.valueBytes(kept), w.b.valueBytes(i))
		}
		kept++
	}
	return kept
}

func (w *walker[K, V]) passKeys() (bool, error) {
	var at, next K
	err := w.m.nextKey(nil, &at)
	for ; err == nil; at = next {
		there := false
		if w.isNew(&at) {
			if there, err = w.m.read(w.b, &at); err != nil {
				break
			}
		}
		if w.lost() {
			return false, ebpf.ErrIterationAborted
		}
		// The step is taken before the visit, which may well delete the entry.
		err = w.m.nextKey(&at, &next)
		if there && !w.visit(w.b, 1) {
			return false, nil
		}
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return true, nil
	}
	return false, err
}

func (m *Map[K, V]) lookupBatch(b *buffer[K, V], in, out []byte) (int, error) {
	if err := m.enter(); err != nil {
		return 0, err
	}
	defer m.leave()
	return batch(unix.BPF_MAP_LOOKUP_BATCH, m.em, in, out, b.keyPointer(0), b.valuePointer(0), b.len())
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
