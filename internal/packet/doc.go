// SPDX-License-Identifier: Apache-2.0

// Package packet builds and reads packets for tests, layer by layer and in
// plain Go. A frame is the list of its layers; lengths, protocol numbers and
// checksums follow from it:
//
//	frame := packet.Build(
//		packet.Ethernet{Dst: gatewayMAC, Src: podMAC},
//		packet.IPv4{Src: pod, Dst: server},
//		packet.TCP{SrcPort: 40000, DstPort: 80, Flags: packet.SYN},
//		packet.Payload("hello"),
//	)
//
// What follows from the list can be overridden to make a packet that lies:
//
//	packet.IPv4{Src: pod, Dst: server, TotalLength: new(uint16(19))}
//	packet.UDP{SrcPort: 1, DstPort: 2, Checksum: new(uint16(0xbad))}
//
// An ICMP error carries the packet it is about by listing that packet's layers
// after it; a tunnel carries a frame the same way. [Fragment] cuts a frame to
// an MTU.
//
// [Decode] is the way back: it names the layers of a frame and [Encode] of
// those layers is the same frame again. [Check] verifies every checksum.
//
// Everything here is a value and safe for concurrent use. Nothing asks the
// kernel.
package packet
