// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
)

// BenchmarkMasqueradeMany holds a million masqueraded flows, to forty destinations,
// which fills the ports of each to 86%. Every flow must have a port of its own.
func BenchmarkMasqueradeMany(b *testing.B) {
	const destinations, each = 40, 25_000
	for b.Loop() {
		r := outsideBench(b, conntrack.Config{Flows: 2_200_000, Unconfirmed: 1 << 20}, 0)
		frame := udp(blue4, world4, 0, 443)
		sum := frame[14+20+6:]
		sum[0], sum[1] = 0, 0 // none, so that ports can be written into it
		require.NoError(b, r.ns.Do(func() error {
			for i := range destinations {
				a := netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}).As4()
				for port := range each {
					// The ports of the kernel's choice: none of them can stay.
					binary.BigEndian.PutUint16(frame[14+20:], uint16(32768+port))
					copy(frame[14+16:], a[:])
					setIPv4Checksum(frame[14:34])
					if _, _, err := r.dp.Program("from_endpoint").Benchmark(frame, 1, nil); err != nil {
						return err
					}
				}
			}
			return nil
		}))
		use, err := r.flows.PortUse()
		require.NoError(b, err)
		require.Len(b, use, destinations)
		for _, u := range use {
			require.Equal(b, each, u.Ports, u.Destination.String())
		}
		stats, err := r.flows.NATStats()
		require.NoError(b, err)
		require.Equal(b, uint64(destinations*each), stats.Found)
		require.Zero(b, stats.Exhausted)
		all, err := r.flows.Stats()
		require.NoError(b, err)
		require.Equal(b, 2*destinations*each, all.Entries)
		fmt.Fprintf(os.Stdout, "\n%d masqueraded flows; ports tried for one: 1 for %.1f%%, by powers of two %v\n", destinations*each, 100*float64(stats.Tries[0])/float64(stats.Found), stats.Tries)
		expired, err := r.flows.Flush(conntrack.Filter{})
		require.NoError(b, err)
		require.Equal(b, destinations*each, expired)
	}
}

func setIPv4Checksum(header []byte) {
	header[10], header[11] = 0, 0
	var sum uint32
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(header[10:], ^uint16(sum))
}
