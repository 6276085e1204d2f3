// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
)

// datagram is a UDP datagram to be cut by hand: 8 bytes of header, size bytes
// of payload.
type datagram struct {
	src, dst     netip.Addr
	sport, dport uint16
	id           uint32
	size         int
	behind       []packet.Layer // IPv6: extension headers in the fragmentable part
}

// piece is bytes [start, end) of it; the last piece says so, whatever it holds.
func (d datagram) piece(start, end int, more bool) []byte {
	whole := packet.Build(append(append([]packet.Layer{ip(d.src, d.dst, 64)}, d.behind...),
		packet.UDP{SrcPort: d.sport, DstPort: d.dport}, packet.Sized(d.size))...)
	if d.src.Is4() {
		return packet.Build(ether(blueHost, blueMAC), packet.IPv4{
			Src: d.src, Dst: d.dst, ID: uint16(d.id), Protocol: packet.ProtoUDP, FragOffset: uint16(start), MoreFragments: more,
		}, packet.Payload(whole[20:][start:end]))
	}
	next := uint8(packet.ProtoUDP)
	if len(d.behind) > 0 {
		next = packet.ProtoDestOptions
	}
	return packet.Build(ether(blueHost, blueMAC), packet.IPv6{Src: d.src, Dst: d.dst},
		packet.Fragment6{NextHeader: next, Offset: uint16(start), MoreFragments: more, ID: d.id}, packet.Payload(whole[40:][start:end]))
}

func (d datagram) flow() string {
	return tupleOf(conntrack.UDP, d.src, d.sport, d.dst, d.dport)
}

func TestFragments(t *testing.T) {
	t.Parallel()
	type part struct {
		start, end int
		more       bool
		reason     string // "": goes on
	}
	// A datagram of 800 bytes.
	rows := []struct {
		name  string
		parts []part
	}{
		{"in order", []part{{0, 400, true, ""}, {400, 600, true, ""}, {600, 800, false, ""}}},
		{"the later ones in any order", []part{{0, 400, true, ""}, {600, 800, false, ""}, {400, 600, true, ""}}},
		{"the first one last", []part{{400, 800, false, "fragment unknown"}, {0, 400, true, ""}, {400, 800, false, ""}}},
		{"no first one", []part{{400, 600, true, "fragment unknown"}, {600, 800, false, "fragment unknown"}}},
		{"the first again", []part{{0, 400, true, ""}, {0, 400, true, "fragment overlap"}, {400, 800, false, ""}}},
		{"another first", []part{{0, 400, true, ""}, {0, 160, true, "fragment overlap"}, {400, 800, false, ""}}},
		{"over the end of the first", []part{{0, 400, true, ""}, {392, 800, false, "fragment overlap"}, {400, 800, false, ""}}},
		{"within the first", []part{{0, 400, true, ""}, {80, 160, true, "fragment overlap"}, {400, 800, false, ""}}},
		{"the same again", []part{{0, 400, true, ""}, {400, 600, true, ""}, {400, 600, true, "fragment overlap"}, {600, 800, false, ""}}},
		{"around another", []part{{0, 400, true, ""}, {480, 560, true, ""}, {400, 800, false, "fragment overlap"}, {400, 480, true, ""}, {560, 800, false, ""}}},
		{"over the beginning of another", []part{{0, 400, true, ""}, {600, 800, false, ""}, {400, 608, true, "fragment overlap"}, {400, 600, true, ""}}},
		{"every second one first", []part{{0, 80, true, ""}, {160, 240, true, ""}, {320, 400, true, ""}, {480, 560, true, ""},
			{80, 160, true, ""}, {240, 320, true, ""}, {400, 480, true, ""}, {560, 800, false, ""}}},
		{"after the end", []part{{0, 400, true, ""}, {400, 800, false, ""}, {400, 800, false, "fragment unknown"}}},
		{"the identifier again", []part{{0, 400, true, ""}, {400, 800, false, ""}, {0, 400, true, ""}, {400, 800, false, ""}}},
	}
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		for n, row := range rows {
			t.Run(row.name, func(t *testing.T) {
				r.as(t)
				known := map[string]bool{}
				for _, way := range []struct {
					from     port
					src, dst netip.Addr
					want     func(frame []byte, flows ...string) want
				}{
					{fromBlue, f.blue, f.green, intoGreen},
					{fromGreen, f.green, f.gate, intoHost},
					{fromRed, f.red, f.blue, intoBlue},
					{fromBlue, f.blue, f.red, func(b []byte, flows ...string) want { return intoOverlay(b, blueIdentity, flows...) }},
				} {
					d := datagram{src: way.src, dst: way.dst, sport: uint16(1000 + n), dport: 53, id: uint32(n), size: 792}
					for i, p := range row.parts {
						frame := d.piece(p.start, p.end, p.more)
						w := dropped(p.reason)
						if p.reason == "" {
							mark := "+"
							if known[d.flow()] {
								mark = "~"
							}
							known[d.flow()] = true
							w = way.want(frame, mark+d.flow())
						}
						r.expect(way.from, frame, w, "part %d", i)
					}
				}
			})
		}
	})
}

// Pieces that no sane sender makes.
func TestBadFragments(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		id := uint32(0)
		piece := func(proto uint8, start int, more bool, payload int) []byte {
			id++
			if f.blue.Is4() {
				return packet.Build(ether(blueHost, blueMAC), packet.IPv4{
					Src: f.blue, Dst: f.green, ID: uint16(id), Protocol: proto, FragOffset: uint16(start), MoreFragments: more,
				}, packet.Sized(payload))
			}
			return packet.Build(ether(blueHost, blueMAC), packet.IPv6{Src: f.blue, Dst: f.green},
				packet.Fragment6{NextHeader: proto, Offset: uint16(start), MoreFragments: more, ID: id}, packet.Sized(payload))
		}
		for _, row := range []struct {
			name    string
			proto   uint8
			start   int
			more    bool
			payload int
		}{
			{"TCP without its flags", packet.ProtoTCP, 0, true, 8},
			{"TCP without its end", packet.ProtoTCP, 0, true, 16},
			{"SCTP without a chunk", packet.ProtoSCTP, 0, true, 8},
			{"TCP flags on their own (RFC 3128)", packet.ProtoTCP, 8, false, 64},
			{"TCP flags on their own, more to come", packet.ProtoTCP, 8, true, 64},
			{"nothing", packet.ProtoUDP, 0, true, 0},
			{"nothing, later", packet.ProtoUDP, 64, true, 0},
			{"nothing, last", packet.ProtoUDP, 64, false, 0},
			{"not in units of eight", packet.ProtoUDP, 0, true, 63},
			{"not in units of eight, later", packet.ProtoUDP, 64, true, 60},
			{"beyond the largest datagram", packet.ProtoUDP, 65528, false, 8},
			{"beyond by a byte", packet.ProtoUDP, 65472, false, 64},
		} {
			r.expect(fromBlue, piece(row.proto, row.start, row.more, row.payload), dropped("bad fragment"), row.name)
		}
		r.expect(fromBlue, piece(packet.ProtoUDP, 65472, false, 63), dropped("fragment unknown"), "up to the end")
		r.expect(fromBlue, piece(packet.ProtoTCP, 16, false, 64), dropped("fragment unknown"), "behind the flags")
		require.Empty(t, r.flowList())
	})
}

// The length that the IP header tells is the end of a piece: what a sender puts
// behind it, for us to read and for the receiver to leave out, is not looked at.
func TestTrailerOfAFirstFragment(t *testing.T) {
	t.Parallel()
	r := newPacketRig(t, rigConfig{})
	for i, options := range []int{0, 1, 3} {
		layers := []packet.Layer{
			ether(blueHost, blueMAC), packet.IPv6{Src: blue6, Dst: gate6},
			packet.Fragment6{NextHeader: packet.ProtoDestOptions, MoreFragments: true, ID: uint32(i)},
		}
		for range options {
			layers = append(layers, packet.Extension{Type: packet.ProtoDestOptions, Data: make([]byte, 6)})
		}
		layers = append(layers, packet.Extension{Type: packet.ProtoDestOptions, NextHeader: packet.ProtoUDP, Data: make([]byte, 6)})
		frame := packet.Build(layers...)
		forged := append(frame, 0x03, 0xe8, 0, 53, 0, 64, 0, 0) // a UDP header, to a harmless port
		r.expect(fromBlue, forged, dropped("bad length"))
		r.expect(fromHost, forged, dropped("bad length"))
	}
	require.Empty(t, r.flowList())
}

// Only its own sender can speak for a datagram: a forged piece is not noted.
func TestForgedFragments(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		d := datagram{src: f.green, dst: f.red, sport: 1000, dport: 53, id: 9, size: 792}
		over := func(frame []byte, mark string) want { return intoOverlay(frame, greenIdentity, mark+d.flow()) }
		r.expect(fromBlue, d.piece(0, 400, true), dropped("spoofed source"), "a forged first piece")
		r.expect(fromGreen, d.piece(0, 400, true), over(d.piece(0, 400, true), "+"))
		r.expect(fromBlue, d.piece(400, 600, true), dropped("spoofed source"), "a forged later piece")
		r.expect(fromBlue, d.piece(400, 800, false), dropped("spoofed source"), "a forged last piece")
		r.expect(fromNode(strangerNode, redIdentity), d.piece(400, 800, false), dropped("spoofed source"))
		r.expect(fromGreen, withTTL(d.piece(400, 800, false), 1), dropped("ttl exceeded"), "one that does not arrive")
		r.expect(fromGreen, d.piece(400, 800, false), over(d.piece(400, 800, false), "~"))
		// The expired first piece is answered and not remembered.
		d.id++
		first := withTTL(d.piece(0, 400, true), 1)
		require.Equal(t, rediret, r.inject(fromGreen, first).verdict)
		r.expect(fromGreen, d.piece(400, 800, false), dropped("fragment unknown"))
	})
}

// A datagram in one piece is no part of another one (RFC 6946), and a piece
// says which transport it is of in the first only (RFC 8200 section 4.5).
func TestIPv6FragmentHeader(t *testing.T) {
	t.Parallel()
	r := newPacketRig(t, rigConfig{})
	d := datagram{src: blue6, dst: green6, sport: 1000, dport: 53, id: 5, size: 792}
	for i := range 3 {
		frame := d.piece(0, 800, false)
		mark := "~"
		if i == 0 {
			mark = "+"
		}
		r.expect(fromBlue, frame, intoGreen(frame, mark+d.flow()), "whole, the same identifier again")
	}
	frame := d.piece(0, 400, true)
	r.expect(fromBlue, frame, intoGreen(frame, "~"+d.flow()))
	whole := d.piece(0, 800, false)
	r.expect(fromBlue, whole, intoGreen(whole, "~"+d.flow()), "in between")
	frame = d.piece(400, 800, false)
	r.expect(fromBlue, frame, intoGreen(frame, "~"+d.flow()))

	d = datagram{src: blue6, dst: green6, sport: 1001, dport: 53, id: 6, size: 792, behind: []packet.Layer{packet.Extension{Type: packet.ProtoDestOptions}}}
	frame = d.piece(0, 400, true)
	r.expect(fromBlue, frame, intoGreen(frame, "+"+d.flow()), "options in the part that is cut")
	frame = d.piece(400, 808, false)
	r.expect(fromBlue, frame, intoGreen(frame, "~"+d.flow()))
}

// An endpoint that is not entered directly is met twice: by the program that
// sends and by the one on its device.
func TestFragmentsThroughTheDevice(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		green, err := r.endpoints.Lookup(f.green)
		require.NoError(t, err)
		green.NoPeerRedirect = true
		require.NoError(t, r.endpoints.Set(green))
		d := datagram{src: f.red, dst: f.green, sport: 1000, dport: 53, id: 9, size: 792}
		for i, p := range [][2]int{{0, 400}, {400, 600}, {600, 800}} {
			frame := d.piece(p[0], p[1], i < 2)
			got := r.inject(fromRed, frame)
			require.Equal(t, hop{ifindex: greenIfindex}, got.sent)
			r.expect(toGreen, got.frame, want{verdict: verdictNext, counted: "pass"}, "part %d", i)
		}
	})
}

func TestFragmentsAreForgotten(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{flows: conntrack.Config{FragmentTimeout: 50 * time.Millisecond}}, func(t *testing.T, r *rig, f family) {
		d := datagram{src: f.blue, dst: f.green, sport: 1000, dport: 53, id: 9, size: 792}
		require.Equal(t, rediret, r.inject(fromBlue, d.piece(0, 400, true)).verdict)
		time.Sleep(80 * time.Millisecond)
		r.expect(fromBlue, d.piece(400, 800, false), dropped("fragment unknown"))
		first := d.piece(0, 400, true)
		r.expect(fromBlue, first, intoGreen(first, "~"+d.flow()), "the identifier may come again")
	})
}

// Random pieces against a bitmap. A piece that the spans of an entry can not
// hold is let through, so the model compares until then.
func TestRandomFragments(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		disorders := 0
		for id := range uint32(200) {
			d := datagram{src: f.blue, dst: f.green, sport: 1000, dport: 53, id: id, size: 312}
			var came [40]bool // units of eight
			started, end, spans := false, 0, 0
			for range 30 {
				start := rnd.IntN(39)
				if rnd.IntN(4) == 0 {
					start = 0
				}
				stop := start + 1 + rnd.IntN(min(1+int(id%8), 40-start))
				more := stop < 40
				// A piece that touches what has come needs no place of its own.
				touches := start > 0 && came[start-1] || more && came[stop]
				want := "to endpoint"
				switch {
				case start == 0 && started:
					want = "drop fragment overlap"
				case start > 0 && !started:
					want = "drop fragment unknown"
				case slices.Contains(came[start:stop], true):
					want = "drop fragment overlap"
				case start > 0 && !touches && spans == 8:
					want = "drop fragment disorder"
					disorders++
				}
				got := r.inject(fromBlue, d.piece(start*8, stop*8, more))
				require.Equal(t, map[string]uint64{"from endpoint: " + want: 1}, got.counted, "id %d, %d to %d, seed %d", id, start, stop, seed)
				if want != "to endpoint" {
					continue
				}
				if !started || !touches {
					spans++
				}
				started = true
				for i := start; i < stop; i++ {
					came[i] = true
				}
				if !more {
					end = stop
				}
				if end > 0 && !slices.Contains(came[:end], false) {
					break // complete
				}
			}
		}
		require.NotZero(t, disorders)
	})
}
