// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/packet"
)

// watched is a flow that one goroutine uses, with what its entries must show.
type watched struct {
	tuple  Tuple
	frames [2][]byte // of each direction
	used   time.Time // the last use began not before
	have   [2]bpf.TableFlow
	known  bool // have is what was in the table after that
}

// Passes that condemn and delete all the time never take a flow that was used
// within its timeout: no entry of it goes, and none starts to count again. The
// flows are used at all distances around the timeout, in both directions.
func TestExpiryTakesNothingThatIsUsed(t *testing.T) {
	const timeout, flows, workers, lasting = 120 * time.Millisecond, 50, 32, 4 * time.Second
	r := newRig(t, Config{Flows: 65536, Timeouts: Timeouts{
		TCPNew: timeout, TCPEstablished: timeout, TCPClosing: timeout, UDPNew: timeout, UDPConfirmed: timeout, ICMP: timeout, OtherNew: timeout, OtherConfirmed: timeout,
	}})
	tick := time.Second / time.Duration(r.table.clock.HZ())
	end := time.Now().Add(lasting)
	var wg sync.WaitGroup
	var uses, revived, renewed, tight, passes, expired atomic.Int64
	for w := range workers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 9))
			all := make([]*watched, flows)
			for i := range all {
				tu := Tuple{Src: netip.AddrPortFrom(r.blue, uint16(1000+w*flows+i)), Dst: netip.AddrPortFrom(r.green, 80), Protocol: []Protocol{TCP, UDP}[i%2]}
				all[i] = &watched{tuple: tu, frames: [2][]byte{r.frame(tu, packet.ACK), r.frame(reverse(tu), packet.ACK)}}
			}
			assert.NoError(t, r.ns.Do(func() error {
				by := [2]*sender{r.from(r.blueDevice), r.from(r.greenDevice)}
				for time.Now().Before(end) {
					f := all[rng.IntN(len(all))]
					if f.known && rng.IntN(2) == 0 {
						// Wait for the moment when it is about to end, or just has.
						time.Sleep(time.Until(f.used.Add(timeout + time.Duration(rng.IntN(9)-6)*tick)))
					}
					if !f.known {
						// What may be there is on its way out: begin when it is gone.
						stale := false
						for _, key := range []bpf.TableTuple{keyOf(f.tuple), keyOf(reverse(f.tuple))} {
							if _, err := r.table.flows.Lookup(key); !errors.Is(err, ebpf.ErrKeyNotExist) {
								stale = true
							}
						}
						if stale {
							time.Sleep(tick)
							continue
						}
					}
					direction := rng.IntN(2)
					began := time.Now()
					verdict, err := by[direction].send(f.frames[direction])
					if err != nil || verdict != redirected {
						return fmt.Errorf("%s: verdict %d, %w", f.tuple, verdict, err)
					}
					uses.Add(1)
					now, there, err := r.read(f.tuple)
					if err != nil {
						return err
					}
					// The kernel rounds the time of the last use down to a tick.
					inTime := f.known && time.Since(f.used) < timeout-tick
					same := there && f.known && now[0].Created == f.have[0].Created && now[1].Created == f.have[1].Created
					want := f.have
					want[direction].Packets++
					same = same && now[0].Packets == want[0].Packets && now[1].Packets == want[1].Packets
					if inTime && !same {
						return fmt.Errorf("%s: used %s ago, and now it has packets %d, %d in place of %d, %d; there: %t",
							f.tuple, time.Since(f.used), now[0].Packets, now[1].Packets, want[0].Packets, want[1].Packets, there)
					}
					switch {
					case inTime && time.Since(f.used) > timeout-5*tick:
						tight.Add(1)
					case inTime:
					case same:
						revived.Add(1)
					case !f.known && there && now[0].Packets+now[1].Packets == 1:
						renewed.Add(1)
					default:
						// It came while the old one was being deleted, and went on
						// without being remembered.
						there = false
					}
					f.used, f.have, f.known = began, now, there
				}
				return nil
			}))
		})
	}
	wg.Go(func() {
		for time.Now().Before(end) {
			done, err := r.table.Expire()
			if !assert.NoError(t, err) {
				return
			}
			passes.Add(1)
			expired.Add(int64(done.Entries))
		}
	})
	wg.Wait()
	t.Logf("%d uses, %d just in time, %d too late and revived, %d too late and made anew; %d passes took %d entries",
		uses.Load(), tight.Load(), revived.Load(), renewed.Load(), passes.Load(), expired.Load())
	assert.NotZero(t, tight.Load())
	assert.NotZero(t, renewed.Load())
	assert.NotZero(t, expired.Load())

	// When nobody uses them any more, all go, in at most a few passes.
	require.Eventually(t, func() bool {
		_, err := r.table.Expire()
		require.NoError(t, err)
		stats, err := r.table.Stats()
		require.NoError(t, err)
		return stats.Entries == 0
	}, 10*time.Second, 20*time.Millisecond)
}

// read returns both entries of a flow, if both are there.
func (r *rig) read(tu Tuple) (out [2]bpf.TableFlow, there bool, err error) {
	for i, key := range []bpf.TableTuple{keyOf(tu), keyOf(reverse(tu))} {
		if out[i], err = r.table.flows.Lookup(key); errors.Is(err, ebpf.ErrKeyNotExist) {
			return out, false, nil
		} else if err != nil {
			return out, false, err
		}
	}
	return out, true, nil
}

// The reply's entry of a flow that has gone does not get into the way of a flow
// in the other direction, nor does what it has seen count for the next one.
func TestFlowOverWhatIsLeftOfAnother(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{Flows: 64})
	tu := Tuple{Src: netip.AddrPortFrom(r.blue, 1000), Dst: netip.AddrPortFrom(r.green, 53), Protocol: UDP}
	back := reverse(tu)
	send := func(ifindex uint32, tu Tuple, times int) {
		require.NoError(t, r.ns.Do(func() error {
			by := r.from(ifindex)
			for range times {
				if verdict, err := by.send(r.frame(tu, packet.ACK)); err != nil || verdict != redirected {
					return fmt.Errorf("verdict %d, %w", verdict, err)
				}
			}
			return nil
		}))
	}
	half := func(tu Tuple, peer Tuple) {
		f := entry(t, r.table, 1, 0, seenPacket|seenFIN)
		f.Epoch, f.Judged, f.Flags, f.Peer, f.Packets = 0, 0, flagReply, keyOf(peer), 100
		require.NoError(t, r.table.flows.Set(keyOf(tu), f))
	}
	for name, leave := range map[string]func(){
		"a reply in its own direction":   func() { half(tu, back) },
		"a reply in the other direction": func() { half(back, tu) },
		"a reply in both":                func() { half(tu, back); half(back, tu) },
	} {
		t.Run(name, func(t *testing.T) {
			leave()
			send(r.blueDevice, tu, 3)
			f, err := r.table.Lookup(tu)
			require.NoError(t, err)
			assert.Equal(t, tu, f.Original)
			assert.Equal(t, StateNew, f.State, "nobody has answered this flow")
			assert.EqualValues(t, 3, f.Sent.Packets)
			assert.Zero(t, f.Received)
			send(r.greenDevice, back, 1)
			send(r.blueDevice, tu, 1)
			f, err = r.table.Lookup(back)
			require.NoError(t, err)
			assert.Equal(t, tu, f.Original)
			assert.Equal(t, StateEstablished, f.State)
			assert.EqualValues(t, 4, f.Sent.Packets)
			assert.EqualValues(t, 1, f.Received.Packets)
			_, err = r.table.Flush(Filter{})
			require.NoError(t, err)
			stats, err := r.table.Stats()
			require.NoError(t, err)
			require.Zero(t, stats.Entries)
		})
	}
}

// Two sides that open at once end as a flow that is told, confirmed and expired
// like any other, whichever packet wins.
func TestBothSidesOpenAtOnce(t *testing.T) {
	t.Parallel()
	const flows = 3000
	r := newRig(t, Config{Flows: 65536, Timeouts: Timeouts{UDPNew: 500 * time.Millisecond, UDPConfirmed: 500 * time.Millisecond}})
	tuples := func(i int) Tuple {
		return Tuple{Src: netip.AddrPortFrom(r.blue, uint16(1000+i)), Dst: netip.AddrPortFrom(r.green, uint16(1000+i)), Protocol: UDP}
	}
	var wg sync.WaitGroup
	var turn [2]atomic.Int64
	for side, ifindex := range []uint32{r.blueDevice, r.greenDevice} {
		wg.Go(func() {
			assert.NoError(t, r.ns.Do(func() error {
				by := r.from(ifindex)
				for i := range flows {
					tu := tuples(i)
					if side == 1 {
						tu = reverse(tu)
					}
					frame := r.frame(tu, 0)
					turn[side].Store(int64(i))
					for spin := 1; turn[1-side].Load() < int64(i); spin++ {
						if spin%20000 == 0 {
							runtime.Gosched()
						}
					}
					for range 3 {
						if verdict, err := by.send(frame); err != nil || verdict != redirected {
							return fmt.Errorf("%s: verdict %d, %w", tu, verdict, err)
						}
					}
				}
				turn[side].Store(flows)
				return nil
			}))
		})
	}
	wg.Wait()
	// One more packet of each side must be enough to confirm.
	require.NoError(t, r.ns.Do(func() error {
		for range 2 {
			for i := range flows {
				if _, err := r.from(r.blueDevice).send(r.frame(tuples(i), 0)); err != nil {
					return err
				}
				if _, err := r.from(r.greenDevice).send(r.frame(reverse(tuples(i)), 0)); err != nil {
					return err
				}
			}
		}
		return nil
	}))
	for i := range flows {
		f, err := r.table.Lookup(tuples(i))
		require.NoError(t, err, "flow %d", i)
		both, _, err := r.read(tuples(i))
		require.NoError(t, err)
		require.Equal(t, StateEstablished, f.State, "flow %d: %+v", i, both)
	}
	require.Eventually(t, func() bool {
		_, err := r.table.Expire()
		require.NoError(t, err)
		stats, err := r.table.Stats()
		require.NoError(t, err)
		return stats.Entries == 0
	}, 10*time.Second, 100*time.Millisecond)
}
