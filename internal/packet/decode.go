// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Decoded is a packet taken apart. A header that the packet does not have is
// nil. Of a header that occurs twice (a VLAN tag, an IP header in an ICMP
// error) the field holds the first and Layers holds all of the outer packet.
//
// The override fields of a header (Checksum, Length and such) are nil where the
// packet says what follows from the rest of it, and hold what it says where
// that differs. So a Checksum that is not nil is a wrong one, or one over a
// datagram of which this is only a fragment, or the 0 of UDP.
type Decoded struct {
	// Layers are all layers from the outside in. Encode of them, with Trailer
	// behind, is the decoded packet.
	Layers []Layer

	Ethernet   *Ethernet
	VLAN       *VLAN
	ARP        *ARP
	IPv4       *IPv4
	IPv6       *IPv6
	Extensions []Extension
	Fragment6  *Fragment6
	TCP        *TCP
	UDP        *UDP
	SCTP       *SCTP
	ICMPv4     *ICMPv4
	ICMPv6     *ICMPv6
	Solicit    *NeighborSolicit
	Advert     *NeighborAdvert

	// Payload is what follows the innermost header that was understood. It
	// shares memory with the packet.
	Payload []byte
	// Trailer is what follows the end of the IP packet in the frame.
	Trailer []byte
	// Inner is the packet that an ICMP error is about, as far as the error
	// carries it; its Ethernet is nil.
	Inner *Decoded

	lenient bool    // an embedded packet, which may be cut off anywhere
	bad     []error // checksums that are wrong
}

// Decode takes an Ethernet frame apart. An error names the header that is cut
// off or contradicts itself; what was understood before it is returned with
// the error. A wrong checksum is not an error, see [Check].
func Decode(frame []byte) (Decoded, error) {
	var d Decoded
	err := d.ethernet(frame)
	return d, err
}

// DecodeIP is [Decode] for a packet that begins with its IP header.
func DecodeIP(packet []byte) (Decoded, error) {
	var d Decoded
	err := d.ip(packet)
	return d, err
}

// DecodeVXLAN takes the payload of a UDP packet apart that is a VXLAN packet,
// and the frame inside it.
func DecodeVXLAN(payload []byte) (VXLAN, Decoded, error) {
	if len(payload) < 8 {
		return VXLAN{}, Decoded{}, cut("VXLAN", 8, len(payload))
	}
	v := VXLAN{VNI: binary.BigEndian.Uint32(payload[4:]) >> 8}
	if payload[0] != 0x08 {
		v.Flags = new(payload[0])
	}
	d, err := Decode(payload[8:])
	return v, d, err
}

// Check decodes a frame and returns what is wrong with its IPv4 header
// checksum and the checksum of its TCP, UDP, SCTP or ICMP message, or the
// error of [Decode]. A fragment has no checksum to verify beyond its header,
// and UDP over IPv4 may do without.
//
// A frame captured on the sending side of a veth can hold an unfinished
// checksum that the kernel would complete on a real wire; Check calls it
// wrong.
func Check(frame []byte) error {
	d, err := Decode(frame)
	if err != nil {
		return err
	}
	return errors.Join(d.bad...)
}

func cut(what string, need, have int) error {
	return fmt.Errorf("decode %s: %d bytes are left, %d are needed", what, have, need)
}

func (d *Decoded) ethernet(b []byte) error {
	if len(b) < 14 {
		return cut("Ethernet", 14, len(b))
	}
	d.Ethernet = &Ethernet{Dst: MAC(b[0:6]), Src: MAC(b[6:12]), Type: binary.BigEndian.Uint16(b[12:])}
	d.Layers = append(d.Layers, *d.Ethernet)
	typ, b := d.Ethernet.Type, b[14:]
	for typ == TypeVLAN || typ == TypeQinQ {
		if len(b) < 4 {
			return cut("VLAN", 4, len(b))
		}
		tag := VLAN{TCI: binary.BigEndian.Uint16(b), Type: binary.BigEndian.Uint16(b[2:])}
		if d.VLAN == nil {
			d.VLAN = &tag
		}
		d.Layers = append(d.Layers, tag)
		typ, b = tag.Type, b[4:]
	}
	switch typ {
	case TypeARP:
		return d.arp(b)
	case TypeIPv4:
		return d.ipv4(b)
	case TypeIPv6:
		return d.ipv6(b)
	}
	return d.rest(b)
}

// rest ends the packet with plain bytes.
func (d *Decoded) rest(b []byte) error {
	d.Payload = b
	d.Layers = append(d.Layers, Payload(b))
	return nil
}

func (d *Decoded) arp(b []byte) error {
	if len(b) < 28 {
		return cut("ARP", 28, len(b))
	}
	if [6]byte(b) != [6]byte{0, 1, 8, 0, 6, 4} {
		return fmt.Errorf("decode ARP: % x is not IPv4 over Ethernet", b[:6])
	}
	d.ARP = &ARP{
		Op:        binary.BigEndian.Uint16(b[6:]),
		SenderMAC: MAC(b[8:14]), SenderIP: netip.AddrFrom4([4]byte(b[14:])),
		TargetMAC: MAC(b[18:24]), TargetIP: netip.AddrFrom4([4]byte(b[24:])),
	}
	d.Layers = append(d.Layers, *d.ARP)
	d.Trailer = b[28:]
	return nil
}

func (d *Decoded) ip(b []byte) error {
	if len(b) == 0 {
		return cut("IP", 20, 0)
	}
	switch b[0] >> 4 {
	case 4:
		return d.ipv4(b)
	case 6:
		return d.ipv6(b)
	}
	return fmt.Errorf("decode IP: version %d", b[0]>>4)
}

func (d *Decoded) ipv4(b []byte) error {
	if len(b) < 20 {
		return cut("IPv4", 20, len(b))
	}
	if v := b[0] >> 4; v != 4 {
		return fmt.Errorf("decode IPv4: version %d", v)
	}
	size := int(b[0]&0xf) * 4
	if size < 20 {
		return fmt.Errorf("decode IPv4: a header length of %d bytes", size)
	}
	if len(b) < size {
		return cut("IPv4 options", size, len(b))
	}
	total := int(binary.BigEndian.Uint16(b[2:]))
	fragment := binary.BigEndian.Uint16(b[6:])
	h := IPv4{
		Src: netip.AddrFrom4([4]byte(b[12:])), Dst: netip.AddrFrom4([4]byte(b[16:])),
		TTL: b[8], ZeroTTL: b[8] == 0, Protocol: b[9], TOS: b[1],
		ID:            binary.BigEndian.Uint16(b[4:]),
		ReservedFlag:  fragment&0x8000 != 0,
		DontFragment:  fragment&0x4000 != 0,
		MoreFragments: fragment&0x2000 != 0,
		FragOffset:    fragment & 0x1fff * 8,
	}
	if size > 20 {
		h.Options = b[20:size]
	}
	switch {
	case d.lenient:
		if total != len(b) {
			h.TotalLength = new(uint16(total))
		}
	case total < size:
		return fmt.Errorf("decode IPv4: a total length of %d bytes with a header of %d", total, size)
	case total > len(b):
		return cut("IPv4", total, len(b))
	default:
		d.Trailer = b[total:]
		b = b[:total]
	}
	header := append([]byte(nil), b[:size]...)
	header[10], header[11] = 0, 0
	if got, want := binary.BigEndian.Uint16(b[10:]), Checksum(header); got != want {
		h.Checksum = &got
		d.verify("IPv4 header", Checksum(b[:size]) == 0, got, want)
	}
	if d.IPv4 == nil && d.IPv6 == nil {
		d.IPv4 = &h
	}
	d.Layers = append(d.Layers, h)
	return d.upper(h.Protocol, b[size:], h.pseudo(), part(h.FragOffset, h.MoreFragments))
}

func (d *Decoded) ipv6(b []byte) error {
	if len(b) < 40 {
		return cut("IPv6", 40, len(b))
	}
	word := binary.BigEndian.Uint32(b)
	if v := word >> 28; v != 6 {
		return fmt.Errorf("decode IPv6: version %d", v)
	}
	h := IPv6{
		Src: netip.AddrFrom16([16]byte(b[8:])), Dst: netip.AddrFrom16([16]byte(b[24:])),
		HopLimit: b[7], ZeroHopLimit: b[7] == 0, NextHeader: b[6],
		TrafficClass: uint8(word >> 20), FlowLabel: word & 0xfffff,
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	b = b[40:]
	switch {
	case d.lenient:
		if length != len(b) {
			h.PayloadLength = new(uint16(length))
		}
	case length > len(b):
		return cut("IPv6 payload", length, len(b))
	default:
		d.Trailer = b[length:]
		b = b[:length]
	}
	if d.IPv4 == nil && d.IPv6 == nil {
		d.IPv6 = &h
	}
	d.Layers = append(d.Layers, h)
	return d.extensions(h.NextHeader, b, h.pseudo())
}

// extensions walks the chain of extension headers. Every one takes at least
// eight bytes, so the packet bounds the walk.
func (d *Decoded) extensions(next uint8, b []byte, ip *pseudo) error {
	piece := whole
	for {
		size := 0
		switch next {
		case ProtoFragment:
			size = 8
		case ProtoHopByHop, ProtoDestOptions, ProtoRouting, ProtoMobility:
			if len(b) >= 2 {
				size = 8 + int(b[1])*8
			}
		case ProtoAH:
			if len(b) >= 2 {
				size = 8 + int(b[1])*4
			}
		default:
			return d.upper(next, b, ip, piece)
		}
		if size == 0 || len(b) < size {
			if d.lenient || piece != whole {
				return d.rest(b)
			}
			return cut("IPv6 extension header", max(size, 8), len(b))
		}
		if next != ProtoFragment {
			x := Extension{Type: next, NextHeader: b[0], Data: b[2:size]}
			d.Extensions = append(d.Extensions, x)
			d.Layers = append(d.Layers, x)
			next, b = b[0], b[size:]
			continue
		}
		word := binary.BigEndian.Uint16(b[2:])
		f := Fragment6{
			NextHeader: b[0], Offset: word &^ 7, MoreFragments: word&1 != 0,
			ID: binary.BigEndian.Uint32(b[4:]), Reserved: uint16(b[1])<<2 | word>>1&3,
		}
		if d.Fragment6 == nil {
			d.Fragment6 = &f
		}
		d.Layers = append(d.Layers, f)
		next, b = b[0], b[8:]
		if piece = max(piece, part(f.Offset, f.MoreFragments)); piece == later {
			return d.rest(b)
		}
	}
}

// piece tells which part of a datagram an IP packet carries.
type piece int

const (
	whole piece = iota
	first
	later
)

func part(offset uint16, more bool) piece {
	switch {
	case offset > 0:
		return later
	case more:
		return first
	}
	return whole
}

func (d *Decoded) verify(what string, ok bool, got, want uint16) {
	if !ok && !d.lenient {
		d.bad = append(d.bad, fmt.Errorf("check %s: the checksum is %#04x, %#04x is right", what, got, want))
	}
}
