// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/unprivileged"
	"github.com/godatapath/datapath/maps"
)

// Flows go over to a table of another size, and the unconfirmed to a ring of
// another size: there each has the place that it names.
func TestMigrateToAnotherSize(t *testing.T) {
	t.Parallel()
	const flows = 40
	dir := pins(t)
	with := func(size int, how maps.Mismatch) Config {
		return Config{Config: maps.Config{Pins: dir, OnMismatch: how}, Flows: size}
	}
	first := newTable(t, with(64, maps.Fail))
	now := ago(t, first, 0)
	fill(t, first, flows, bpf.TableFlowStageFLOW_CONFIRMED, func(int) uint32 { return now })
	for i := range 16 { // the first of them are new
		key := keyOf(numberedTuple(i))
		f, err := first.flows.Lookup(key)
		require.NoError(t, err)
		f.Stage, f.Slot = stageNew, uint32(i)
		require.NoError(t, first.flows.Set(key, f))
		require.NoError(t, first.ring.Set(f.Slot, key))
	}
	require.NoError(t, first.head.Set(0, 77))
	require.NoError(t, first.fragments.Set(bpf.TableFragmentKey{Id: 5}, bpf.TableFragments{Sport: 6}))
	want := entriesOf(t, first)
	require.Len(t, want, 2*flows)
	check := func(table *Table, size, unconfirmed int) {
		t.Helper()
		assert.Equal(t, want, entriesOf(t, table))
		assert.Equal(t, []int{2 * size, unconfirmed}, []int{table.flows.Capacity(), table.ring.Capacity()})
		for e, err := range table.ring.All() {
			require.NoError(t, err)
			place := bpf.TableTuple{}
			if e.Key < 16 {
				place = keyOf(numberedTuple(int(e.Key)))
			}
			assert.Equal(t, place, e.Value, "place %d of %d", e.Key, unconfirmed)
		}
		head, err := table.head.Lookup(0)
		require.NoError(t, err)
		assert.EqualValues(t, 77, head)
		part, err := table.fragments.Lookup(bpf.TableFragmentKey{Id: 5})
		require.NoError(t, err)
		assert.EqualValues(t, 6, part.Sport)
		assert.EqualValues(t, unconfirmed-1, table.DatapathParts().Settings["unconfirmed_mask"])
	}
	check(first, 64, 16)
	was := pinned(t, dir)
	larger := newTable(t, with(128, maps.Migrate))
	check(larger, 128, 32)
	check(newTable(t, with(64, maps.Migrate)), 64, 16)
	check(newTable(t, with(flows, maps.Migrate)), flows, 16)
	other := with(flows, maps.Migrate)
	other.Unconfirmed, other.Fragments = 8, 100
	check(newTable(t, other), flows, 8)
	other.Unconfirmed = 16
	check(newTable(t, other), flows, 16)
	assert.Equal(t, was, pinned(t, dir))

	// One flow more than fits: all is as it was.
	_, err := New(with(flows-1, maps.Migrate))
	require.ErrorIs(t, err, unix.E2BIG)
	require.ErrorContains(t, err, "make table flows: migrate the entries of "+filepath.Join(dir, flowsTable))
	other.OnMismatch = maps.Fail
	last := newTable(t, other)
	check(last, flows, 16)
	require.NoError(t, last.Remove())
	assert.Empty(t, pinned(t, dir))
}

// Tools and New alike refuse tables of another version.
func TestAnotherSchema(t *testing.T) {
	t.Parallel()
	for _, name := range []string{flowsTable, eventsTable} {
		t.Run(name, func(t *testing.T) {
			dir := pins(t)
			cfg := Config{Config: maps.Config{Pins: dir}, Flows: 64}
			require.NoError(t, newTable(t, cfg).Close())
			tool, err := Open(dir)
			require.NoError(t, err, "whatever its size")
			require.NoError(t, tool.Close())
			spec, err := bpf.LoadTable()
			require.NoError(t, err)
			ms := spec.Maps[name]
			replace := maps.Config{Pins: dir, OnMismatch: maps.Replace}
			if name == flowsTable {
				ms.MaxEntries = 128
				other, err := maps.New(maps.Spec[bpf.TableTuple, bpf.TableFlow]{Map: ms, Schema: schema + 1}, replace)
				require.NoError(t, err)
				require.NoError(t, other.Close())
			} else {
				other, err := maps.New(maps.Spec[uint32, []uint64]{Map: ms, Schema: schema + 1}, replace)
				require.NoError(t, err)
				require.NoError(t, other.Close())
			}
			want := &maps.IncompatibleError{Table: name, Path: filepath.Join(dir, name), Differences: []maps.Difference{
				{Field: "schema", Have: fmt.Sprint(schema + 1), Want: fmt.Sprint(schema)},
			}}
			var typed *maps.IncompatibleError
			_, err = Open(dir)
			require.ErrorAs(t, err, &typed)
			assert.Equal(t, want, typed)
			for _, how := range []maps.Mismatch{maps.Fail, maps.Migrate} {
				cfg.OnMismatch = how
				_, err = New(cfg)
				require.ErrorAs(t, err, &typed)
				assert.Equal(t, want, typed)
			}
		})
	}
}

// Close releases Run long before its next pass.
func TestCloseEndsRun(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 16, Interval: time.Hour})
	const runners = 3
	ended := make(chan error, runners)
	for range runners {
		go func() { ended <- table.Run(t.Context()) }()
	}
	select {
	case err := <-ended:
		t.Fatal("ended by itself: ", err)
	case <-time.After(20 * time.Millisecond):
	}
	require.NoError(t, table.Close())
	for range runners {
		select {
		case err := <-ended:
			require.ErrorIs(t, err, os.ErrClosed)
			require.ErrorContains(t, err, "expire the flow table")
		case <-time.After(5 * time.Second):
			t.Fatal("Run goes on after Close")
		}
	}
	require.NoError(t, table.Close())
	require.ErrorIs(t, table.Run(t.Context()), os.ErrClosed, "and does not begin after it")
}

// Who has no right is told what is needed, and nothing is left.
func TestNoPrivilege(t *testing.T) {
	t.Parallel()
	unprivileged.Run(t, func() {
		dir, empty := pins(t), pins(t)
		newTable(t, Config{Config: maps.Config{Pins: dir}, Flows: 64})
		was := pinned(t, dir)
		for name, try := range map[string]func() error{
			"new":     func() error { _, err := New(Config{}); return err },
			"pinned":  func() error { _, err := New(Config{Config: maps.Config{Pins: empty}}); return err },
			"adopted": func() error { _, err := New(Config{Config: maps.Config{Pins: dir}, Flows: 64}); return err },
			"open":    func() error { _, err := Open(dir); return err },
		} {
			err := unprivileged.Do(try)
			require.ErrorIs(t, err, os.ErrPermission, name)
			assert.ErrorContains(t, err, "root or CAP_BPF", name)
		}
		assert.Empty(t, pinned(t, empty))
		assert.Equal(t, was, pinned(t, dir))
		// The verifier is the last to say no.
		table := newTable(t, Config{Flows: 64})
		err := unprivileged.Do(table.loadPass)
		require.ErrorIs(t, err, os.ErrPermission)
		require.ErrorContains(t, err, "root or CAP_BPF and CAP_PERFMON are needed")
	})
}
