// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
)

// fault makes an ICMP error of one type; mtu is what those tell that have one.
type fault struct {
	name string
	make func(src, dst netip.Addr, quote []byte) []byte
	mtu  int
}

func faults(f family) []fault {
	with := func(four packet.ICMPv4, six packet.ICMPv6) func(src, dst netip.Addr, quote []byte) []byte {
		return func(src, dst netip.Addr, quote []byte) []byte {
			if src.Is4() {
				return build(src, dst, four, packet.Payload(quote))
			}
			return build(src, dst, six, packet.Payload(quote))
		}
	}
	return []fault{
		{"port unreachable", with(packet.ICMPv4{Type: packet.ICMPv4Unreachable, Code: packet.ICMPv4CodePort}, packet.ICMPv6{Type: packet.ICMPv6Unreachable, Code: packet.ICMPv6CodePort}), 0},
		{"time exceeded", with(packet.ICMPv4{Type: packet.ICMPv4TimeExceeded}, packet.ICMPv6{Type: packet.ICMPv6TimeExceeded}), 0},
		{"too big", with(packet.ICMPv4{Type: packet.ICMPv4Unreachable, Code: packet.ICMPv4CodeFragNeeded, Seq: 1280}, packet.ICMPv6{Type: packet.ICMPv6PacketTooBig, Seq: 1280}), 1280},
		{"parameter", with(packet.ICMPv4{Type: packet.ICMPv4Parameter, ID: 0x0900}, packet.ICMPv6{Type: packet.ICMPv6Parameter, Seq: 6}), 0},
	}
}

// quoteOf is the beginning of a packet as an error quotes it. Its transport
// checksum, if it is there, is left out by withoutSums.
func quoteOf(frame []byte, n int) []byte { return slices.Clone(frame[14:min(len(frame), 14+n)]) }

// withoutSums takes the checksums of an error out and of the transport that it
// quotes, so that errors are the same that differ in nothing else.
func withoutSums(frame []byte) []byte {
	b := slices.Clone(frame)
	at := 34
	if b[12] != 8 {
		at = 54
	}
	clear(b[at+2 : at+4])
	inner := at + 8
	protocol, l4 := b[inner+6], inner+40
	if b[12] == 8 {
		protocol, l4 = b[inner+9], inner+int(b[inner]&15)*4
	}
	sum := map[uint8]int{packet.ProtoTCP: 16, packet.ProtoUDP: 6, packet.ProtoICMP: 2, packet.ProtoICMPv6: 2}
	if off, ok := sum[protocol]; ok && len(b) >= l4+off+2 {
		clear(b[l4+off : l4+off+2])
	}
	return b
}

// expectFault is expect for an error.
func (r *rig) expectFault(p port, frame []byte, w want, msg ...any) passage {
	r.t.Helper()
	got := r.send(p, frame)
	require.Equal(r.t, w.verdict, got.verdict, fmt.Sprint(got.counted, msg))
	require.Equal(r.t, map[string]uint64{p.counter(w.counted): 1}, got.counted, msg...)
	require.Equal(r.t, w.sent, got.sent, msg...)
	require.Empty(r.t, got.flows, msg...)
	require.Empty(r.t, got.events, msg...)
	require.NoError(r.t, packet.Check(got.frame), msg...)
	require.Equal(r.t, withoutSums(w.frame), withoutSums(got.frame), msg...)
	return got
}

// Errors about what an endpoint has sent as the node reach it in its own words,
// from routers and from the other end; what is not about a flow is left alone.
func testErrorsAboutMasqueraded(t *testing.T, r *rig, f family, o outside) {
	for _, sport := range []uint16{5000, 500} { // kept, and another one
		for _, d := range dialogues(f) {
			if d.name == "SCTP" && sport < 1024 {
				continue // it keeps its port
			}
			t.Run(fmt.Sprintf("%s from %d", d.name, sport), func(t *testing.T) {
				r.as(t)
				ask := d.frame(4, f.blue, f.world, sport, d.dport)
				out := r.inject(fromBlue, ask)
				as := mapped(t, out)
				if d.name != "SCTP" && d.name != "echo" {
					require.Equal(t, sport == 5000, as.Port() == sport)
				}
				sent := hopped(ask)
				require.Equal(t, hopped(d.frame(4, o.node, f.world, as.Port(), d.dport)), out.frame)
				for _, kind := range faults(f) {
					for _, n := range []int{headers(ask), len(ask)} {
						for _, from := range []netip.Addr{o.router, f.world} {
							in := kind.make(from, o.node, quoteOf(out.frame, n))
							got := r.expectFault(fromUp, in, intoBlue(kind.make(from, f.blue, quoteOf(sent, n))), "%s from %s", kind.name, from)
							r.expectFault(fromUp, in, intoBlue(kind.make(from, f.blue, quoteOf(sent, n))), "again")
							if kind.mtu > 0 {
								require.EqualValues(t, kind.mtu, binary.BigEndian.Uint16(got.frame[len(got.frame)-min(n, len(ask)-14)-2:]))
							}
						}
					}
				}
				kind := faults(f)[0]
				stranger := d.frame(4, o.node, o.other, as.Port(), d.dport)
				r.left(fromUp, kind.make(o.router, o.node, quoteOf(stranger, 48)), "about a packet that nobody has sent")
				r.expect(fromUp, kind.make(f.green, o.node, quoteOf(out.frame, headers(ask))), dropped("spoofed source"), "as an endpoint")
				short := kind.make(o.router, o.node, quoteOf(out.frame, headers(ask)-1))
				r.left(fromUp, short, "without the ports")
			})
		}
	}
}

// The quoted packet is what the endpoint has sent, to the last byte (RFC 5508
// section 4.2: headers are reverted to their original form): some tools know
// their probes by the checksum.
func testQuoteIsWhatWasSent(t *testing.T, r *rig, f family, o outside) {
	for _, d := range dialogues(f) {
		for _, n := range []int{headers(d.frame(4, f.blue, f.world, 5000, d.dport)), 1000} {
			ask := d.frame(4, f.blue, f.world, 5000, d.dport)
			out := r.inject(fromBlue, ask)
			kind := faults(f)[0]
			r.expect(fromUp, kind.make(o.router, o.node, quoteOf(out.frame, n)), intoBlue(kind.make(o.router, f.blue, quoteOf(hopped(ask), n))), d.name)
		}
	}
}

// What an endpoint says about an answer leaves in the node's name and words.
func testErrorsByMasqueraded(t *testing.T, r *rig, f family, o outside) {
	for _, sport := range []uint16{5000, 500} {
		for _, d := range dialogues(f) {
			if d.name == "SCTP" && sport < 1024 {
				continue
			}
			t.Run(fmt.Sprintf("%s from %d", d.name, sport), func(t *testing.T) {
				r.as(t)
				as := mapped(t, r.inject(fromBlue, d.frame(4, f.blue, f.world, sport, d.dport)))
				answer := d.frame(5, f.world, o.node, d.dport, as.Port())
				in := r.inject(fromUp, answer)
				require.Equal(t, rediret, in.verdict)
				for _, kind := range faults(f) {
					n := headers(answer)
					frame := kind.make(f.blue, f.world, quoteOf(in.frame, n))
					w := outBy(kind.make(o.node, f.world, quoteOf(hopped(answer), n)), upIfindex, o.router)
					r.expectFault(fromBlue, frame, w, kind.name)
					r.expect(fromGreen, frame, dropped("spoofed source"), "a flow that it is no part of")
					r.expect(fromBlue, kind.make(f.green, f.world, quoteOf(in.frame, n)), dropped("spoofed source"))
				}
			})
		}
	}
}

// A datagram in parts is masqueraded as a whole, and so is its answer.
func testMasqueradedFragments(t *testing.T, r *rig, f family, o outside) {
	for i, sport := range []uint16{5000, 500} {
		id := uint32(100 + 10*i)
		flow := tupleOf(conntrack.UDP, f.blue, sport, f.world, 53)
		out := datagram{src: f.blue, dst: f.world, sport: sport, dport: 53, id: id, size: 792}
		cuts := [][2]int{{0, 400}, {400, 640}, {640, 800}}
		var as datagram
		for j, cut := range cuts {
			in := out.piece(cut[0], cut[1], cut[1] < 800)
			mark := "~"
			if j == 0 {
				mark = "+"
				got := r.inject(fromBlue, in)
				require.Equal(t, rediret, got.verdict, "%v", got.counted)
				d, err := packet.Decode(got.frame)
				require.NoError(t, err)
				p, _ := d.Ports()
				as = datagram{src: o.node, dst: f.world, sport: p, dport: 53, id: id, size: 792}
				require.Equal(t, sport == 5000, p == sport)
				require.Equal(t, hopped(as.piece(cut[0], cut[1], true)), got.frame)
				continue
			}
			r.expect(fromBlue, in, outBy(as.piece(cut[0], cut[1], cut[1] < 800), upIfindex, o.router, mark+flow))
		}
		back := datagram{src: f.world, dst: o.node, sport: 53, dport: as.sport, id: id + 1, size: 792}
		want := datagram{src: f.world, dst: f.blue, sport: 53, dport: sport, id: id + 1, size: 792}
		r.left(fromUp, back.piece(400, 640, true), "a later part before the first")
		for _, cut := range cuts {
			r.expect(fromUp, back.piece(cut[0], cut[1], cut[1] < 800), intoBlue(want.piece(cut[0], cut[1], cut[1] < 800), "~"+flow))
		}
		r.expect(fromBlue, out.piece(640, 800, false), dropped("fragment unknown"), "it is complete")
		stranger := datagram{src: o.other, dst: o.node, sport: 53, dport: as.sport, id: id, size: 792}
		for _, cut := range cuts {
			r.left(fromUp, stranger.piece(cut[0], cut[1], cut[1] < 800), "nobody's")
		}
	}
}
