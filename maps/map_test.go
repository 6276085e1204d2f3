// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"maps"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestVerbsOfOneEntry(t *testing.T) {
	t.Parallel()
	m := makeMap(t, hashSpec("verbs", 8), Config{})
	k, a, b := keyOf(1), valueOf(10), valueOf(20)

	_, err := m.Lookup(k)
	require.ErrorIs(t, err, ebpf.ErrKeyNotExist)
	require.ErrorContains(t, err, "verbs", "the error must name the table")
	require.ErrorIs(t, m.Replace(k, a), ebpf.ErrKeyNotExist)
	require.NoError(t, m.Delete(k), "deleting something absent is nil")

	require.NoError(t, m.Insert(k, a))
	require.ErrorIs(t, m.Insert(k, b), ebpf.ErrKeyExist)
	assert.Equal(t, map[key]value{k: a}, contents(t, m), "a refused insert must change nothing")

	require.NoError(t, m.Replace(k, b))
	assert.Equal(t, map[key]value{k: b}, contents(t, m))
	require.NoError(t, m.Set(k, a))
	require.NoError(t, m.Set(k, a))
	got, err := m.Lookup(k)
	require.NoError(t, err)
	assert.Equal(t, a, got)

	require.NoError(t, m.Delete(k))
	assert.Empty(t, contents(t, m))
	assert.Equal(t, "verbs", m.Name())
	assert.Equal(t, 8, m.Capacity())
}

func TestSingleCallsDoNotAllocate(t *testing.T) {
	m := makeMap(t, hashSpec("allocs", 8), Config{})
	k, v := keyOf(1), valueOf(1)
	require.NoError(t, m.Set(k, v))
	limit := 0.0
	if raceEnabled {
		limit = 4 // the race detector makes sync.Pool forget on purpose
	}
	for name, call := range map[string]func(){
		"lookup": func() { _, _ = m.Lookup(k) },
		"miss":   func() { _, _ = m.Lookup(keyOf(2)) },
		"set":    func() { _ = m.Set(k, v) },
	} {
		assert.LessOrEqual(t, testing.AllocsPerRun(200, call), limit, name)
	}
}

func TestAFullTableNamesItselfAndTheKey(t *testing.T) {
	t.Parallel()
	check := func(t *testing.T, err error, name string) {
		require.ErrorIs(t, err, unix.E2BIG)
		for _, part := range []string{name, "4 entries", "full"} {
			require.ErrorContains(t, err, part)
		}
	}
	t.Run("hash", func(t *testing.T) {
		m := makeMap(t, hashSpec("crowd", 4), Config{})
		n, err := m.SetAll(entries(9, keyOf, valueOf))
		check(t, err, "crowd")
		assert.ErrorContains(t, err, "ID:4", "the key that did not fit")
		assert.Equal(t, 4, n)
		check(t, m.Set(keyOf(100), valueOf(0)), "crowd")
		check(t, m.Insert(keyOf(100), valueOf(0)), "crowd")
		require.NoError(t, m.Set(keyOf(1), valueOf(5)), "a key that is there needs no room")
	})
	t.Run("trie", func(t *testing.T) {
		m := makeMap(t, trieSpec("routes", 4), Config{})
		n, err := m.SetAll(entries(9, prefixOf, numberOf))
		check(t, err, "routes")
		assert.Equal(t, 4, n)
		check(t, m.Set(prefixOf(100), 1), "routes")
	})
	t.Run("array", func(t *testing.T) {
		m := makeMap(t, kindSpec[uint32](ebpf.Array, 4), Config{})
		err := m.Set(4, 1)
		require.ErrorIs(t, err, unix.E2BIG)
		require.ErrorContains(t, err, "outside its 4 entries")
		_, err = m.Lookup(4)
		require.ErrorIs(t, err, ebpf.ErrKeyNotExist)
	})
	t.Run("evicting", func(t *testing.T) {
		m := makeMap(t, kindSpec[uint32](ebpf.LRUHash, 4), Config{})
		n, err := m.SetAll(entries(100, numberOf, numberOf))
		require.NoError(t, err)
		assert.Equal(t, 100, n)
	})
}

func TestArraysKeepTheirEntries(t *testing.T) {
	t.Parallel()
	m := makeMap(t, kindSpec[uint32](ebpf.Array, 4), Config{})
	require.NoError(t, m.Set(2, 7))
	assert.Equal(t, map[uint32]uint32{0: 0, 1: 0, 2: 7, 3: 0}, contents(t, m))
	n, err := m.Len()
	require.NoError(t, err)
	assert.Equal(t, 4, n)
	err = m.Delete(2)
	require.ErrorIs(t, err, unix.EINVAL)
	require.ErrorContains(t, err, "set the zero value")
	_, err = m.DeleteAll([]uint32{2})
	require.ErrorIs(t, err, unix.EINVAL)
	assert.EqualValues(t, 7, contents(t, m)[2])
}

func TestPerCPUValuesAreSlices(t *testing.T) {
	t.Parallel()
	type counter struct {
		Packets uint32
		Bytes   [2]uint32 // 12 bytes: the kernel's stride is 16
	}
	cpus := ebpf.MustPossibleCPU()
	make1 := func(i int) []counter {
		v := make([]counter, cpus)
		for c := range v {
			v[c] = counter{uint32(100*i + c), [2]uint32{uint32(i), uint32(c)}}
		}
		return v
	}
	for _, kind := range []ebpf.MapType{ebpf.PerCPUHash, ebpf.PerCPUArray, ebpf.LRUCPUHash} {
		for _, walk := range []string{"batch", "single"} {
			t.Run(kind.String()+" "+walk, func(t *testing.T) {
				t.Parallel()
				m := makeMap(t, kindSpec[[]counter](kind, 64), Config{})
				m.noBatch = walk == "single"
				want := maps.Collect(entries(10, numberOf, make1))
				n, err := m.SetAll(maps.All(want))
				require.NoError(t, err)
				require.Equal(t, 10, n)
				require.NoError(t, m.Set(3, make1(30)))
				want[3] = make1(30)
				got := contents(t, m)
				for i := uint32(10); i < 64 && kind == ebpf.PerCPUArray; i++ {
					require.Equal(t, make([]counter, cpus), got[i])
					delete(got, i)
				}
				assert.Equal(t, want, got)
				one, err := m.Lookup(3)
				require.NoError(t, err)
				assert.Equal(t, make1(30), one)

				changes, err := m.Sync(maps.All(want))
				require.NoError(t, err)
				assert.Equal(t, Changes{}, changes, "nothing has changed")
				want[3] = make1(31)
				delete(want, 4)
				changes, err = m.Sync(maps.All(want))
				require.NoError(t, err)
				assert.Equal(t, Changes{Set: 1, Deleted: 1}, changes)
				got = contents(t, m)
				assert.Equal(t, make1(31), got[3])
				if kind == ebpf.PerCPUArray {
					assert.Equal(t, make([]counter, cpus), got[4])
				} else {
					assert.NotContains(t, got, uint32(4))
				}

				wrong := make([]counter, cpus+1)
				err = m.Set(1, wrong)
				require.ErrorContains(t, err, "one for each")
				require.ErrorIs(t, err, os.ErrInvalid)
				n, err = m.SetAll(func(yield func(uint32, []counter) bool) { _ = yield(20, make1(1)) && yield(21, wrong) })
				require.ErrorContains(t, err, "key 21")
				require.ErrorIs(t, err, os.ErrInvalid)
				assert.Equal(t, 1, n)
				_, err = m.Sync(func(yield func(uint32, []counter) bool) { yield(3, nil) })
				require.ErrorContains(t, err, "key 3")
				require.ErrorIs(t, err, os.ErrInvalid)
				if kind != ebpf.PerCPUArray {
					_, err = m.Lookup(999)
					require.ErrorIs(t, err, ebpf.ErrKeyNotExist)
				}
			})
		}
	}
}

func TestBlankFieldsOfValuesAreZeros(t *testing.T) {
	t.Parallel()
	type padded struct {
		A uint16
		_ uint16
		B uint32
	}
	m := makeMap(t, kindSpec[padded](ebpf.Hash, 8), Config{})
	raw, err := Wrap[uint32, [8]byte](m.EBPF())
	require.NoError(t, err, "bytes may stand for any fields")
	defer raw.Close()

	dirty := [8]byte{1, 1, 0xee, 0xee, 2, 2, 2, 2}
	require.NoError(t, raw.Set(1, dirty))
	require.NoError(t, raw.Set(2, dirty))
	v, err := m.Lookup(1)
	require.NoError(t, err)
	changes, err := m.Sync(func(yield func(uint32, padded) bool) { _ = yield(1, v) && yield(2, v) })
	require.NoError(t, err)
	assert.Equal(t, Changes{}, changes, "padding is no difference")

	clean := [8]byte{1, 1, 0, 0, 2, 2, 2, 2}
	require.NoError(t, m.Set(1, v))
	_, err = m.SetAll(func(yield func(uint32, padded) bool) { yield(2, v) })
	require.NoError(t, err)
	assert.Equal(t, map[uint32][8]byte{1: clean, 2: clean}, contents(t, raw))
}

func TestAClosedTable(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]*Map[key, value]{
		"closed": func() *Map[key, value] {
			m := makeMap(t, hashSpec("shut", 4), Config{})
			require.NoError(t, m.Close())
			return m
		}(),
		"zero": new(Map[key, value]),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := m.Lookup(keyOf(1))
			require.ErrorIs(t, err, os.ErrClosed)
			require.ErrorIs(t, m.Set(keyOf(1), valueOf(1)), os.ErrClosed)
			require.ErrorIs(t, m.Insert(keyOf(1), valueOf(1)), os.ErrClosed)
			require.ErrorIs(t, m.Replace(keyOf(1), valueOf(1)), os.ErrClosed)
			require.ErrorIs(t, m.Delete(keyOf(1)), os.ErrClosed)
			_, err = m.SetAll(entries(1, keyOf, valueOf))
			require.ErrorIs(t, err, os.ErrClosed)
			_, err = m.DeleteAll([]key{keyOf(1)})
			require.ErrorIs(t, err, os.ErrClosed)
			_, err = m.Sync(entries(1, keyOf, valueOf))
			require.ErrorIs(t, err, os.ErrClosed)
			_, err = m.Len()
			require.ErrorIs(t, err, os.ErrClosed)
			require.ErrorIs(t, m.Pin(t.TempDir()), os.ErrClosed)
			turns := 0
			for _, err := range m.All() {
				require.ErrorIs(t, err, os.ErrClosed)
				turns++
			}
			assert.Equal(t, 1, turns, "the error comes once")
			require.NoError(t, m.Unpin())
			require.NoError(t, m.Close())
			require.NoError(t, m.Remove())
		})
	}
}

func TestCloseWaitsForCallsAndStopsWalks(t *testing.T) {
	t.Parallel()
	m := makeMap(t, hashSpec("race", 20_000), Config{})
	_, err := m.SetAll(entries(20_000, keyOf, valueOf))
	require.NoError(t, err)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				_, err := m.Lookup(keyOf(i % 20_000))
				if w%2 == 0 {
					err = m.Set(keyOf(i%20_000), valueOf(i))
				}
				if err != nil {
					assert.ErrorIs(t, err, os.ErrClosed)
					return
				}
			}
		})
	}
	var last error
	seen := 0
	for _, err := range m.All() {
		if last = err; err == nil {
			seen++
			require.NoError(t, m.Close())
		}
	}
	wg.Wait()
	require.ErrorIs(t, last, os.ErrClosed)
	assert.Less(t, seen, 20_000)
}

func TestWrapDuplicatesTheHandle(t *testing.T) {
	t.Parallel()
	em, err := ebpf.NewMap(&ebpf.MapSpec{Name: "lent", Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 4})
	require.NoError(t, err)
	defer em.Close()
	a, err := Wrap[uint32, uint64](em)
	require.NoError(t, err)
	b, err := Wrap[uint32, uint64](em)
	require.NoError(t, err)
	assert.Equal(t, "lent", a.Name())
	require.NoError(t, a.Set(1, 2))
	require.NoError(t, a.Close())
	require.NoError(t, em.Close(), "the owner may close his at any time")
	v, err := b.Lookup(1)
	require.NoError(t, err)
	assert.EqualValues(t, 2, v)
	require.NoError(t, b.Close())
	require.NoError(t, b.Close())
}

func TestBadSpecs(t *testing.T) {
	t.Parallel()
	type gap struct {
		A uint8
		B uint32
	}
	type tail struct {
		A uint32
		B uint8
	}
	type blank struct {
		A uint8
		_ [3]uint8
	}
	hash := func(name string) *ebpf.MapSpec {
		return &ebpf.MapSpec{Name: name, Type: ebpf.Hash, MaxEntries: 4}
	}
	perCPU := &ebpf.MapSpec{Name: "t", Type: ebpf.PerCPUHash, MaxEntries: 4}
	for _, c := range []struct {
		name string
		make func() (any, error)
		want string
	}{
		{"nil", func() (any, error) { return New(Spec[uint32, uint32]{}, Config{}) }, "Spec.Map is nil"},
		{"no name", func() (any, error) { return New(Spec[uint32, uint32]{Map: hash("")}, Config{}) }, "Name is empty"},
		{"dot", func() (any, error) { return New(Spec[uint32, uint32]{Map: hash(".data")}, Config{}) }, "no dot"},
		{"slash", func() (any, error) { return New(Spec[uint32, uint32]{Map: hash("a/b")}, Config{}) }, "no slash"},
		{"gap", func() (any, error) { return New(Spec[gap, uint32]{Map: hash("t")}, Config{}) }, "3 bytes before field B"},
		{"tail", func() (any, error) { return New(Spec[uint32, tail]{Map: hash("t")}, Config{}) }, "3 bytes at its end"},
		{"blank key", func() (any, error) { return New(Spec[blank, uint32]{Map: hash("t")}, Config{}) }, "bytes 1 to 3"},
		{"int", func() (any, error) { return New(Spec[int, uint32]{Map: hash("t")}, Config{}) }, "key is a int"},
		{"string", func() (any, error) { return New(Spec[uint32, struct{ S string }]{Map: hash("t")}, Config{}) }, "value.S is a string"},
		{"pointer", func() (any, error) { return New(Spec[uint32, *uint32]{Map: hash("t")}, Config{}) }, "only fixed-size"},
		{"any", func() (any, error) { return New(Spec[uint32, any]{Map: hash("t")}, Config{}) }, "only fixed-size"},
		{"empty", func() (any, error) { return New(Spec[uint32, struct{}]{Map: hash("t")}, Config{}) }, "must not be empty"},
		{"slice", func() (any, error) { return New(Spec[uint32, []uint32]{Map: hash("t")}, Config{}) }, "one value per key"},
		{"no slice", func() (any, error) { return New(Spec[uint32, uint32]{Map: perCPU}, Config{}) }, "one value per CPU"},
		{"mismatch", func() (any, error) {
			return New(Spec[uint32, uint32]{Map: hash("t")}, Config{OnMismatch: 9})
		}, "Mismatch(9)"},
		{"no entries", func() (any, error) {
			return New(Spec[uint32, uint32]{Map: &ebpf.MapSpec{Name: "t", Type: ebpf.Hash}}, Config{})
		}, "make table t: Spec.Map.MaxEntries is 0"},
		{"wrap nil", func() (any, error) { return Wrap[uint32, uint32](nil) }, "it is nil"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := c.make()
			require.ErrorContains(t, err, c.want)
			require.ErrorIs(t, err, os.ErrInvalid)
			require.True(t, isNil(m))
		})
	}
	_, err := layoutOf[netipLike, uint32](ebpf.Hash)
	require.ErrorContains(t, err, "only fixed-size")
	require.ErrorIs(t, err, os.ErrInvalid)
}

func TestNilSequencesAreRefused(t *testing.T) {
	t.Parallel()
	m := makeMap(t, hashSpec("nil", 4), Config{})
	require.NoError(t, m.Set(keyOf(1), valueOf(1)))
	_, err := m.Sync(nil)
	require.ErrorContains(t, err, "want is nil")
	require.ErrorIs(t, err, os.ErrInvalid)
	_, err = m.SetAll(nil)
	require.ErrorContains(t, err, "entries is nil")
	require.ErrorIs(t, err, os.ErrInvalid)
	n, err := m.DeleteAll(nil)
	require.NoError(t, err)
	assert.Zero(t, n)
	assert.Len(t, contents(t, m), 1)
}

func TestNewDoesNotChangeTheSpec(t *testing.T) {
	t.Parallel()
	spec := hashSpec("inert", 4)
	spec.Schema = 3
	spec.Map.Pinning = ebpf.PinByName
	before := *spec.Map
	makeMap(t, spec, Config{Pins: mountedFS(t)})
	assert.Equal(t, before, *spec.Map)
}

func TestIncompatibleErrorReadsAsOneLine(t *testing.T) {
	t.Parallel()
	var err error = &IncompatibleError{"flows", "/p/flows", []Difference{{"schema", "1", "2"}, {"key.port", "u16 at byte 4", "u32 at byte 4"}}}
	assert.Equal(t, "table flows at /p/flows is incompatible: schema: have 1, want 2; key.port: have u16 at byte 4, want u32 at byte 4", err.Error())
	assert.True(t, errors.Is(err, ebpf.ErrMapIncompatible))
	assert.Equal(t, "fail replace migrate", strings.Join([]string{Fail.String(), Replace.String(), Migrate.String()}, " "))
}

type netipLike struct {
	Hi, Lo uint64
	Zone   *string
}

func isNil(v any) bool { return v == nil || reflect.ValueOf(v).IsNil() }
