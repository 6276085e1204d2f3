// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is a device as it was when it was read. It is a plain value and does
// not follow the device.
type Link struct {
	Index int              // ifindex in the namespace it was read in, from 1
	Name  string           // at most 15 bytes
	MAC   net.HardwareAddr // 6 bytes; nil if the device has none
	MTU   int              // bytes of an IP packet
	Kind  string           // as the kernel says: "veth", "vxlan", …; "device" for hardware and loopback
	Up    bool             // set up by the administrator, whether or not there is a carrier
	Addrs []netip.Prefix   // with the prefix length of the device, IPv4 first
}

// Ifindex returns l.Index, for those who only need to know where to attach.
func (l Link) Ifindex() int { return l.Index }

// ListLinks returns all devices of a namespace in the order of their ifindex.
// The list is of one moment: a read that was overtaken by a change is repeated.
func ListLinks(ns Namespace) ([]Link, error) {
	var all []Link
	err := withConn(ns, func(c conn) error {
		links, err := retryDump(c.LinkList)
		if err != nil {
			return err
		}
		addrs, err := c.addrs(0)
		if err != nil {
			return err
		}
		for _, l := range links {
			all = append(all, toLink(l, addrs))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	slices.SortFunc(all, func(a, b Link) int { return a.Index - b.Index })
	return all, nil
}

// FindLink returns the device of that name. If there is none,
// errors.Is(err, os.ErrNotExist).
func FindLink(ns Namespace, name string) (Link, error) {
	if err := CheckName(name); err != nil {
		return Link{}, fmt.Errorf("find device: %w", err)
	}
	var found Link
	err := withConn(ns, func(c conn) error {
		l, err := c.find(name)
		if err != nil {
			return err
		}
		if l.Attrs().Name != name {
			return fmt.Errorf("find device %s: %w", name, os.ErrNotExist)
		}
		found, err = c.describe(l)
		return err
	})
	return found, err
}

// RemoveLink removes a device, and with a veth its peer. The device must still
// have both the ifindex and the name of l: an ifindex that has another name now,
// or a name that another device has taken, is [ErrForeign] and nothing is done.
// Nil if there is neither.
func RemoveLink(ns Namespace, l Link) error {
	err := withConn(ns, func(c conn) error {
		got, err := c.guard(l)
		if err != nil || got == nil {
			return err
		}
		return c.remove(got)
	})
	if err != nil {
		return fmt.Errorf("remove device %s: %w", l.Name, err)
	}
	return nil
}

// SetLinkUp brings a device up, with the guard of [RemoveLink]. An absent
// device answers errors.Is(err, os.ErrNotExist). It is for endpoints that were
// made with [Endpoint.Hold].
func SetLinkUp(ns Namespace, l Link) error {
	err := withConn(ns, func(c conn) error {
		got, err := c.guard(l)
		if err != nil {
			return err
		}
		if got == nil {
			return os.ErrNotExist
		}
		return c.up(got)
	})
	if err != nil {
		return fmt.Errorf("set device %s up: %w", l.Name, err)
	}
	return nil
}

// guard returns the device that is l by ifindex and by name, nil if neither
// exists, and ErrForeign if only one of them fits.
func (c conn) guard(l Link) (netlink.Link, error) {
	if err := CheckName(l.Name); err != nil {
		return nil, err
	}
	if l.Index <= 0 {
		return nil, &InputError{Field: "ifindex", Value: fmt.Sprint(l.Index), Reason: "is not positive"}
	}
	got, err := c.byIndex(l.Index)
	switch {
	case err == nil && got.Attrs().Name == l.Name:
		return got, nil
	case err == nil:
		return nil, fmt.Errorf("ifindex %d is device %s now: %w", l.Index, got.Attrs().Name, ErrForeign)
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	// The device is gone. Its name may have a new owner already.
	other, err := c.find(l.Name)
	switch {
	case err == nil:
		return nil, fmt.Errorf("the name is of ifindex %d now and not of %d: %w", other.Attrs().Index, l.Index, ErrForeign)
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	}
	return nil, err
}

// describe reads the addresses of l.
func (c conn) describe(l netlink.Link) (Link, error) {
	addrs, err := c.addrs(l.Attrs().Index)
	if err != nil {
		return Link{}, fmt.Errorf("list the addresses of device %s: %w", l.Attrs().Name, err)
	}
	return toLink(l, addrs), nil
}

// again reads a device anew by its ifindex, addresses included.
func (c conn) again(l netlink.Link) (Link, error) {
	fresh, err := c.byIndex(l.Attrs().Index)
	if err != nil {
		return Link{}, err
	}
	return c.describe(fresh)
}

// toLink takes of addrs those of the device.
func toLink(l netlink.Link, addrs []netlink.Addr) Link {
	a := l.Attrs()
	out := Link{
		Index: a.Index,
		Name:  a.Name,
		MAC:   slices.Clone(a.HardwareAddr),
		MTU:   a.MTU,
		Kind:  l.Type(),
		Up:    a.RawFlags&unix.IFF_UP != 0,
	}
	for _, addr := range addrs {
		if addr.LinkIndex == a.Index {
			out.Addrs = append(out.Addrs, prefixOf(addr))
		}
	}
	slices.SortStableFunc(out.Addrs, func(a, b netip.Prefix) int { return a.Addr().BitLen() - b.Addr().BitLen() })
	return out
}
