// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/bpf"
)

// numberedTuple makes distinct TCP tuples.
func numberedTuple(i int) Tuple {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], uint32(i)+10<<24)
	return Tuple{
		Src:      netip.AddrPortFrom(netip.AddrFrom4(a), uint16(1024+i%60000)),
		Dst:      netip.MustParseAddrPort("10.244.1.10:80"),
		Protocol: TCP,
	}
}

func reverse(t Tuple) Tuple { return Tuple{Src: t.Dst, Dst: t.Src, Protocol: t.Protocol} }

// fill writes flows as the programs would. lastSeen is asked for each.
func fill(t testing.TB, table *Table, n int, stage bpf.TableFlowStage, lastSeen func(i int) uint32) {
	t.Helper()
	written, err := table.flows.SetAll(func(yield func(bpf.TableTuple, bpf.TableFlow) bool) {
		for i := range n {
			tuple := numberedTuple(i)
			key, reply := keyOf(tuple), keyOf(reverse(tuple))
			seen := lastSeen(i)
			f := bpf.TableFlow{
				Epoch: 7, Judged: 7, LastSeen: seen, Created: seen, Peer: reply, Stage: uint32(stage),
				Packets: 1, Bytes: 60, Seen: uint8(bpf.TableFlowSeenSEEN_PACKET),
			}
			back := bpf.TableFlow{
				Epoch: 7, Judged: 7, LastSeen: seen, Created: seen, Peer: key,
				Flags: uint8(bpf.TableFlowFlagFLOW_REPLY), Seen: uint8(bpf.TableFlowSeenSEEN_PACKET),
			}
			if !yield(key, f) || !yield(reply, back) {
				return
			}
		}
	})
	require.NoError(t, err)
	require.Equal(t, 2*n, written)
}

// ago is the tick of some seconds ago.
func ago(t testing.TB, table *Table, seconds uint32) uint32 {
	t.Helper()
	now, err := table.now()
	require.NoError(t, err)
	return now - seconds*uint32(table.clock.HZ())
}

func newTable(t testing.TB, cfg Config) *Table {
	t.Helper()
	table, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, table.Close()) })
	return table
}
