// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addrs returns the addresses of one device, or of all if index is 0.
func (c conn) addrs(index int) ([]netlink.Addr, error) {
	var on netlink.Link
	if index != 0 {
		on = &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
	}
	return retryDump(func() ([]netlink.Addr, error) { return c.AddrList(on, netlink.FAMILY_ALL) })
}

// ensureAddrs gives the device exactly the wanted addresses, each as /32 or
// /128. Where the kernel gives IPv6 link-local addresses, they stay.
func (c conn) ensureAddrs(l netlink.Link, want []netip.Addr, linkLocal bool) error {
	name := l.Attrs().Name
	have, err := c.addrs(l.Attrs().Index)
	if err != nil {
		return fmt.Errorf("list the addresses of device %s: %w", name, err)
	}
	present := make(map[netip.Addr]bool)
	for i := range have {
		p := prefixOf(have[i])
		if linkLocal && p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			continue
		}
		// An address that failed duplicate detection, or still waits for it, is
		// there and can not be used.
		broken := have[i].Flags&(unix.IFA_F_DADFAILED|unix.IFA_F_TENTATIVE) != 0
		if p.IsSingleIP() && !broken && contains(want, p.Addr()) {
			present[p.Addr()] = true
			continue
		}
		err := c.AddrDel(l, &have[i])
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s from device %s: %w", p, name, explainPermission(absent(err)))
		}
	}
	for _, a := range want {
		if present[a] {
			continue
		}
		p := netip.PrefixFrom(a, a.BitLen())
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if a.Is6() {
			// The address is ours alone, and duplicate detection would make it
			// unusable for a second and more.
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := c.AddrAdd(l, addr); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("add address %s to device %s: %w", p, name, explainPermission(absent(err)))
		}
	}
	return nil
}

func contains(all []netip.Addr, a netip.Addr) bool {
	for _, b := range all {
		if a == b {
			return true
		}
	}
	return false
}

// ipNet and the two below are the border between netip and the net types of
// the netlink library.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(a netlink.Addr) netip.Prefix {
	if a.IPNet == nil {
		return netip.Prefix{}
	}
	return fromIPNet(a.IPNet)
}

func fromIPNet(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	// 0.0.0.0/0 comes from the library with 16 bytes of address.
	if addr.Is4In6() && bits == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, ones)
}
