// SPDX-License-Identifier: Apache-2.0

package conntrack

import "net/netip"

// Filter chooses flows by the originator's tuple. A zero field matches all.
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

func inPrefix(p netip.Prefix, a netip.Addr) bool { return !p.IsValid() || p.Contains(a) }
