// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/bpf"
)

func newMetrics(t *testing.T, cfg Config) *Metrics {
	t.Helper()
	m, err := NewMetrics(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// countAs writes one counter, another number on each CPU, and returns the sums.
func countAs(t *testing.T, m *Metrics, index uint32, n uint64) (packets, bytes uint64) {
	t.Helper()
	perCPU := make([]bpf.TableCounters, ebpf.MustPossibleCPU())
	for i := range perCPU {
		perCPU[i] = bpf.TableCounters{Packets: n + uint64(i), Bytes: 100 * (n + uint64(i))}
		packets, bytes = packets+perCPU[i].Packets, bytes+perCPU[i].Bytes
	}
	require.NoError(t, m.table.Set(index, perCPU))
	return packets, bytes
}

func counterOf(program bpf.TableProgram, what uint32) uint32 {
	return uint32(program)*uint32(bpf.TableDropReasonDROP_COUNT) + what
}

func TestMetricsAreSummedOverTheCPUs(t *testing.T) {
	t.Parallel()
	m := newMetrics(t, Config{})
	for range m.All() {
		t.Fatal("a new table has counted something")
	}
	packets, bytes := countAs(t, m, counterOf(bpf.TableProgramPROGRAM_FROM_ENDPOINT, uint32(bpf.TableActionACTION_TO_OVERLAY)), 5)
	spoofed, spoofedBytes := countAs(t, m, counterOf(bpf.TableProgramPROGRAM_FROM_ENDPOINT, uint32(bpf.TableDropReasonDROP_SPOOFED_SOURCE)), 7)
	more, moreBytes := countAs(t, m, counterOf(bpf.TableProgramPROGRAM_FROM_OVERLAY, uint32(bpf.TableDropReasonDROP_SPOOFED_SOURCE)), 11)
	newer, newerBytes := countAs(t, m, counterOf(7, 63), 1)
	var got []Metric
	for one, err := range m.All() {
		require.NoError(t, err)
		got = append(got, one)
	}
	assert.Equal(t, []Metric{
		{Program: "from endpoint", Direction: "egress", Outcome: "to overlay", Packets: packets, Bytes: bytes},
		{Program: "from endpoint", Direction: "egress", Dropped: true, Outcome: "spoofed source", Packets: spoofed, Bytes: spoofedBytes},
		{Program: "from overlay", Direction: "ingress", Dropped: true, Outcome: "spoofed source", Packets: more, Bytes: moreBytes},
		{Program: "unknown 7", Direction: "ingress", Dropped: true, Outcome: "unknown 63", Packets: newer, Bytes: newerBytes},
	}, got)
	for range m.All() {
		break
	}
	drops, err := m.Drops("spoofed source")
	require.NoError(t, err)
	assert.Equal(t, spoofed+more, drops)
	drops, err = m.Drops("no route")
	require.NoError(t, err)
	assert.Zero(t, drops)
	for _, bad := range []string{"", "none", "to overlay", "DROP_NO_ROUTE", "no route ", "count"} {
		_, err = m.Drops(bad)
		require.ErrorContains(t, err, "is not a drop reason", bad)
		require.ErrorIs(t, err, os.ErrInvalid, bad)
	}
}

// Every enumerator of the C headers has its name in the table, and no other.
func TestMetricsKnowEveryName(t *testing.T) {
	t.Parallel()
	m := newMetrics(t, Config{})
	spec, err := bpf.LoadTable()
	require.NoError(t, err)
	values := func(enum string) (all []btf.EnumValue) {
		var e *btf.Enum
		require.NoError(t, spec.Types.TypeByName(enum, &e))
		for _, v := range e.Values {
			if !strings.HasSuffix(v.Name, "_COUNT") && v.Value != 0 {
				all = append(all, v)
			}
		}
		return all
	}
	reasons := values("drop_reason")
	require.Greater(t, len(reasons), 20)
	for _, program := range values("program") {
		for _, what := range append(values("action"), reasons...) {
			countAs(t, m, counterOf(bpf.TableProgram(program.Value), uint32(what.Value)), 1)
			found := false
			for one, err := range m.All() {
				require.NoError(t, err)
				prefix := "ACTION_"
				if one.Dropped {
					prefix = "DROP_"
				}
				asInC := func(s string) string { return strings.ToUpper(strings.ReplaceAll(s, " ", "_")) }
				found = found || "PROGRAM_"+asInC(one.Program) == program.Name && prefix+asInC(one.Outcome) == what.Name
				assert.NotContains(t, one.Outcome, "unknown 0")
			}
			assert.True(t, found, "%s by %s", what.Name, program.Name)
			require.NoError(t, m.table.Set(counterOf(bpf.TableProgram(program.Value), uint32(what.Value)), make([]bpf.TableCounters, ebpf.MustPossibleCPU())))
		}
	}
	for _, reason := range reasons {
		_, err := m.Drops(strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(reason.Name, "DROP_"), "_", " ")))
		require.NoError(t, err)
	}
}

func TestMetricsPins(t *testing.T) {
	t.Parallel()
	dir := mountedFS(t)
	_, err := OpenMetrics(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	first := newMetrics(t, Config{Pins: dir})
	want, _ := countAs(t, first, counterOf(bpf.TableProgramPROGRAM_FROM_HOST, uint32(bpf.TableDropReasonDROP_NO_ROUTE)), 3)
	require.NoError(t, first.Close())
	for _, err := range first.All() {
		require.ErrorIs(t, err, os.ErrClosed)
	}
	_, err = first.Drops("no route")
	require.ErrorIs(t, err, os.ErrClosed)
	tool, err := OpenMetrics(dir)
	require.NoError(t, err)
	defer tool.Close()
	got, err := tool.Drops("no route")
	require.NoError(t, err)
	assert.Equal(t, want, got)
	require.NoError(t, newMetrics(t, Config{Pins: dir}).Remove())
	assert.Empty(t, pinsIn(t, dir))
}
