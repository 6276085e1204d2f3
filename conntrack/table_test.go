// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cilium/ebpf"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/maps"
)

func pins(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bpf")
	require.NoError(t, maps.MountBPFFS(dir))
	t.Cleanup(func() { require.NoError(t, maps.UnmountBPFFS(dir)) })
	return dir
}

func pinned(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".debug") { // the kernel's own
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names
}

func TestPinnedTableIsAdoptedWithItsFlows(t *testing.T) {
	t.Parallel()
	dir := pins(t)
	_, err := Open(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	cfg := Config{Config: maps.Config{Pins: dir}, Flows: 64}
	first := newTable(t, cfg)
	now := ago(t, first, 0)
	fill(t, first, 10, bpf.TableFlowStageFLOW_CONFIRMED, func(int) uint32 { return now })
	require.NoError(t, first.head.Set(0, 77))
	require.NoError(t, first.Close())
	require.NoError(t, first.Close())

	second := newTable(t, cfg)
	f, err := second.Lookup(numberedTuple(3))
	require.NoError(t, err)
	assert.Equal(t, numberedTuple(3), f.Original)
	head, err := second.head.Lookup(0)
	require.NoError(t, err)
	assert.EqualValues(t, 77, head, "the ring of the unconfirmed goes on where it was")
	var incompatible *maps.IncompatibleError
	_, err = New(Config{Config: cfg.Config, Flows: 65})
	require.ErrorAs(t, err, &incompatible)
	assert.Equal(t, []maps.Difference{{Field: "max entries", Have: "128", Want: "130"}}, incompatible.Differences)

	tool, err := Open(dir)
	require.NoError(t, err)
	defer tool.Close()
	n := 0
	for _, err := range tool.All() {
		require.NoError(t, err)
		n++
	}
	assert.Equal(t, 10, n)
	stats, err := tool.Stats()
	require.NoError(t, err)
	assert.EqualValues(t, 10, stats.Established)
	flushed, err := tool.Flush(Filter{SrcPort: numberedTuple(3).Src.Port()})
	require.NoError(t, err)
	assert.Equal(t, 1, flushed)
	_, err = tool.Expire()
	require.ErrorContains(t, err, "owner's timeouts are not known")
	require.ErrorContains(t, tool.Run(t.Context()), "owner's timeouts are not known")
	require.ErrorContains(t, tool.Remove(), "opened for reading")
	assert.Nil(t, tool.DatapathParts().Maps["flow_ring"], "it is no block: the programs would not know the settings")
	assert.Empty(t, tool.DatapathParts().Settings)

	require.NoError(t, second.Remove())
	assert.Empty(t, pinned(t, dir))
}

func TestConstructorLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := pins(t)
	// The last table of all is in the way.
	foreign, err := maps.New(maps.Spec[uint32, uint32]{Map: &ebpf.MapSpec{Name: headTable, Type: ebpf.Hash, MaxEntries: 1}}, maps.Config{Pins: dir})
	require.NoError(t, err)
	defer func() { require.NoError(t, foreign.Remove()) }()
	_, err = New(Config{Config: maps.Config{Pins: dir}, Flows: 16})
	require.ErrorIs(t, err, ebpf.ErrMapIncompatible)
	assert.Equal(t, []string{headTable}, pinned(t, dir))
}

func TestClosedTable(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 16, Interval: 1})
	require.NoError(t, table.Close())
	_, err := table.Lookup(numberedTuple(1))
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = table.Stats()
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = table.Expire()
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = table.Flush(Filter{})
	require.ErrorIs(t, err, os.ErrClosed)
	require.ErrorIs(t, table.Run(context.Background()), os.ErrClosed)
	for _, err := range table.All() {
		require.ErrorIs(t, err, os.ErrClosed)
	}
}

// Close waits for calls that are in the kernel, whoever makes them.
func TestCloseWhileInUse(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 20000, Interval: 1})
	now := ago(t, table, 0)
	fill(t, table, 20000, bpf.TableFlowStageFLOW_CONFIRMED, func(int) uint32 { return now })
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	for _, use := range []func() error{
		func() error { _, err := table.Expire(); return err },
		func() error { _, err := table.Stats(); return err },
		func() error { _, err := table.Lookup(numberedTuple(1)); return err },
		func() error { return table.Run(t.Context()) },
	} {
		wg.Go(func() {
			started <- struct{}{}
			for {
				if err := use(); err != nil {
					assert.ErrorIs(t, err, os.ErrClosed)
					return
				}
			}
		})
	}
	for range 4 {
		<-started
	}
	require.NoError(t, table.Close())
	wg.Wait()
}

func TestParts(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 100, Unconfirmed: 20})
	parts := table.DatapathParts()
	assert.Equal(t, "flows", parts.Name)
	assert.Len(t, parts.Maps, 5)
	assert.EqualValues(t, 200, parts.Maps[flowsTable].MaxEntries())
	assert.Equal(t, map[string]any{
		"with_flows": uint8(1), "unconfirmed_mask": uint32(31), "fragment_timeout": uint32(30 * table.clock.HZ()),
	}, parts.Settings)
	assert.NotZero(t, parts.Maps[headSection].Flags()&unix.BPF_F_MMAPABLE)
}

// The kernel of this machine has the ticks that it says.
func TestClockAgreesWithTheKernel(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 16})
	start, err := table.now()
	require.NoError(t, err)
	began := time.Now()
	time.Sleep(300 * time.Millisecond)
	end, err := table.now()
	require.NoError(t, err)
	took := time.Since(began)
	assert.InDelta(t, took.Seconds(), table.clock.Since(end, start).Seconds(), 0.1)
}
