// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"
)

// Types of [ICMPv4] (RFC 792) and codes of its type 3.
const (
	ICMPv4EchoReply    = 0
	ICMPv4Unreachable  = 3
	ICMPv4Redirect     = 5
	ICMPv4EchoRequest  = 8
	ICMPv4TimeExceeded = 11
	ICMPv4Parameter    = 12

	ICMPv4CodePort       = 3
	ICMPv4CodeFragNeeded = 4
)

// Types of [ICMPv6] (RFC 4443, RFC 4861) and a code of its type 1.
const (
	ICMPv6Unreachable     = 1
	ICMPv6PacketTooBig    = 2
	ICMPv6TimeExceeded    = 3
	ICMPv6Parameter       = 4
	ICMPv6EchoRequest     = 128
	ICMPv6EchoReply       = 129
	ICMPv6RouterSolicit   = 133
	ICMPv6RouterAdvert    = 134
	ICMPv6NeighborSolicit = 135
	ICMPv6NeighborAdvert  = 136

	ICMPv6CodePort = 4
)

// ICMPv4 is an ICMP header of eight bytes. In an error the layers of the
// packet it is about follow it.
type ICMPv4 struct {
	Type, Code uint8
	ID         uint16 // bytes 4 and 5: the identifier of an echo
	Seq        uint16 // bytes 6 and 7: the sequence of an echo, the MTU of "fragmentation needed"

	Checksum *uint16
}

func (i ICMPv4) encode(_ Layer, _ *pseudo, payload []byte) ([]byte, error) {
	b := icmpHeader(i.Type, i.Code, i.ID, i.Seq, payload)
	binary.BigEndian.PutUint16(b[2:], or(i.Checksum, Checksum(b)))
	return b, nil
}

// IsError tells whether the message is about another packet, whose beginning
// it carries.
func (i ICMPv4) IsError() bool {
	switch i.Type {
	case ICMPv4Unreachable, 4, ICMPv4Redirect, ICMPv4TimeExceeded, ICMPv4Parameter:
		return true
	}
	return false
}

// ICMPv6 is an ICMPv6 header of eight bytes. In an error the layers of the
// packet it is about follow it.
type ICMPv6 struct {
	Type, Code uint8
	ID         uint16 // bytes 4 and 5: the identifier of an echo, the high half of the MTU of "packet too big"
	Seq        uint16 // bytes 6 and 7: the sequence of an echo, the low half of that MTU

	Checksum *uint16
}

func (i ICMPv6) encode(_ Layer, ip *pseudo, payload []byte) ([]byte, error) {
	b := icmpHeader(i.Type, i.Code, i.ID, i.Seq, payload)
	binary.BigEndian.PutUint16(b[2:], or(i.Checksum, ip.checksum(ProtoICMPv6, b)))
	return b, nil
}

// IsError tells whether the message is about another packet, whose beginning
// it carries.
func (i ICMPv6) IsError() bool { return i.Type < 128 }

// MTU returns the MTU of a "packet too big", in bytes.
func (i ICMPv6) MTU() int { return int(i.ID)<<16 | int(i.Seq) }

func icmpHeader(typ, code uint8, id, seq uint16, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	b[0], b[1] = typ, code
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	return append(b, payload...)
}

// NeighborSolicit is the whole ICMPv6 message that asks for the Ethernet
// address of Target (RFC 4861 section 4.3). Its IPv6 header needs a HopLimit
// of 255.
type NeighborSolicit struct {
	Target    netip.Addr
	SourceMAC MAC    // zero: no source option
	Options   []byte // further options as they are
	Reserved  uint32 // has to be 0

	Checksum *uint16
}

func (n NeighborSolicit) encode(_ Layer, ip *pseudo, payload []byte) ([]byte, error) {
	return neighbor(ICMPv6NeighborSolicit, n.Reserved, n.Target, 1, n.SourceMAC, n.Options, n.Checksum, ip, payload)
}

// NeighborAdvert is the whole ICMPv6 message that answers with the Ethernet
// address of Target (RFC 4861 section 4.4). Its IPv6 header needs a HopLimit
// of 255.
type NeighborAdvert struct {
	Router, Solicited, Override bool
	Target                      netip.Addr
	TargetMAC                   MAC    // zero: no target option
	Options                     []byte // further options as they are
	Reserved                    uint32 // the low 29 bits of the flags word, have to be 0

	Checksum *uint16
}

func (n NeighborAdvert) encode(_ Layer, ip *pseudo, payload []byte) ([]byte, error) {
	flags := n.Reserved & 0x1fffffff
	for i, on := range []bool{n.Router, n.Solicited, n.Override} {
		if on {
			flags |= 1 << (31 - i)
		}
	}
	return neighbor(ICMPv6NeighborAdvert, flags, n.Target, 2, n.TargetMAC, n.Options, n.Checksum, ip, payload)
}

func neighbor(typ uint8, word uint32, target netip.Addr, option uint8, mac MAC, options []byte, checksum *uint16, ip *pseudo, payload []byte) ([]byte, error) {
	addr, err := addr6(target)
	if err != nil {
		return nil, err
	}
	body := append([]byte(nil), addr[:]...)
	if mac != (MAC{}) {
		body = append(body, option, 1)
		body = append(body, mac[:]...)
	}
	body = append(append(body, options...), payload...)
	b := icmpHeader(typ, 0, uint16(word>>16), uint16(word), body)
	binary.BigEndian.PutUint16(b[2:], or(checksum, ip.checksum(ProtoICMPv6, b)))
	return b, nil
}
