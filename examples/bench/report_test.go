// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// exampleReport has one value for each contestant, in the order veth,
// forwarding, kernel vxlan, same node, overlay, one service, one of many,
// iptables, nftables, by socket. Who has none is left out.
func exampleReport(t *testing.T, name string, values ...float64) *report {
	t.Helper()
	all, err := selectMeasures(name)
	require.NoError(t, err)
	s := settings{rounds: 1, time: time.Second, measures: all, underlay: underlayWire}
	var contestants []contestant
	for _, n := range []string{nameVeth, nameForwarding, nameKernelVXLAN, nameSameNode, nameOverlay, nameService, nameServices, nameIPTables, nameNFTables, nameSocket}[:len(values)] {
		contestants = append(contestants, contestant{name: n, title: "<" + n + ">"})
	}
	rep := newReport(s, contestants)
	for i, v := range values {
		rep.Measures[0].Contestants[i].add(v)
	}
	rep.conclude()
	return rep
}

func TestTargets(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		measure string
		values  []float64
		missed  int
	}{
		{"rr", []float64{10, 12, 16, 10.8, 14.5, 99, 99}, 0},
		{"rr", []float64{10, 12, 16, 10.9, 14.5, 99, 99}, 1},
		{"rr", []float64{10, 12, 14, 10.8, 14.6, 99, 99}, 2},
		{"crr", []float64{10, 12, 16, 11, 15, 11.2, 11.5}, 0},
		{"crr", []float64{10, 12, 14, 11.1, 15.1, 11.3, 11.7}, 5},
		{"crr", []float64{10, 12, 16, 11, 15, 11.2, 11.5, 12, 12, 11.5}, 0},
		{"crr", []float64{10, 12, 16, 11, 15, 11.2, 11.5, 11.4, 12, 11.6}, 2},
		{"udp", []float64{100, 90, 50, 92, 55, 1, 1}, 0},
		{"udp", []float64{100, 90, 50, 91, 54, 1, 1}, 2},
		{"stream", []float64{40, 30, 20, 36, 20, 1, 1}, 0},
		{"stream", []float64{40, 30, 20, 35, 19, 1, 1}, 2},
	} {
		assert.Equal(t, c.missed, exampleReport(t, c.measure, c.values...).missed(), "%+v", c)
	}
}

func TestConclusion(t *testing.T) {
	t.Parallel()
	rep := exampleReport(t, "rr", 10, 12, 16, 11, 14, 11, 11)
	c := &rep.Measures[0].Contestants[4]
	c.add(30)
	c.add(20)
	rep.conclude()
	rep.conclude()
	assert.Equal(t, 20.0, c.Median)
	assert.Equal(t, 14.0, c.Min)
	assert.Equal(t, 30.0, c.Max)
	assert.Equal(t, 2.0, c.ToVeth)
	assert.Equal(t, 1.25, c.ToVXLAN)
	assert.Len(t, rep.Targets, 3, "concluding again must not repeat the targets")
}

func TestMedianAgainstItsDefinition(t *testing.T) {
	t.Parallel()
	for range 1000 {
		values := make([]float64, 1+rand.IntN(9))
		for i := range values {
			values[i] = float64(rand.IntN(5))
		}
		before := slices.Clone(values)
		m := median(values)
		var below, above int
		for _, v := range values {
			if v < m {
				below++
			}
			if v > m {
				above++
			}
		}
		assert.LessOrEqual(t, 2*below, len(values), "%v: %v", values, m)
		assert.LessOrEqual(t, 2*above, len(values), "%v: %v", values, m)
		assert.Equal(t, before, values, "the rounds keep their order")
	}
}

func TestTableIsAligned(t *testing.T) {
	t.Parallel()
	for rounds, heading := range map[int]string{1: "measured once  ", 3: "median  "} {
		rep := exampleReport(t, "rr", 10, 120, 16, 11, 14, 11, 11)
		rep.Rounds = rounds
		var b bytes.Buffer
		require.NoError(t, writeTable(&b, rep))
		var rows []string
		for line := range strings.Lines(b.String()) {
			if strings.HasPrefix(line, "  <") || strings.Contains(line, heading) {
				rows = append(rows, strings.TrimRight(line, "\n"))
			}
		}
		require.Len(t, rows, 8)
		for _, r := range rows {
			assert.Equal(t, len([]rune(rows[0])), len([]rune(r)), b.String())
		}
		assert.Contains(t, b.String(), "12.00", "ratio to veth")
		assert.Contains(t, b.String(), "missed")
		// One measurement has no spread.
		for _, page := range []string{b.String(), string(chart(rep))} {
			assert.Equal(t, rounds == 1, strings.Contains(page, "one measurement of 1s each"))
			assert.Equal(t, rounds == 3, strings.Contains(page, "median of 3 rounds of 1s"))
			assert.Equal(t, rounds == 1, !strings.Contains(page, "min") && !strings.Contains(page, "spread of"))
		}
	}
}

func TestChartEscapesAndFits(t *testing.T) {
	t.Parallel()
	b := chart(exampleReport(t, "udp", 200, 180, 100, 190, 120, 190, 190))
	requireXML(t, b)
	assert.Contains(t, string(b), "&lt;veth&gt;")
	assert.NotContains(t, string(b), "<veth>")
	assert.Contains(t, string(b), "190.0 kpkt/s")
}

func TestProgressOffTheTerminal(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	p := newProgress(&b)
	p.say("building")
	p.begin(2, 2, 3*time.Second)
	for _, text := range []string{"first", "second", "first", "second"} {
		p.step(text)
	}
	p.done()
	assert.Equal(t, "building\nround 1 of 2, 12s left\nround 2 of 2, 0s left\n", b.String(), "a log gets a line for a round")

	b.Reset()
	p = newProgress(&b)
	p.terminal = true
	p.begin(2, 2, 3*time.Second)
	p.step("first")
	p.step("second")
	p.step("first")
	p.done()
	assert.Regexp(t, `^\r\033\[Kround 1 of 2  first +12s left\r\033\[Kround 1 of 2  second +0s left\r\033\[Kround 2 of 2  first +0s left\r\033\[K$`, b.String())
}
