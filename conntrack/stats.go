// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
)

// Stats is the state of the table in numbers. Those of events count from the
// making of the table.
type Stats struct {
	Entries, Capacity  int    // two entries a flow
	Established, New   uint64 // flows now: Established was confirmed, and may be over; New is those that Config.Unconfirmed bounds
	Created, Confirmed uint64
	Evicted            uint64 // unconfirmed flows that newer ones pushed out
	Reused             uint64 // closed connections whose tuple came again
	Ended              uint64 // closed connections that later ones took the place of, before they expired
	// InsertErrors are flows that could not be remembered, whose packets went on
	// all the same: unix.E2BIG the table is full, unix.ENOMEM, unix.EBUSY a lock
	// was taken (kernels before 6.15), 0 anything else. What did not happen is
	// not listed.
	InsertErrors map[unix.Errno]uint64
	// FragmentsNotRemembered are datagrams whose later parts are dropped.
	FragmentsNotRemembered uint64
}

// Fill is the used share of the table, 0 to 1.
func (s Stats) Fill() float64 { return float64(s.Entries) / float64(s.Capacity) }

// Stats counts the table in one pass inside the kernel.
func (t *Table) Stats() (Stats, error) {
	count, err := t.runPass(bpf.TablePassModePASS_COUNT)
	if err != nil {
		return Stats{}, err
	}
	events := map[bpf.TableFlowEvent]uint64{}
	for e, err := range t.events.All() {
		if err != nil {
			return Stats{}, fmt.Errorf("count the flow events: %w", err)
		}
		for _, n := range e.Value {
			events[bpf.TableFlowEvent(e.Key)] += n
		}
	}
	out := Stats{
		Entries:                int(count.Entries),
		Capacity:               t.flows.Capacity(),
		Established:            count.Confirmed,
		New:                    count.Unconfirmed,
		Created:                events[bpf.TableFlowEventFLOW_CREATED],
		Confirmed:              events[bpf.TableFlowEventFLOW_CONFIRMATIONS],
		Evicted:                events[bpf.TableFlowEventFLOW_EVICTED],
		Reused:                 events[bpf.TableFlowEventFLOW_REUSED],
		Ended:                  events[bpf.TableFlowEventFLOW_ENDED],
		FragmentsNotRemembered: events[bpf.TableFlowEventFLOW_FRAGMENTS_FULL],
		InsertErrors:           map[unix.Errno]uint64{},
	}
	for errno, event := range map[unix.Errno]bpf.TableFlowEvent{
		unix.E2BIG:  bpf.TableFlowEventFLOW_FULL,
		unix.ENOMEM: bpf.TableFlowEventFLOW_NO_MEMORY,
		unix.EBUSY:  bpf.TableFlowEventFLOW_BUSY,
		0:           bpf.TableFlowEventFLOW_FAILED, // any other
	} {
		if events[event] > 0 {
			out.InsertErrors[errno] = events[event]
		}
	}
	return out, nil
}
