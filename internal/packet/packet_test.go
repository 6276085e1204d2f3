// SPDX-License-Identifier: Apache-2.0

package packet_test

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/godatapath/datapath/internal/packet"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	macA = packet.MAC{2, 0, 0, 0, 0, 1}
	macB = packet.MAC{2, 0, 0, 0, 0, 2}
	a4   = netip.MustParseAddr("10.0.0.1")
	b4   = netip.MustParseAddr("10.0.0.2")
	a6   = netip.MustParseAddr("fd00::1")
	b6   = netip.MustParseAddr("fd00::2")
)

// samples holds one well-formed frame of every kind.
func samples() map[string][]packet.Layer {
	eth := packet.Ethernet{Dst: macB, Src: macA}
	ip4 := packet.IPv4{Src: a4, Dst: b4}
	ip6 := packet.IPv6{Src: a6, Dst: b6}
	udp := packet.UDP{SrcPort: 1000, DstPort: 53}
	tcp := packet.TCP{SrcPort: 40000, DstPort: 80, Seq: 7, Ack: 8, Flags: packet.SYN | packet.ACK, Window: 512, Options: []byte{2, 4, 5, 0xb4, 1}}
	sctp := packet.SCTP{SrcPort: 5, DstPort: 6, Tag: 99}
	return map[string][]packet.Layer{
		"other":         {packet.Ethernet{Dst: macB, Src: macA, Type: 0x88b5}, packet.Payload("hello")},
		"arp":           {eth, packet.ARP{Op: packet.ARPRequest, SenderMAC: macA, SenderIP: a4, TargetIP: b4}},
		"udp4":          {eth, ip4, udp, packet.Payload("question")},
		"udp4 nosum":    {eth, ip4, packet.UDP{SrcPort: 1, DstPort: 2, Checksum: new(uint16(0))}, packet.Sized(3)},
		"udp6":          {eth, ip6, udp, packet.Sized(33)},
		"tcp4":          {eth, ip4, tcp, packet.Sized(5)},
		"tcp6":          {eth, ip6, tcp},
		"vlan":          {eth, packet.VLAN{TCI: 5}, ip4, udp},
		"sctp4":         {eth, ip4, sctp, packet.Chunk(packet.ChunkInit, 0, packet.Sized(17))},
		"sctp6":         {eth, ip6, sctp, packet.Chunk(packet.ChunkAbort, 1, nil)},
		"options":       {eth, packet.IPv4{Src: a4, Dst: b4, TTL: 3, TOS: 4, ID: 5, DontFragment: true, Options: []byte{7, 3, 4}}, udp},
		"ttl 0":         {eth, packet.IPv4{Src: a4, Dst: b4, ZeroTTL: true}, udp},
		"first":         {eth, packet.IPv4{Src: a4, Dst: b4, MoreFragments: true, Protocol: packet.ProtoUDP}, packet.Payload("tiny")},
		"later":         {eth, packet.IPv4{Src: a4, Dst: b4, FragOffset: 64, Protocol: packet.ProtoTCP}, packet.Sized(9)},
		"echo4":         {eth, ip4, packet.ICMPv4{Type: packet.ICMPv4EchoRequest, ID: 1, Seq: 2}, packet.Sized(56)},
		"echo6":         {eth, ip6, packet.ICMPv6{Type: packet.ICMPv6EchoRequest, ID: 1, Seq: 2}, packet.Sized(56)},
		"frag needed":   {eth, ip4, packet.ICMPv4{Type: packet.ICMPv4Unreachable, Code: packet.ICMPv4CodeFragNeeded, Seq: 1400}, packet.IPv4{Src: b4, Dst: a4}, udp, packet.Sized(4)},
		"too big":       {eth, ip6, packet.ICMPv6{Type: packet.ICMPv6PacketTooBig, ID: 1, Seq: 2}, packet.IPv6{Src: b6, Dst: a6}, tcp},
		"solicit":       {eth, packet.IPv6{Src: a6, Dst: b6, HopLimit: 255}, packet.NeighborSolicit{Target: b6, SourceMAC: macA}},
		"advert":        {eth, packet.IPv6{Src: a6, Dst: b6, HopLimit: 255}, packet.NeighborAdvert{Solicited: true, Override: true, Target: a6, TargetMAC: macB}},
		"extensions":    {eth, ip6, packet.Extension{}, packet.Extension{Type: packet.ProtoRouting, Data: packet.Sized(22)}, packet.Extension{Type: packet.ProtoAH, Data: packet.Sized(22)}, packet.Extension{Type: packet.ProtoDestOptions, Data: []byte{5, 2, 0, 0}}, tcp, packet.Sized(3)},
		"atomic":        {eth, ip6, packet.Fragment6{ID: 9, Reserved: 3}, udp},
		"later6":        {eth, ip6, packet.Fragment6{NextHeader: packet.ProtoUDP, Offset: 8, MoreFragments: true, ID: 9}, packet.Sized(16)},
		"nothing":       {eth, packet.IPv6{Src: a6, Dst: b6, NextHeader: packet.ProtoNone}},
		"ip in ip":      {eth, ip4, ip6, tcp},
		"unknown proto": {eth, packet.IPv4{Src: a4, Dst: b4, Protocol: 200}, packet.Sized(2)},
	}
}

func TestDecodeUndoesBuild(t *testing.T) {
	t.Parallel()
	for name, layers := range samples() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			frame := packet.Build(layers...)
			d, err := packet.Decode(frame)
			require.NoError(t, err)
			assert.Equal(t, frame, packet.Build(d.Layers...), "the decoded layers must make the same frame")
			assert.NoError(t, packet.Check(frame))
			assert.NotEmpty(t, d.String())
		})
	}
}

func TestKnownPackets(t *testing.T) {
	t.Parallel()
	// A header that textbooks print, with its checksum of b861.
	header, err := hex.DecodeString("45000073000040004011b861c0a80001c0a800c7")
	require.NoError(t, err)
	h := packet.Build(packet.IPv4{
		Src: netip.MustParseAddr("192.168.0.1"), Dst: netip.MustParseAddr("192.168.0.199"),
		DontFragment: true, Protocol: packet.ProtoUDP, TotalLength: new(uint16(0x73)),
	})
	assert.Equal(t, header, h)

	assert.Equal(t, uint16(0x220d), packet.Checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}), "RFC 1071 section 3")
}

func TestFieldsArrive(t *testing.T) {
	t.Parallel()
	d := decode(t, samples()["tcp4"]...)
	assert.Equal(t, a4, d.Src())
	assert.Equal(t, b4, d.Dst())
	assert.Equal(t, 64, d.TTL())
	assert.Equal(t, uint8(packet.ProtoTCP), d.Protocol())
	src, dst := d.Ports()
	assert.Equal(t, [2]uint16{40000, 80}, [2]uint16{src, dst})
	assert.Equal(t, uint8(packet.SYN|packet.ACK), d.TCP.Flags)
	assert.Equal(t, []byte{2, 4, 5, 0xb4, 1, 0, 0, 0}, d.TCP.Options)
	assert.Equal(t, []byte(packet.Sized(5)), d.Payload)
	assert.Nil(t, d.TCP.Checksum, "a right checksum is no override")
	assert.Equal(t, "10.0.0.1 > 10.0.0.2 ttl 64 TCP 40000 > 80 [SYN ACK] 5 bytes", d.String())

	d = decode(t, samples()["frag needed"]...)
	require.NotNil(t, d.Inner)
	assert.Equal(t, b4, d.Inner.Src())
	require.NotNil(t, d.Inner.UDP)
	assert.Equal(t, uint16(53), d.Inner.UDP.DstPort)

	d = decode(t, samples()["too big"]...)
	assert.Equal(t, 0x10002, d.ICMPv6.MTU())
	require.NotNil(t, d.Inner)
	assert.Equal(t, b6, d.Inner.Src())

	d = decode(t, samples()["extensions"]...)
	assert.Len(t, d.Extensions, 4)
	assert.Equal(t, uint8(packet.ProtoTCP), d.Protocol())
	require.NotNil(t, d.TCP)

	d = decode(t, samples()["solicit"]...)
	assert.Equal(t, packet.NeighborSolicit{Target: b6, SourceMAC: macA, Options: []byte{}}, *d.Solicit)

	d = decode(t, samples()["ttl 0"]...)
	assert.Zero(t, d.TTL())
}

func TestEmbeddedPacketCutOff(t *testing.T) {
	t.Parallel()
	inner := packet.Build(packet.IPv4{Src: b4, Dst: a4}, packet.TCP{SrcPort: 80, DstPort: 4000}, packet.Sized(1000))
	frame := packet.Build(packet.Ethernet{}, packet.IPv4{Src: a4, Dst: b4},
		packet.ICMPv4{Type: packet.ICMPv4TimeExceeded}, packet.Payload(inner[:28]))
	d, err := packet.Decode(frame)
	require.NoError(t, err)
	require.NotNil(t, d.Inner, "28 bytes hold a header")
	assert.Nil(t, d.Inner.TCP, "8 bytes are not a TCP header")
	assert.Equal(t, inner[20:28], d.Inner.Payload)
	assert.Equal(t, uint16(1040), *d.Inner.IPv4.TotalLength)
}

func TestVXLAN(t *testing.T) {
	t.Parallel()
	inner := samples()["tcp6"]
	outer := append([]packet.Layer{
		packet.Ethernet{Dst: macA, Src: macB}, packet.IPv4{Src: a4, Dst: b4},
		packet.UDP{SrcPort: 5555, DstPort: 8472, Checksum: new(uint16(0))}, packet.VXLAN{VNI: 0xabcdef},
	}, inner...)
	d := decode(t, outer...)
	v, tunnelled, err := packet.DecodeVXLAN(d.Payload)
	require.NoError(t, err)
	assert.Equal(t, packet.VXLAN{VNI: 0xabcdef}, v)
	assert.Equal(t, a6, tunnelled.Src())
	assert.Equal(t, packet.Build(inner...), packet.Build(tunnelled.Layers...))
	_, _, err = packet.DecodeVXLAN(d.Payload[:7])
	assert.ErrorContains(t, err, "VXLAN")
}

func TestCheckFindsEveryWrongChecksum(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"udp4": "UDP", "udp6": "UDP", "tcp4": "TCP", "tcp6": "TCP", "sctp4": "SCTP", "sctp6": "SCTP",
		"echo4": "ICMPv4", "echo6": "ICMPv6", "solicit": "ICMPv6", "advert": "ICMPv6", "options": "IPv4 header",
	} {
		frame := packet.Build(samples()[name]...)
		at := len(frame) - 1 // the payload, or the last byte of the header
		if name == "options" {
			at = 14 + 8 // the TTL
		}
		frame[at] ^= 0x40
		err := packet.Check(frame)
		if name == "options" {
			assert.ErrorContains(t, err, want, name)
			continue
		}
		assert.ErrorContains(t, err, "check "+want, name)
	}
	zero := packet.Build(packet.Ethernet{}, packet.IPv6{Src: a6, Dst: b6}, packet.UDP{Checksum: new(uint16(0))})
	assert.ErrorContains(t, packet.Check(zero), "check UDP", "IPv6 forbids UDP without a checksum")
}

func TestOverridesLie(t *testing.T) {
	t.Parallel()
	for want, layers := range map[string][]packet.Layer{
		"version 5":       {packet.Ethernet{}, packet.IPv4{Version: new(uint8(5))}},
		"header length":   {packet.Ethernet{}, packet.IPv4{IHL: new(uint8(4))}},
		"IPv4 options":    {packet.Ethernet{}, packet.IPv4{IHL: new(uint8(15))}},
		"total length":    {packet.Ethernet{}, packet.IPv4{TotalLength: new(uint16(19))}},
		"21 are needed":   {packet.Ethernet{}, packet.IPv4{TotalLength: new(uint16(21))}},
		"version 7":       {packet.Ethernet{}, packet.IPv6{Version: new(uint8(7))}},
		"IPv6 payload":    {packet.Ethernet{}, packet.IPv6{PayloadLength: new(uint16(1))}},
		"extension":       {packet.Ethernet{}, packet.IPv6{}, packet.Extension{Length: new(uint8(9))}, packet.UDP{}},
		"data offset":     {packet.Ethernet{}, packet.IPv4{}, packet.TCP{DataOffset: new(uint8(15))}},
		"UDP: a length":   {packet.Ethernet{}, packet.IPv4{}, packet.UDP{Length: new(uint16(7))}},
		"not IPv4 over E": {packet.Ethernet{Type: packet.TypeARP}, packet.Sized(28)},
	} {
		_, err := packet.Decode(packet.Build(layers...))
		assert.ErrorContains(t, err, want)
	}
	frame := packet.Build(packet.Ethernet{}, packet.IPv4{Checksum: new(uint16(0x1234))}, packet.TCP{Checksum: new(uint16(0x5678))})
	d, err := packet.Decode(frame)
	require.NoError(t, err)
	assert.Equal(t, uint16(0x1234), *d.IPv4.Checksum)
	assert.Equal(t, uint16(0x5678), *d.TCP.Checksum)
	err = packet.Check(frame)
	assert.ErrorContains(t, err, "IPv4 header")
	assert.ErrorContains(t, err, "TCP")
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	for want, layer := range map[string]packet.Layer{
		"fd00::1 is not an IPv4":   packet.IPv4{Src: a6},
		"10.0.0.1 is not an IPv6":  packet.IPv6{Dst: a4},
		"not an IPv4 address":      packet.ARP{TargetIP: a6},
		"not an IPv6 address":      packet.NeighborAdvert{Target: a4},
		"offset 3":                 packet.IPv4{FragOffset: 3},
		"fragment offset 4":        packet.Fragment6{Offset: 4},
		"options of 44 bytes":      packet.IPv4{Options: make([]byte, 41)},
		"TCP): options":            packet.TCP{Options: make([]byte, 41)},
		"extension header of 2056": packet.Extension{Data: make([]byte, 2048)},
		"layer is nil":             nil,
	} {
		_, err := packet.Encode(packet.Ethernet{}, layer)
		assert.ErrorContains(t, err, want)
	}
	for _, layers := range [][]packet.Layer{
		{packet.IPv4{}, packet.Sized(65516)}, {packet.IPv6{}, packet.Sized(65536)}, {packet.UDP{}, packet.Sized(65528)},
	} {
		_, err := packet.Encode(layers...)
		assert.ErrorContains(t, err, "is the limit")
	}
	assert.Panics(t, func() { packet.Build(packet.IPv4{Src: a6}) })
}

func TestTruncatedAtEveryLength(t *testing.T) {
	t.Parallel()
	for name, layers := range samples() {
		frame := packet.Build(layers...)
		if name == "other" {
			continue // any length of an unknown type is whole
		}
		for n := range frame {
			_, err := packet.Decode(frame[:n])
			require.Error(t, err, "%s cut to %d of %d bytes", name, n, len(frame))
		}
		padded := append(append([]byte(nil), frame...), 0, 0, 0)
		d, err := packet.Decode(padded)
		require.NoError(t, err, name)
		assert.Equal(t, []byte{0, 0, 0}, d.Trailer, name)
	}
}

func TestFragment(t *testing.T) {
	t.Parallel()
	body := packet.Sized(3000)
	for name, layers := range map[string][]packet.Layer{
		"ipv4":       {packet.Ethernet{Dst: macB}, packet.IPv4{Src: a4, Dst: b4, ID: 77, DontFragment: true}, packet.UDP{SrcPort: 1, DstPort: 2}, body},
		"options":    {packet.Ethernet{Dst: macB}, packet.VLAN{TCI: 3}, packet.IPv4{Src: a4, Dst: b4, ID: 77, Options: []byte{1, 0x94, 4, 0, 0, 7, 3, 4}}, packet.UDP{SrcPort: 1, DstPort: 2}, body},
		"ipv6":       {packet.Ethernet{Dst: macB}, packet.IPv6{Src: a6, Dst: b6}, packet.UDP{SrcPort: 1, DstPort: 2}, body},
		"extensions": {packet.Ethernet{Dst: macB}, packet.IPv6{Src: a6, Dst: b6}, packet.Extension{}, packet.Extension{Type: packet.ProtoDestOptions}, packet.UDP{SrcPort: 1, DstPort: 2}, body},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			frame := packet.Build(layers...)
			whole := decode(t, layers...)
			pieces, err := packet.Fragment(frame, 1400, 77)
			require.NoError(t, err)
			require.Len(t, pieces, 3)
			var joined []byte
			for i, piece := range pieces {
				d, err := packet.Decode(piece)
				require.NoError(t, err)
				require.NoError(t, packet.Check(piece), "header checksums")
				require.True(t, d.IsFragment())
				require.LessOrEqual(t, len(piece), 1400+18)
				if d.IPv4 != nil {
					assert.Equal(t, i < 2, d.IPv4.MoreFragments)
					assert.Equal(t, len(joined), int(d.IPv4.FragOffset))
					if i > 0 && name == "options" {
						assert.Equal(t, []byte{0x94, 4, 0, 0}, d.IPv4.Options, "only options to be copied")
					}
					joined = append(joined, piece[len(piece)-lenOf(piece, d):]...)
					continue
				}
				assert.Equal(t, i < 2, d.Fragment6.MoreFragments)
				assert.Equal(t, uint32(77), d.Fragment6.ID)
				assert.Equal(t, len(joined), int(d.Fragment6.Offset))
				joined = append(joined, piece[len(piece)-lenOf(piece, d):]...)
			}
			if whole.IPv4 != nil || name == "ipv6" {
				assert.Equal(t, frame[len(frame)-3008:], joined, "UDP header and body")
			} else {
				assert.Equal(t, frame[len(frame)-3016:], joined, "destination options are cut with the rest")
			}
			one, err := packet.Fragment(frame, 9000, 1)
			require.NoError(t, err)
			assert.Equal(t, [][]byte{frame}, one)
			_, err = packet.Fragment(pieces[0], 600, 1)
			assert.ErrorContains(t, err, "is a fragment")
			_, err = packet.Fragment(frame, 27, 1)
			assert.ErrorContains(t, err, "too small")
		})
	}
	_, err := packet.Fragment(packet.Build(samples()["arp"]...), 20, 1)
	assert.ErrorContains(t, err, "no IP packet")
}

// lenOf returns how many bytes the fragment carries behind its headers.
func lenOf(piece []byte, d packet.Decoded) int {
	n := len(d.Payload)
	if d.UDP != nil {
		n += 8
	}
	for _, x := range d.Extensions {
		if x.Type == packet.ProtoDestOptions {
			n += 8
		}
	}
	return n
}

func TestStrings(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"arp":         "ARP who has 10.0.0.2 tell 10.0.0.1",
		"later":       "10.0.0.1 > 10.0.0.2 ttl 64 fragment 0x0 at 64 protocol 6 9 bytes",
		"later6":      "fd00::1 > fd00::2 ttl 64 fragment 0x9 at 8 protocol 17 16 bytes",
		"solicit":     "fd00::1 > fd00::2 ttl 255 ICMPv6 who has fd00::2 0 bytes",
		"other":       "02:00:00:00:00:01 > 02:00:00:00:00:02 type 0x88b5 5 bytes",
		"frag needed": "10.0.0.1 > 10.0.0.2 ttl 64 ICMP type 3 code 4 id 0 seq 1400 32 bytes about (10.0.0.2 > 10.0.0.1 ttl 64 UDP 1000 > 53 4 bytes)",
	} {
		d := decode(t, samples()[name]...)
		assert.Equal(t, want, d.String())
	}
	assert.Equal(t, "no packet", packet.Decoded{}.String())
	assert.Equal(t, "ff:ff:ff:ff:ff:ff", packet.Broadcast().String())
}

func decode(t *testing.T, layers ...packet.Layer) packet.Decoded {
	t.Helper()
	d, err := packet.Decode(packet.Build(layers...))
	require.NoError(t, err)
	return d
}

func FuzzDecode(f *testing.F) {
	for _, layers := range samples() {
		f.Add(packet.Build(layers...))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		d, err := packet.Decode(frame)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "decode ") {
				t.Fatalf("the error %q does not say what it is about", err)
			}
			return
		}
		again, err := packet.Encode(d.Layers...)
		if err != nil {
			t.Fatalf("encode what was decoded: %v", err)
		}
		if again = append(again, d.Trailer...); string(again) != string(frame) {
			t.Fatalf("%v\ndecoded %x\nencoded %x", d, frame, again)
		}
		_, _ = d.Ports()
		_ = d.Protocol()
		if pieces, err := packet.Fragment(frame, 100, 1); err == nil {
			for _, piece := range pieces {
				if _, err := packet.Decode(piece); err != nil {
					t.Fatalf("a fragment of a good packet: %v", err)
				}
			}
		}
	})
}
