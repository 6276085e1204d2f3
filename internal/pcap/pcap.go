// SPDX-License-Identifier: Apache-2.0

// Package pcap writes captured Ethernet frames in the classic libpcap file
// format, with times in nanoseconds, so that tcpdump and Wireshark open them.
//
//	err := pcap.Write(file, frames)
//
// Everything here is safe for concurrent use on different writers.
package pcap

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"time"
)

const (
	magicNanoseconds = 0xa1b23c4d
	linkEthernet     = 1
	snapLength       = 262144
)

// Frame is one captured Ethernet frame.
type Frame struct {
	Time  time.Time
	Bytes []byte // what was captured of it
	// Length is how long the frame was on the wire, in bytes. 0 means that all
	// of it was captured.
	Length int
}

// Write writes a whole file with the frames in their order. An error is one of
// w, or a time that the 32 bits of the format cannot hold.
func Write(w io.Writer, frames []Frame) error {
	out := bufio.NewWriter(w)
	header := binary.LittleEndian.AppendUint32(nil, magicNanoseconds)
	header = binary.LittleEndian.AppendUint16(header, 2)
	header = binary.LittleEndian.AppendUint16(header, 4)
	header = append(header, make([]byte, 8)...) // UTC, no accuracy given
	header = binary.LittleEndian.AppendUint32(header, snapLength)
	header = binary.LittleEndian.AppendUint32(header, linkEthernet)
	if _, err := out.Write(header); err != nil {
		return fmt.Errorf("write pcap header: %w", err)
	}
	for i, f := range frames {
		seconds := f.Time.Unix()
		if seconds < 0 || seconds > math.MaxUint32 {
			return fmt.Errorf("write pcap frame %d: the time %v does not fit into 32 bits", i, f.Time)
		}
		record := binary.LittleEndian.AppendUint32(nil, uint32(seconds))
		record = binary.LittleEndian.AppendUint32(record, uint32(f.Time.Nanosecond()))
		record = binary.LittleEndian.AppendUint32(record, uint32(len(f.Bytes)))
		record = binary.LittleEndian.AppendUint32(record, uint32(max(f.Length, len(f.Bytes))))
		if _, err := out.Write(append(record, f.Bytes...)); err != nil {
			return fmt.Errorf("write pcap frame %d: %w", i, err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("write pcap: %w", err)
	}
	return nil
}
