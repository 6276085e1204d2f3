// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"fmt"
	"net/netip"

	"github.com/godatapath/datapath/internal/bpf"
)

// FlushTranslated forgets the flows of a protocol to a frontend that are
// translated to a backend, and returns how many. Zero values match any. It is
// what lb.Config asks of a flow table.
func (t *Table) FlushTranslated(protocol uint8, frontend, backend netip.AddrPort) (int, error) {
	return t.flush(translated(protocol, frontend, backend))
}

// CountTranslated counts the flows that FlushTranslated would forget.
func (t *Table) CountTranslated(protocol uint8, frontend, backend netip.AddrPort) (int, error) {
	n, match := 0, translated(protocol, frontend, backend)
	for e, err := range t.flows.All() {
		if err != nil {
			return 0, fmt.Errorf("count flows: %w", err)
		}
		if isOriginal(e.Value) && match(e.Key, e.Value.Peer) {
			n++
		}
	}
	return n, nil
}

func translated(protocol uint8, frontend, backend netip.AddrPort) func(original, reply bpf.TableTuple) bool {
	matches := func(want, have netip.AddrPort) bool {
		return (!want.Addr().IsValid() || want.Addr().Unmap() == have.Addr()) && (want.Port() == 0 || want.Port() == have.Port())
	}
	return func(original, reply bpf.TableTuple) bool {
		if protocol != 0 && original.Protocol != protocol {
			return false
		}
		to, from := tupleOf(original).Dst, tupleOf(reply).Src
		return to != from && matches(frontend, to) && matches(backend, from)
	}
}
