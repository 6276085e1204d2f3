// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"fmt"
	"net/netip"
	"strings"
)

// Src returns the source address of the outer IP header, or the zero Addr.
func (d Decoded) Src() netip.Addr {
	switch {
	case d.IPv4 != nil:
		return d.IPv4.Src
	case d.IPv6 != nil:
		return d.IPv6.Src
	}
	return netip.Addr{}
}

// Dst returns the destination address of the outer IP header, or the zero
// Addr.
func (d Decoded) Dst() netip.Addr {
	switch {
	case d.IPv4 != nil:
		return d.IPv4.Dst
	case d.IPv6 != nil:
		return d.IPv6.Dst
	}
	return netip.Addr{}
}

// TTL returns the TTL or hop limit of the outer IP header, or 0.
func (d Decoded) TTL() int {
	switch {
	case d.IPv4 != nil:
		return int(d.IPv4.TTL)
	case d.IPv6 != nil:
		return int(d.IPv6.HopLimit)
	}
	return 0
}

// Protocol returns what the outer IP header carries, behind all extension
// headers, or 0.
func (d Decoded) Protocol() uint8 {
	var protocol uint8
	switch {
	case d.IPv4 != nil:
		return d.IPv4.Protocol
	case d.IPv6 != nil:
		protocol = d.IPv6.NextHeader
	}
	for _, l := range d.Layers {
		switch l := l.(type) {
		case Extension:
			protocol = l.NextHeader
		case Fragment6:
			protocol = l.NextHeader
		}
	}
	return protocol
}

// Ports returns source and destination port, or zeros without TCP, UDP and
// SCTP.
func (d Decoded) Ports() (src, dst uint16) {
	switch {
	case d.TCP != nil:
		return d.TCP.SrcPort, d.TCP.DstPort
	case d.UDP != nil:
		return d.UDP.SrcPort, d.UDP.DstPort
	case d.SCTP != nil:
		return d.SCTP.SrcPort, d.SCTP.DstPort
	}
	return 0, 0
}

// IsFragment tells whether the packet carries only a part of a datagram.
func (d Decoded) IsFragment() bool {
	switch {
	case d.IPv4 != nil:
		return d.IPv4.MoreFragments || d.IPv4.FragOffset > 0
	case d.Fragment6 != nil:
		return d.Fragment6.MoreFragments || d.Fragment6.Offset > 0
	}
	return false
}

// String returns one line for people, for example
// "10.0.0.1 > 10.0.0.2 ttl 64 TCP 40000 > 80 [SYN] 0 bytes".
func (d Decoded) String() string {
	var s strings.Builder
	switch {
	case d.ARP != nil && d.ARP.Op == ARPRequest:
		return fmt.Sprintf("ARP who has %v tell %v", d.ARP.TargetIP, d.ARP.SenderIP)
	case d.ARP != nil:
		return fmt.Sprintf("ARP %v is at %v", d.ARP.SenderIP, d.ARP.SenderMAC)
	case d.IPv4 == nil && d.IPv6 == nil && d.Ethernet != nil:
		return fmt.Sprintf("%v > %v type %#04x %d bytes", d.Ethernet.Src, d.Ethernet.Dst, d.Ethernet.Type, len(d.Payload))
	case d.IPv4 == nil && d.IPv6 == nil:
		return "no packet"
	}
	fmt.Fprintf(&s, "%v > %v ttl %d ", d.Src(), d.Dst(), d.TTL())
	switch {
	case d.IPv4 != nil && d.IsFragment():
		fmt.Fprintf(&s, "fragment %#x at %d ", d.IPv4.ID, d.IPv4.FragOffset)
	case d.IsFragment():
		fmt.Fprintf(&s, "fragment %#x at %d ", d.Fragment6.ID, d.Fragment6.Offset)
	}
	switch {
	case d.TCP != nil:
		fmt.Fprintf(&s, "TCP %d > %d [%s] ", d.TCP.SrcPort, d.TCP.DstPort, flagNames(d.TCP.Flags))
	case d.UDP != nil:
		fmt.Fprintf(&s, "UDP %d > %d ", d.UDP.SrcPort, d.UDP.DstPort)
	case d.SCTP != nil:
		fmt.Fprintf(&s, "SCTP %d > %d ", d.SCTP.SrcPort, d.SCTP.DstPort)
	case d.ICMPv4 != nil:
		fmt.Fprintf(&s, "ICMP type %d code %d id %d seq %d ", d.ICMPv4.Type, d.ICMPv4.Code, d.ICMPv4.ID, d.ICMPv4.Seq)
	case d.ICMPv6 != nil:
		fmt.Fprintf(&s, "ICMPv6 type %d code %d id %d seq %d ", d.ICMPv6.Type, d.ICMPv6.Code, d.ICMPv6.ID, d.ICMPv6.Seq)
	case d.Solicit != nil:
		fmt.Fprintf(&s, "ICMPv6 who has %v ", d.Solicit.Target)
	case d.Advert != nil:
		fmt.Fprintf(&s, "ICMPv6 %v is at %v ", d.Advert.Target, d.Advert.TargetMAC)
	default:
		fmt.Fprintf(&s, "protocol %d ", d.Protocol())
	}
	fmt.Fprintf(&s, "%d bytes", len(d.Payload))
	if d.Inner != nil {
		fmt.Fprintf(&s, " about (%v)", d.Inner)
	}
	return s.String()
}

func flagNames(flags uint8) string {
	var on []string
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
		if flags>>i&1 == 1 {
			on = append(on, name)
		}
	}
	return strings.Join(on, " ")
}
