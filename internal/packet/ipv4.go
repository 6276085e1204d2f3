// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// IPv4 is an IPv4 header (RFC 791). The pointers override what follows from
// the rest of the packet.
type IPv4 struct {
	Src, Dst      netip.Addr // not set: 0.0.0.0
	TTL           uint8      // 0: 64
	ZeroTTL       bool       // the TTL is really 0
	Protocol      uint8      // 0: of the layer that follows
	TOS           uint8
	ID            uint16
	DontFragment  bool
	MoreFragments bool
	ReservedFlag  bool   // the first of the three flag bits, which has to be 0
	FragOffset    uint16 // in bytes, a multiple of 8
	Options       []byte // up to 40 bytes, filled up with zeros to words

	Version     *uint8  // nil: 4
	IHL         *uint8  // in words of 4 bytes
	TotalLength *uint16 // in bytes
	Checksum    *uint16
}

func (h IPv4) encode(next Layer, _ *pseudo, payload []byte) ([]byte, error) {
	src, err := addr4(h.Src)
	if err != nil {
		return nil, err
	}
	dst, err := addr4(h.Dst)
	if err != nil {
		return nil, err
	}
	if h.FragOffset%8 != 0 {
		return nil, fmt.Errorf("fragment offset %d is not a multiple of 8", h.FragOffset)
	}
	options := padTo(h.Options, 4)
	if len(options) > 40 {
		return nil, fmt.Errorf("options of %d bytes: 40 is the limit", len(options))
	}
	size := 20 + len(options)
	if size+len(payload) > 0xffff {
		return nil, fmt.Errorf("a packet of %d bytes: 65535 is the limit", size+len(payload))
	}
	protocol := h.Protocol
	if protocol == 0 {
		protocol = protocolOf(next)
	}
	fragment := h.FragOffset / 8
	for _, f := range []struct {
		on  bool
		bit uint16
	}{{h.ReservedFlag, 0x8000}, {h.DontFragment, 0x4000}, {h.MoreFragments, 0x2000}} {
		if f.on {
			fragment |= f.bit
		}
	}
	b := make([]byte, size, size+len(payload))
	b[0] = or(h.Version, 4)<<4 | or(h.IHL, uint8(size/4))&0xf
	b[1] = h.TOS
	binary.BigEndian.PutUint16(b[2:], or(h.TotalLength, uint16(size+len(payload))))
	binary.BigEndian.PutUint16(b[4:], h.ID)
	binary.BigEndian.PutUint16(b[6:], fragment)
	b[8] = timeToLive(h.TTL, h.ZeroTTL)
	b[9] = protocol
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	copy(b[20:], options)
	binary.BigEndian.PutUint16(b[10:], or(h.Checksum, Checksum(b)))
	return append(b, payload...), nil
}

func (h IPv4) pseudo() *pseudo {
	src, _ := addr4(h.Src)
	dst, _ := addr4(h.Dst)
	return &pseudo{src: src[:], dst: dst[:]}
}

func timeToLive(ttl uint8, zero bool) uint8 {
	switch {
	case zero:
		return 0
	case ttl == 0:
		return 64
	}
	return ttl
}

func addr4(a netip.Addr) ([4]byte, error) {
	switch a = a.Unmap(); {
	case !a.IsValid():
		return [4]byte{}, nil
	case !a.Is4():
		return [4]byte{}, fmt.Errorf("%v is not an IPv4 address", a)
	}
	return a.As4(), nil
}

func padTo(b []byte, unit int) []byte {
	padded := make([]byte, (len(b)+unit-1)/unit*unit)
	copy(padded, b)
	return padded
}
