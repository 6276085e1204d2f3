// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"net/netip"
)

// Ethernet is an Ethernet II header. Frames are not padded to 60 bytes.
type Ethernet struct {
	Dst, Src MAC
	Type     uint16 // 0: of the layer that follows
}

func (e Ethernet) encode(next Layer, _ *pseudo, payload []byte) ([]byte, error) {
	typ := e.Type
	if typ == 0 {
		typ = etherTypeOf(next)
	}
	b := make([]byte, 0, 14+len(payload))
	b = append(b, e.Dst[:]...)
	b = append(b, e.Src[:]...)
	b = binary.BigEndian.AppendUint16(b, typ)
	return append(b, payload...), nil
}

// VLAN is an 802.1Q tag. It follows [Ethernet], whose Type it sets to
// [TypeVLAN] unless that is given.
type VLAN struct {
	TCI  uint16 // priority (3 bits), drop eligible (1), identifier (12)
	Type uint16 // 0: of the layer that follows
}

func (v VLAN) encode(next Layer, _ *pseudo, payload []byte) ([]byte, error) {
	typ := v.Type
	if typ == 0 {
		typ = etherTypeOf(next)
	}
	b := binary.BigEndian.AppendUint16(nil, v.TCI)
	b = binary.BigEndian.AppendUint16(b, typ)
	return append(b, payload...), nil
}

// Operations of [ARP].
const (
	ARPRequest = 1
	ARPReply   = 2
)

// ARP is an ARP message for IPv4 over Ethernet (RFC 826). The zero addresses
// are sent for those that are not set.
type ARP struct {
	Op        uint16
	SenderMAC MAC
	SenderIP  netip.Addr
	TargetMAC MAC
	TargetIP  netip.Addr
}

func (a ARP) encode(_ Layer, _ *pseudo, payload []byte) ([]byte, error) {
	sender, err := addr4(a.SenderIP)
	if err != nil {
		return nil, err
	}
	target, err := addr4(a.TargetIP)
	if err != nil {
		return nil, err
	}
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, a.Op)
	b = append(b, a.SenderMAC[:]...)
	b = append(b, sender[:]...)
	b = append(b, a.TargetMAC[:]...)
	b = append(b, target[:]...)
	return append(b, payload...), nil
}

// VXLAN is the tunnel header of RFC 7348. The inner frame follows it.
type VXLAN struct {
	VNI   uint32 // 24 bits
	Flags *uint8 // nil: 0x08, "the VNI is valid"
}

func (v VXLAN) encode(_ Layer, _ *pseudo, payload []byte) ([]byte, error) {
	b := []byte{or(v.Flags, 0x08), 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, v.VNI<<8)
	return append(b, payload...), nil
}
