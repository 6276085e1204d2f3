// SPDX-License-Identifier: Apache-2.0

package show

import (
	"cmp"
	"slices"
	"strconv"

	"github.com/godatapath/datapath/maps"
)

// Metric is what became of packets that a program met.
type Metric struct {
	Outcome   string `json:"outcome"` // what was done, or why it was dropped
	Dropped   bool   `json:"dropped"`
	Program   string `json:"program"`
	Direction string `json:"direction"` // as endpoints see it, see maps.Metric: egress is what one has sent
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"` // with the link-layer header
}

// Metrics reads the counters: deliveries first, then drops, by outcome.
func Metrics(t *maps.Metrics) ([]Metric, error) {
	out := []Metric{}
	for m, err := range t.All() {
		if err != nil {
			return nil, err
		}
		out = append(out, Metric{Outcome: m.Outcome, Dropped: m.Dropped, Program: m.Program, Direction: m.Direction, Packets: m.Packets, Bytes: m.Bytes})
	}
	slices.SortFunc(out, func(a, b Metric) int {
		dropped := 0
		if a.Dropped != b.Dropped {
			dropped = -1
			if a.Dropped {
				dropped = 1
			}
		}
		return cmp.Or(dropped, cmp.Compare(a.Outcome, b.Outcome), cmp.Compare(a.Program, b.Program))
	})
	return out, nil
}

// MetricsHeading is the row above those of [MetricRows].
var MetricsHeading = Row{"OUTCOME", "PROGRAM", "PACKETS", "BYTES"}

// MetricsLegend explains what an operator asks about the rows of [MetricRows].
var MetricsLegend = []string{
	"answered: by the program itself, as questions of endpoints for their gateway (ARP, NDP)",
	"dropped: multicast: it is not carried; kernels send some unasked, to look for routers and groups",
}

// MetricRows has a row for each counter. The program tells where the packets came
// from: their direction would say the same in a word that hooks use otherwise.
func MetricRows(all []Metric) []Row {
	var rows []Row
	for _, m := range all {
		outcome := m.Outcome
		if m.Dropped {
			outcome = "dropped: " + outcome
		}
		rows = append(rows, Row{outcome, m.Program, strconv.FormatUint(m.Packets, 10), strconv.FormatUint(m.Bytes, 10)})
	}
	return rows
}
