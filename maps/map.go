// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"os"
	"sync"

	"github.com/cilium/ebpf"
)

// Map is a table in the kernel with keys of type K and values of type V, which
// is a slice for the per-CPU kinds (see [Spec]). All methods may be called by
// many goroutines at once, Close among them.
//
// Methods other than Close, Remove, Unpin, Name and Capacity answer
// errors.Is(err, os.ErrClosed) after Close, and on the zero Map.
//
// Close drops the handle: the table lives on while a pin or a program holds it.
// Pin makes it outlive the process. Remove takes the pin away and closes.
type Map[K, V any] struct {
	name string
	id   uint32 // of the kernel object, never used again while the machine runs
	lay  layout

	// mu is held for reading during each system call, so that Close can not
	// pull the descriptor away from under one. It is never held while code of
	// the caller runs.
	mu     sync.RWMutex
	em     *ebpf.Map
	closed bool

	pinMu sync.Mutex
	path  string // of our pin, or ""

	single  sync.Pool // *pair[K, V]
	batches sync.Pool // *buffer[K, V]
	noBatch bool      // the kind has no batch look-up; set by tests to walk key by key

	errAbsent error // made once, because a miss is not rare
}

// Entry is one key of a table with its value.
type Entry[K, V any] struct {
	Key   K
	Value V
}

// newMap takes em over if it succeeds.
func newMap[K, V any](em *ebpf.Map, name, path string, lay layout) (*Map[K, V], error) {
	info, err := infoOf(em)
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", name, err)
	}
	return &Map[K, V]{
		name:      name,
		id:        info.id,
		lay:       lay,
		em:        em,
		path:      path,
		errAbsent: fmt.Errorf("look up in table %s: %w", name, ebpf.ErrKeyNotExist),
	}, nil
}

// enter must be followed by leave if it returns nil.
func (m *Map[K, V]) enter() error {
	m.mu.RLock()
	if m.em == nil || m.closed {
		m.mu.RUnlock()
		return fmt.Errorf("table %s: %w", m.name, os.ErrClosed)
	}
	return nil
}

func (m *Map[K, V]) leave() { m.mu.RUnlock() }

// Name is the name from the Spec, or of the pin for [Open]. For [Wrap] it is
// the name in the kernel, which keeps 15 bytes of it.
func (m *Map[K, V]) Name() string { return m.name }

// Capacity is the number of entries the table has room for. A kind that evicts
// may hold fewer (see BPF_MAP_TYPE_LRU_HASH in the kernel's documentation). 0
// for the zero Map.
func (m *Map[K, V]) Capacity() int {
	if m.em == nil {
		return 0
	}
	return int(m.em.MaxEntries())
}

// EBPF is the table as cilium/ebpf knows it, for example to give it to a
// program. It is borrowed: Close ends it, and the caller does not close it. Nil
// for the zero Map.
func (m *Map[K, V]) EBPF() *ebpf.Map { return m.em }

// Len counts the entries by a walk over the table, as [Map.All] does: the kernel
// keeps no count that can be asked for. For arrays it is the capacity.
func (m *Map[K, V]) Len() (int, error) {
	if err := m.enter(); err != nil {
		return 0, err
	}
	array := isArray(m.em.Type())
	m.leave()
	if array {
		return m.Capacity(), nil
	}
	n := 0
	err := m.walk(func(_ *buffer[K, V], count int) bool {
		n += count
		return true
	})
	if err != nil {
		return 0, fmt.Errorf("count the entries of table %s: %w", m.name, err)
	}
	return n, nil
}

// Close drops the handle and waits for calls that are in the kernel. It is
// idempotent. A pinned table goes on without us, see [Map.Remove]; one that is
// not pinned ends with the last program that uses it.
func (m *Map[K, V]) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.em == nil || m.closed {
		return nil
	}
	m.closed = true
	if err := m.em.Close(); err != nil {
		return fmt.Errorf("close table %s: %w", m.name, err)
	}
	return nil
}
