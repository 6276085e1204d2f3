// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"net"
)

// A Layer is one header of a packet, or its payload. The types of this package
// are all the layers there are.
type Layer interface {
	// encode returns the header followed by payload. next is the layer that
	// payload begins with, or nil; ip is the IP header around it, or nil.
	encode(next Layer, ip *pseudo, payload []byte) ([]byte, error)
}

// MAC is an Ethernet address. A net.HardwareAddr of six bytes converts to it:
// packet.MAC(hw).
type MAC [6]byte

// String returns the usual form with colons.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Broadcast is the Ethernet address of everyone.
func Broadcast() MAC { return MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// Payload is plain bytes.
type Payload []byte

func (p Payload) encode(_ Layer, _ *pseudo, payload []byte) ([]byte, error) {
	return append(append([]byte(nil), p...), payload...), nil
}

// Sized returns a payload of n bytes in which neighbouring bytes differ, so
// that a shifted or repeated part shows.
func Sized(n int) Payload {
	p := make(Payload, n)
	for i := range p {
		p[i] = byte(i ^ i>>8)
	}
	return p
}

// Encode returns the packet that the layers make. Errors are addresses of the
// wrong family, options that are too long and a packet beyond 65,535 bytes.
func Encode(layers ...Layer) ([]byte, error) {
	var packet []byte
	var next Layer
	for i := len(layers) - 1; i >= 0; i-- {
		if layers[i] == nil {
			return nil, fmt.Errorf("encode layer %d: %w", i, errors.New("the layer is nil"))
		}
		var err error
		if packet, err = layers[i].encode(next, around(layers[:i]), packet); err != nil {
			return nil, fmt.Errorf("encode layer %d (%T): %w", i, layers[i], err)
		}
		next = layers[i]
	}
	return packet, nil
}

// Build is [Encode] for layers that are written down in a test: it panics
// where Encode returns an error.
func Build(layers ...Layer) []byte {
	packet, err := Encode(layers...)
	if err != nil {
		panic(err)
	}
	return packet
}

// around returns the innermost IP header of the layers before one.
func around(before []Layer) *pseudo {
	for i := len(before) - 1; i >= 0; i-- {
		switch l := before[i].(type) {
		case IPv4:
			return l.pseudo()
		case IPv6:
			return l.pseudo()
		case Ethernet:
			return nil
		}
	}
	return nil
}

// Protocol numbers of IANA, as in the IPv4 protocol and the IPv6 next header
// field.
const (
	ProtoHopByHop    = 0
	ProtoICMP        = 1
	ProtoIPv4        = 4
	ProtoTCP         = 6
	ProtoUDP         = 17
	ProtoIPv6        = 41
	ProtoRouting     = 43
	ProtoFragment    = 44
	ProtoESP         = 50
	ProtoAH          = 51
	ProtoICMPv6      = 58
	ProtoNone        = 59
	ProtoDestOptions = 60
	ProtoSCTP        = 132
	ProtoMobility    = 135
)

// Ethernet types of IANA.
const (
	TypeIPv4 = 0x0800
	TypeARP  = 0x0806
	TypeVLAN = 0x8100
	TypeQinQ = 0x88a8
	TypeIPv6 = 0x86dd
)

func protocolOf(l Layer) uint8 {
	switch l := l.(type) {
	case TCP:
		return ProtoTCP
	case UDP:
		return ProtoUDP
	case SCTP:
		return ProtoSCTP
	case ICMPv4:
		return ProtoICMP
	case ICMPv6, NeighborSolicit, NeighborAdvert:
		return ProtoICMPv6
	case IPv4:
		return ProtoIPv4
	case IPv6:
		return ProtoIPv6
	case Fragment6:
		return ProtoFragment
	case Extension:
		return l.Type
	}
	return 0
}

func etherTypeOf(l Layer) uint16 {
	switch l.(type) {
	case IPv4:
		return TypeIPv4
	case IPv6:
		return TypeIPv6
	case ARP:
		return TypeARP
	case VLAN:
		return TypeVLAN
	}
	return 0
}

// or returns *override, or value when there is none.
func or[T any](override *T, value T) T {
	if override != nil {
		return *override
	}
	return value
}
