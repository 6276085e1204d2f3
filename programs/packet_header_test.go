// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"fmt"
	"testing"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
)

func TestIPv4Options(t *testing.T) {
	t.Parallel()
	r := newPacketRig(t, rigConfig{})
	for n := 0; n <= 40; n += 4 {
		options := make([]byte, n)
		for i := range options {
			options[i] = 1 // no operation
		}
		frame := packet.Build(ether(blueHost, blueMAC), packet.IPv4{Src: blue4, Dst: green4, Options: options},
			packet.TCP{SrcPort: uint16(1000 + n), DstPort: 80, Flags: packet.SYN, Options: make([]byte, 40)}, packet.Sized(100))
		flow := tupleOf(conntrack.TCP, blue4, uint16(1000+n), green4, 80)
		r.expect(fromBlue, frame, intoGreen(frame, "+"+flow), "%d bytes", n)
		r.expect(fromBlue, frame, intoGreen(frame, "~"+flow), "%d bytes", n)
	}
	// The same connection with and without.
	frame := tcp(blue4, green4, 1040, 80, packet.ACK)
	r.expect(fromBlue, frame, intoGreen(frame, "~"+tupleOf(conntrack.TCP, blue4, 1040, green4, 80)))
}

func TestIPv6Extensions(t *testing.T) {
	t.Parallel()
	r := newPacketRig(t, rigConfig{})
	const hbh, dst, rt, ah, mob = packet.ProtoHopByHop, packet.ProtoDestOptions, packet.ProtoRouting, packet.ProtoAH, packet.ProtoMobility
	chain := func(types ...uint8) (out []packet.Layer) {
		for _, typ := range types {
			x := packet.Extension{Type: typ}
			if typ == ah {
				x.Data = make([]byte, 22) // 24 bytes: SPI, sequence, 12 of ICV
			}
			out = append(out, x)
		}
		return out
	}
	sized := func(typ uint8, n int) packet.Layer { return packet.Extension{Type: typ, Data: make([]byte, n-2)} }
	many := func(n int) []packet.Layer {
		var types []uint8
		for range n {
			types = append(types, dst)
		}
		return chain(types...)
	}
	for i, row := range []struct {
		name   string
		chain  []packet.Layer
		reason string
	}{
		{"hop by hop", chain(hbh), ""},
		{"destination options", chain(dst), ""},
		{"routing", chain(rt), ""},
		{"authentication", chain(ah), ""},
		{"all in their order", chain(hbh, dst, rt, ah, dst), ""},
		{"a whole fragment", []packet.Layer{packet.Fragment6{ID: 7}}, ""},
		{"headers around it", append(chain(hbh, rt), packet.Fragment6{ID: 7}, packet.Extension{Type: dst}), ""},
		{"long options", []packet.Layer{sized(hbh, 64), sized(dst, 96)}, ""},
		{"up to the bound", many(8), ""},
		{"one more", many(9), "bad extension"},
		{"beyond", many(20), "bad extension"},
		{"hop by hop, not first", chain(dst, hbh), "bad extension"},
		{"hop by hop, twice", chain(hbh, hbh), "bad extension"},
		{"two fragment headers", []packet.Layer{packet.Fragment6{ID: 1}, packet.Fragment6{ID: 2}}, "bad extension"},
		{"headers longer than we look", []packet.Layer{sized(dst, 256)}, "bad extension"},
		{"mobility", chain(mob), "unknown l4"},
		{"no next header", []packet.Layer{packet.Extension{Type: dst, NextHeader: packet.ProtoNone}}, "unknown l4"},
		{"encrypted", []packet.Layer{packet.Extension{Type: dst, NextHeader: packet.ProtoESP}}, "unknown l4"},
		{"a header beyond the end", []packet.Layer{packet.Extension{Type: dst, Length: new(uint8(255))}}, "bad length"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r.as(t)
			sport := uint16(1000 + i)
			frame := build(blue6, green6, append(row.chain, packet.UDP{SrcPort: sport, DstPort: 53}, packet.Sized(32))...)
			if row.reason != "" {
				for _, from := range []port{fromBlue, fromHost, toGreen} {
					r.expect(from, frame, dropped(row.reason))
				}
				return
			}
			flow := tupleOf(conntrack.UDP, blue6, sport, green6, 53)
			r.expect(fromBlue, frame, intoGreen(frame, "+"+flow))
			r.expect(fromBlue, frame, intoGreen(frame, "~"+flow))
			plain := udp(blue6, green6, sport, 53)
			r.expect(fromBlue, plain, intoGreen(plain, "~"+flow), "the same flow without")
		})
	}
	// What hides behind a chain is judged as what stands in the open.
	for n := range 7 {
		frame := build(blue6, gate6, append(many(n), packet.UDP{SrcPort: 1, DstPort: 8472})...)
		r.expect(fromBlue, frame, dropped("overlay port"), fmt.Sprintf("behind %d headers", n))
		frame = build(green6, red6, append(many(n), packet.UDP{SrcPort: 1, DstPort: 2})...)
		r.expect(fromBlue, frame, dropped("spoofed source"), fmt.Sprintf("behind %d headers", n))
	}
}
