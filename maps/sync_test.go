// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestSetAllAndDeleteAll(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 100, batchEntries - 1, batchEntries, 2*batchEntries + 1} {
		for _, single := range []bool{false, true} {
			t.Run(fmt.Sprint(n, " ", single), func(t *testing.T) {
				t.Parallel()
				m := makeMap(t, hashSpec("many", uint32(n+1)), Config{})
				m.noBatch = single
				done, err := m.SetAll(entries(n, keyOf, valueOf))
				require.NoError(t, err)
				require.Equal(t, n, done)
				require.NoError(t, m.Set(keyOf(n), valueOf(n)))

				var keys []key // every second one is not there
				for i := range n {
					keys = append(keys, keyOf(i), keyOf(n+1+i))
				}
				done, err = m.DeleteAll(keys)
				require.NoError(t, err)
				assert.Equal(t, n, done)
				assert.Equal(t, map[key]value{keyOf(n): valueOf(n)}, contents(t, m))
			})
		}
	}
}

func TestSetAllStopsAtTheFirstFailure(t *testing.T) {
	t.Parallel()
	for _, single := range []bool{false, true} {
		m := makeMap(t, kindSpec[uint32](ebpf.Array, 1000), Config{})
		m.noBatch = single
		done, err := m.SetAll(func(yield func(uint32, uint32) bool) {
			for i := uint32(0); yield(i*3, i+1); i++ {
			}
		})
		require.ErrorIs(t, err, unix.E2BIG)
		require.ErrorContains(t, err, "key 1002 ")
		require.ErrorContains(t, err, "334 done")
		assert.Equal(t, 334, done)
		all := contents(t, m)
		for i := range uint32(1000) {
			want := uint32(0)
			if i%3 == 0 {
				want = i/3 + 1
			}
			require.Equal(t, want, all[i])
		}
	}
}

// Random states of a table are synced to random others, and compared with a
// plain Go map.
func TestSyncAgainstAModel(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(5, 6))
	for _, single := range []bool{false, true} {
		m := makeMap(t, hashSpec("model", 300), Config{})
		m.noBatch = single
		have := map[key]value{}
		for range 60 {
			want := map[key]value{}
			for range r.IntN(300) {
				want[keyOf(r.IntN(400))] = valueOf(r.IntN(3))
			}
			var expect Changes
			for k, v := range want {
				if old, ok := have[k]; !ok || old != v {
					expect.Set++
				}
			}
			for k := range have {
				if _, ok := want[k]; !ok {
					expect.Deleted++
				}
			}
			got, err := m.Sync(maps.All(want))
			require.NoError(t, err)
			assert.Equal(t, expect, got)
			require.Equal(t, want, contents(t, m))
			again, err := m.Sync(maps.All(want))
			require.NoError(t, err)
			assert.Equal(t, Changes{}, again, "twice is once")
			have = want
		}
	}
}

func TestSyncOfATrieAndAnArray(t *testing.T) {
	t.Parallel()
	tr := makeMap(t, trieSpec("routes", 100), Config{})
	_, err := tr.SetAll(entries(50, mixedPrefix, numberOf))
	require.NoError(t, err)
	want := maps.Collect(entries(10, func(i int) prefix { return mixedPrefix(i + 45) }, func(i int) uint32 { return uint32(i + 45) }))
	changes, err := tr.Sync(maps.All(want))
	require.NoError(t, err)
	assert.Equal(t, Changes{Set: 5, Deleted: 45}, changes)
	assert.Equal(t, want, contents(t, tr))

	a := makeMap(t, kindSpec[uint32](ebpf.Array, 4), Config{})
	_, err = a.SetAll(entries(4, numberOf, func(i int) uint32 { return uint32(i) }))
	require.NoError(t, err)
	changes, err = a.Sync(maps.All(map[uint32]uint32{0: 9, 1: 1}))
	require.NoError(t, err)
	assert.Equal(t, Changes{Set: 1, Deleted: 2}, changes, "0 changed, 2 and 3 zeroed")
	assert.Equal(t, map[uint32]uint32{0: 9, 1: 1, 2: 0, 3: 0}, contents(t, a))
	changes, err = a.Sync(maps.All(map[uint32]uint32{0: 9, 7: 7}))
	require.ErrorIs(t, err, unix.E2BIG)
	require.ErrorContains(t, err, "key 7 ")
	assert.Equal(t, Changes{}, changes, "nothing is zeroed when the index is wrong")
}

func TestSyncTakesTheLaterOfTwoValues(t *testing.T) {
	t.Parallel()
	m := makeMap(t, hashSpec("twice", 1), Config{})
	changes, err := m.Sync(func(yield func(key, value) bool) {
		_ = yield(keyOf(1), valueOf(1)) && yield(keyOf(1), valueOf(2))
	})
	require.NoError(t, err)
	assert.Equal(t, Changes{Set: 1}, changes)
	assert.Equal(t, map[key]value{keyOf(1): valueOf(2)}, contents(t, m))
}

func TestSyncOfTooMuchChangesNothing(t *testing.T) {
	t.Parallel()
	m := makeMap(t, hashSpec("narrow", 4), Config{})
	require.NoError(t, m.Set(keyOf(100), valueOf(1)))
	changes, err := m.Sync(entries(5, keyOf, valueOf))
	require.ErrorIs(t, err, unix.E2BIG)
	for _, part := range []string{"narrow", "the 4 that", "ID:4"} {
		require.ErrorContains(t, err, part)
	}
	assert.Equal(t, Changes{}, changes)
	assert.Equal(t, map[key]value{keyOf(100): valueOf(1)}, contents(t, m))
}

// A full table can be exchanged whole: there is no room to add first.
func TestSyncExchangesAFullTable(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 4, 20_000} {
		m := makeMap(t, hashSpec("full", uint32(n)), Config{})
		_, err := m.SetAll(entries(n, keyOf, valueOf))
		require.NoError(t, err)
		want := maps.Collect(entries(n, func(i int) key { return keyOf(i + n) }, valueOf))
		changes, err := m.Sync(maps.All(want))
		require.NoError(t, err)
		assert.Equal(t, Changes{Set: n, Deleted: n}, changes)
		assert.True(t, maps.Equal(want, contents(t, m)))
	}
	tr := makeMap(t, trieSpec("full", 100), Config{})
	_, err := tr.SetAll(entries(100, prefixOf, numberOf))
	require.NoError(t, err)
	changes, err := tr.Sync(entries(100, func(i int) prefix { return prefixOf(i + 50) }, func(i int) uint32 { return uint32(i + 50) }))
	require.NoError(t, err)
	assert.Equal(t, Changes{Set: 50, Deleted: 50}, changes)
}

// Where adding fails, nothing has been taken away yet: a device that does not
// exist is refused by the kernel.
func TestSyncAddsBeforeItRemoves(t *testing.T) {
	t.Parallel()
	const loopback, nowhere = 1, 1 << 30
	m := makeMap(t, kindSpec[uint32](ebpf.DevMapHash, 4), Config{})
	require.NoError(t, m.Set(1, loopback))
	require.NoError(t, m.Set(2, loopback))
	changes, err := m.Sync(func(yield func(uint32, uint32) bool) { _ = yield(3, loopback) && yield(4, nowhere) })
	require.ErrorIs(t, err, unix.EINVAL)
	require.ErrorContains(t, err, "key 4 ")
	assert.Equal(t, Changes{Set: 1}, changes)
	assert.Equal(t, map[uint32]uint32{1: loopback, 2: loopback, 3: loopback}, contents(t, m))
}

// What Sync leaves alone it does not even write: a program that counts in the
// entry loses nothing.
func TestSyncDoesNotWriteWhatIsRight(t *testing.T) {
	t.Parallel()
	spec := hashSpec("quiet", 16)
	m := makeMap(t, spec, Config{})
	want := maps.Collect(entries(10, keyOf, valueOf))
	_, err := m.Sync(maps.All(want))
	require.NoError(t, err)
	require.NoError(t, m.EBPF().Freeze(), "from here on the kernel refuses writes from user space")
	changes, err := m.Sync(maps.All(want))
	require.NoError(t, err)
	assert.Equal(t, Changes{}, changes)
	want[keyOf(3)] = valueOf(99)
	_, err = m.Sync(maps.All(want))
	require.ErrorIs(t, err, unix.EPERM)
	// What is refused before it begins has done nothing, and that is what is said.
	for _, many := range []int{1, 5, 10} {
		var keys []key
		for i := range many {
			keys = append(keys, keyOf(i))
		}
		n, err := m.DeleteAll(keys)
		require.ErrorIs(t, err, unix.EPERM)
		assert.Zero(t, n)
		n, err = m.SetAll(entries(many, keyOf, valueOf))
		require.ErrorIs(t, err, unix.EPERM)
		assert.Zero(t, n)
	}
}
