// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/tunnel"
)

// What somebody sends who is not who he says, or who sees no answers.

// One who forges his address gets no reply, so he does not know its numbers. His
// segments must not make a flow that no flood of openings pushes out: the other
// side's TCP throws them away without a word, and nobody would end it.
func TestBlindConfirm(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		sport := uint16(1000)
		for _, row := range []struct {
			name           string
			client, server netip.Addr
			in, out        port
		}{
			{"endpoint to another node", f.blue, f.red, fromBlue, fromRed},
			{"another node to endpoint", f.red, f.blue, fromRed, fromBlue},
			{"world to endpoint", f.world, f.blue, fromHost, fromBlue},
		} {
			t.Run(row.name, func(t *testing.T) {
				r.as(t)
				say := func(flags uint8, ack uint32) passage {
					frame := build(row.client, row.server, packet.TCP{SrcPort: sport, DstPort: 80, Flags: flags, Seq: 1001, Ack: ack}, packet.Payload("x"))
					got := r.send(row.in, frame)
					require.Equal(t, rediret, got.verdict, "it goes on, whatever it says")
					return got
				}
				open := func(isn uint32) { // which the answer begins with
					sport++
					say(packet.SYN, 0)
					answer := packet.TCP{SrcPort: 80, DstPort: sport, Flags: packet.SYN | packet.ACK, Seq: isn, Ack: 1001}
					require.Equal(t, rediret, r.send(row.out, build(row.server, row.client, answer)).verdict)
				}
				state := func() conntrack.State {
					flow, ok := r.flow(conntrack.TCP, row.client, sport, row.server, 80)
					require.True(t, ok)
					return flow.State
				}
				for _, isn := range []uint32{777777, 1 << 31} {
					open(isn)
					for _, blind := range []struct {
						flags uint8
						ack   uint32
					}{
						{packet.PSH, 0}, {packet.PSH, isn + 1}, {0, isn + 1}, {packet.FIN, isn + 1}, // no acknowledgement
						{packet.SYN | packet.ACK, isn + 1}, // opens, still
						{packet.ACK, 0}, {packet.ACK, isn}, {packet.ACK, isn + 65537}, {packet.ACK, isn - 65536},
						{packet.ACK, isn + 1<<31}, {packet.ACK | packet.PSH, isn ^ 0x5a5a0000},
					} {
						require.Empty(t, say(blind.flags, blind.ack).events, "flags %#x, acknowledges %d of %d", blind.flags, blind.ack, isn)
						require.Equal(t, fresh, state())
					}
					// Whoever has opened it is not hindered by them.
					require.Equal(t, map[string]uint64{"confirmations": 1}, say(packet.ACK, isn+1).events)
					require.Equal(t, established, state())
				}
				for _, isn := range []uint32{777777, 1<<32 - 9} {
					for _, ack := range []uint32{isn + 1, isn + 2, isn + 1461, isn + 65536} {
						open(isn)
						require.Equal(t, map[string]uint64{"confirmations": 1}, say(packet.ACK, ack).events, "acknowledges %d of %d", ack, isn)
						require.Equal(t, established, state())
					}
				}
			})
		}
	})
}

// Pings cost others nothing: with ever new identifiers, each sent again after
// its reply, they push out one another.
func TestPingsConfirmNothing(t *testing.T) {
	t.Parallel()
	const ring, pings = 64, 200
	eachFamily(t, rigConfig{flows: conntrack.Config{Flows: 256, Unconfirmed: ring}}, func(t *testing.T, r *rig, f family) {
		for id := range uint16(pings) {
			r.inject(fromBlue, echo(f.blue, f.gate, id))
			r.inject(fromHost, echoReply(f.gate, f.blue, id))
			require.Equal(t, rediret, r.inject(fromBlue, echo(f.blue, f.gate, id)).verdict)
		}
		stats, err := r.flows.Stats()
		require.NoError(t, err)
		require.Zero(t, stats.Established)
		require.Zero(t, stats.Confirmed)
		require.EqualValues(t, ring, stats.New)
		require.Equal(t, 2*ring, stats.Entries)
		require.EqualValues(t, pings-ring, stats.Evicted)
		require.Empty(t, stats.InsertErrors)
	})
}

// A packet that is dropped for its source has not used the flow that it names:
// else anybody could keep it, or what is left of it, for ever.
func TestForgedPacketKeepsNothingAlive(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		r.send(fromGreen, udp(f.green, f.red, 1000, 53))
		r.send(fromRed, udp(f.red, f.green, 53, 1000))
		m := r.flows.DatapathParts().Maps[bpf.TableMapFlows]
		keys := []bpf.TableTuple{key(f.green, 1000, f.red, 53, unix.IPPROTO_UDP), key(f.red, 53, f.green, 1000, unix.IPPROTO_UDP)}
		entries := func() (both [2]bpf.TableFlow) {
			for i, k := range keys {
				require.NoError(t, m.Lookup(k, &both[i]))
			}
			return both
		}
		for i, e := range entries() {
			e.LastSeen -= 5000
			require.NoError(t, m.Put(keys[i], e))
		}
		idle := entries()
		there, back := udp(f.green, f.red, 1000, 53), udp(f.red, f.green, 53, 1000)
		for _, row := range []struct {
			name   string
			from   port
			frame  []byte
			reason string
		}{
			{"a neighbour", fromBlue, there, "spoofed source"},
			{"a neighbour, as the other side", fromBlue, back, "spoofed source"},
			{"a stranger's node", fromNode(strangerNode, redIdentity), there, "spoofed source"},
			{"a stranger's node, as the other side", fromNode(strangerNode, redIdentity), back, "foreign overlay"},
			{"the other side's node", fromRed, there, "spoofed source"},
			{"nobody's identity", fromNode(redNode, 0), back, "bad vni"},
			{"the world", fromHost, there, "spoofed source"},
			{"the world, as the other side", fromHost, back, "spoofed source"},
			{"an error of a neighbour", fromBlue, portUnreachable(f.red, f.green, there, headers(there)), "spoofed source"},
		} {
			r.expect(row.from, row.frame, dropped(row.reason), row.name)
			require.Equal(t, idle, entries(), row.name)
			// A change of the tables makes each packet be judged.
			require.NoError(t, r.dp.Bump())
		}
		r.send(fromGreen, there)
		require.Greater(t, entries()[0].LastSeen, idle[0].LastSeen, "who it is")
	})
}

// A peer's prefix may be wide, and have the node's own addresses in it.
func TestWidePrefix(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{tunnel: tunnel.Config{Node: ownNode}}, func(t *testing.T, r *rig, f family) {
		for _, p := range []string{"10.244.0.0/16", "172.16.0.0/12", "fd00:244::/32"} {
			require.NoError(t, r.peers.Set(tunnel.Peer{Prefix: netip.MustParsePrefix(p), Node: redNode}))
		}
		frame := udp(f.far, f.blue, 1000, 53)
		r.expect(fromRed, frame, intoBlue(frame, "+"+tupleOf(conntrack.UDP, f.far, 1000, f.blue, 53)), "the rest is the peer's")
		r.send(fromGreen, udp(f.green, f.blue, 1000, 53))
		for _, src := range []netip.Addr{f.green, f.gate, ownNode} {
			if src.Is4() != f.blue.Is4() {
				continue
			}
			for _, vni := range []uint32{redIdentity, 1} {
				r.expect(fromNode(redNode, vni), udp(src, f.blue, 1000, 53), dropped("spoofed source"), src)
				r.expect(fromNode(redNode, vni), tcp(src, f.blue, 1000, 80, packet.SYN), dropped("spoofed source"), src)
				r.expect(fromNode(redNode, vni), echo(src, f.blue, 7), dropped("spoofed source"), src)
			}
		}
		// Nor has it anything to say of a flow that never left the node.
		about := udp(f.blue, f.green, 53, 1000)
		r.expect(fromRed, portUnreachable(f.red, f.blue, about, headers(about)), dropped("spoofed source"))
	})
}

// The stack forwards what anybody sends to the node. It does not speak for those
// who come in elsewhere, and what is not the node's own is the world's.
func TestSourceOfTheStack(t *testing.T) {
	t.Parallel()
	const host, world = 1, 2 // identities
	eachFamily(t, rigConfig{tunnel: tunnel.Config{Node: ownNode}}, func(t *testing.T, r *rig, f family) {
		type row struct {
			name     string
			src      netip.Addr
			identity uint32 // 0: refused
		}
		rows := []row{
			{"a local endpoint", f.green, 0}, {"a peer's endpoint", f.red, 0}, {"a peer", f.redGate, 0},
			{"the node", f.gate, host},
			{"the world", f.world, world}, {"a node that is no peer", f.far, world}, {"nobody here", f.nobodyHere, world},
		}
		if f.blue.Is4() {
			rows = append(rows, row{"the node, in the underlay", ownNode, host}, row{"a peer, in the underlay", redNode, world})
		}
		to, other := f.red, f.world // whom the errors are for, and whom they are about
		for i, row := range rows {
			sport := uint16(1000 + i)
			if row.src != to {
				frame := udp(row.src, to, sport, 53)
				w := dropped("spoofed source")
				if row.identity > 0 {
					w = intoOverlay(frame, row.identity, "+"+tupleOf(conntrack.UDP, row.src, sport, to, 53)).unhopped(frame)
				}
				r.expect(fromHost, frame, w, row.name)
			}
			if row.identity == 0 {
				r.expect(fromHost, udp(row.src, f.blue, sport, 53), dropped("spoofed source"), "%s, to an endpoint", row.name)
			}
		}
		// An error comes from whoever says so, and not from whom it is about.
		r.send(fromHost, udp(other, to, 5, 53))
		about := udp(to, other, 53, 5)
		for _, row := range rows {
			frame := portUnreachable(row.src, to, about, headers(about))
			w := dropped("spoofed source")
			if row.identity > 0 {
				w = intoOverlay(frame, row.identity).unhopped(frame)
			}
			r.expect(fromHost, frame, w, "an error of %s", row.name)
		}
	})
}

// Flows that nobody has confirmed make room in a full table, one for each new
// flow, and confirmed ones do not. What finds no room is still sent.
func TestRoomInAFullTable(t *testing.T) {
	t.Parallel()
	const capacity, old = 64, 40
	eachFamily(t, rigConfig{flows: conntrack.Config{Flows: capacity, Unconfirmed: 32}}, func(t *testing.T, r *rig, f family) {
		settle := func(sport uint16) passage {
			r.inject(fromBlue, tcp(f.blue, f.red, sport, 80, packet.SYN))
			r.inject(fromRed, tcp(f.red, f.blue, 80, sport, packet.SYN|packet.ACK))
			return r.inject(fromBlue, tcp(f.blue, f.red, sport, 80, packet.ACK))
		}
		stats := func() conntrack.Stats {
			s, err := r.flows.Stats()
			require.NoError(t, err)
			return s
		}
		for i := range uint16(old) {
			settle(1000 + i)
		}
		for i := range uint16(capacity - old) {
			r.inject(fromBlue, udp(f.blue, f.world, i, 53))
		}
		require.EqualValues(t, old, stats().Established)
		require.EqualValues(t, 2*capacity, stats().Entries)
		frame := tcp(f.green, f.red, 1, 80, packet.SYN)
		r.expect(fromGreen, frame, intoOverlay(frame, greenIdentity,
			"+"+tupleOf(conntrack.TCP, f.green, 1, f.red, 80), "-"+tupleOf(conntrack.UDP, f.blue, 0, f.world, 53)).with("evicted"), "the oldest goes")
		require.EqualValues(t, 2*capacity, stats().Entries)
		require.Empty(t, stats().InsertErrors)

		for i := range uint16(capacity - old) {
			settle(2000 + i)
		}
		require.EqualValues(t, capacity, stats().Established)
		require.Empty(t, stats().InsertErrors)
		frame = tcp(f.green, f.red, 2, 80, packet.SYN)
		r.expect(fromGreen, frame, intoOverlay(frame, greenIdentity).with("full"), "all are confirmed")
	})
}

// settled is a flow from blue to red whose packets from red take the short cut,
// and the frame of such a packet.
func settled(r *rig, f family, sport uint16) []byte {
	for _, step := range []struct {
		from  port
		frame []byte
	}{
		{fromBlue, tcp(f.blue, f.red, sport, 80, packet.SYN)},
		{fromRed, tcp(f.red, f.blue, 80, sport, packet.SYN|packet.ACK)},
		{fromBlue, tcp(f.blue, f.red, sport, 80, packet.ACK)},
		{fromRed, tcp(f.red, f.blue, 80, sport, packet.ACK)},
	} {
		require.Equal(r.t, rediret, r.inject(step.from, step.frame).verdict)
	}
	return tcp(f.red, f.blue, 80, sport, packet.ACK, 1, 2, 3)
}

var fromRedNode = outer{src: redNode, dst: ownNode, port: tunnel.DefaultPort, vni: redIdentity}

// Outer headers that the kernel would refuse, or read otherwise, are left to it.
func TestShortCutLeavesBadHeaders(t *testing.T) {
	t.Parallel()
	const ipLen, udpLen, reserved = 14 + 2, 34 + 4, 42 + 7
	eachFamily(t, rigConfig{tunnel: tunnel.Config{Node: ownNode}}, func(t *testing.T, r *rig, f family) {
		good := fromRedNode.around(settled(r, f, 2000))
		require.Equal(t, rediret, r.inject(uplink, good).verdict)
		length := func(at, n int) func([]byte) {
			return func(b []byte) { binary.BigEndian.PutUint16(b[at:], uint16(n)) }
		}
		inner := len(good) - 14 - 20 - 8 - 8
		for name, bad := range map[string][]byte{
			"UDP beyond the IP packet":         edit(good, length(udpLen, 16+inner+100)),
			"UDP one byte beyond":              edit(good, length(udpLen, 16+inner+1)),
			"UDP shorter than its header":      edit(good, length(udpLen, 7)),
			"UDP of length 0":                  edit(good, length(udpLen, 0)),
			"UDP ends in the inner headers":    edit(good, length(udpLen, 16+14+20)),
			"UDP one byte short":               edit(good, length(udpLen, 16+inner-1)),
			"IP of its header alone":           edit(good, length(ipLen, 20)),
			"IP ends in the inner headers":     edit(good, length(ipLen, 20+16+14+20)),
			"both end in the inner headers":    edit(edit(good, length(ipLen, 20+16+14+20)), length(udpLen, 16+14+20)),
			"IP beyond the frame":              edit(edit(good, length(ipLen, 20+16+inner+8)), length(udpLen, 16+inner+8)),
			"IP with options":                  edit(good, func(b []byte) { b[14] = 0x46 }),
			"something behind the VNI":         edit(good, func(b []byte) { b[reserved] = 0xaa }),
			"padding behind the datagram":      append(bytes.Clone(good), 0, 0, 0, 0),
			"another packet behind the one":    append(bytes.Clone(good), good...),
			"a later fragment":                 edit(good, func(b []byte) { b[21] = 1 }),
			"another protocol than UDP":        edit(good, func(b []byte) { b[23] = packet.ProtoTCP }),
			"another version in the IP header": edit(good, func(b []byte) { b[14] = 0x65 }),
			"a flag of a later VXLAN is set":   edit(good, func(b []byte) { b[42] |= 4 }),
			"reserved bits before the VNI":     edit(good, func(b []byte) { b[43] = 1 }),
		} {
			got := r.send(uplink, bad)
			require.Equal(t, verdictNext, got.verdict, name)
			require.Equal(t, bad, got.frame, "%s: it is left as it came", name)
			require.Empty(t, got.counted, name)
			require.Empty(t, got.flows, name)
		}
		require.Equal(t, rediret, r.inject(uplink, good).verdict)
	})
}

// Whatever is inside: what the short cut delivers, the long way would have
// delivered too, byte for byte, and what it leaves alone it has not touched.
func TestShortCutAgrees(t *testing.T) {
	t.Parallel()
	const frames, flows = 1500, 30
	for name, seed := range map[string]uint64{"fixed": 1, "of now": uint64(time.Now().UnixNano())} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			t.Logf("seed %d", seed)
			eachFamily(t, rigConfig{tunnel: tunnel.Config{Node: ownNode}}, func(t *testing.T, r *rig, f family) {
				rng := rand.New(rand.NewPCG(seed, 0))
				var taken []passage
				var inner [][]byte
				for sport := range uint16(flows) { // one that hears of its end is off the short cut
					segment := settled(r, f, 2000+sport)
					var in [][]byte
					for range frames / flows {
						inner := bytes.Clone(segment)
						if rng.IntN(3) == 0 { // a frame is longer than its packet
							inner = append(inner, make([]byte, rng.IntN(40))...)
						}
						for range 1 + rng.IntN(2) {
							inner[rng.IntN(len(inner))] ^= 1 << rng.IntN(8)
						}
						in = append(in, fromRedNode.around(inner))
					}
					for _, short := range r.injectAll(uplink, in) {
						if short.verdict == verdictNext {
							require.Equal(t, short.in, short.frame)
							continue
						}
						taken = append(taken, short)
						inner = append(inner, short.in[50:])
					}
				}
				require.Greater(t, len(taken), frames/20)
				require.Less(t, len(taken), frames)
				for i, long := range r.injectAll(fromRed, inner) {
					short := taken[i]
					require.Equal(t, long.verdict, short.verdict, "% x: %v", inner[i], long.counted)
					require.Equal(t, long.sent, short.sent, "% x", inner[i])
					require.Equal(t, long.frame, short.frame, "% x", inner[i])
				}
			})
		})
	}
}
