// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"net/netip"

	"github.com/godatapath/datapath/internal/packet"
)

// The packets of the tests.

func build(src, dst netip.Addr, layers ...packet.Layer) []byte {
	return packet.Build(append([]packet.Layer{ether(blueHost, blueMAC), ip(src, dst, 64)}, layers...)...)
}

// withTTL changes the TTL or hop limit of a frame.
func withTTL(frame []byte, ttl byte) []byte {
	return edit(frame, func(b []byte) { b[ttlAt(b)] = ttl })
}

func echo(src, dst netip.Addr, id uint16, payload ...byte) []byte {
	if src.Is4() {
		return build(src, dst, packet.ICMPv4{Type: packet.ICMPv4EchoRequest, ID: id, Seq: 1}, packet.Payload(payload))
	}
	return build(src, dst, packet.ICMPv6{Type: packet.ICMPv6EchoRequest, ID: id, Seq: 1}, packet.Payload(payload))
}

func echoReply(src, dst netip.Addr, id uint16, payload ...byte) []byte {
	if src.Is4() {
		return build(src, dst, packet.ICMPv4{Type: packet.ICMPv4EchoReply, ID: id, Seq: 1}, packet.Payload(payload))
	}
	return build(src, dst, packet.ICMPv6{Type: packet.ICMPv6EchoReply, ID: id, Seq: 1}, packet.Payload(payload))
}

func sctp(src, dst netip.Addr, sport, dport uint16, chunk uint8) []byte {
	return build(src, dst, packet.SCTP{SrcPort: sport, DstPort: dport, Tag: 1}, packet.Chunk(chunk, 0, []byte("12345678")))
}

// portUnreachable is the error of a host about a packet that it got, quoting
// the first n bytes of it.
func portUnreachable(src, dst netip.Addr, about []byte, n int) []byte {
	quote := packet.Payload(about[14:min(len(about), 14+n)])
	if src.Is4() {
		return build(src, dst, packet.ICMPv4{Type: packet.ICMPv4Unreachable, Code: packet.ICMPv4CodePort}, quote)
	}
	return build(src, dst, packet.ICMPv6{Type: packet.ICMPv6Unreachable, Code: packet.ICMPv6CodePort}, quote)
}

// headers is how much of a packet an error must quote: all up to the transport
// header and eight bytes of that.
func headers(frame []byte) int {
	d, err := packet.Decode(frame)
	if err != nil && d.IPv4 == nil && d.IPv6 == nil {
		panic(err)
	}
	n := 40
	if d.IPv4 != nil {
		n = 20 + (len(d.IPv4.Options)+3)&^3
	}
	for _, x := range d.Extensions {
		n += 2 + len(x.Data)
	}
	if d.Fragment6 != nil {
		n += 8
	}
	return n + 8
}

// timeExceeded and tooBig are the node's own errors about a frame, sent back to
// where it came from.
func timeExceeded(about []byte) []byte {
	return nodeError(about, packet.ICMPv4{Type: packet.ICMPv4TimeExceeded}, packet.ICMPv6{Type: packet.ICMPv6TimeExceeded})
}

func tooBig(about []byte, mtu int) []byte {
	return nodeError(about,
		packet.ICMPv4{Type: packet.ICMPv4Unreachable, Code: packet.ICMPv4CodeFragNeeded, Seq: uint16(mtu)},
		packet.ICMPv6{Type: packet.ICMPv6PacketTooBig, Seq: uint16(mtu)})
}

func nodeError(about []byte, four packet.ICMPv4, six packet.ICMPv6) []byte {
	d, err := packet.Decode(about)
	if err != nil {
		panic(err)
	}
	quote := packet.Payload(about[14 : 14+headers(about)])
	back := ether(packet.MAC(about[6:12]), packet.MAC(about[:6]))
	if d.IPv4 != nil {
		return packet.Build(back, packet.IPv4{Src: gate4, Dst: d.Src(), TOS: 0xc0}, four, quote)
	}
	return packet.Build(back, packet.IPv6{Src: gate6, Dst: d.Src()}, six, quote)
}
