// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
)

// checkAddr returns a without the IPv4-in-IPv6 form, or why it can not be the
// address of one machine.
func checkAddr(field string, a netip.Addr) (netip.Addr, error) {
	bad := func(reason string) (netip.Addr, error) {
		return netip.Addr{}, &InputError{Field: field, Value: a.String(), Reason: reason}
	}
	u := a.Unmap()
	switch {
	case !a.IsValid():
		return bad("is not set")
	case a.Zone() != "":
		return bad("has a zone")
	case u.IsUnspecified():
		return bad("is unspecified")
	case u.IsMulticast():
		return bad("is multicast")
	case u.IsLoopback():
		return bad("is loopback")
	case u == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return bad("is broadcast")
	}
	return u, nil
}

// checkAddrs checks each address and that no family comes twice.
func checkAddrs(field string, addrs []netip.Addr) ([]netip.Addr, error) {
	out := make([]netip.Addr, 0, len(addrs))
	for _, a := range addrs {
		u, err := checkAddr(field, a)
		if err != nil {
			return nil, err
		}
		for _, other := range out {
			if other.Is4() == u.Is4() {
				return nil, &InputError{Field: field, Value: u.String(), Reason: fmt.Sprintf("is the second of its family, after %s", other)}
			}
		}
		out = append(out, u)
	}
	return out, nil
}

// checkOwnAddrs checks addresses that are put on a device: there is one at
// least, and none is IPv6 link-local, which the kernel manages.
func checkOwnAddrs(field string, addrs []netip.Addr) ([]netip.Addr, error) {
	if len(addrs) == 0 {
		return nil, &InputError{Field: field, Reason: "is missing; give one address per family"}
	}
	out, err := checkAddrs(field, addrs)
	if err != nil {
		return nil, err
	}
	for _, a := range out {
		if a.Is6() && a.IsLinkLocalUnicast() {
			return nil, &InputError{Field: field, Value: a.String(), Reason: "is link-local"}
		}
	}
	return out, nil
}

// checkPrefix returns p without the IPv4-in-IPv6 form, or why it is no network.
func checkPrefix(field string, p netip.Prefix) (netip.Prefix, error) {
	bad := func(reason string) (netip.Prefix, error) {
		return netip.Prefix{}, &InputError{Field: field, Value: p.String(), Reason: reason}
	}
	if !p.IsValid() {
		return bad("is not valid")
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return bad("is IPv4-mapped and shorter than /96")
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p != p.Masked() {
		return bad(fmt.Sprintf("has host bits; the network is %s", p.Masked()))
	}
	if p.Addr().IsMulticast() {
		return bad("is multicast")
	}
	return p, nil
}

// checkMAC accepts nil, which means "choose one".
func checkMAC(field string, mac net.HardwareAddr) error {
	switch {
	case mac == nil:
		return nil
	case len(mac) != 6:
		return &InputError{Field: field, Value: mac.String(), Reason: "is not 6 bytes"}
	case mac[0]&1 != 0:
		return &InputError{Field: field, Value: mac.String(), Reason: "is a group address"}
	case bytes.Equal(mac, make([]byte, 6)):
		return &InputError{Field: field, Value: mac.String(), Reason: "is zero"}
	}
	return nil
}

// orRandom returns mac, or a random address with the local bit set and the
// group bit clear (IEEE 802).
func orRandom(mac net.HardwareAddr) net.HardwareAddr {
	if mac != nil {
		return mac
	}
	mac = make(net.HardwareAddr, 6)
	rand.Read(mac) // never fails since Go 1.24
	mac[0] = mac[0]&^1 | 2
	return mac
}

func has6(addrs []netip.Addr) bool {
	for _, a := range addrs {
		if a.Is6() {
			return true
		}
	}
	return false
}
