// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const udpHead = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops            \n"

// udpLine writes a socket as the kernel does: words of the address as numbers.
func udpLine(a netip.AddrPort, inode uint64) string {
	raw := a.Addr().AsSlice()
	var host strings.Builder
	for i := 0; i < len(raw); i += 4 {
		fmt.Fprintf(&host, "%08X", binary.NativeEndian.Uint32(raw[i:]))
	}
	zero := strings.Repeat("0", len(raw)*2)
	return fmt.Sprintf("%5d: %s:%04X %s:0000 07 00000000:00000000 00:00000000 00000000 %5d        0 %d 2 0000000000000000 0\n",
		1, host.String(), a.Port(), zero, 1000, inode)
}

func TestParseUDPTable(t *testing.T) {
	t.Parallel()
	want := []udpSocket{
		{netip.MustParseAddrPort("127.0.0.1:8080"), 12345},
		{netip.MustParseAddrPort("0.0.0.0:8472"), 1},
		{netip.MustParseAddrPort("[::]:8472"), 2},
		{netip.MustParseAddrPort("[fd00:1:2:3:4:5:6:7]:65535"), 1 << 40},
	}
	text := udpHead
	for _, s := range want {
		text += udpLine(s.addr, s.inode)
	}
	text += "\nrubbish\n 1: 0100007F:zzzz 0 0 0 0 0 0 0 7\n 1: 0100007F 0 0 0 0 0 0 0 0 7\n 1: 0100:1F90 0 0 0 0 0 0 0 0 7\n"
	require.Equal(t, want, parseUDPTable([]byte(text)))
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		got := parseUDPTable([]byte("  1: 0100007F:1F90 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 19472 2 0 0"))
		require.Equal(t, []udpSocket{{netip.MustParseAddrPort("127.0.0.1:8080"), 19472}}, got, "as a kernel printed it")
	}
}

func FuzzParseUDPTable(f *testing.F) {
	f.Add([]byte(udpHead), uint64(0), []byte{127, 0, 0, 1}, uint16(8472))
	f.Add([]byte("1: 0100007F:2118 0 7 0 0 0 0 0 1"), uint64(1), make([]byte, 16), uint16(1))
	f.Add([]byte(":::::\n\x00 \n"), uint64(1<<63), []byte(nil), uint16(0))
	f.Fuzz(func(t *testing.T, text []byte, inode uint64, host []byte, port uint16) {
		for _, s := range parseUDPTable(text) {
			if !s.addr.Addr().IsValid() {
				t.Fatalf("%q gives an invalid address", text)
			}
		}
		addr, ok := netip.AddrFromSlice(host)
		if !ok {
			return
		}
		want := udpSocket{netip.AddrPortFrom(addr, port), inode}
		got := parseUDPTable([]byte(udpHead + udpLine(want.addr, inode)))
		if len(got) != 1 || got[0] != want {
			t.Fatalf("wrote %v and read %v", want, got)
		}
	})
}
