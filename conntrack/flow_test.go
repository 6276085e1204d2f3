// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/wire"
)

func tuple(p Protocol, src, dst string) Tuple {
	return Tuple{Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst), Protocol: p}
}

// put writes both entries of a flow as the programs would.
func put(t testing.TB, table *Table, original Tuple, f, reply bpf.TableFlow) {
	t.Helper()
	f.Peer, reply.Peer = keyOf(reverse(original)), keyOf(original)
	reply.Flags |= uint8(bpf.TableFlowFlagFLOW_REPLY)
	require.NoError(t, table.flows.Set(keyOf(original), f))
	require.NoError(t, table.flows.Set(keyOf(reverse(original)), reply))
}

// holds reports whether each direction of a flow is in the table.
func holds(t testing.TB, table *Table, original Tuple) (forward, back bool) {
	t.Helper()
	_, err := table.flows.Lookup(keyOf(original))
	_, err2 := table.flows.Lookup(keyOf(reverse(original)))
	for _, err := range []error{err, err2} {
		if err != nil {
			require.ErrorIs(t, err, ebpf.ErrKeyNotExist)
		}
	}
	return err == nil, err2 == nil
}

func TestFlowIsTold(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 64})
	original := tuple(TCP, "10.0.0.1:1000", "10.0.0.2:80")
	now := ago(t, table, 0)
	hz := uint32(table.clock.HZ())
	forward := bpf.TableFlow{
		Epoch: 3, Judged: 3, LastSeen: now - 50*hz, Created: now - 100*hz, Stage: uint32(bpf.TableFlowStageFLOW_CONFIRMED), Packets: 7, Bytes: 700, Seen: 1,
	}
	v := &forward.Verdict
	v.Iif, v.Oif, v.Vni, v.Action, v.Remote = 4, 5, 300, uint8(bpf.TableActionACTION_TO_OVERLAY), wire.Addr(netip.MustParseAddr("172.16.0.1"))
	put(t, table, original, forward,
		bpf.TableFlow{LastSeen: now - 20*hz, Created: now - 100*hz, Packets: 9, Bytes: 900, Seen: 1})
	for _, asked := range []Tuple{original, reverse(original), tuple(TCP, "[::ffff:10.0.0.1]:1000", "[::ffff:10.0.0.2]:80")} {
		f, err := table.Lookup(asked)
		require.NoError(t, err)
		assert.Equal(t, original, f.Original)
		assert.Equal(t, reverse(original), f.Reply)
		assert.Equal(t, StateEstablished, f.State)
		assert.Equal(t, Counters{7, 700}, f.Sent)
		assert.Equal(t, Counters{9, 900}, f.Received)
		assert.InDelta(t, 100, f.Age.Seconds(), 5)
		assert.InDelta(t, 20, f.Idle.Seconds(), 5)
		assert.Equal(t, Verdict{Action: "to overlay", ArrivesOn: 4, SendsTo: 5, VNI: 300, Node: netip.MustParseAddr("172.16.0.1")}, f.Forward)
		assert.Zero(t, f.Back, "not judged yet")
	}
	_, err := table.Lookup(tuple(UDP, "10.0.0.1:1000", "10.0.0.2:80"))
	require.ErrorIs(t, err, ebpf.ErrKeyNotExist)
	require.ErrorContains(t, err, "UDP 10.0.0.1:1000 -> 10.0.0.2:80")
	for want, bad := range map[string]Tuple{
		"missing or invalid": {},
		"a zone":             tuple(TCP, "[fe80::1%eth0]:1", "[fe80::2]:2"),
		"two families":       tuple(TCP, "10.0.0.1:1", "[fd00::1]:2"),
	} {
		_, err := table.Lookup(bad)
		require.ErrorContains(t, err, want)
		require.ErrorIs(t, err, os.ErrInvalid)
	}

	// Each half alone.
	require.NoError(t, table.flows.Delete(keyOf(reverse(original))))
	f, err := table.Lookup(original)
	require.NoError(t, err)
	assert.Zero(t, f.Received)
	assert.InDelta(t, 50, f.Idle.Seconds(), 5)
	alone := 0
	for f, err := range table.All() {
		require.NoError(t, err)
		assert.Equal(t, original, f.Original)
		alone++
	}
	assert.Equal(t, 1, alone)
	put(t, table, original, bpf.TableFlow{}, bpf.TableFlow{})
	require.NoError(t, table.flows.Delete(keyOf(original)))
	_, err = table.Lookup(reverse(original))
	require.ErrorIs(t, err, ebpf.ErrKeyNotExist)
	for range table.All() {
		t.Fatal("a reply alone is no flow")
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	const packet, fin, rst = uint8(bpf.TableFlowSeenSEEN_PACKET), uint8(bpf.TableFlowSeenSEEN_FIN), uint8(bpf.TableFlowSeenSEEN_RST)
	for _, c := range []struct {
		stage       bpf.TableFlowStage
		there, back uint8
		want        State
	}{
		{bpf.TableFlowStageFLOW_NEW, packet, 0, StateNew},
		{bpf.TableFlowStageFLOW_NEW, packet, packet, StateNew},
		{bpf.TableFlowStageFLOW_CONFIRMED, packet, packet, StateEstablished},
		{bpf.TableFlowStageFLOW_CONFIRMED, packet | fin, packet, StateEstablished},
		{bpf.TableFlowStageFLOW_CONFIRMED, packet, packet | fin, StateEstablished},
		{bpf.TableFlowStageFLOW_CONFIRMED, packet | fin, packet | fin, StateClosing},
		{bpf.TableFlowStageFLOW_NEW, packet, packet | rst, StateClosing},
		{bpf.TableFlowStageFLOW_CONFIRMED, packet | rst, packet, StateClosing},
	} {
		assert.Equal(t, c.want, stateOf(bpf.TableFlow{Stage: uint32(c.stage), Seen: c.there}, bpf.TableFlow{Seen: c.back}))
	}
	assert.Equal(t, []string{"new", "established", "closing", "State(0)"}, []string{StateNew.String(), StateEstablished.String(), StateClosing.String(), State(0).String()})
}

func TestProtocolNames(t *testing.T) {
	t.Parallel()
	for _, p := range []Protocol{ICMP, TCP, UDP, ICMPv6, SCTP} {
		for _, s := range []string{p.String(), strings.ToLower(p.String()), strings.ToUpper(p.String())} {
			got, err := ParseProtocol(s)
			require.NoError(t, err)
			assert.Equal(t, p, got)
		}
	}
	assert.Equal(t, "protocol 47", Protocol(47).String())
	for _, bad := range []string{"", "TC", "TCPP", "6", "T\x03P", "udp ", "protocol 6"} {
		_, err := ParseProtocol(bad)
		require.ErrorContains(t, err, "want TCP, UDP", bad)
		require.ErrorIs(t, err, os.ErrInvalid, bad)
	}
}

func TestFilterMatch(t *testing.T) {
	t.Parallel()
	four := tuple(TCP, "10.1.2.3:1000", "10.4.5.6:80")
	six := tuple(UDP, "[fd00::1]:53", "[fd00:1::2]:5353")
	for _, c := range []struct {
		f         Filter
		four, six bool
	}{
		{Filter{}, true, true},
		{Filter{Src: netip.MustParsePrefix("10.1.0.0/16")}, true, false},
		{Filter{Src: netip.MustParsePrefix("10.1.9.9/16")}, true, false},
		{Filter{Src: netip.MustParsePrefix("::ffff:10.1.0.0/112")}, true, false},
		{Filter{Src: netip.MustParsePrefix("10.4.0.0/16")}, false, false},
		{Filter{Dst: netip.MustParsePrefix("10.4.5.6/32")}, true, false},
		{Filter{Dst: netip.MustParsePrefix("fd00::/16")}, false, true},
		{Filter{Dst: netip.MustParsePrefix("::/0")}, false, true},
		{Filter{Dst: netip.MustParsePrefix("0.0.0.0/0")}, true, false},
		{Filter{SrcPort: 1000}, true, false},
		{Filter{DstPort: 1000}, false, false},
		{Filter{DstPort: 5353}, false, true},
		{Filter{Protocol: UDP}, false, true},
		{Filter{Protocol: TCP, DstPort: 80, Src: netip.MustParsePrefix("10.0.0.0/8"), Dst: netip.MustParsePrefix("10.0.0.0/8"), SrcPort: 1000}, true, false},
		{Filter{Protocol: UDP, DstPort: 80}, false, false},
		{Filter{Src: netip.PrefixFrom(netip.MustParseAddr("10.1.2.3"), 33)}, false, false}, // not a word for everything
		{Filter{Dst: netip.PrefixFrom(netip.MustParseAddr("fd00::"), -1)}, false, false},
	} {
		assert.Equal(t, c.four, c.f.Match(four), "%+v", c.f)
		assert.Equal(t, c.six, c.f.Match(six), "%+v", c.f)
		assert.Equal(t, c.four, c.f.Match(tuple(TCP, "[::ffff:10.1.2.3]:1000", "[::ffff:10.4.5.6]:80")), "%+v", c.f)
	}
}

func TestListFilterFlush(t *testing.T) {
	t.Parallel()
	const flows = 3000
	table := newTable(t, Config{Flows: flows})
	now := ago(t, table, 0)
	fill(t, table, flows, bpf.TableFlowStageFLOW_CONFIRMED, func(int) uint32 { return now })
	list := func(f Filter) map[Tuple]bool {
		all := map[Tuple]bool{}
		for f, err := range table.Filter(f) {
			require.NoError(t, err)
			require.False(t, all[f.Original], "%s twice", f.Original)
			require.Equal(t, StateEstablished, f.State)
			all[f.Original] = true
		}
		return all
	}
	require.Len(t, list(Filter{}), flows)
	for range table.All() {
		break
	}
	some := Filter{Src: netip.MustParsePrefix("10.0.1.0/24"), Protocol: TCP}
	want := map[Tuple]bool{}
	for i := 256; i < 512; i++ {
		want[numberedTuple(i)] = true
	}
	require.Equal(t, want, list(some))
	require.Len(t, list(Filter{SrcPort: 1024 + 77}), 1)
	require.Empty(t, list(Filter{Protocol: UDP}))

	// What is left of broken flows goes too, without being counted.
	require.NoError(t, table.flows.Delete(keyOf(numberedTuple(300))))
	require.NoError(t, table.flows.Delete(keyOf(reverse(numberedTuple(301)))))
	n, err := table.Flush(some)
	require.NoError(t, err)
	assert.Equal(t, 255, n)
	assert.Empty(t, list(some))
	stats, err := table.Stats()
	require.NoError(t, err)
	assert.Equal(t, 2*(flows-256), stats.Entries)
	n, err = table.Flush(some)
	require.NoError(t, err)
	assert.Zero(t, n)
	n, err = table.Flush(Filter{})
	require.NoError(t, err)
	assert.Equal(t, flows-256, n)
	stats, err = table.Stats()
	require.NoError(t, err)
	assert.Zero(t, stats.Entries)
}

func TestStats(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 100})
	stats, err := table.Stats()
	require.NoError(t, err)
	assert.Equal(t, Stats{Capacity: 200, InsertErrors: map[unix.Errno]uint64{}}, stats)
	now := ago(t, table, 0)
	fill(t, table, 10, bpf.TableFlowStageFLOW_CONFIRMED, func(int) uint32 { return now })
	put(t, table, tuple(UDP, "10.9.0.1:1", "10.9.0.2:2"), bpf.TableFlow{LastSeen: now, Stage: uint32(bpf.TableFlowStageFLOW_NEW)}, bpf.TableFlow{LastSeen: now})
	cpus := ebpf.MustPossibleCPU()
	want := map[bpf.TableFlowEvent]uint64{}
	for event := range bpf.TableFlowEventFLOW_ENDED + 1 {
		perCPU := make([]uint64, cpus)
		for i := range perCPU {
			perCPU[i] = uint64(event+1)*100 + uint64(i)
			want[event] += perCPU[i]
		}
		require.NoError(t, table.events.Set(uint32(event), perCPU))
	}
	stats, err = table.Stats()
	require.NoError(t, err)
	assert.Equal(t, Stats{
		Entries: 22, Capacity: 200, Established: 10, New: 1,
		Created: want[bpf.TableFlowEventFLOW_CREATED], Confirmed: want[bpf.TableFlowEventFLOW_CONFIRMATIONS],
		Evicted: want[bpf.TableFlowEventFLOW_EVICTED], Reused: want[bpf.TableFlowEventFLOW_REUSED], Ended: want[bpf.TableFlowEventFLOW_ENDED],
		FragmentsNotRemembered: want[bpf.TableFlowEventFLOW_FRAGMENTS_FULL],
		InsertErrors: map[unix.Errno]uint64{
			unix.E2BIG: want[bpf.TableFlowEventFLOW_FULL], unix.ENOMEM: want[bpf.TableFlowEventFLOW_NO_MEMORY],
			unix.EBUSY: want[bpf.TableFlowEventFLOW_BUSY], 0: want[bpf.TableFlowEventFLOW_FAILED],
		},
	}, stats)
	assert.InDelta(t, 0.11, stats.Fill(), 1e-9)
}

// Age and idle time are right although the counter of ticks wraps.
func TestFlowAcrossTheWrap(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 16})
	v := view{now: 10}
	f := v.flow(table, keyOf(numberedTuple(1)), bpf.TableFlow{Created: 10 - uint32(table.clock.HZ())*100, LastSeen: 12}, bpf.TableFlow{})
	assert.Equal(t, 100*time.Second, f.Age)
	assert.Zero(t, f.Idle)
}
