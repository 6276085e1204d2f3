// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"net/netip"
	"strings"
	"time"

	"github.com/godatapath/datapath/internal/packet"
)

// Frame is one captured Ethernet frame.
type Frame struct {
	// Time is when the capture read it, shortly after it passed.
	Time time.Time
	// Outgoing tells whether the device sent it.
	Outgoing bool
	// Bytes are all of the frame, with its VLAN tag. A frame inside one machine
	// can have an unfinished checksum and be larger than the MTU: the kernel
	// leaves to the last device what a real card would do.
	Bytes []byte
}

// Summary is what most tests ask about a frame. Fields that the frame does not
// have are zero.
type Summary struct {
	// Src and Dst are the addresses of the IP header, with the ports of TCP,
	// UDP or SCTP if there are some.
	Src, Dst netip.AddrPort
	// Protocol is what the IP header carries, behind all extension headers:
	// 1 ICMP, 6 TCP, 17 UDP, 58 ICMPv6, 132 SCTP.
	Protocol uint8
	// TTL is the TTL or hop limit.
	TTL int
	// Type and Code are those of ICMP or ICMPv6.
	Type, Code uint8
	// Payload is what the innermost header carries that was understood. It
	// shares memory with the frame.
	Payload []byte
}

// Summary takes the frame apart. Of a frame that is cut off or contradicts
// itself it returns what was understood.
func (f Frame) Summary() Summary {
	d, _ := packet.Decode(f.Bytes)
	src, dst := d.Ports()
	s := Summary{
		Src: netip.AddrPortFrom(d.Src(), src), Dst: netip.AddrPortFrom(d.Dst(), dst),
		Protocol: d.Protocol(), TTL: d.TTL(), Payload: d.Payload,
	}
	switch {
	case d.ICMPv4 != nil:
		s.Type, s.Code = d.ICMPv4.Type, d.ICMPv4.Code
	case d.ICMPv6 != nil:
		s.Type, s.Code = d.ICMPv6.Type, d.ICMPv6.Code
	case d.Solicit != nil:
		s.Type = packet.ICMPv6NeighborSolicit
	case d.Advert != nil:
		s.Type = packet.ICMPv6NeighborAdvert
	}
	return s
}

// String describes the frame in one line.
func (f Frame) String() string {
	direction := "in "
	if f.Outgoing {
		direction = "out "
	}
	d, err := packet.Decode(f.Bytes)
	if err != nil {
		return direction + d.String() + ": " + err.Error()
	}
	return direction + d.String()
}

// summary lists the frames of a capture for an error, the last twenty.
func (c *Capture) summary() string {
	frames := c.Frames()
	if len(frames) == 0 {
		return " nothing"
	}
	var s strings.Builder
	if len(frames) > 20 {
		frames = frames[len(frames)-20:]
		s.WriteString("\n\t...")
	}
	for _, f := range frames {
		s.WriteString("\n\t" + f.String())
	}
	return s.String()
}
