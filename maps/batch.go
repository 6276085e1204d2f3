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

	"github.com/godatapath/datapath/internal/invalid"
)

// SetAll writes many entries, thousands per system call where the kind allows
// it. It returns how many were written. It stops at the first that can not be
// written: the error names that key, all before it are written and none after
// it. A full table answers errors.Is(err, unix.E2BIG).
//
// Entries of a Go map go in as SetAll(maps.All(m)) with the standard library's
// package maps.
func (m *Map[K, V]) SetAll(entries iter.Seq2[K, V]) (int, error) {
	if err := m.enter(); err != nil {
		return 0, fmt.Errorf("set many: %w", err)
	}
	b := m.takeBuffer()
	m.leave()
	defer func() { m.batches.Put(b) }()
	if entries == nil {
		return 0, invalid.Errorf("set many in table %s: entries is nil", m.name)
	}

	done, filled := 0, 0
	flush := func() error {
		n, err := m.writeBatch(b, filled)
		done, filled = done+n, 0
		if err != nil {
			return fmt.Errorf("set many, %d done: %w", done, m.explainWrite(err, &b.keys[n]))
		}
		return nil
	}
	for key, value := range entries {
		if err := b.set(filled, key, value); err != nil {
			if e := flush(); e != nil {
				return done, e
			}
			return done, fmt.Errorf("set many, %d done: key %+v of table %s: %w", done, key, m.name, err)
		}
		if filled++; filled < b.len() {
			continue
		}
		if err := flush(); err != nil {
			return done, err
		}
	}
	if err := flush(); err != nil {
		return done, err
	}
	return done, nil
}

// writeBatch writes the first count entries of b and returns how many it wrote.
// If that is fewer, the error is about the next one.
func (m *Map[K, V]) writeBatch(b *buffer[K, V], count int) (int, error) {
	done, busy := 0, 0
	for done < count {
		n, err := m.updateBatch(b, done, count)
		done += n
		switch {
		case err == nil:
		case errors.Is(err, ebpf.ErrNotSupported):
			return m.writeSingly(b, done, count)
		case errors.Is(err, unix.EBUSY) && (n > 0 || busy < busyTries):
			if busy++; n > 0 {
				busy = 0
			}
			runtime.Gosched()
		default:
			return done, err
		}
	}
	return done, nil
}

func (m *Map[K, V]) updateBatch(b *buffer[K, V], from, to int) (int, error) {
	if err := m.enter(); err != nil {
		return 0, err
	}
	defer m.leave()
	if m.noBatch {
		return 0, ebpf.ErrNotSupported
	}
	return batch(unix.BPF_MAP_UPDATE_BATCH, m.em, nil, nil, b.keyPointer(from), b.valuePointer(from), to-from)
}

func (m *Map[K, V]) writeSingly(b *buffer[K, V], from, to int) (int, error) {
	for i := from; i < to; i++ {
		if err := m.writeOne(b, i); err != nil {
			return i, err
		}
	}
	return to, nil
}

func (m *Map[K, V]) writeOne(b *buffer[K, V], i int) error {
	if err := m.enter(); err != nil {
		return err
	}
	defer m.leave()
	p := m.takePair()
	defer m.givePair(p)
	p.key, p.value = b.keys[i], b.value(i)
	return m.update(p, ebpf.UpdateAny)
}

// DeleteAll takes many keys away, thousands per system call where the kind
// allows it. Absent keys are passed over. It returns how many were there. It
// stops at the first that can not be deleted, and the error names it.
func (m *Map[K, V]) DeleteAll(keys []K) (int, error) {
	if err := m.enter(); err != nil {
		return 0, fmt.Errorf("delete many: %w", err)
	}
	m.leave()
	deleted, busy := 0, 0
	for at := 0; at < len(keys); {
		n, err := m.deleteBatch(keys[at:min(len(keys), at+batchEntries)])
		deleted, at = deleted+n, at+n
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOENT):
			at++ // the kernel stops at an absent key
		case errors.Is(err, ebpf.ErrNotSupported):
			more, err := m.deleteSingly(keys[at:])
			if err != nil {
				err = fmt.Errorf("delete many, %d done: %w", deleted+more, err)
			}
			return deleted + more, err
		case errors.Is(err, unix.EBUSY) && (n > 0 || busy < busyTries):
			if busy++; n > 0 {
				busy = 0
			}
			runtime.Gosched()
		default:
			return deleted, fmt.Errorf("delete many, %d done: %w", deleted, m.explainDelete(err, &keys[at]))
		}
	}
	return deleted, nil
}

func (m *Map[K, V]) deleteBatch(keys []K) (int, error) {
	if err := m.enter(); err != nil {
		return 0, err
	}
	defer m.leave()
	if m.noBatch {
		return 0, ebpf.ErrNotSupported
	}
	return batch(unix.BPF_MAP_DELETE_BATCH, m.em, nil, nil, unsafe.Pointer(&keys[0]), nil, len(keys))
}

func (m *Map[K, V]) deleteSingly(keys []K) (int, error) {
	deleted := 0
	for i := range keys {
		there, err := m.deleteOne(&keys[i])
		if err != nil {
			return deleted, m.explainDelete(err, &keys[i])
		}
		if there {
			deleted++
		}
	}
	return deleted, nil
}

func (m *Map[K, V]) deleteOne(key *K) (bool, error) {
	if err := m.enter(); err != nil {
		return false, err
	}
	defer m.leave()
	p := m.takePair()
	defer m.givePair(p)
	p.key = *key
	return m.remove(p)
}
