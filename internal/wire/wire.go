// SPDX-License-Identifier: Apache-2.0

// Package wire is the one place where addresses and ports change their form
// between Go's values and the bytes that the programs keep. What it refuses is
// os.ErrInvalid.
package wire

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
)

// Addr turns a into 16 bytes, an IPv4 address in mapped form. The invalid
// address becomes all zero.
func Addr(a netip.Addr) bpf.TableAddress {
	var out bpf.TableAddress
	if a.IsValid() {
		out.Bytes = a.As16()
	}
	return out
}

// GoAddr is the reverse of Addr.
func GoAddr(a bpf.TableAddress) netip.Addr {
	if a.Bytes == [16]uint8{} {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a.Bytes).Unmap()
}

// Port turns a port into the number that has its bytes in network order.
func Port(p uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], p)
	return binary.NativeEndian.Uint16(b[:])
}

// GoPort is the reverse of Port.
func GoPort(p uint16) uint16 { return Port(p) }

// PrefixKey turns a prefix into the key of a longest-prefix table, where IPv4
// prefixes lie under ::ffff:0:0/96.
func PrefixKey(p netip.Prefix) bpf.TablePrefixKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return bpf.TablePrefixKey{Prefixlen: uint32(bits), Addr: Addr(p.Addr())}
}

// GoPrefix is the reverse of PrefixKey. A key that PrefixKey can not have made
// is the invalid prefix.
func GoPrefix(k bpf.TablePrefixKey) netip.Prefix {
	a := netip.AddrFrom16(k.Addr.Bytes)
	if k.Prefixlen > 128 {
		return netip.Prefix{}
	}
	if a.Is4In6() && k.Prefixlen >= 96 {
		return netip.PrefixFrom(a.Unmap(), int(k.Prefixlen)-96)
	}
	return netip.PrefixFrom(a, int(k.Prefixlen))
}

// MAC checks and copies a hardware address.
func MAC(m net.HardwareAddr) ([6]uint8, error) {
	var out [6]uint8
	if len(m) != len(out) {
		return out, invalid.Errorf("MAC address %q of %d bytes: want 6", m, len(m))
	}
	copy(out[:], m)
	if out == [6]uint8{} {
		return out, invalid.Errorf("MAC address is all zero")
	}
	if out[0]&1 != 0 {
		return out, invalid.Errorf("MAC address %s: is that of a group, want one device's", m)
	}
	return out, nil
}

// CheckAddr says what is wrong with an address that is to name one host. It
// returns the address unmapped.
func CheckAddr(a netip.Addr) (netip.Addr, error) {
	switch {
	case !a.IsValid():
		return a, invalid.Errorf("the address is missing or invalid")
	case a.Zone() != "":
		return a, invalid.Errorf("address %s: a zone has no meaning here", a)
	}
	a = a.Unmap()
	switch {
	case a.IsLoopback():
		return a, invalid.Errorf("address %s: does not name one host: a loopback address is each one's own", a)
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return a, invalid.Errorf("address %s: does not name one host", a)
	}
	return a, nil
}

// CheckPrefix says what is wrong with a prefix. It returns the prefix unmapped.
// An IPv6 prefix that has the IPv4-mapped addresses in it would match all of
// IPv4 in a table of both.
func CheckPrefix(p netip.Prefix) (netip.Prefix, error) {
	if !p.IsValid() {
		return p, invalid.Errorf("the prefix is missing or invalid")
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return p, invalid.Errorf("prefix %s: mixes IPv4-mapped and IPv6 addresses", p)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p != p.Masked() {
		return p, invalid.Errorf("prefix %s: has host bits, do you mean %s?", p, p.Masked())
	}
	if p.Addr().Is6() && p.Contains(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff})) {
		return p, invalid.Errorf("prefix %s: covers IPv4 too, which is kept below ::ffff:0:0/96; take 2000::/3 for all of IPv6 that is routed", p)
	}
	return p, nil
}
