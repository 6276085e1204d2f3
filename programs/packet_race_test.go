// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/node"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/internal/wire"
	"github.com/godatapath/datapath/programs"
)

// What happens between two instructions of a program. Two CPUs meet there too
// seldom for a test, so here it is made to happen.

// meanwhile loads a program once more, so that the tables change just when it
// comes to one of its functions: as far as it is told, which is by the epoch.
func (r *rig) meanwhile(program, function string) *ebpf.Program {
	r.t.Helper()
	tables := programs.TablesForTest(r.dp)
	spec := programSpecs()[program].Copy()
	for _, b := range r.blocks {
		maps.Copy(tables, b.DatapathParts().Maps)
		for k, v := range b.DatapathParts().Settings {
			if spec.Variables[k] != nil {
				require.NoError(r.t, spec.Variables[k].Set(v))
			}
		}
	}
	replace := map[string]*ebpf.Map{}
	for k, ms := range spec.Maps {
		if m := tables[k]; m != nil {
			ms.MaxEntries, ms.Flags = m.MaxEntries(), m.Flags()
			replace[k] = m
		}
	}
	p := spec.Programs[program]
	noteCalls(p, r.calls)
	at := slices.IndexFunc(p.Instructions, func(i asm.Instruction) bool { return i.Symbol() == function })
	require.NotEqual(r.t, -1, at, function)
	const epoch = 2 // the first field of the state; a datapath begins with an odd number of its own
	change := asm.LoadMapValue(asm.R0, tables[node.MapName].FD(), 0)
	change.Metadata, p.Instructions[at].Metadata = p.Instructions[at].Metadata, asm.Metadata{}
	p.Instructions = slices.Insert(p.Instructions, at, change, asm.StoreImm(asm.R0, 0, epoch, asm.Word))
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	require.NoError(r.t, err)
	defer coll.Close()
	out := coll.DetachProgram(program)
	r.owner.Cleanup(func() { out.Close() })
	return out
}

// A verdict that was found before a change and is written down after it is one
// of before: the next packet is judged.
func TestChangeBetweenVerdictAndFlow(t *testing.T) {
	t.Parallel()
	third := netip.MustParseAddr("172.16.16.13")
	for _, row := range []struct {
		name, function string
		known          bool       // the flow, before the change before
		before         netip.Addr // where red lives since
	}{
		{"new flow", "flow_create", false, redNode},
		{"judged again, to the same", "flow_judge_again", true, redNode},
		{"judged again, to another", "flow_judge_again", true, third},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
				frame := udp(f.blue, f.red, 1000, 53)
				goesTo := func(n netip.Addr, msg string) {
					require.Equal(t, hop{ifindex: overlayIfindex, vni: blueIdentity, node: n}, r.inject(fromBlue, frame).sent, msg)
				}
				if row.known {
					goesTo(redNode, "")
					r.moveRed(row.before)
					require.NoError(t, r.dp.Bump())
				}
				usual := r.recorded["from_endpoint"]
				r.recorded["from_endpoint"] = r.meanwhile("from_endpoint", row.function)
				goesTo(row.before, "judged just before the change")
				r.recorded["from_endpoint"] = usual
				r.moveRed(strangerNode) // what the change was
				goesTo(strangerNode, "after the change")
				goesTo(strangerNode, "from the flow table")
			})
		})
	}
}

// moveRed moves red's prefixes to another node without telling the programs.
func (r *rig) moveRed(to netip.Addr) {
	r.t.Helper()
	m := r.peers.DatapathParts().Maps[bpf.TableMapPeers]
	var k bpf.TablePrefixKey
	var v bpf.TablePeer
	moved := map[bpf.TablePrefixKey]bpf.TablePeer{}
	all := m.Iterate()
	for all.Next(&k, &v) {
		v.Node = wire.Addr(to)
		moved[k] = v
	}
	require.NoError(r.t, all.Err())
	require.NotEmpty(r.t, moved)
	for k, v := range moved {
		require.NoError(r.t, m.Put(k, v))
	}
}

// The place in the ring that a confirmed flow has left is the next one's, as long
// as its turn is far.
func TestPlaceOfTheConfirmed(t *testing.T) {
	t.Parallel()
	const ring = 64
	eachFamily(t, rigConfig{flows: conntrack.Config{Flows: 256, Unconfirmed: ring}}, func(t *testing.T, r *rig, f family) {
		m := r.flows.DatapathParts().Maps[bpf.TableMapFlows]
		sport := uint16(0)
		open := func() uint32 {
			t.Helper()
			sport++
			r.inject(fromGreen, tcp(f.green, f.blue, sport, 80, packet.SYN))
			var e bpf.TableFlow
			require.NoError(t, m.Lookup(key(f.green, sport, f.blue, 80, unix.IPPROTO_TCP), &e))
			return e.Slot
		}
		confirm := func(sport uint16) {
			t.Helper()
			r.inject(fromBlue, tcp(f.blue, f.green, 80, sport, packet.SYN|packet.ACK))
			ack := tcp(f.green, f.blue, sport, 80, packet.ACK)
			r.expect(fromGreen, ack, intoBlue(ack, "~"+tupleOf(conntrack.TCP, f.green, sport, f.blue, 80)).with("confirmations"))
		}
		require.Equal(t, uint32(0), open())
		require.Equal(t, uint32(1), open())
		confirm(1)
		require.Equal(t, uint32(0), open())
		require.Equal(t, uint32(2), open(), "one place is for one")
		confirm(3)
		confirm(2)
		require.Equal(t, uint32(1), open(), "the one that was left last")
		for next := range uint32(ring / 4) {
			require.Equal(t, 3+next, open())
		}
		confirm(4) // of place 2
		require.Equal(t, uint32(3+ring/4), open(), "it would be pushed out sooner than others")
		require.Equal(t, uint32(4+ring/4), open())
	})
}

// The memory of a flow that is pushed out is another's at once. So that no
// program still reads the verdict there, it goes a quarter of the ring earlier.
func TestVerdictGoesBeforeTheFlow(t *testing.T) {
	t.Parallel()
	const ring = 64
	eachFamily(t, rigConfig{flows: conntrack.Config{Flows: 256, Unconfirmed: ring}}, func(t *testing.T, r *rig, f family) {
		m := r.flows.DatapathParts().Maps[bpf.TableMapFlows]
		epochs := func(sport uint16) (both [2]uint32) {
			for i, k := range []bpf.TableTuple{key(f.green, sport, f.blue, 80, unix.IPPROTO_TCP), key(f.blue, 80, f.green, sport, unix.IPPROTO_TCP)} {
				var e bpf.TableFlow
				require.NoError(t, m.Lookup(k, &e))
				both[i] = e.Epoch
			}
			return both
		}
		there := func(sport uint16, flags uint8) want {
			frame := tcp(f.green, f.blue, sport, 80, flags)
			return intoBlue(frame, "~"+tupleOf(conntrack.TCP, f.green, sport, f.blue, 80))
		}
		send := func(sport uint16, flags uint8, w want) {
			t.Helper()
			r.expect(fromGreen, tcp(f.green, f.blue, sport, 80, flags), w)
		}
		others := uint16(0)
		flood := func(n int) {
			for range n {
				others++
				require.Equal(t, rediret, r.inject(fromBlue, udp(f.blue, f.world, others, 53)).verdict)
			}
		}
		const lasting, half, late = 1, 2, 3
		// Each has got its reply, and one of them has gone on from it.
		for sport := uint16(lasting); sport <= late; sport++ {
			r.inject(fromGreen, tcp(f.green, f.blue, sport, 80, packet.SYN))
			r.inject(fromBlue, tcp(f.blue, f.green, 80, sport, packet.SYN|packet.ACK))
		}
		send(lasting, packet.ACK, there(lasting, packet.ACK).with("confirmations"))
		send(lasting, packet.ACK, there(lasting, packet.ACK))
		// One more, that nobody has answered and whose packets take the fast path. It
		// has the place that the confirmed one has left, which is three away by now.
		const alone, since = 4, 3
		r.inject(fromGreen, tcp(f.green, f.blue, alone, 80, packet.SYN))
		now := epochs(alone)[0]
		require.NotZero(t, now)

		flood(ring*3/4 - since)
		require.Equal(t, [2]uint32{now, 0}, epochs(alone), "the reply has not been judged yet")
		flood(1)
		require.Equal(t, [2]uint32{0, 0}, epochs(alone))
		require.Equal(t, [2]uint32{now, now}, epochs(lasting), "confirmed: it stays what it is")
		flood(since - 1)
		require.Equal(t, [2]uint32{0, 0}, epochs(half))

		// They are there still, and their packets go on, each by the long way.
		for range 2 {
			send(alone, packet.ACK, there(alone, packet.ACK))
			require.Zero(t, epochs(alone)[0])
			answer := tcp(f.blue, f.green, 80, half, packet.ACK)
			r.expect(fromBlue, answer, intoGreen(answer, "~"+tupleOf(conntrack.TCP, f.green, half, f.blue, 80)))
			require.Equal(t, [2]uint32{0, 0}, epochs(half))
		}
		// One that is confirmed now is like any other.
		send(late, packet.ACK, there(late, packet.ACK).with("confirmations"))
		send(late, packet.ACK, there(late, packet.ACK))
		require.Equal(t, now, epochs(late)[0])

		flood(ring / 4)
		for sport, there := range map[uint16]bool{lasting: true, half: false, late: true, alone: false} {
			_, ok := r.flow(conntrack.TCP, f.green, sport, f.blue, 80)
			require.Equal(t, there, ok, sport)
		}
		require.Equal(t, [2]uint32{now, now}, epochs(lasting))
	})
}
