// SPDX-License-Identifier: Apache-2.0

package show

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/conntrack"
)

// FlowStats is the flow table in numbers.
type FlowStats struct {
	Established            uint64            `json:"established"` // flows now whose originator has answered a reply
	New                    uint64            `json:"new"`         // and those where it has not
	Closing                uint64            `json:"closing"`     // and those that both ends have closed, or one has broken off
	Entries                int               `json:"entries"`     // two a flow
	Capacity               int               `json:"capacity"`    // in entries
	Fill                   float64           `json:"fill"`        // 0 to 1
	Created                uint64            `json:"created"`     // this and the following count events since the table was made
	Confirmed              uint64            `json:"confirmed"`
	Evicted                uint64            `json:"evicted"`      // new flows, pushed out by newer ones
	Reused                 uint64            `json:"reused"`       // a closed connection's tuple came again
	Ended                  uint64            `json:"ended"`        // closed connections that went before they expired, for later ones
	InsertErrors           map[string]uint64 `json:"insertErrors"` // by errno, such as "E2BIG", or "other"
	FragmentsNotRemembered uint64            `json:"fragmentsNotRemembered"`
}

// Flows is how many there are now.
func (s FlowStats) Flows() uint64 { return s.New + s.Established + s.Closing }

// Stats reads the flow table's numbers. It counts flows by the state that
// [Flows] tells, and so walks over all of them.
func Stats(t *conntrack.Table) (FlowStats, error) {
	s, err := t.Stats()
	if err != nil {
		return FlowStats{}, err
	}
	out := FlowStats{
		Entries: s.Entries, Capacity: s.Capacity, Fill: s.Fill(),
		Created: s.Created, Confirmed: s.Confirmed, Evicted: s.Evicted, Reused: s.Reused, Ended: s.Ended,
		InsertErrors: map[string]uint64{}, FragmentsNotRemembered: s.FragmentsNotRemembered,
	}
	for f, err := range t.All() {
		if err != nil {
			return FlowStats{}, err
		}
		switch f.State {
		case conntrack.StateNew:
			out.New++
		case conntrack.StateEstablished:
			out.Established++
		case conntrack.StateClosing:
			out.Closing++
		}
	}
	for errno, n := range s.InsertErrors {
		name := unix.ErrnoName(errno)
		if name == "" {
			name = "other"
		}
		out.InsertErrors[name] = n
	}
	return out, nil
}

// FlowsLegend explains the states of flows.
var FlowsLegend = []string{
	"new: the side that began has not answered a reply yet, as in one question and one answer of UDP",
	"established: it has; closing: both sides have closed it, or one has broken it off",
}

// Row is the numbers that change on a healthy node.
func (s FlowStats) Row() Row {
	return Row{
		fmt.Sprintf("flows=%d", s.Flows()), fmt.Sprintf("new=%d", s.New), fmt.Sprintf("established=%d", s.Established), fmt.Sprintf("closing=%d", s.Closing),
		fmt.Sprintf("full=%.2f%%", 100*s.Fill), fmt.Sprintf("created=%d", s.Created),
		fmt.Sprintf("evicted=%d", s.Evicted), "insert-errors=" + s.Errors(),
	}
}

// Errors is the failed inserts: "0", or by errno.
func (s FlowStats) Errors() string {
	if len(s.InsertErrors) == 0 {
		return "0"
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(s.InsertErrors)) {
		parts = append(parts, fmt.Sprintf("%s:%d", name, s.InsertErrors[name]))
	}
	return strings.Join(parts, ",")
}
