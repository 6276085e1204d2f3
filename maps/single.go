// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// busyTries bounds how often a write is repeated that lost the lock of its
// bucket to another CPU: kernels before 6.15 answer EBUSY then, with room left
// and nothing written.
const busyTries = 16

// pair is memory for one call, so that neither the key nor the value of the
// caller has to move to the heap for it.
type pair[K, V any] struct {
	key   K
	value V
}

func (m *Map[K, V]) takePair() *pair[K, V] {
	if p, ok := m.single.Get().(*pair[K, V]); ok {
		return p
	}
	return new(pair[K, V])
}

func (m *Map[K, V]) givePair(p *pair[K, V]) {
	if m.lay.cpus > 0 {
		*p = pair[K, V]{} // a slice that belongs to the caller
	}
	m.single.Put(p)
}

// Lookup returns the value of a key. An absent key answers
// errors.Is(err, ebpf.ErrKeyNotExist); in arrays that is an index outside. In a
// trie the longest prefix that covers the key is found.
func (m *Map[K, V]) Lookup(key K) (V, error) {
	var none V
	if err := m.enter(); err != nil {
		return none, fmt.Errorf("look up: %w", err)
	}
	defer m.leave()
	p := m.takePair()
	defer m.givePair(p)
	p.key = key
	err := m.lookup(p)
	if err != nil {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return none, m.errAbsent
		}
		return none, fmt.Errorf("look up key %+v in table %s: %w", key, m.name, explainPermission(err))
	}
	return p.value, nil
}

// lookup reads the value of p.key into p.value. cilium/ebpf passes an
// unsafe.Pointer on as it is, without reflection and without allocation;
// layoutOf has made sure that the memory is what the kernel expects.
func (m *Map[K, V]) lookup(p *pair[K, V]) error {
	if m.lay.cpus == 0 {
		return m.em.Lookup(unsafe.Pointer(&p.key), unsafe.Pointer(&p.value))
	}
	raw, err := m.em.LookupBytes(unsafe.Pointer(&p.key))
	if err != nil {
		return err
	}
	if raw == nil {
		return ebpf.ErrKeyNotExist
	}
	p.value = decodeCPUs[V](&m.lay, raw)
	return nil
}

// Set writes the value of a key, whether the key is there or not. A full table
// answers errors.Is(err, unix.E2BIG); the kinds that evict are never full.
func (m *Map[K, V]) Set(key K, value V) error {
	return m.write("set", key, value, ebpf.UpdateAny)
}

// Insert writes a key that must not be there yet. A key that is there answers
// errors.Is(err, ebpf.ErrKeyExist) and keeps its value; a full table answers
// errors.Is(err, unix.E2BIG). Of several Inserts of one key, from programs or
// from here, one succeeds.
func (m *Map[K, V]) Insert(key K, value V) error {
	return m.write("insert", key, value, ebpf.UpdateNoExist)
}

// Replace writes the value of a key that must be there already. An absent key
// answers errors.Is(err, ebpf.ErrKeyNotExist).
func (m *Map[K, V]) Replace(key K, value V) error {
	return m.write("replace", key, value, ebpf.UpdateExist)
}

func (m *Map[K, V]) write(verb string, key K, value V, flags ebpf.MapUpdateFlags) error {
	if err := m.enter(); err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	defer m.leave()
	p := m.takePair()
	defer m.givePair(p)
	p.key, p.value = key, value
	if err := m.update(p, flags); err != nil {
		return fmt.Errorf("%s: %w", verb, m.explainWrite(err, &key))
	}
	return nil
}

// update writes p.value under p.key.
func (m *Map[K, V]) update(p *pair[K, V], flags ebpf.MapUpdateFlags) error {
	var value any = unsafe.Pointer(&p.value)
	if m.lay.cpus > 0 {
		slices, err := cpuSlices(&m.lay, &p.value)
		if err != nil {
			return err
		}
		value = slices // for these kinds cilium/ebpf wants one element per CPU
	} else {
		m.lay.clearBlank(valueBytes(&p.value))
	}
	return retryBusy(func() error { return m.em.Update(unsafe.Pointer(&p.key), value, flags) })
}

// Delete takes a key away. Nil if it is absent. The entries of arrays always
// exist, so there it answers errors.Is(err, unix.EINVAL).
func (m *Map[K, V]) Delete(key K) error {
	if err := m.enter(); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	defer m.leave()
	p := m.takePair()
	defer m.givePair(p)
	p.key = key
	if _, err := m.remove(p); err != nil {
		return m.explainDelete(err, &key)
	}
	return nil
}

// remove deletes p.key and tells whether it was there.
func (m *Map[K, V]) remove(p *pair[K, V]) (bool, error) {
	err := retryBusy(func() error { return m.em.Delete(unsafe.Pointer(&p.key)) })
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (m *Map[K, V]) explainDelete(err error, key *K) error {
	if isArray(m.em.Type()) && errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("delete key %+v of table %s: entries of an array always exist, set the zero value: %w", *key, m.name, err)
	}
	return fmt.Errorf("delete key %+v of table %s: %w", *key, m.name, explainPermission(err))
}

func retryBusy(write func() error) error {
	err := write()
	for try := 1; try < busyTries && errors.Is(err, unix.EBUSY); try++ {
		runtime.Gosched()
		err = write()
	}
	return err
}
