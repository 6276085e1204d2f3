// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/wire"
)

func TestAddr(t *testing.T) {
	t.Parallel()
	for a, want := range map[string][16]byte{
		"10.1.2.3":        {10: 0xff, 11: 0xff, 12: 10, 13: 1, 14: 2, 15: 3},
		"::ffff:10.1.2.3": {10: 0xff, 11: 0xff, 12: 10, 13: 1, 14: 2, 15: 3},
		"fd00::1":         {0: 0xfd, 15: 1},
		"0.0.0.0":         {10: 0xff, 11: 0xff},
	} {
		addr := netip.MustParseAddr(a)
		assert.Equal(t, bpf.TableAddress{Bytes: want}, wire.Addr(addr))
		assert.Equal(t, addr.Unmap(), wire.GoAddr(wire.Addr(addr)))
	}
	assert.Zero(t, wire.Addr(netip.Addr{}))
	assert.Equal(t, netip.Addr{}, wire.GoAddr(bpf.TableAddress{}))
}

func FuzzAddr(f *testing.F) {
	f.Add([]byte{10, 0, 0, 1})
	f.Add([]byte{15: 1})
	f.Add([]byte{10: 0xff, 11: 0xff, 15: 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		a, ok := netip.AddrFromSlice(b)
		if !ok || a == netip.IPv6Unspecified() { // which has the form of none
			return
		}
		require.Equal(t, a.Unmap(), wire.GoAddr(wire.Addr(a)))
		require.Equal(t, a.As16(), wire.Addr(a).Bytes)
	})
}

func FuzzPort(f *testing.F) {
	f.Add(uint16(0x1234))
	f.Fuzz(func(t *testing.T, p uint16) {
		require.Equal(t, p, wire.GoPort(wire.Port(p)))
	})
}

func FuzzPrefix(f *testing.F) {
	f.Add([]byte{10, 0, 0, 0}, 8)
	f.Add([]byte{0, 0, 0, 0}, 0)
	f.Add([]byte{0: 0xfd, 15: 0}, 128)
	f.Add([]byte{10: 0xff, 11: 0xff, 15: 0}, 96)
	f.Add([]byte{15: 0}, 80)
	f.Fuzz(func(t *testing.T, b []byte, bits int) {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		p, err := wire.CheckPrefix(netip.PrefixFrom(a, bits).Masked())
		if err != nil {
			return
		}
		key := wire.PrefixKey(p)
		require.Equal(t, p, wire.GoPrefix(key))
		// The key is what a trie takes it for: the bits that both have in front.
		for _, other := range []netip.Addr{p.Addr(), a.Unmap(), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")} {
			require.Equal(t, p.Contains(other), covers(key, wire.Addr(other)), "%s %s", p, other)
		}
	})
}

// covers is what the kernel does in a longest-prefix table.
func covers(k bpf.TablePrefixKey, a bpf.TableAddress) bool {
	for i := range k.Prefixlen {
		if (k.Addr.Bytes[i/8]^a.Bytes[i/8])>>(7-i%8)&1 != 0 {
			return false
		}
	}
	return true
}

func TestPrefix(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]uint32{"10.0.0.0/8": 104, "0.0.0.0/0": 96, "10.1.2.3/32": 128, "fd00::/16": 16, "2000::/3": 3, "::1/128": 128, "::fffe:0:0/96": 96} {
		p, err := wire.CheckPrefix(netip.MustParsePrefix(s))
		require.NoError(t, err, s)
		key := wire.PrefixKey(p)
		assert.Equal(t, want, key.Prefixlen, s)
		assert.Equal(t, p, wire.GoPrefix(key))
	}
	p, err := wire.CheckPrefix(netip.MustParsePrefix("::ffff:10.1.0.0/112"))
	require.NoError(t, err)
	assert.Equal(t, netip.MustParsePrefix("10.1.0.0/16"), p)
	for s, want := range map[string]string{
		"10.0.0.1/8": "do you mean 10.0.0.0/8?", "fd00::1/64": "do you mean fd00::/64?", "::ffff:0:0/95": "mixes",
		"::/0": "covers IPv4 too", "::/80": "covers IPv4 too", "::/1": "covers IPv4 too",
	} {
		_, err := wire.CheckPrefix(netip.MustParsePrefix(s))
		require.ErrorContains(t, err, want, s)
		require.ErrorIs(t, err, os.ErrInvalid, s)
	}
	for _, p := range []netip.Prefix{{}, netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 33)} {
		_, err := wire.CheckPrefix(p)
		require.ErrorContains(t, err, "missing or invalid")
		require.ErrorIs(t, err, os.ErrInvalid)
	}
	assert.False(t, wire.GoPrefix(bpf.TablePrefixKey{Prefixlen: 129}).IsValid())
}

func TestMAC(t *testing.T) {
	t.Parallel()
	m, err := wire.MAC(net.HardwareAddr{2, 1, 2, 3, 4, 5})
	require.NoError(t, err)
	assert.Equal(t, [6]uint8{2, 1, 2, 3, 4, 5}, m)
	for want, bad := range map[string]net.HardwareAddr{
		"of 0 bytes": nil, "of 5 bytes": make(net.HardwareAddr, 5), "of 8 bytes": make(net.HardwareAddr, 8),
		"all zero": make(net.HardwareAddr, 6), "33:33:00:00:00:01: is that of a group": {0x33, 0x33, 0, 0, 0, 1},
	} {
		_, err := wire.MAC(bad)
		require.ErrorContains(t, err, want)
		require.ErrorIs(t, err, os.ErrInvalid)
	}
}

func TestCheckAddr(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"10.0.0.1", "fd00::1", "::ffff:10.0.0.1", "fe80::1", "169.254.1.1"} {
		a, err := wire.CheckAddr(netip.MustParseAddr(s))
		require.NoError(t, err)
		assert.Equal(t, netip.MustParseAddr(s).Unmap(), a)
	}
	for s, want := range map[string]string{
		"fe80::1%eth0": "a zone", "0.0.0.0": "one host", "::": "one host", "::ffff:0.0.0.0": "one host", "127.0.0.2": "one host", "::1": "one host",
		"224.0.0.1": "one host", "ff02::1": "one host", "255.255.255.255": "one host", "::ffff:127.0.0.1": "one host",
	} {
		_, err := wire.CheckAddr(netip.MustParseAddr(s))
		require.ErrorContains(t, err, want, s)
		require.ErrorIs(t, err, os.ErrInvalid, s)
	}
	_, err := wire.CheckAddr(netip.Addr{})
	require.ErrorContains(t, err, "missing or invalid")
	require.ErrorIs(t, err, os.ErrInvalid)
}
