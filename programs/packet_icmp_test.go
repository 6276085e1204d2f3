// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/packet"
)

// quoted are the packets that errors are about, from src to dst.
func quoted(src, dst netip.Addr) map[string][]byte {
	out := map[string][]byte{
		"TCP":        tcp(src, dst, 1000, 80, packet.SYN),
		"UDP":        udp(src, dst, 1000, 53, packet.Sized(30)...),
		"echo":       echo(src, dst, 77, packet.Sized(30)...),
		"echo reply": echoReply(src, dst, 78),
		"SCTP":       sctp(src, dst, 1000, 9, packet.ChunkInit),
	}
	if src.Is4() {
		out["UDP behind options"] = packet.Build(ether(blueHost, blueMAC), packet.IPv4{Src: src, Dst: dst, Options: make([]byte, 40)},
			packet.UDP{SrcPort: 1001, DstPort: 53}, packet.Sized(30))
		return out
	}
	out["UDP behind extension headers"] = build(src, dst, packet.Extension{}, packet.Extension{Type: packet.ProtoDestOptions, Data: make([]byte, 14)},
		packet.Extension{Type: packet.ProtoRouting, Data: make([]byte, 6)}, packet.UDP{SrcPort: 1001, DstPort: 53}, packet.Sized(30))
	out["UDP in a whole fragment"] = build(src, dst, packet.Fragment6{ID: 5}, packet.UDP{SrcPort: 1002, DstPort: 53}, packet.Sized(30))
	return out
}

// An error goes to the one who sent the packet that it quotes, if that packet
// is of a known flow, and changes nothing of the flow.
func TestErrorsOfFlows(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		for name, about := range quoted(f.blue, f.red) {
			t.Run("to blue about "+name, func(t *testing.T) {
				r.as(t)
				n := headers(about)
				fault := portUnreachable(f.red, f.blue, about, n)
				r.expect(fromRed, fault, dropped("icmp untracked"))
				require.Equal(t, rediret, r.inject(fromBlue, about).verdict)
				r.expect(fromRed, fault, intoBlue(fault), "from the other end")
				router := portUnreachable(f.redGate, f.blue, about, n)
				r.expect(fromNode(redNode, 1), router, intoBlue(router), "from a router")
				whole := portUnreachable(f.red, f.blue, about, len(about))
				r.expect(fromRed, whole, intoBlue(whole), "with more than it must quote")
				// The host may say so too.
				host := portUnreachable(f.gate, f.blue, about, n)
				r.expect(fromHost, host, intoBlue(host).unhopped(host))

				r.expect(fromNode(strangerNode, redIdentity), fault, dropped("foreign overlay"))
				r.expect(fromNode(redNode, 99), fault, dropped("bad vni"))
				r.expect(fromRed, portUnreachable(f.red, f.green, about, n), dropped("icmp untracked"), "to another than the quoted sender")
				r.expect(fromRed, withTTL(fault, 1), dropped("ttl exceeded"), "errors are not answered")
				r.expect(fromRed, portUnreachable(f.red, f.blue, about, n-8), dropped("truncated"), "no ports")
				r.expect(fromRed, portUnreachable(f.red, f.blue, about, 3), dropped("truncated"), "no header")
				lies := edit(fault, func(b []byte) { b[len(b)-n] = 0x52 })
				r.expect(fromRed, lies, dropped("bad length"), "of another version")
			})
		}
		for name, about := range quoted(f.red, f.blue) {
			t.Run("from blue about "+name, func(t *testing.T) {
				r.as(t)
				n := headers(about)
				fault := portUnreachable(f.blue, f.red, about, n)
				r.expect(fromBlue, fault, dropped("icmp untracked"))
				require.Equal(t, rediret, r.inject(fromRed, about).verdict)
				r.expect(fromBlue, fault, intoOverlay(fault, blueIdentity))
				for _, forged := range []netip.Addr{f.green, f.gate, f.red, f.world, f.nobodyHere} {
					r.expect(fromBlue, portUnreachable(forged, f.red, about, n), dropped("spoofed source"), "as %s", forged)
				}
				r.expect(fromBlue, portUnreachable(loopback(f), f.red, about, n), dropped("bad address"))
				r.expect(fromGreen, portUnreachable(f.green, f.red, about, n), dropped("spoofed source"), "a flow that it is no part of")
				r.expect(fromGreen, fault, dropped("spoofed source"))
			})
		}
		t.Run("between endpoints", func(t *testing.T) {
			r.as(t)
			about := udp(f.blue, f.green, 1000, 53)
			require.Equal(t, rediret, r.inject(fromBlue, about).verdict)
			fault := portUnreachable(f.green, f.blue, about, headers(about))
			r.expect(fromGreen, fault, intoBlue(fault))
			about = udp(f.green, f.red, 1000, 53)
			require.Equal(t, rediret, r.inject(fromGreen, about).verdict)
			r.expect(fromBlue, portUnreachable(f.blue, f.green, about, headers(about)), dropped("spoofed source"), "about a neighbour's flow")
		})
		t.Run("to the host", func(t *testing.T) {
			r.as(t)
			about := udp(f.gate, f.blue, 1000, 53)
			require.Equal(t, rediret, r.inject(fromHost, about).verdict)
			fault := portUnreachable(f.blue, f.gate, about, headers(about))
			r.expect(fromBlue, fault, intoHost(fault))
		})
		t.Run("from nobody", func(t *testing.T) {
			r.as(t)
			about := udp(f.blue, f.world, 1000, 53)
			require.Equal(t, rediret, r.inject(fromBlue, about).verdict)
			fault := portUnreachable(f.world, f.blue, about, headers(about))
			r.expect(fromHost, fault, intoBlue(fault).unhopped(fault))
			r.expect(fromHost, portUnreachable(loopback(f), f.blue, about, headers(about)), dropped("bad address"))
		})
		t.Run("about what has no flow", func(t *testing.T) {
			r.as(t)
			known := udp(f.blue, f.red, 1000, 53, packet.Sized(64)...)
			var inner []packet.Layer
			if f.blue.Is4() {
				inner = []packet.Layer{packet.IPv4{Src: f.blue, Dst: f.red, FragOffset: 64, Protocol: packet.ProtoUDP}, packet.Sized(64)}
			} else {
				inner = []packet.Layer{packet.IPv6{Src: f.blue, Dst: f.red}, packet.Fragment6{Offset: 64, NextHeader: packet.ProtoUDP}, packet.Sized(64)}
			}
			require.Equal(t, rediret, r.inject(fromBlue, known).verdict)
			about := packet.Build(append([]packet.Layer{ether(blueHost, blueMAC)}, inner...)...)
			r.expect(fromRed, portUnreachable(f.red, f.blue, about, 100), dropped("icmp untracked"), "a later fragment")
			nested := portUnreachable(f.blue, f.red, known, 48)
			r.expect(fromRed, portUnreachable(f.red, f.blue, nested, 100), dropped("icmp untracked"), "another error")
			other := packet.Build(ether(blueHost, blueMAC), protocolHeader(f.blue, f.red, 47), packet.Sized(64))
			r.expect(fromRed, portUnreachable(f.red, f.blue, other, 100), dropped("icmp untracked"), "another protocol")
		})
	})
}

func loopback(f family) netip.Addr {
	if f.blue.Is4() {
		return addr("127.0.0.1")
	}
	return addr("::1")
}

func protocolHeader(src, dst netip.Addr, proto uint8) packet.Layer {
	if src.Is4() {
		return packet.IPv4{Src: src, Dst: dst, Protocol: proto}
	}
	return packet.IPv6{Src: src, Dst: dst, NextHeader: proto}
}

// All types of errors, with the numbers of both families.
func TestErrorTypes(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		about := udp(f.blue, f.red, 1000, 53)
		require.Equal(t, rediret, r.inject(fromBlue, about).verdict)
		types := map[byte]bool{3: true, 11: true, 12: true, 4: false, 5: false, 13: false, 200: false}
		if f.blue.Is6() {
			types = map[byte]bool{1: true, 2: true, 3: true, 4: true, 5: false, 100: false, 137: false, 200: false}
		}
		for typ, ok := range types {
			for _, code := range []byte{0, 1, 4, 255} {
				fault := edit(portUnreachable(f.red, f.blue, about, headers(about)), func(b []byte) { at := len(b) - headers(about) - 8; b[at], b[at+1] = typ, code })
				w := dropped("icmp unsupported")
				if ok {
					w = intoBlue(fault)
				}
				r.expect(fromRed, fault, w, "type %d code %d", typ, code)
			}
		}
	})
}

// ofSize are packets with a payload of size bytes that must not be cut, for the
// errors that the node says itself.
func ofSize(src, dst netip.Addr, size int) map[string][]byte {
	out := map[string][]byte{
		"TCP":  tcp(src, dst, 1000, 80, packet.SYN, packet.Sized(size)...),
		"UDP":  udp(src, dst, 1000, 53, packet.Sized(size)...),
		"echo": echo(src, dst, 77, packet.Sized(size)...),
		"SCTP": build(src, dst, packet.SCTP{SrcPort: 1, DstPort: 2}, packet.Chunk(packet.ChunkData, 3, packet.Sized(size))),
	}
	if src.Is4() {
		for name, frame := range out {
			out[name] = edit(frame, func(b []byte) { b[20] |= 0x40 }) // don't fragment
		}
		out["options"] = packet.Build(ether(blueHost, blueMAC), packet.IPv4{Src: src, Dst: dst, DontFragment: true, Options: make([]byte, 40)},
			packet.UDP{SrcPort: 1001, DstPort: 53}, packet.Sized(size))
	} else {
		out["extension"] = build(src, dst, packet.Extension{Data: make([]byte, 30)}, packet.UDP{SrcPort: 1001, DstPort: 53}, packet.Sized(size))
	}
	return out
}

func TestTimeExceeded(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		for _, way := range []struct {
			name     string
			from     port
			src, dst netip.Addr
			back     hop
		}{
			{"to an endpoint", fromBlue, f.blue, f.green, hop{ifindex: blueIfindex, peer: true}},
			{"to the overlay", fromGreen, f.green, f.red, hop{ifindex: greenIfindex, peer: true}},
			{"from the overlay", fromRed, f.red, f.blue, hop{ifindex: overlayIfindex, vni: 1, node: redNode}},
		} {
			for name, frame := range ofSize(way.src, way.dst, 100) {
				t.Run(way.name+"/"+name, func(t *testing.T) {
					r.as(t)
					for _, ttl := range []byte{1, 0} {
						expired := withTTL(frame, ttl)
						w := want{verdict: rediret, frame: timeExceeded(expired), counted: "drop ttl exceeded", sent: way.back}
						got := r.expect(way.from, expired, w, "ttl %d, the first of its flow", ttl)
						require.NoError(t, packet.Check(got.frame))
						d, err := packet.Decode(got.frame)
						require.NoError(t, err)
						require.Equal(t, way.src, d.Inner.Src(), "the quoted header is the sender's")
						require.Equal(t, int(ttl), d.Inner.TTL())
					}
					require.Equal(t, rediret, r.inject(way.from, frame).verdict)
					expired := withTTL(frame, 1)
					w := want{verdict: rediret, frame: timeExceeded(expired), counted: "drop ttl exceeded", sent: way.back}
					r.expect(way.from, expired, w, "within its flow")
					ok := withTTL(frame, 2)
					require.Equal(t, byte(1), r.inject(way.from, ok).frame[ttlAt(ok)])
				})
			}
		}
		// Where no hop is counted.
		for _, ttl := range []byte{0, 1} {
			frame := withTTL(udp(f.blue, f.gate, 1, 2), ttl)
			require.Equal(t, intoHost(frame).frame, r.inject(fromBlue, frame).frame)
			frame = withTTL(udp(f.gate, f.blue, 3, 4), ttl)
			require.Equal(t, intoBlue(frame).unhopped(frame).frame, r.inject(fromHost, frame).frame)
		}
		// No answer to a forged sender, nor about an error, nor about a later fragment.
		r.expect(fromBlue, withTTL(udp(f.world, f.green, 1, 2), 1), dropped("spoofed source"))
		r.expect(fromRed, withTTL(udp(f.world, f.green, 1, 2), 1), dropped("foreign overlay"))
	})
}

const overlayMTU = 1450 // of the rig's tunnel

func TestTooBig(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		for _, way := range []struct {
			name     string
			from     port
			src, dst netip.Addr
			back     hop
			vni      uint32
			hop      bool
		}{
			{"endpoint", fromBlue, f.blue, f.red, hop{ifindex: blueIfindex, peer: true}, blueIdentity, true},
			{"host", fromHost, f.gate, f.red, hop{ifindex: hostIfindex, flags: 1}, 1, false},
		} {
			for name, frame := range ofSize(way.src, way.dst, 1500) {
				t.Run(way.name+"/"+name, func(t *testing.T) {
					r.as(t)
					w := want{verdict: rediret, frame: tooBig(frame, overlayMTU), counted: "drop too big", sent: way.back}
					for range 2 {
						got := r.expect(way.from, frame, w)
						require.NoError(t, packet.Check(got.frame))
					}
					// To the byte.
					excess := len(frame) - 14 - overlayMTU
					fits := ofSize(way.src, way.dst, 1500-excess)[name]
					if name == "SCTP" {
						fits = ofSize(way.src, way.dst, 1500-(excess+3)&^3)[name]
					}
					require.LessOrEqual(t, len(fits)-14, overlayMTU)
					got := r.inject(way.from, fits)
					require.Equal(t, hop{ifindex: overlayIfindex, vni: way.vni, node: redNode}, got.sent)
					over := ofSize(way.src, way.dst, 1500-excess+1)[name]
					r.expect(way.from, over, want{verdict: rediret, frame: tooBig(over, overlayMTU), counted: "drop too big", sent: way.back}, "one byte more, within its flow")

					// An aggregate is judged by its segments.
					gso := way.from
					gso.gso = 1300
					if name != "echo" && name != "SCTP" {
						got = r.inject(gso, frame)
						require.Equal(t, hop{ifindex: overlayIfindex, vni: way.vni, node: redNode}, got.sent)
						require.Len(t, got.frame, len(frame))
						gso.gso = 1440
						r.expect(gso, frame, want{verdict: rediret, frame: tooBig(frame, overlayMTU), counted: "drop too big", sent: way.back}, "segments too big")
					}
					if f.blue.Is4() {
						may := edit(frame, func(b []byte) { b[20] &^= 0x40 })
						require.Equal(t, hop{ifindex: overlayIfindex, vni: way.vni, node: redNode}, r.inject(way.from, may).sent, "without DF")
					}
				})
			}
		}
		for _, dst := range []netip.Addr{f.green, f.gate, f.world} {
			for name, frame := range ofSize(f.blue, dst, 1500) {
				require.Equal(t, rediret, r.inject(fromBlue, frame).verdict, "%s: no MTU on this way", name)
			}
		}
		// TTL first: a packet that is too big and expired is told the one.
		frame := withTTL(ofSize(f.blue, f.red, 1500)["UDP"], 1)
		r.expect(fromBlue, frame, want{verdict: rediret, frame: timeExceeded(frame), counted: "drop ttl exceeded", sent: hop{ifindex: blueIfindex, peer: true}})
	})
}
