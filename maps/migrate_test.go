// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"maps"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
)

// pinID is the table that is pinned as dir/name.
func pinID(t *testing.T, dir, name string) uint32 {
	t.Helper()
	id, err := mapIDOfPin(filepath.Join(dir, name))
	require.NoError(t, err)
	return id
}

// A table without a way of its own is copied to another size, and to nothing
// else.
func TestMigrateCopiesToAnotherSize(t *testing.T) {
	t.Parallel()
	t.Run("hash", func(t *testing.T) { copies(t, hashSpec("rows", 0), keyOf, valueOf) })
	t.Run("trie", func(t *testing.T) { copies(t, trieSpec("rows", 0), mixedPrefix, numberOf) })
	t.Run("per CPU", func(t *testing.T) {
		spec := kindSpec[[]uint64](ebpf.PerCPUHash, 0)
		spec.Map.Name = "rows"
		copies(t, spec, numberOf, func(i int) []uint64 {
			v := make([]uint64, ebpf.MustPossibleCPU())
			for cpu := range v {
				v[cpu] = uint64(100*i + cpu)
			}
			return v
		})
	})
	t.Run("without BTF", func(t *testing.T) {
		spec := kindSpec[uint32](ebpf.DevMapHash, 0)
		spec.Map.Name = "rows"
		copies(t, spec, numberOf, func(int) uint32 { return 1 }) // the loopback device
	})
}

func copies[K comparable, V any](t *testing.T, spec Spec[K, V], k func(int) K, v func(int) V) {
	t.Parallel()
	const n = 9000 // more than one batch
	dir := mountedFS(t)
	with := func(size uint32, how Mismatch) (*Map[K, V], error) {
		spec := spec
		spec.Map = spec.Map.Copy()
		spec.Map.MaxEntries = size
		return New(spec, Config{Pins: dir, OnMismatch: how})
	}
	want := maps.Collect(entries(n, k, v))
	first, err := with(n, Fail)
	require.NoError(t, err)
	_, err = first.SetAll(maps.All(want))
	require.NoError(t, err)
	require.NoError(t, first.Close())

	for _, size := range []uint32{2 * n, n + 7, n} {
		_, err := with(size, Fail)
		require.ErrorIs(t, err, ebpf.ErrMapIncompatible)
		m, err := with(size, Migrate)
		require.NoError(t, err)
		assert.EqualValues(t, size, m.Capacity())
		assert.True(t, assert.ObjectsAreEqual(want, contents(t, m)), "with room for %d", size)
		assert.Equal(t, []string{"rows"}, pinsIn(t, dir))
		require.NoError(t, m.Close())
	}
	was := pinID(t, dir, "rows")
	_, err = with(n-1, Migrate)
	require.ErrorIs(t, err, unix.E2BIG)
	require.ErrorContains(t, err, "migrate the entries of "+filepath.Join(dir, "rows"))
	require.ErrorContains(t, err, fmt.Sprintf("table rows: the table is full with %d entries", n-1))
	assert.Equal(t, was, pinID(t, dir, "rows"), "the pin is left alone")
	assert.Equal(t, []string{"rows"}, pinsIn(t, dir))
	m, err := with(n, Fail)
	require.NoError(t, err)
	require.Len(t, contents(t, m), n)
	require.NoError(t, m.Close())
}

func TestMigrateCopiesNothingElse(t *testing.T) {
	t.Parallel()
	dir := mountedFS(t)
	old := hashSpec("rows", 4)
	old.Schema = 1
	require.NoError(t, makeMap(t, old, Config{Pins: dir}).Set(keyOf(1), valueOf(1)))
	was := pinID(t, dir, "rows")
	var typed *IncompatibleError

	next := hashSpec("rows", 8)
	next.Schema = 2
	_, err := New(next, Config{Pins: dir, OnMismatch: Migrate})
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, []Difference{{"max entries", "4", "8"}, {"schema", "1", "2"}}, typed.Differences)
	next = hashSpec("rows", 8)
	next.Schema, next.Map.Flags = 1, unix.BPF_F_NO_PREALLOC
	_, err = New(next, Config{Pins: dir, OnMismatch: Migrate})
	require.ErrorAs(t, err, &typed)
	type other struct{ A, B, C, D uint64 }
	_, err = New(Spec[key, other]{Map: hashSpec("rows", 8).Map, Schema: 1}, Config{Pins: dir, OnMismatch: Migrate})
	require.ErrorAs(t, err, &typed)
	assert.Contains(t, typed.Differences, Difference{"value.MAC", "u8[6] at byte 16", "value.C u64 at byte 16"}, "beside the size")
	assert.Equal(t, was, pinID(t, dir, "rows"))

	// The index of an array means something.
	array := kindSpec[uint32](ebpf.Array, 4)
	makeMap(t, array, Config{Pins: dir})
	array.Map.MaxEntries = 8
	_, err = New(array, Config{Pins: dir, OnMismatch: Migrate})
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, []Difference{{"max entries", "4", "8"}}, typed.Differences)
}

func TestEndpointsMigrateToAnotherSize(t *testing.T) {
	t.Parallel()
	dir := mountedFS(t)
	with := func(room int, how Mismatch) EndpointsConfig {
		return EndpointsConfig{Config: Config{Pins: dir, OnMismatch: how}, Max: room}
	}
	first := newEndpoints(t, with(16, Fail))
	var all []Endpoint
	for i := range 16 {
		all = append(all, endpoint(uint32(10+i), 10+i, fmt.Sprintf("10.0.0.%d", i+1), fmt.Sprintf("fd00::%d", i+1)))
	}
	_, err := first.Sync(all)
	require.NoError(t, err)

	larger := newEndpoints(t, with(32, Migrate))
	larger.check(all...)
	assert.Equal(t, 32, larger.links.Capacity())
	more := endpoint(99, 99, "10.0.0.99", "fd00::99")
	require.NoError(t, larger.Set(more), "there is room now")
	larger.check(append(all, more)...)
	first.check(all...) // who holds the old tables keeps them

	// Too many for the former size: all is as it was.
	pins := func() (ids [2]uint32) {
		return [2]uint32{pinID(t, dir, endpointByAddr), pinID(t, dir, endpointByIfindex)}
	}
	was := pins()
	_, err = NewEndpoints(with(16, Migrate))
	require.ErrorIs(t, err, unix.E2BIG)
	require.ErrorContains(t, err, "make table endpoint_by_ifindex: migrate the entries of "+filepath.Join(dir, endpointByIfindex))
	assert.Equal(t, was, pins())
	assert.Equal(t, []string{endpointByAddr, endpointByIfindex}, pinsIn(t, dir))
	newEndpoints(t, with(32, Fail)).check(append(all, more)...)

	require.NoError(t, larger.Delete(more.Ifindex))
	smaller := newEndpoints(t, with(16, Migrate))
	smaller.check(all...)
	assert.Equal(t, []string{endpointByAddr, endpointByIfindex}, pinsIn(t, dir))
	require.NoError(t, smaller.Remove())
	assert.Empty(t, pinsIn(t, dir))
}

// Tools and New alike refuse tables of another version.
func TestEndpointsOfAnotherSchema(t *testing.T) {
	t.Parallel()
	for _, name := range []string{endpointByAddr, endpointByIfindex} {
		t.Run(name, func(t *testing.T) {
			dir := mountedFS(t)
			cfg := EndpointsConfig{Config: Config{Pins: dir}, Max: 16}
			require.NoError(t, newEndpoints(t, cfg).Set(endpoint(10, 4, "10.0.0.1")))
			tool, err := OpenEndpoints(dir)
			require.NoError(t, err, "whatever their size")
			require.NoError(t, tool.Close())

			replace := Config{Pins: dir, OnMismatch: Replace}
			if name == endpointByAddr {
				other, err := newTable[bpf.TableAddress, bpf.TableEndpoint](name, endpointSchema+1, 34, replace)
				require.NoError(t, err)
				require.NoError(t, other.Close())
			} else {
				other, err := newTable[uint32, bpf.TableEndpoint](name, endpointSchema+1, 16, replace)
				require.NoError(t, err)
				require.NoError(t, other.Close())
			}
			want := &IncompatibleError{Table: name, Path: filepath.Join(dir, name), Differences: []Difference{
				{"schema", fmt.Sprint(endpointSchema + 1), fmt.Sprint(endpointSchema)},
			}}
			was := pinID(t, dir, name)
			var typed *IncompatibleError
			_, err = OpenEndpoints(dir)
			require.ErrorAs(t, err, &typed)
			assert.Equal(t, want, typed)
			cfg.OnMismatch = Migrate
			_, err = NewEndpoints(cfg)
			require.ErrorAs(t, err, &typed)
			assert.Equal(t, want, typed)
			assert.Equal(t, was, pinID(t, dir, name))
		})
	}
}

func TestMetricsOfAnotherSchema(t *testing.T) {
	t.Parallel()
	dir := mountedFS(t)
	other, err := newTable[uint32, []bpf.TableCounters](metricsTable, metricsSchema+1, 0, Config{Pins: dir})
	require.NoError(t, err)
	require.NoError(t, other.Close())
	var typed *IncompatibleError
	_, err = OpenMetrics(dir)
	require.ErrorAs(t, err, &typed)
	want := []Difference{{"schema", fmt.Sprint(metricsSchema + 1), fmt.Sprint(metricsSchema)}}
	assert.Equal(t, &IncompatibleError{Table: metricsTable, Path: filepath.Join(dir, metricsTable), Differences: want}, typed)
	_, err = NewMetrics(Config{Pins: dir, OnMismatch: Migrate})
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, want, typed.Differences)
}
