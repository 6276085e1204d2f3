// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/bpf"
)

const (
	stageNew       = uint32(bpf.TableFlowStageFLOW_NEW)
	stageConfirmed = uint32(bpf.TableFlowStageFLOW_CONFIRMED)
	stageDead      = uint32(bpf.TableFlowStageFLOW_DEAD)
	seenPacket     = uint8(bpf.TableFlowSeenSEEN_PACKET)
	seenFIN        = uint8(bpf.TableFlowSeenSEEN_FIN)
	seenRST        = uint8(bpf.TableFlowSeenSEEN_RST)
	flagReply      = uint8(bpf.TableFlowFlagFLOW_REPLY)
)

// oddTimeouts are all different, in no natural order.
var oddTimeouts = Timeouts{
	TCPNew: 70 * time.Second, TCPEstablished: 50 * time.Second, TCPClosing: 10 * time.Second, UDPNew: 90 * time.Second, UDPConfirmed: 30 * time.Second,
	ICMP: 20 * time.Second, OtherNew: 110 * time.Second, OtherConfirmed: 130 * time.Second,
}

// entry makes one that was used so many seconds ago.
func entry(t testing.TB, table *Table, secondsAgo int, stage uint32, seen uint8) bpf.TableFlow {
	at := ago(t, table, uint32(secondsAgo))
	return bpf.TableFlow{Epoch: 7, Judged: 7, LastSeen: at, Created: at, Stage: stage, Seen: seen}
}

func entriesOf(t testing.TB, table *Table) map[bpf.TableTuple]bpf.TableFlow {
	t.Helper()
	out := map[bpf.TableTuple]bpf.TableFlow{}
	for e, err := range table.flows.All() {
		require.NoError(t, err)
		out[e.Key] = e.Value
	}
	return out
}

// Each protocol and state has its timeout: two seconds short of it the flow
// stays, two seconds beyond it goes, both entries in one pass.
func TestTimeoutsByProtocolAndState(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 1024, Timeouts: oddTimeouts})
	d := oddTimeouts
	type kind struct {
		name    string
		proto   Protocol
		stage   uint32
		f, back uint8
		timeout time.Duration
	}
	kinds := []kind{
		{"TCP opening", TCP, stageNew, seenPacket, 0, d.TCPNew},
		{"TCP answered", TCP, stageNew, seenPacket, seenPacket, d.TCPNew},
		{"TCP", TCP, stageConfirmed, seenPacket, seenPacket, d.TCPEstablished},
		{"TCP half closed", TCP, stageConfirmed, seenPacket | seenFIN, seenPacket, d.TCPEstablished},
		{"TCP half closed by the other", TCP, stageConfirmed, seenPacket, seenPacket | seenFIN, d.TCPEstablished},
		{"TCP closed", TCP, stageConfirmed, seenPacket | seenFIN, seenPacket | seenFIN, d.TCPClosing},
		{"TCP broken off", TCP, stageConfirmed, seenPacket | seenRST, seenPacket, d.TCPClosing},
		{"TCP refused", TCP, stageNew, seenPacket, seenPacket | seenRST, d.TCPClosing},
		{"SCTP opening", SCTP, stageNew, seenPacket, 0, d.TCPNew},
		{"SCTP", SCTP, stageConfirmed, seenPacket, seenPacket, d.TCPEstablished},
		{"SCTP aborted", SCTP, stageConfirmed, seenPacket, seenPacket | seenRST, d.TCPClosing},
		{"UDP question", UDP, stageNew, seenPacket, 0, d.UDPNew},
		{"UDP", UDP, stageConfirmed, seenPacket, seenPacket, d.UDPConfirmed},
		{"ICMP", ICMP, stageNew, seenPacket, 0, d.ICMP},
		{"ICMP confirmed", ICMP, stageConfirmed, seenPacket, seenPacket, d.ICMP},
		{"ICMPv6", ICMPv6, stageConfirmed, seenPacket, seenPacket, d.ICMP},
		{"other", Protocol(47), stageNew, seenPacket, 0, d.OtherNew},
		{"other confirmed", Protocol(47), stageConfirmed, seenPacket, seenPacket, d.OtherConfirmed},
	}
	want := map[string]bool{}
	at := map[string]Tuple{}
	for i, k := range kinds {
		limit := int(k.timeout / time.Second)
		for name, idle := range map[string][2]int{ // of the originator's entry and the reply's
			"young":            {limit - 2, limit - 2},
			"old":              {limit + 2, limit + 2},
			"only sending":     {1, limit + 1000},
			"only receiving":   {limit + 1000, 1},
			"used a tick late": {-1, limit + 1000}, // another CPU while the pass runs
			"very old":         {1 << 20, 1 << 20},
		} {
			// Many of each, so that either entry comes first in the table.
			for n := range 8 {
				id := fmt.Sprintf("%s, %s, %d", k.name, name, n)
				tu := Tuple{Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(idle[0]), byte(idle[1])}), uint16(n)), Dst: netip.MustParseAddrPort("10.200.0.1:80"), Protocol: k.proto}
				f, reply := entry(t, table, idle[0], k.stage, k.f), entry(t, table, idle[1], 0, k.back)
				put(t, table, tu, f, reply)
				at[id], want[id] = tu, name == "old" || name == "very old"
			}
		}
	}
	done, err := table.Expire()
	require.NoError(t, err)
	gone := uint64(0)
	for id, tu := range at {
		forward, back := holds(t, table, tu)
		assert.Equal(t, !want[id], forward, id)
		assert.Equal(t, !want[id], back, "reply of %s", id)
		if want[id] {
			gone++
		}
	}
	assert.Equal(t, gone, done.Flows)
	assert.Equal(t, 2*gone, done.Entries)
	assert.Positive(t, done.Duration)
	done, err = table.Expire()
	require.NoError(t, err)
	assert.Zero(t, done.Flows)
}

// What is left of broken flows goes after its time, and a flow that was being
// deleted goes at once.
func TestLeftoversExpire(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 64, Timeouts: oddTimeouts})
	one := func(name string, f, reply *bpf.TableFlow) Tuple {
		tu := numberedTuple(len(entriesOf(t, table)) + 1)
		tu.Protocol = TCP
		put(t, table, tu, entry(t, table, 0, stageNew, 0), entry(t, table, 0, 0, 0))
		for key, e := range map[bpf.TableTuple]*bpf.TableFlow{keyOf(tu): f, keyOf(reverse(tu)): reply} {
			if e == nil {
				require.NoError(t, table.flows.Delete(key), name)
				continue
			}
			e.Peer = keyOf(reverse(tu))
			if key != keyOf(tu) {
				e.Peer = keyOf(tu)
			}
			require.NoError(t, table.flows.Set(key, *e), name)
		}
		return tu
	}
	e := func(idle int, stage uint32, flags uint8) *bpf.TableFlow {
		f := entry(t, table, idle, stage, seenPacket)
		f.Flags = flags
		return &f
	}
	type state struct {
		tuple         Tuple
		forward, back bool
	}
	want := map[string]state{
		"old reply alone":           {one("", nil, e(75, 0, flagReply)), false, false},
		"young reply alone":         {one("", nil, e(65, 0, flagReply)), false, true},
		"old original alone":        {one("", e(75, stageNew, 0), nil), false, false},
		"young original alone":      {one("", e(65, stageNew, 0), nil), true, false},
		"two old replies":           {one("", e(75, 0, flagReply), e(75, 0, flagReply)), false, false},
		"two young replies":         {one("", e(65, 0, flagReply), e(65, 0, flagReply)), true, true},
		"two old originals":         {one("", e(75, stageNew, 0), e(75, stageNew, 0)), false, false},
		"dead, though just used":    {one("", e(0, stageDead, 0), e(0, 0, flagReply)), false, false},
		"dead and alone":            {one("", e(0, stageDead, 0), nil), false, false},
		"reply of a dead one alone": {one("", nil, e(0, stageDead, flagReply)), false, false},
	}
	_, err := table.Expire()
	require.NoError(t, err)
	for name, w := range want {
		forward, back := holds(t, table, w.tuple)
		assert.Equal(t, w.forward, forward, name)
		assert.Equal(t, w.back, back, "other half of: "+name)
	}
	done, err := table.Expire()
	require.NoError(t, err)
	assert.Zero(t, done.Flows, "nothing is found again and again")
}

// twin says slowly and plainly which entries a pass deletes.
func twin(table *Table, all map[bpf.TableTuple]bpf.TableFlow, now uint32) map[bpf.TableTuple]bool {
	d := table.cfg.Timeouts
	due := func(proto uint8, halves ...bpf.TableFlow) bool {
		idle := time.Duration(1<<63 - 1)
		anyRST, allFIN, confirmed := false, true, halves[0].Stage == stageConfirmed
		for _, h := range halves {
			idle = min(idle, table.clock.Since(now, h.LastSeen))
			anyRST = anyRST || h.Seen&seenRST != 0
			allFIN = allFIN && h.Seen&seenFIN != 0
		}
		pick := func(yes, no time.Duration) time.Duration {
			if confirmed {
				return yes
			}
			return no
		}
		timeout := pick(d.OtherConfirmed, d.OtherNew)
		switch Protocol(proto) {
		case TCP, SCTP:
			timeout = pick(d.TCPEstablished, d.TCPNew)
			if anyRST || allFIN {
				timeout = d.TCPClosing
			}
		case UDP:
			timeout = pick(d.UDPConfirmed, d.UDPNew)
		case ICMP, ICMPv6:
			timeout = d.ICMP
		}
		return idle >= timeout
	}
	gone := map[bpf.TableTuple]bool{}
	for key, f := range all {
		peer, has := all[f.Peer]
		switch {
		case f.Flags&flagReply == 0:
			halves := []bpf.TableFlow{f}
			if has {
				halves = append(halves, peer)
			}
			gone[key] = f.Stage == stageDead || due(key.Protocol, halves...)
		case has && peer.Flags&flagReply == 0:
			gone[key] = peer.Stage == stageDead || due(key.Protocol, peer, f)
		default:
			gone[key] = f.Stage == stageDead || due(key.Protocol, f)
		}
	}
	return gone
}

func TestPassAgainstASlowTwin(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(5, 6))
	protocols := []Protocol{TCP, TCP, UDP, ICMP, ICMPv6, SCTP, Protocol(47)}
	for round := range 30 {
		// Odd ones, so that no two are within 2 s and no idle time is near one:
		// the pass reads the clock later than the twin.
		second := func(least int) time.Duration { return time.Duration(least+10*rng.IntN(20)) * time.Second }
		table := newTable(t, Config{Flows: 2000, Timeouts: Timeouts{second(5), second(5), second(5), second(5), second(5), second(5), second(5), second(5)}})
		now := ago(t, table, 0)
		written := 0
		_, err := table.flows.SetAll(func(yield func(bpf.TableTuple, bpf.TableFlow) bool) {
			for i := range 1500 {
				tu := numberedTuple(i)
				tu.Protocol = protocols[rng.IntN(len(protocols))]
				half := func(stage uint32, flags uint8, peer Tuple) bpf.TableFlow {
					return bpf.TableFlow{
						Epoch: uint32(rng.IntN(2)) * 7, Judged: 7, LastSeen: now - uint32(rng.IntN(25)*10)*uint32(table.clock.HZ()), Created: 1,
						Stage: stage, Flags: flags, Peer: keyOf(peer), Seen: uint8(rng.IntN(8)),
					}
				}
				stage := []uint32{stageNew, stageConfirmed, stageConfirmed, stageNew, stageDead}[rng.IntN(5)]
				f, reply := half(stage, 0, reverse(tu)), half(0, flagReply, tu)
				what := rng.IntN(10)
				switch what {
				case 0: // both want to be the reply
					f = half(0, flagReply, reverse(tu))
				case 1: // both are the original: of one mind, or the order would count
					reply = f
					reply.Peer = keyOf(tu)
				}
				if what != 2 {
					if written++; !yield(keyOf(tu), f) {
						return
					}
				}
				if what != 3 {
					if written++; !yield(keyOf(reverse(tu)), reply) {
						return
					}
				}
			}
		})
		require.NoError(t, err)
		before := entriesOf(t, table)
		require.Len(t, before, written)
		gone := twin(table, before, now)
		done, err := table.Expire()
		require.NoError(t, err)
		after := entriesOf(t, table)
		n := uint64(0)
		for key, f := range before {
			_, there := after[key]
			if gone[key] {
				n++
			}
			require.Equal(t, !gone[key], there, "round %d: %s %+v, peer %+v", round, tupleOf(key), f, before[f.Peer])
		}
		require.Equal(t, n, done.Entries)
		require.NoError(t, table.Close())
	}
}

// A pass in its parts: a flow that is condemned and then used stays.
func TestCondemnedAndUsedStays(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 64, Timeouts: oddTimeouts})
	for i, use := range []bool{true, false} {
		for j := range 2 { // by the originator, and by the other side
			tu := numberedTuple(2*i + j)
			put(t, table, tu, entry(t, table, 1000, stageConfirmed, seenPacket), entry(t, table, 1000, 0, seenPacket))
			_, err := table.runPass(bpf.TablePassModePASS_CONDEMN)
			require.NoError(t, err)
			for _, key := range []bpf.TableTuple{keyOf(tu), keyOf(reverse(tu))} {
				f, err := table.flows.Lookup(key)
				require.NoError(t, err)
				require.Zero(t, f.Epoch, "its packets take the slow path from now on")
			}
			if use {
				key := []bpf.TableTuple{keyOf(tu), keyOf(reverse(tu))}[j]
				f, err := table.flows.Lookup(key)
				require.NoError(t, err)
				f.LastSeen = ago(t, table, 0)
				require.NoError(t, table.flows.Set(key, f))
			}
			_, err = table.runPass(bpf.TablePassModePASS_REAP)
			require.NoError(t, err)
			forward, back := holds(t, table, tu)
			assert.Equal(t, use, forward)
			assert.Equal(t, use, back)
			if use {
				f, err := table.flows.Lookup(keyOf(tu))
				require.NoError(t, err)
				assert.Equal(t, stageConfirmed, f.Stage)
			}
		}
	}
}

func TestRunStopsWithItsContext(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 64, Interval: time.Millisecond, Timeouts: oddTimeouts})
	fill(t, table, 10, bpf.TableFlowStageFLOW_NEW, func(int) uint32 { return ago(t, table, 1000) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- table.Run(ctx) }()
	require.Eventually(t, func() bool { return len(entriesOf(t, table)) == 0 }, 10*time.Second, 5*time.Millisecond)
	cancel()
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("Run goes on without its context")
	}
	require.NoError(t, table.Run(ctx), "it has ended before it began")
}

// Each flow is found by one of the passes that were asked for at once.
func TestPassesOneAfterTheOther(t *testing.T) {
	t.Parallel()
	const flows = 5000
	table := newTable(t, Config{Flows: flows})
	old := ago(t, table, 7*3600)
	fill(t, table, flows, bpf.TableFlowStageFLOW_CONFIRMED, func(int) uint32 { return old })
	var wg sync.WaitGroup
	var mu sync.Mutex
	var sum Expired
	for range 6 {
		wg.Go(func() {
			done, err := table.Expire()
			assert.NoError(t, err)
			mu.Lock()
			defer mu.Unlock()
			sum.Flows, sum.Entries = sum.Flows+done.Flows, sum.Entries+done.Entries
		})
	}
	wg.Wait()
	assert.EqualValues(t, flows, sum.Flows)
	assert.EqualValues(t, 2*flows, sum.Entries)
	assert.Empty(t, entriesOf(t, table))
}
