// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"fmt"
)

// Flags of [TCP].
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// TCP is a TCP header (RFC 9293). The pointers override what follows from the
// rest of the packet.
type TCP struct {
	SrcPort, DstPort uint16
	Seq, Ack         uint32
	Flags            uint8 // [FIN] and its neighbours
	Window           uint16
	Urgent           uint16
	Options          []byte // up to 40 bytes, filled up with zeros to words
	Reserved         uint8  // 4 bits, have to be 0

	DataOffset *uint8 // in words of 4 bytes
	Checksum   *uint16
}

func (t TCP) encode(_ Layer, ip *pseudo, payload []byte) ([]byte, error) {
	options := padTo(t.Options, 4)
	if len(options) > 40 {
		return nil, fmt.Errorf("options of %d bytes: 40 is the limit", len(options))
	}
	size := 20 + len(options)
	b := make([]byte, size, size+len(payload))
	binary.BigEndian.PutUint16(b, t.SrcPort)
	binary.BigEndian.PutUint16(b[2:], t.DstPort)
	binary.BigEndian.PutUint32(b[4:], t.Seq)
	binary.BigEndian.PutUint32(b[8:], t.Ack)
	b[12] = or(t.DataOffset, uint8(size/4))<<4 | t.Reserved&0xf
	b[13] = t.Flags
	binary.BigEndian.PutUint16(b[14:], t.Window)
	binary.BigEndian.PutUint16(b[18:], t.Urgent)
	copy(b[20:], options)
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[16:], or(t.Checksum, ip.checksum(ProtoTCP, b)))
	return b, nil
}

// UDP is a UDP header (RFC 768). The pointers override what follows from the
// rest of the packet; a Checksum of 0 says that there is none.
type UDP struct {
	SrcPort, DstPort uint16

	Length   *uint16 // in bytes, with the header
	Checksum *uint16
}

func (u UDP) encode(_ Layer, ip *pseudo, payload []byte) ([]byte, error) {
	if len(payload) > 0xffff-8 {
		return nil, fmt.Errorf("a payload of %d bytes: 65527 is the limit", len(payload))
	}
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, u.SrcPort)
	binary.BigEndian.PutUint16(b[2:], u.DstPort)
	binary.BigEndian.PutUint16(b[4:], or(u.Length, uint16(8+len(payload))))
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[6:], or(u.Checksum, udpChecksum(ip, b)))
	return b, nil
}

// udpChecksum sends 0xffff for a sum of 0, because 0 means "no checksum".
func udpChecksum(ip *pseudo, segment []byte) uint16 {
	if c := ip.checksum(ProtoUDP, segment); c != 0 {
		return c
	}
	return 0xffff
}

// SCTP is the SCTP common header (RFC 9260). [Chunk] makes what follows.
type SCTP struct {
	SrcPort, DstPort uint16
	Tag              uint32

	Checksum *uint32 // CRC-32C, in the byte order of the header read as little-endian
}

func (s SCTP) encode(_ Layer, _ *pseudo, payload []byte) ([]byte, error) {
	b := make([]byte, 12, 12+len(payload))
	binary.BigEndian.PutUint16(b, s.SrcPort)
	binary.BigEndian.PutUint16(b[2:], s.DstPort)
	binary.BigEndian.PutUint32(b[4:], s.Tag)
	b = append(b, payload...)
	binary.LittleEndian.PutUint32(b[8:], or(s.Checksum, sctpChecksum(b)))
	return b, nil
}

// Types of [Chunk].
const (
	ChunkData             = 0
	ChunkInit             = 1
	ChunkInitAck          = 2
	ChunkAbort            = 6
	ChunkShutdown         = 7
	ChunkShutdownAck      = 8
	ChunkCookieEcho       = 10
	ChunkCookieAck        = 11
	ChunkShutdownComplete = 14
)

// Chunk returns one SCTP chunk with its header and padding.
func Chunk(typ, flags uint8, value []byte) Payload {
	b := []byte{typ, flags}
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(value)))
	return padTo(append(b, value...), 4)
}
