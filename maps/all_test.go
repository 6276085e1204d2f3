// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestAllSeesWhatIsThere(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 2, 63, 64, 65, 8191, 8192, 8193, 30_000} {
		for _, walk := range []string{"batch", "single"} {
			t.Run(fmt.Sprint(n, " ", walk), func(t *testing.T) {
				t.Parallel()
				m := makeMap(t, hashSpec("all", uint32(max(n, 1))), Config{})
				m.noBatch = walk == "single"
				want := maps.Collect(entries(n, keyOf, valueOf))
				set, err := m.SetAll(maps.All(want))
				require.NoError(t, err)
				require.Equal(t, n, set)
				assert.True(t, maps.Equal(want, contents(t, m)))
				count, err := m.Len()
				require.NoError(t, err)
				assert.Equal(t, n, count)
			})
		}
	}
}

func TestEveryKindIsWalked(t *testing.T) {
	t.Parallel()
	const n = 3000
	for _, kind := range []ebpf.MapType{ebpf.Hash, ebpf.LRUHash, ebpf.Array} {
		for _, walk := range []string{"batch", "single"} {
			t.Run(kind.String()+" "+walk, func(t *testing.T) {
				t.Parallel()
				size := uint32(n)
				if kind == ebpf.LRUHash {
					size *= 4 // nothing is evicted
				}
				m := makeMap(t, kindSpec[uint32](kind, size), Config{})
				m.noBatch = walk == "single"
				_, err := m.SetAll(entries(n, numberOf, func(i int) uint32 { return uint32(3 * i) }))
				require.NoError(t, err)
				assert.Equal(t, maps.Collect(entries(n, numberOf, func(i int) uint32 { return uint32(3 * i) })), contents(t, m))
			})
		}
	}
}

// A table of devices by hash is a kind that has no batch operations at all.
func TestKindsWithoutBatchesFallBack(t *testing.T) {
	t.Parallel()
	m := makeMap(t, kindSpec[uint32](ebpf.DevMapHash, 16), Config{})
	const loopback = 1
	want := maps.Collect(entries(10, numberOf, func(int) uint32 { return loopback }))
	n, err := m.SetAll(maps.All(want))
	require.NoError(t, err)
	assert.Equal(t, 10, n)
	assert.Equal(t, want, contents(t, m))
	changes, err := m.Sync(entries(8, numberOf, func(int) uint32 { return loopback }))
	require.NoError(t, err)
	assert.Equal(t, Changes{Deleted: 2}, changes)
	deleted, err := m.DeleteAll([]uint32{0, 99, 1})
	require.NoError(t, err)
	assert.Equal(t, 2, deleted)
	assert.Len(t, contents(t, m), 6)
	_, err = m.SetAll(func(yield func(uint32, uint32) bool) { _ = yield(0, loopback) && yield(1, 1<<30) })
	require.ErrorIs(t, err, unix.EINVAL, "no such device")
	require.ErrorContains(t, err, "key 1 ")
	assert.Len(t, contents(t, m), 7)
}

// The buffer starts too small for the fullest bucket and has to grow.
func TestAllGrowsItsBuffer(t *testing.T) {
	t.Parallel()
	const n = 20_000
	m := makeMap(t, hashSpec("grow", n), Config{})
	_, err := m.SetAll(entries(n, keyOf, valueOf))
	require.NoError(t, err)
	small := walker[key, value]{m: m, b: newBuffer[key, value](&m.lay, 1)}
	seen := map[key]bool{}
	small.visit = func(b *buffer[key, value], count int) bool {
		for _, k := range b.keys[:count] {
			if seen[k] {
				t.Fatal("seen twice")
			}
			seen[k] = true
		}
		return true
	}
	more, err := small.pass()
	require.NoError(t, err)
	assert.True(t, more)
	assert.Len(t, seen, n)
	assert.Greater(t, small.b.len(), 1)
}

func TestEndingEarlyAndNesting(t *testing.T) {
	t.Parallel()
	m := makeMap(t, hashSpec("early", 1000), Config{})
	_, err := m.SetAll(entries(1000, keyOf, valueOf))
	require.NoError(t, err)
	for _, single := range []bool{false, true} {
		m.noBatch = single
		turns := 0
		for e, err := range m.All() {
			require.NoError(t, err)
			require.Len(t, contents(t, m), 1000, "a walk inside a walk has a buffer of its own")
			_, err = m.Lookup(e.Key)
			require.NoError(t, err)
			if turns++; turns == 3 {
				break
			}
		}
		assert.Equal(t, 3, turns)
	}
}

func TestTheLoopMayDelete(t *testing.T) {
	t.Parallel()
	for _, single := range []bool{false, true} {
		h := makeMap(t, hashSpec("delete", 5000), Config{})
		h.noBatch = single
		_, err := h.SetAll(entries(5000, keyOf, valueOf))
		require.NoError(t, err)
		seen := 0
		for e, err := range h.All() {
			require.NoError(t, err, "single %v", single)
			require.NoError(t, h.Delete(e.Key))
			seen++
		}
		assert.Equal(t, 5000, seen)
		assert.Empty(t, contents(t, h))
	}
	tr := makeMap(t, trieSpec("delete", 20_000), Config{})
	_, err := tr.SetAll(entries(20_000, prefixOf, numberOf))
	require.NoError(t, err)
	seen := map[prefix]bool{}
	for e, err := range tr.All() {
		require.NoError(t, err)
		require.False(t, seen[e.Key])
		seen[e.Key] = true
		require.NoError(t, tr.Delete(e.Key))
	}
	assert.Len(t, seen, 20_000)
	assert.Empty(t, contents(t, tr))
}

// When the key that the walk stands at is gone each time, the kernel goes back
// to the front each time. That must not last for ever: here the loop deletes the
// key that comes next, and adds another one.
func TestAWalkThatIsAlwaysThrownBackGivesUp(t *testing.T) {
	t.Parallel()
	m := makeMap(t, hashSpec("thrown", 4000), Config{})
	m.noBatch = true
	_, err := m.SetAll(entries(1000, keyOf, valueOf))
	require.NoError(t, err)
	var errs []error
	seen := map[key]bool{}
	for e, err := range m.All() {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		require.False(t, seen[e.Key], "seen twice")
		seen[e.Key] = true
		var next key
		if err := m.em.NextKey(e.Key, &next); err == nil { // where the walk will stand
			require.NoError(t, m.Delete(next))
		}
		require.NoError(t, m.Set(keyOf(1000+len(seen)), valueOf(0)))
	}
	require.Len(t, errs, 1)
	require.ErrorIs(t, errs[0], ebpf.ErrIterationAborted)
	require.ErrorContains(t, errs[0], "thrown")
}

// A table in which something new comes up each time that the walk goes round: a
// list that may not be whole is never taken for one.
func TestAWalkThatAlwaysFindsMoreGivesUp(t *testing.T) {
	t.Parallel()
	for _, walk := range []string{"batch", "single"} {
		m := makeMap(t, trieSpec("more", 2*rounds), Config{})
		m.noBatch = walk == "single"
		require.NoError(t, m.Set(prefixOf(0), 0))
		var errs []error
		seen := map[prefix]bool{}
		grow := func(at prefix) {
			require.False(t, seen[at], "seen twice")
			seen[at] = true
			require.NoError(t, m.Set(prefixOf(2*rounds-len(seen)), 0)) // in front of all others
		}
		for e, err := range m.All() {
			if err != nil {
				errs = append(errs, err)
				continue
			}
			grow(e.Key)
		}
		require.Len(t, errs, 1, walk)
		require.ErrorIs(t, errs[0], ebpf.ErrIterationAborted)
		require.ErrorContains(t, errs[0], "walk over table more: ")
		require.ErrorContains(t, errs[0], fmt.Sprintf("%d rounds", rounds))
		assert.Len(t, seen, rounds, "one in each round")
	}
}

// While half of the entries come and go, each of the other half is seen exactly
// once per walk, with a value it had.
func TestWalksSurviveChurn(t *testing.T) {
	t.Parallel()
	const stable, churned, walks = 5000, 5000, 12
	t.Run("hash", func(t *testing.T) {
		churn(t, makeMap(t, hashSpec("churn", 2*(stable+churned)), Config{}), stable, churned, walks, keyOf, valueOf)
	})
	t.Run("hash without preallocation", func(t *testing.T) {
		spec := hashSpec("churn", 2*(stable+churned))
		spec.Map.Flags = unix.BPF_F_NO_PREALLOC
		churn(t, makeMap(t, spec, Config{}), stable, churned, walks, keyOf, valueOf)
	})
	t.Run("hash key by key", func(t *testing.T) {
		m := makeMap(t, hashSpec("churn", 2*(stable+churned)), Config{})
		m.noBatch = true
		churn(t, m, stable, churned, 2, keyOf, valueOf)
	})
	t.Run("trie", func(t *testing.T) {
		churn(t, makeMap(t, trieSpec("churn", 2*(stable+churned)), Config{}), stable, churned, walks/3, mixedPrefix, numberOf)
	})
	t.Run("trie key by key", func(t *testing.T) {
		m := makeMap(t, trieSpec("churn", 2*(stable+churned)), Config{})
		m.noBatch = true
		churn(t, m, stable, churned, 2, mixedPrefix, numberOf)
	})
}

// mixedPrefix gives /24 and, inside of them, /32.
func mixedPrefix(i int) prefix {
	p := prefixOf(i / 2)
	if i%2 == 1 {
		p.Length, p.Addr[3] = 32, 9
	}
	return p
}

func churn[K, V comparable](t *testing.T, m *Map[K, V], stable, churned, walks int, k func(int) K, v func(int) V) {
	t.Parallel()
	// Even numbers stay, odd numbers come and go.
	_, err := m.SetAll(func(yield func(K, V) bool) {
		for i := range stable {
			if !yield(k(2*i), v(i)) {
				return
			}
		}
	})
	require.NoError(t, err)
	odd := map[K]bool{}
	for i := range churned {
		odd[k(2*i+1)] = true
	}
	require.Len(t, odd, churned)

	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		r := rand.New(rand.NewPCG(1, 2))
		for !stop.Load() {
			i := r.IntN(churned)
			if r.IntN(2) == 0 {
				assert.NoError(t, m.Set(k(2*i+1), v(r.IntN(stable))))
			} else {
				assert.NoError(t, m.Delete(k(2*i+1)))
			}
			i = r.IntN(stable)
			assert.NoError(t, m.Set(k(2*i), v(i)), "the same value, in a new place of its bucket")
		}
	})
	for range walks {
		seen := make(map[K]V, 2*stable)
		for e, err := range m.All() {
			if !assert.NoError(t, err) {
				break
			}
			_, twice := seen[e.Key]
			assert.False(t, twice, "seen twice: %v", e.Key)
			seen[e.Key] = e.Value
		}
		for i := range stable {
			if got, ok := seen[k(2*i)]; !ok || got != v(i) {
				t.Errorf("entry %v was there all the time: seen %v with %v", k(2*i), ok, got)
				break
			}
			delete(seen, k(2*i))
		}
		for key := range seen {
			if !odd[key] {
				t.Errorf("%v was never there", key)
				break
			}
		}
	}
	stop.Store(true)
	wg.Wait()
}

// The key that a trie's cursor stands at is deleted after each batch, so the
// next one starts at the front again.
func TestATrieWalkThatIsThrownBackSeesNothingTwice(t *testing.T) {
	t.Parallel()
	const n = 300
	m := makeMap(t, trieSpec("thrown", n), Config{})
	want := maps.Collect(entries(n, mixedPrefix, numberOf))
	_, err := m.SetAll(maps.All(want))
	require.NoError(t, err)
	seen := map[prefix]uint32{}
	w := walker[prefix, uint32]{m: m, b: newBuffer[prefix, uint32](&m.lay, 16), seen: newIndex[prefix]()}
	w.visit = func(b *buffer[prefix, uint32], count int) bool {
		for i, k := range b.keys[:count] {
			require.NotContains(t, seen, k, "seen twice")
			seen[k] = b.values[i]
		}
		require.NoError(t, m.Delete(b.keys[count-1]))
		return true
	}
	more, err := w.pass()
	require.NoError(t, err)
	assert.True(t, more)
	assert.Equal(t, want, seen, "each with its own value")
	assert.Greater(t, w.again, n, "it was thrown back")
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte("abcabcabd"))
	f.Fuzz(func(t *testing.T, data []byte) {
		x, model := newIndex[[2]byte](), map[[2]byte]int{}
		for i := 0; i+1 < len(data); i++ {
			k := [2]byte(data[i : i+2])
			want, there := model[k]
			if at := x.find(&k); there != (at >= 0) || there && at != want {
				t.Fatalf("find %x: %d, want %d %v", k, at, want, there)
			}
			at, isNew := x.add(&k)
			if isNew == there {
				t.Fatalf("add %x: new %v", k, isNew)
			}
			if !there {
				model[k] = at
			}
			if x.keys[at] != k || model[k] != at {
				t.Fatalf("add %x: at %d", k, at)
			}
		}
		if len(x.keys) != len(model) {
			t.Fatalf("%d keys, want %d", len(x.keys), len(model))
		}
	})
}
