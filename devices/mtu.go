// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"fmt"
	"strconv"
)

// What VXLAN adds to an inner IP packet, in bytes: inner Ethernet header 14,
// VXLAN 8, UDP 8, and the outer IP header 20 or 40 (RFC 7348).
const (
	OverheadIPv4 = 50
	OverheadIPv6 = 70
)

// The bounds of an MTU in bytes: what RFC 791 and RFC 8200 ask of every link,
// and what the length field of IPv4 can say.
const (
	MinMTUIPv4 = 68
	MinMTUIPv6 = 1280
	MaxMTU     = 65535
)

// DefaultMTU is used where an MTU is left 0 and nothing better is known.
const DefaultMTU = 1500

// OverlayMTU returns the largest inner IP packet that fits an underlay of the
// given MTU without fragments. The underlay must be able to carry its own
// family, and the result at least [MinMTUIPv4]; whether the result carries
// IPv6 (at least [MinMTUIPv6]) is for the caller to see. The error is an
// [*InputError].
func OverlayMTU(underlay int, ipv6Underlay bool) (int, error) {
	if err := checkMTU("underlay MTU", underlay, ipv6Underlay); err != nil {
		return 0, err
	}
	inner := underlay - overhead(ipv6Underlay)
	if inner < MinMTUIPv4 {
		return 0, &InputError{
			Field: "underlay MTU", Value: strconv.Itoa(underlay),
			Reason: fmt.Sprintf("leaves %d bytes for the inner packet, which needs %d", inner, MinMTUIPv4),
		}
	}
	return inner, nil
}

// UnderlayMTU is the inverse of [OverlayMTU]: the smallest underlay MTU that
// carries inner packets of overlay bytes.
func UnderlayMTU(overlay int, ipv6Underlay bool) (int, error) {
	if err := checkMTU("overlay MTU", overlay, false); err != nil {
		return 0, err
	}
	outer := overlay + overhead(ipv6Underlay)
	if ipv6Underlay {
		outer = max(outer, MinMTUIPv6)
	}
	if outer > MaxMTU {
		return 0, &InputError{
			Field: "overlay MTU", Value: strconv.Itoa(overlay),
			Reason: fmt.Sprintf("needs an underlay of %d, above the limit of %d", outer, MaxMTU),
		}
	}
	return outer, nil
}

func overhead(ipv6Underlay bool) int {
	if ipv6Underlay {
		return OverheadIPv6
	}
	return OverheadIPv4
}

// checkMTU reports an MTU that no link has, or that is too small for IPv6.
func checkMTU(field string, mtu int, ipv6 bool) error {
	low, family := MinMTUIPv4, "IPv4"
	if ipv6 {
		low, family = MinMTUIPv6, "IPv6"
	}
	switch {
	case mtu < low:
		return &InputError{Field: field, Value: strconv.Itoa(mtu), Reason: fmt.Sprintf("is below %d, the least for %s", low, family)}
	case mtu > MaxMTU:
		return &InputError{Field: field, Value: strconv.Itoa(mtu), Reason: fmt.Sprintf("is above %d", MaxMTU)}
	}
	return nil
}
