// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// upper decodes what an IP packet carries. The first fragment of a datagram
// can end within any header and its checksum covers more than is here; a later
// fragment has no header at all.
func (d *Decoded) upper(protocol uint8, b []byte, ip *pseudo, p piece) error {
	if p == later {
		return d.rest(b)
	}
	sizes := map[uint8]int{ProtoTCP: 20, ProtoUDP: 8, ProtoSCTP: 12, ProtoICMP: 8, ProtoICMPv6: 8}
	names := map[uint8]string{ProtoTCP: "TCP", ProtoUDP: "UDP", ProtoSCTP: "SCTP", ProtoICMP: "ICMPv4", ProtoICMPv6: "ICMPv6"}
	need, known := sizes[protocol]
	if !known {
		return d.rest(b)
	}
	partial := d.lenient || p == first
	if len(b) < need {
		if partial {
			return d.rest(b)
		}
		return cut(names[protocol], need, len(b))
	}
	switch protocol {
	case ProtoTCP:
		return d.tcp(b, ip, partial)
	case ProtoUDP:
		return d.udp(b, ip, partial)
	case ProtoSCTP:
		return d.sctp(b, partial)
	case ProtoICMP:
		return d.icmp4(b, partial)
	default:
		return d.icmp6(b, ip, partial)
	}
}

// checksum returns the override for a 16-bit checksum field at offset at, and
// notes a wrong one.
func (d *Decoded) checksum(what string, protocol uint8, b []byte, at int, ip *pseudo, partial bool) *uint16 {
	got := binary.BigEndian.Uint16(b[at:])
	zeroed := append([]byte(nil), b...)
	zeroed[at], zeroed[at+1] = 0, 0
	want := ip.checksum(protocol, zeroed)
	if protocol == ProtoUDP && want == 0 {
		want = 0xffff
	}
	if got == want {
		return nil
	}
	if !partial {
		d.verify(what, fold(ip.sum(protocol, b)) == 0xffff, got, want)
	}
	return &got
}

func (d *Decoded) tcp(b []byte, ip *pseudo, partial bool) error {
	size := int(b[12]>>4) * 4
	if size < 20 || size > len(b) {
		if partial {
			return d.rest(b)
		}
		return fmt.Errorf("decode TCP: a data offset of %d bytes in %d", size, len(b))
	}
	d.TCP = &TCP{
		SrcPort: binary.BigEndian.Uint16(b), DstPort: binary.BigEndian.Uint16(b[2:]),
		Seq: binary.BigEndian.Uint32(b[4:]), Ack: binary.BigEndian.Uint32(b[8:]),
		Reserved: b[12] & 0xf, Flags: b[13],
		Window: binary.BigEndian.Uint16(b[14:]), Urgent: binary.BigEndian.Uint16(b[18:]),
		Checksum: d.checksum("TCP", ProtoTCP, b, 16, ip, partial),
	}
	if size > 20 {
		d.TCP.Options = b[20:size]
	}
	d.Layers = append(d.Layers, *d.TCP)
	return d.rest(b[size:])
}

func (d *Decoded) udp(b []byte, ip *pseudo, partial bool) error {
	u := UDP{SrcPort: binary.BigEndian.Uint16(b), DstPort: binary.BigEndian.Uint16(b[2:])}
	if length := binary.BigEndian.Uint16(b[4:]); int(length) != len(b) {
		if !partial {
			return fmt.Errorf("decode UDP: a length of %d bytes in %d", length, len(b))
		}
		u.Length = &length
	}
	// RFC 768: a sender over IPv4 may leave the checksum out. IPv6 forbids it.
	none := binary.BigEndian.Uint16(b[6:]) == 0 && len(ip.src) == 4
	u.Checksum = d.checksum("UDP", ProtoUDP, b, 6, ip, partial || none)
	d.UDP = &u
	d.Layers = append(d.Layers, u)
	return d.rest(b[8:])
}

func (d *Decoded) sctp(b []byte, partial bool) error {
	d.SCTP = &SCTP{
		SrcPort: binary.BigEndian.Uint16(b), DstPort: binary.BigEndian.Uint16(b[2:]),
		Tag: binary.BigEndian.Uint32(b[4:]),
	}
	if got, want := binary.LittleEndian.Uint32(b[8:]), sctpChecksum(b); got != want {
		d.SCTP.Checksum = &got
		if !partial {
			d.bad = append(d.bad, fmt.Errorf("check SCTP: the checksum is %#08x, %#08x is right", got, want))
		}
	}
	d.Layers = append(d.Layers, *d.SCTP)
	return d.rest(b[12:])
}

func (d *Decoded) icmp4(b []byte, partial bool) error {
	d.ICMPv4 = &ICMPv4{
		Type: b[0], Code: b[1], ID: binary.BigEndian.Uint16(b[4:]), Seq: binary.BigEndian.Uint16(b[6:]),
		Checksum: d.checksum("ICMPv4", ProtoICMP, b, 2, nil, partial),
	}
	d.Layers = append(d.Layers, *d.ICMPv4)
	if d.ICMPv4.IsError() {
		d.embedded(b[8:])
	}
	return d.rest(b[8:])
}

func (d *Decoded) icmp6(b []byte, ip *pseudo, partial bool) error {
	checksum := d.checksum("ICMPv6", ProtoICMPv6, b, 2, ip, partial)
	if (b[0] == ICMPv6NeighborSolicit || b[0] == ICMPv6NeighborAdvert) && b[1] == 0 && len(b) >= 24 && !partial {
		d.neighbor(b, checksum)
		return nil
	}
	d.ICMPv6 = &ICMPv6{
		Type: b[0], Code: b[1], ID: binary.BigEndian.Uint16(b[4:]), Seq: binary.BigEndian.Uint16(b[6:]),
		Checksum: checksum,
	}
	d.Layers = append(d.Layers, *d.ICMPv6)
	if d.ICMPv6.IsError() {
		d.embedded(b[8:])
	}
	return d.rest(b[8:])
}

func (d *Decoded) neighbor(b []byte, checksum *uint16) {
	word, target, options := binary.BigEndian.Uint32(b[4:]), netip.AddrFrom16([16]byte(b[8:])), b[24:]
	// mac takes the address option that comes first away from the options.
	mac := func(option uint8) MAC {
		if len(options) < 8 || options[0] != option || options[1] != 1 || MAC(options[2:8]) == (MAC{}) {
			return MAC{}
		}
		m := MAC(options[2:8])
		options = options[8:]
		return m
	}
	if b[0] == ICMPv6NeighborSolicit {
		n := NeighborSolicit{Target: target, SourceMAC: mac(1), Reserved: word, Checksum: checksum}
		n.Options = options
		d.Solicit = &n
		d.Layers = append(d.Layers, n)
		return
	}
	n := NeighborAdvert{
		Router: word>>31 == 1, Solicited: word>>30&1 == 1, Override: word>>29&1 == 1,
		Target: target, TargetMAC: mac(2), Reserved: word & 0x1fffffff, Checksum: checksum,
	}
	n.Options = options
	d.Advert = &n
	d.Layers = append(d.Layers, n)
}

func (d *Decoded) embedded(b []byte) {
	inner := Decoded{lenient: true}
	if d.lenient || inner.ip(b) != nil {
		return
	}
	d.Inner = &inner
}
