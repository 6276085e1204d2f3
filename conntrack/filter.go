// SPDX-License-Identifier: Apache-2.0

package conntrack

import "net/netip"

// Filter chooses flows by the originator's tuple. A zero field matches all. A
// prefix that is invalid without being zero, such as one of 33 bits, matches
// nothing. Host bits do not matter, and an IPv4-mapped prefix is an IPv4 one.
type Filter struct {
	Src, Dst         netip.Prefix
	SrcPort, DstPort uint16
	Protocol         Protocol
}

// Match reports whether the tuple is chosen.
func (f Filter) Match(t Tuple) bool {
	return inPrefix(f.Src, t.Src.Addr()) && inPrefix(f.Dst, t.Dst.Addr()) &&
		(f.SrcPort == 0 || f.SrcPort == t.Src.Port()) &&
		(f.DstPort == 0 || f.DstPort == t.Dst.Port()) &&
		(f.Protocol == 0 || f.Protocol == t.Protocol)
}

func inPrefix(p netip.Prefix, a netip.Addr) bool {
	if p == (netip.Prefix{}) {
		return true
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Contains(a.Unmap().WithZone(""))
}
