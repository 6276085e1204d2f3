// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// IPv6 is an IPv6 header (RFC 8200). The pointers override what follows from
// the rest of the packet.
//
// The checksum of an upper layer is made with the addresses of this header,
// also behind a routing header with segments left.
type IPv6 struct {
	Src, Dst     netip.Addr // not set: ::
	HopLimit     uint8      // 0: 64
	ZeroHopLimit bool       // the hop limit is really 0
	NextHeader   uint8      // 0: of the layer that follows
	TrafficClass uint8
	FlowLabel    uint32 // 20 bits

	Version       *uint8  // nil: 6
	PayloadLength *uint16 // in bytes
}

func (h IPv6) encode(next Layer, _ *pseudo, payload []byte) ([]byte, error) {
	src, err := addr6(h.Src)
	if err != nil {
		return nil, err
	}
	dst, err := addr6(h.Dst)
	if err != nil {
		return nil, err
	}
	if len(payload) > 0xffff {
		return nil, fmt.Errorf("a payload of %d bytes: 65535 is the limit", len(payload))
	}
	header := h.NextHeader
	if header == 0 {
		header = protocolOf(next)
	}
	b := make([]byte, 8, 40+len(payload))
	binary.BigEndian.PutUint32(b, uint32(or(h.Version, 6))<<28|uint32(h.TrafficClass)<<20|h.FlowLabel&0xfffff)
	binary.BigEndian.PutUint16(b[4:], or(h.PayloadLength, uint16(len(payload))))
	b[6] = header
	b[7] = timeToLive(h.HopLimit, h.ZeroHopLimit)
	b = append(b, src[:]...)
	b = append(b, dst[:]...)
	return append(b, payload...), nil
}

func (h IPv6) pseudo() *pseudo {
	src, _ := addr6(h.Src)
	dst, _ := addr6(h.Dst)
	return &pseudo{src: src[:], dst: dst[:]}
}

// Extension is an IPv6 extension header other than the fragment header, or the
// authentication header of either family. The zero Extension is an empty
// hop-by-hop header.
type Extension struct {
	Type       uint8  // ProtoHopByHop, ProtoDestOptions, ProtoRouting, ProtoAH, ProtoMobility
	NextHeader uint8  // 0: of the layer that follows
	Data       []byte // all after the two first bytes, filled up to the unit
	Length     *uint8 // in the unit of the type: 8 bytes beyond the first 8; AH: 4 bytes beyond the first 8
}

func (x Extension) encode(next Layer, _ *pseudo, payload []byte) ([]byte, error) {
	header := x.NextHeader
	if header == 0 {
		header = protocolOf(next)
	}
	body := append([]byte{header, 0}, x.Data...)
	length := 0
	if x.Type == ProtoAH {
		body = padTo(body, 4)
		body = append(body, make([]byte, max(0, 8-len(body)))...)
		length = len(body)/4 - 2
	} else {
		used := len(body)
		body = padTo(body, 8)
		if fill := body[used:]; len(fill) > 1 && (x.Type == ProtoHopByHop || x.Type == ProtoDestOptions) {
			fill[0], fill[1] = 1, uint8(len(fill)-2) // PadN
		}
		length = len(body)/8 - 1
	}
	if length > 255 {
		return nil, fmt.Errorf("an extension header of %d bytes is too long", len(body))
	}
	body[1] = or(x.Length, uint8(length))
	return append(body, payload...), nil
}

// Fragment6 is the IPv6 fragment header (RFC 8200 section 4.5).
type Fragment6 struct {
	NextHeader    uint8  // 0: of the layer that follows
	Offset        uint16 // in bytes, a multiple of 8
	MoreFragments bool
	ID            uint32
	Reserved      uint16 // the reserved byte, then the two reserved bits; have to be 0
}

func (f Fragment6) encode(next Layer, _ *pseudo, payload []byte) ([]byte, error) {
	if f.Offset%8 != 0 {
		return nil, fmt.Errorf("fragment offset %d is not a multiple of 8", f.Offset)
	}
	header := f.NextHeader
	if header == 0 {
		header = protocolOf(next)
	}
	word := f.Offset | f.Reserved&3<<1
	if f.MoreFragments {
		word |= 1
	}
	b := []byte{header, uint8(f.Reserved >> 2)}
	b = binary.BigEndian.AppendUint16(b, word)
	b = binary.BigEndian.AppendUint32(b, f.ID)
	return append(b, payload...), nil
}

func addr6(a netip.Addr) ([16]byte, error) {
	switch {
	case !a.IsValid():
		return [16]byte{}, nil
	case a.Is4():
		return [16]byte{}, fmt.Errorf("%v is not an IPv6 address", a)
	}
	return a.As16(), nil
}
