// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/packet"
)

// A million openings that nobody goes on with push out one another, and nothing
// that is established; the table never has more of them than its budget.
func TestFloodTouchesNothingEstablished(t *testing.T) {
	const established, syns, datagrams, senders = 1000, 1_000_000, 100_000, 2
	r := newRig(t, Config{Flows: 65536, Unconfirmed: 16384})
	toGreen := func(i int) Tuple {
		return Tuple{
			Src: netip.AddrPortFrom(r.blue, uint16(20000+i)), Dst: netip.AddrPortFrom(r.green, 80),
			Protocol: []Protocol{TCP, UDP}[i%2],
		}
	}
	require.NoError(t, r.ns.Do(func() error {
		blue, green := r.from(r.blueDevice), r.from(r.greenDevice)
		for i := range established {
			tu := toGreen(i)
			for _, step := range []struct {
				by    *sender
				frame []byte
			}{
				{blue, r.frame(tu, packet.SYN)}, {green, r.frame(reverse(tu), packet.SYN|packet.ACK)}, {blue, r.frame(tu, packet.ACK)}, {blue, r.frame(tu, packet.ACK)},
			} {
				if verdict, err := step.by.send(step.frame); err != nil || verdict != redirected {
					return fmt.Errorf("%s: verdict %d, %w", tu, verdict, err)
				}
			}
		}
		return nil
	}))
	before, err := r.table.Stats()
	require.NoError(t, err)
	require.EqualValues(t, established, before.Established)
	require.Equal(t, 2*established, before.Entries)
	known := map[Tuple]Flow{}
	for f, err := range r.table.All() {
		require.NoError(t, err)
		require.Equal(t, Counters{3, uint64(3 * len(r.frame(f.Original, 0)))}, f.Sent)
		known[f.Original] = f
	}

	// The endpoint's own address, so that the source check lets it through, and
	// a new port or a new destination in the world each time.
	start := time.Now()
	var wg sync.WaitGroup
	var sent atomic.Int64
	for which := range senders {
		wg.Go(func() {
			assert.NoError(t, r.ns.Do(func() error {
				by := r.from(r.blueDevice)
				frames := map[Protocol][]byte{}
				for _, p := range []Protocol{TCP, UDP} {
					frames[p] = r.frame(Tuple{Src: netip.AddrPortFrom(r.blue, 1), Dst: netip.MustParseAddrPort("198.51.100.0:80"), Protocol: p}, packet.SYN)
				}
				for i := which; i < syns+datagrams; i += senders {
					frame := frames[TCP]
					if i >= syns {
						frame = frames[UDP]
					}
					binary.BigEndian.PutUint16(frame[34:], uint16(1+i%60000))
					frame[33] = byte(i / 60000)
					verdict, err := by.send(frame)
					if err != nil || verdict != redirected {
						return fmt.Errorf("packet %d: verdict %d, %w", i, verdict, err)
					}
					sent.Add(1)
				}
				return nil
			}))
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for flooding := true; flooding; {
		select {
		case <-done:
			flooding = false
		case <-time.After(100 * time.Millisecond):
		}
		stats, err := r.table.Stats()
		require.NoError(t, err)
		require.EqualValues(t, established, stats.Established)
		// Each sender may have one on its way in, and a pass counts while they come and go.
		require.LessOrEqual(t, stats.Entries, 2*(established+16384)+200)
	}
	t.Logf("%d packets in %s", sent.Load(), time.Since(start))
	require.EqualValues(t, syns+datagrams, sent.Load())
	stats, err := r.table.Stats()
	require.NoError(t, err)
	assert.EqualValues(t, 16384, stats.New)
	assert.Equal(t, 2*(established+16384), stats.Entries)
	assert.EqualValues(t, established+syns+datagrams, stats.Created)
	assert.EqualValues(t, syns+datagrams-16384, stats.Evicted)
	assert.Empty(t, stats.InsertErrors)

	// They all go on where they were.
	require.NoError(t, r.ns.Do(func() error {
		by := r.from(r.blueDevice)
		for i := range established {
			if _, err := by.send(r.frame(toGreen(i), packet.ACK)); err != nil {
				return err
			}
		}
		return nil
	}))
	after := 0
	for f, err := range r.table.Filter(Filter{Dst: netip.PrefixFrom(r.green, 32)}) {
		require.NoError(t, err)
		was, ok := known[f.Original]
		require.True(t, ok, "%s", f.Original)
		require.Equal(t, was.Sent.Packets+1, f.Sent.Packets)
		require.Equal(t, was.Received, f.Received)
		require.GreaterOrEqual(t, f.Age, was.Age)
		after++
	}
	assert.Equal(t, established, after)
}
