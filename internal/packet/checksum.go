// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"hash/crc32"
)

// Checksum returns the Internet checksum of b (RFC 1071), as it is put into a
// header whose checksum field is zero. An odd last byte counts as the high
// byte of a word.
func Checksum(b []byte) uint16 { return ^fold(sum(0, b)) }

func sum(start uint64, b []byte) uint64 {
	for len(b) >= 2 {
		start += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		start += uint64(b[0]) << 8
	}
	return start
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// pseudo is what an IP header lends to the checksum of the layer above.
type pseudo struct {
	src, dst []byte
}

// checksum returns the checksum of an upper layer segment. The pseudo-headers
// of both families add up to the same sum (RFC 9293 section 3.1, RFC 8200
// section 8.1).
func (p *pseudo) checksum(protocol uint8, segment []byte) uint16 {
	return ^fold(p.sum(protocol, segment))
}

func (p *pseudo) sum(protocol uint8, segment []byte) uint64 {
	var s uint64
	if p != nil {
		s = sum(sum(0, p.src), p.dst) + uint64(protocol) + uint64(len(segment)>>16) + uint64(len(segment)&0xffff)
	}
	return sum(s, segment)
}

// sctpChecksum is the CRC-32C of RFC 9260 appendix A, in the form that goes
// little-endian into the header.
func sctpChecksum(segment []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	crc := crc32.Update(0, table, segment[:8])
	crc = crc32.Update(crc, table, make([]byte, 4))
	return crc32.Update(crc, table, segment[12:])
}
