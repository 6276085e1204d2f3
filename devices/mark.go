// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// mark stores the alias by which we know the device again. It is the first step
// after a device is made: the kernel ignores an alias in the request that makes
// one.
func (c conn) mark(l netlink.Link, alias string) error {
	if l.Attrs().Alias == alias {
		return nil
	}
	if err := c.LinkSetAlias(l, alias); err != nil {
		return fmt.Errorf("set the alias of device %s: %w", l.Attrs().Name, explainPermission(absent(err)))
	}
	l.Attrs().Alias = alias
	return nil
}

// checkMark answers ErrForeign for a device that does not carry the alias.
func checkMark(l netlink.Link, alias string) error {
	a := l.Attrs()
	if a.Alias == alias {
		return nil
	}
	return fmt.Errorf("%s %s has the alias %q and not %q: %w; remove it or choose another name", l.Type(), a.Name, a.Alias, alias, ErrForeign)
}

// end is a device with a socket of its namespace.
type end struct {
	conn
	link netlink.Link
}

// claim marks a device that a process made and could not mark before it was
// killed, and is nil if it carries the alias already. Such a device has no
// alias, is down and has no address, and so are its other ends. Whatever more
// there is was put there by somebody else: ErrForeign.
func (c conn) claim(l netlink.Link, alias string, others ...end) error {
	if l.Attrs().Alias == alias {
		return nil
	}
	blank := l.Attrs().Alias == ""
	for _, e := range append(others, end{c, l}) {
		if !blank {
			break
		}
		a := e.link.Attrs()
		addrs, err := e.addrs(a.Index)
		if err != nil {
			return fmt.Errorf("list the addresses of device %s: %w", a.Name, err)
		}
		blank = a.RawFlags&unix.IFF_UP == 0 && len(addrs) == 0
	}
	if blank {
		return c.mark(l, alias)
	}
	// Another call for the same thing may have made the device, and it marks
	// before it goes on. So the mark is there now if what we saw is its work.
	fresh, err := c.byIndex(l.Attrs().Index)
	if err != nil {
		return err
	}
	l.Attrs().Alias = fresh.Attrs().Alias
	return checkMark(l, alias)
}
