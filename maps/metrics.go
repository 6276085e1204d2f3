// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"iter"

	"github.com/cilium/ebpf"

	"github.com/godatapath/datapath/internal/block"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/names"
)

const (
	metricsTable  = bpf.TableMapMetrics
	metricsSchema = 1
)

// Metric is one counter: what became of the packets that a program met.
type Metric struct {
	// Program is the hook: "from endpoint", "to endpoint", "from host",
	// "from overlay" or "from device".
	Program string
	// Direction is as an endpoint sees it: "egress" for what one has sent, that
	// is, for Program "from endpoint", and "ingress" for all else. It is not a
	// programs.Direction, which is as the device sees it: from_endpoint is on
	// the ingress of the endpoint's device.
	Direction string
	// Dropped tells a drop from a delivery.
	Dropped bool
	// Outcome is what was done: "to endpoint", "to overlay", "to host", "pass"
	// (left to the next program and the stack) or "answered" (by the program
	// itself: ARP, NDP, an echo to an address of services). Of what was dropped
	// it is the reason, see [Metrics.Drops].
	Outcome string
	// Packets counts as the hook sees them: an aggregate of segments is one.
	// Bytes is with the link-layer header.
	Packets, Bytes uint64
}

// Metrics is the counter table: outcome by program, summed over the CPUs on
// reading. Programs count without locks, each CPU for itself.
type Metrics struct {
	table *Map[uint32, []bpf.TableCounters]
	names metricNames
}

type metricNames struct{ programs, drops, actions map[uint32]string }

// NewMetrics makes the counter table, or adopts the pinned one.
func NewMetrics(cfg Config) (*Metrics, error) {
	return metrics(func() (*Map[uint32, []bpf.TableCounters], error) {
		return newTable[uint32, []bpf.TableCounters](metricsTable, metricsSchema, 0, cfg)
	})
}

// OpenMetrics opens the counter table that is pinned in the folder pins: for
// tools. An absent one answers os.ErrNotExist, one of another schema or layout
// [*IncompatibleError].
func OpenMetrics(pins string) (*Metrics, error) {
	return metrics(func() (*Map[uint32, []bpf.TableCounters], error) {
		return openTable[uint32, []bpf.TableCounters](metricsTable, metricsSchema, pins)
	})
}

func metrics(table func() (*Map[uint32, []bpf.TableCounters], error)) (_ *Metrics, err error) {
	m := new(Metrics)
	if m.names.programs, err = names.Of("program", "PROGRAM"); err != nil {
		return nil, err
	}
	if m.names.drops, err = names.Of("drop_reason", "DROP"); err != nil {
		return nil, err
	}
	if m.names.actions, err = names.Of("action", "ACTION"); err != nil {
		return nil, err
	}
	if m.table, err = table(); err != nil {
		return nil, err
	}
	return m, nil
}

// All walks over the counters that are not zero, by program and outcome.
func (m *Metrics) All() iter.Seq2[Metric, error] {
	return func(yield func(Metric, error) bool) {
		for entry, err := range m.table.All() {
			if err != nil {
				yield(Metric{}, err)
				return
			}
			if metric := m.names.metric(entry.Key, entry.Value); metric.Packets != 0 && !yield(metric, nil) {
				return
			}
		}
	}
}

// Drops sums the packets that were dropped for the reason, by all programs. The
// reasons are enum drop_reason in programs/bpf/lib/types.h, which says of each what
// it means; the name here is the one there without DROP_, in lower case and with
// blanks: DROP_SPOOFED_SOURCE is "spoofed source", DROP_NO_ROUTE "no route". A
// reason that does not exist is os.ErrInvalid.
func (m *Metrics) Drops(reason string) (uint64, error) {
	known := false
	for number, name := range m.names.drops {
		known = known || name == reason && isDrop(number)
	}
	if !known {
		return 0, invalid.Errorf("count drops: %q is not a drop reason", reason)
	}
	var sum uint64
	for metric, err := range m.All() {
		if err != nil {
			return 0, fmt.Errorf("count drops: %w", err)
		}
		if metric.Dropped && metric.Outcome == reason {
			sum += metric.Packets
		}
	}
	return sum, nil
}

func (n metricNames) metric(index uint32, perCPU []bpf.TableCounters) Metric {
	program, what := index/uint32(bpf.TableDropReasonDROP_COUNT), index%uint32(bpf.TableDropReasonDROP_COUNT)
	out := Metric{Program: nameOr(n.programs, program), Direction: "ingress"}
	if program == uint32(bpf.TableProgramPROGRAM_FROM_ENDPOINT) {
		out.Direction = "egress"
	}
	if out.Dropped = isDrop(what); out.Dropped {
		out.Outcome = nameOr(n.drops, what)
	} else {
		out.Outcome = nameOr(n.actions, what)
	}
	for _, c := range perCPU {
		out.Packets += c.Packets
		out.Bytes += c.Bytes
	}
	return out
}

// isDrop tells reasons from actions, which are counted in front of them.
func isDrop(what uint32) bool { return what >= uint32(bpf.TableActionACTION_COUNT) }

// nameOr keeps a counter of newer programs readable for an older tool.
func nameOr(all map[uint32]string, n uint32) string {
	if name, ok := all[n]; ok {
		return name
	}
	return fmt.Sprintf("unknown %d", n)
}

// Close drops our handle; a pinned table stays. Idempotent.
func (m *Metrics) Close() error { return m.table.Close() }

// Remove takes the pin away and closes.
func (m *Metrics) Remove() error { return m.table.Remove() }

// DatapathParts makes the table a block of programs.Load.
func (m *Metrics) DatapathParts() block.Parts {
	return block.Parts{Name: "metrics", Maps: map[string]*ebpf.Map{metricsTable: m.table.EBPF()}}
}
