// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"bytes"
	"errors"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/invalid"
)

// Changes is what a Sync did.
type Changes struct {
	Set     int // entries that were written, because they were absent or had another value
	Deleted int // entries that were taken away; in arrays, set to zero
}

// Sync makes the table hold exactly the entries of want. If a key comes twice,
// the later value counts. An entry that is right already is not written, so
// that a program never sees a gap. First values are changed, then entries are
// added, and only then are the others taken away; when the table is too full
// for that order, as many as needed are taken away before the rest is added.
//
// More entries than the table has room for are refused before anything is
// changed, and a table that fills up on the way ends the Sync: both answer
// errors.Is(err, unix.E2BIG). After an error Changes says what was done, and the
// next Sync does the rest. Entries that others write meanwhile may stay.
//
// Entries of a Go map go in as Sync(maps.All(m)) with the standard library's
// package maps. An array is zero where want has nothing.
func (m *Map[K, V]) Sync(want iter.Seq2[K, V]) (Changes, error) {
	if err := m.enter(); err != nil {
		return Changes{}, fmt.Errorf("sync: %w", err)
	}
	m.leave()
	if want == nil {
		return Changes{}, invalid.Errorf("sync table %s: want is nil, which is not the same as no entries", m.name)
	}
	s := plan[K, V]{m: m, index: newIndex[K]()}
	if err := s.collect(want); err != nil {
		return Changes{}, fmt.Errorf("sync table %s: %w", m.name, err)
	}
	if err := s.compare(); err != nil {
		return Changes{}, fmt.Errorf("sync table %s: %w", m.name, err)
	}
	if err := s.apply(); err != nil {
		return s.done, fmt.Errorf("sync table %s: %w", m.name, err)
	}
	return s.done, nil
}

// plan is one Sync.
type plan[K, V any] struct {
	m      *Map[K, V]
	index  *index[K] // of wanted keys
	values []V
	state  []state // of wanted keys
	stale  []K
	done   Changes
}

type state uint8

const (
	absent state = iota
	differs
	right
)

func (s *plan[K, V]) collect(want iter.Seq2[K, V]) error {
	for key, value := range want {
		at, isNew := s.index.add(&key)
		if !isNew {
			s.values[at] = value
			continue
		}
		if at >= s.m.Capacity() {
			return fmt.Errorf("key %+v: more entries than the %d that the table has room for, make it larger: %w", key, s.m.Capacity(), unix.E2BIG)
		}
		s.values = append(s.values, value)
	}
	s.state = make([]state, len(s.values))
	return nil
}

func (s *plan[K, V]) compare() error {
	array := isArray(s.m.em.Type())
	one := newBuffer[K, V](&s.m.lay, 1)
	var failed error
	err := s.m.walk(func(b *buffer[K, V], count int) bool {
		for i := range count {
			at := s.index.find(&b.keys[i])
			if at < 0 {
				if !array || !isZero(b.valueBytes(i)) {
					s.stale = append(s.stale, b.keys[i])
				}
				continue
			}
			if failed = one.set(0, b.keys[i], s.values[at]); failed != nil {
				failed = fmt.Errorf("key %+v: %w", b.keys[i], failed)
				return false
			}
			if s.equal(b.valueBytes(i), one.valueBytes(0)) {
				s.state[at] = right
			} else {
				s.state[at] = differs
			}
		}
		return true
	})
	return errors.Join(err, failed)
}

// equal compares a value as the kernel has it, which it may scribble on, with
// one as we would write it.
func (s *plan[K, V]) equal(have, want []byte) bool {
	lay := &s.m.lay
	for i := range max(1, lay.cpus) {
		from, to := i*lay.stride, i*lay.stride+lay.valueSize
		lay.clearBlank(have[from:to])
		if !bytes.Equal(have[from:to], want[from:to]) {
			return false
		}
	}
	return true
}

func (s *plan[K, V]) apply() error {
	if err := s.write(differs); err != nil {
		return err
	}
	if err := s.write(absent); err != nil {
		return err
	}
	return s.prune(len(s.stale))
}

// write sets the wanted entries in one state. While stale entries are left, a
// full table loses as many of them as there is still to write.
func (s *plan[K, V]) write(which state) error {
	at := 0
	for {
		left := 0
		entries := func(yield func(K, V) bool) {
			for i := at; i < len(s.values); i++ {
				if s.state[i] == which && !yield(s.index.keys[i], s.values[i]) {
					return
				}
			}
		}
		n, err := s.m.SetAll(entries)
		s.done.Set += n
		if !errors.Is(err, unix.E2BIG) || len(s.stale) == 0 || isArray(s.m.em.Type()) {
			return err
		}
		for i := at; i < len(s.values); i++ {
			if s.state[i] != which {
				continue
			}
			if n > 0 {
				n--
				at = i + 1
				continue
			}
			left++
		}
		if err := s.prune(left); err != nil {
			return err
		}
	}
}

// prune takes up to n stale entries away.
func (s *plan[K, V]) prune(n int) error {
	n = min(n, len(s.stale))
	keys := s.stale[:n]
	s.stale = s.stale[n:]
	var deleted int
	var err error
	if isArray(s.m.em.Type()) {
		deleted, err = s.m.SetAll(func(yield func(K, V) bool) {
			zero := zeroValue[V](&s.m.lay)
			for _, key := range keys {
				if !yield(key, zero) {
					return
				}
			}
		})
	} else {
		deleted, err = s.m.DeleteAll(keys)
	}
	s.done.Deleted += deleted
	return err
}

func isZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
