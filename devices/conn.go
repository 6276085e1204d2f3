// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// conn is a netlink socket in one namespace. It stays there, whichever thread
// uses it.
type conn struct {
	*netlink.Handle
}

// withConn runs fn on a thread inside ns, with a socket of that namespace. So
// fn may also touch /proc/sys/net, which follows the thread.
func withConn(ns Namespace, fn func(conn) error) error {
	return ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink in namespace %s: %w", ns, explainPermission(err))
		}
		defer h.Close()
		return fn(conn{h})
	})
}

// maxDumps bounds the patience with a list that changes while it is read. Each
// turn is one whole read, so this is seconds on a machine with many devices.
const maxDumps = 200

// retryDump calls list until the kernel says that nothing changed in the middle
// of the answer. Without this a list is silently short: the library returns
// what it has together with ErrDumpInterrupted.
func retryDump[T any](list func() (T, error)) (T, error) {
	for range maxDumps {
		all, err := list()
		if err == nil {
			return all, nil
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			var none T
			return none, err
		}
	}
	var none T
	return none, fmt.Errorf("the list changed during each of %d reads: %w", maxDumps, netlink.ErrDumpInterrupted)
}

// absent turns the ways in which netlink says "no such device" into
// os.ErrNotExist.
func absent(err error) error {
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) || errors.Is(err, unix.ENODEV) {
		return os.ErrNotExist
	}
	return err
}

// find returns the device that answers to name. The kernel also looks among
// the alternative names, see isNamed.
func (c conn) find(name string) (netlink.Link, error) {
	l, err := retryDump(func() (netlink.Link, error) { return c.LinkByName(name) })
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", name, absent(err))
	}
	return l, nil
}

func (c conn) byIndex(index int) (netlink.Link, error) {
	l, err := c.LinkByIndex(index)
	if err != nil {
		return nil, fmt.Errorf("find device with ifindex %d: %w", index, absent(err))
	}
	return l, nil
}

// findKind returns the device of that name if it is of the wanted kind, nil if
// there is none, and ErrForeign otherwise. Whose it is, only its mark tells.
func (c conn) findKind(name, kind string) (netlink.Link, error) {
	l, err := c.find(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case l.Attrs().Name != name:
		return nil, fmt.Errorf("%s is an alternative name of device %s: %w", name, l.Attrs().Name, ErrForeign)
	case l.Type() != kind:
		return nil, fmt.Errorf("device %s is a %s and not a %s: %w; remove it or choose another name", name, l.Type(), kind, ErrForeign)
	}
	return l, nil
}

func (c conn) remove(l netlink.Link) error {
	err := absent(c.LinkDel(l))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove device %s: %w", l.Attrs().Name, explainPermission(err))
	}
	return nil
}

// shape is what a device must look like. Zero fields are left as they are.
type shape struct {
	mtu   int
	mac   net.HardwareAddr
	noARP bool
}

// reshape changes what differs and nothing else.
func (c conn) reshape(l netlink.Link, want shape) error {
	a := l.Attrs()
	step := func(what string, err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("set the %s of device %s: %w", what, a.Name, explainPermission(absent(err)))
	}
	if want.noARP && a.RawFlags&unix.IFF_NOARP == 0 {
		if err := step("NOARP flag", c.LinkSetARPOff(l)); err != nil {
			return err
		}
	}
	if want.mtu != 0 && a.MTU != want.mtu {
		// Across 1280 the kernel gives the device IPv6 anew, with the settings that
		// new devices have. On a device that is down they can be set before
		// anything comes of them; up brings it back.
		if a.MTU < MinMTUIPv6 && want.mtu >= MinMTUIPv6 && a.RawFlags&unix.IFF_UP != 0 {
			if err := step("state", c.LinkSetDown(l)); err != nil {
				return err
			}
			a.RawFlags &^= unix.IFF_UP
		}
		if err := step("MTU", c.LinkSetMTU(l, want.mtu)); err != nil {
			return err
		}
	}
	if want.mac != nil && !bytes.Equal(a.HardwareAddr, want.mac) {
		if err := step("MAC", c.LinkSetHardwareAddr(l, want.mac)); err != nil {
			return err
		}
	}
	return nil
}

// up brings a device up if it is not.
func (c conn) up(l netlink.Link) error {
	if l.Attrs().RawFlags&unix.IFF_UP != 0 {
		return nil
	}
	if err := c.LinkSetUp(l); err != nil {
		return fmt.Errorf("set device %s up: %w", l.Attrs().Name, explainPermission(absent(err)))
	}
	return nil
}
