// SPDX-License-Identifier: Apache-2.0

package packet_test

import (
	"encoding/binary"
	"testing"

	"github.com/godatapath/datapath/internal/packet"
	"github.com/stretchr/testify/assert"
)

// crc32c is the slow twin: bit by bit, reflected, as RFC 9260 appendix A
// describes it.
func crc32c(b []byte) uint32 {
	crc := ^uint32(0)
	for _, c := range b {
		crc ^= uint32(c)
		for range 8 {
			if crc&1 == 1 {
				crc = crc>>1 ^ 0x82f63b78
			} else {
				crc >>= 1
			}
		}
	}
	return ^crc
}

func TestSCTPChecksumAgainstSlowTwin(t *testing.T) {
	t.Parallel()
	assert.Equal(t, uint32(0xe3069283), crc32c([]byte("123456789")), "the check value of CRC-32C")
	for n := range 40 {
		b := packet.Build(packet.SCTP{SrcPort: 1, DstPort: uint16(n), Tag: 7}, packet.Sized(n))
		got := binary.LittleEndian.Uint32(b[8:])
		clear(b[8:12])
		assert.Equal(t, crc32c(b), got)
	}
}

func TestUDPNeverSendsZeroChecksum(t *testing.T) {
	t.Parallel()
	// The source port is chosen so that the sum is 0.
	h := packet.IPv4{Src: a4, Dst: b4}
	b := packet.Build(h, packet.UDP{SrcPort: 0})
	sum := binary.BigEndian.Uint16(b[26:])
	b = packet.Build(h, packet.UDP{SrcPort: sum})
	assert.Equal(t, uint16(0xffff), binary.BigEndian.Uint16(b[26:]), "RFC 768: 0 means no checksum")
}
