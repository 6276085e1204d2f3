// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/invalid"
)

// Link is a device to attach to: a devices.Link or devices.EndpointLink.
type Link interface {
	// Ifindex is the device's number in the node's namespace.
	Ifindex() int
}

// HostPair is the two devices between the node's stack and the programs: a
// devices.HostLinks.
type HostPair interface {
	HostIfindex() int          // the end that has the node's address
	NetIfindex() int           // the end that the programs are on
	HostMAC() net.HardwareAddr // of the end that has the node's address
}

// AttachHost puts from_host on the host pair, and tells all programs where the
// node's stack is. Calling it again with new devices moves over to them.
func (d *Datapath) AttachHost(p HostPair) error {
	mac := p.HostMAC()
	if len(mac) != 6 {
		return invalid.Errorf("attach the host pair: MAC address %q: want 6 bytes", mac)
	}
	if _, err := d.attach(hookFromHost, p.NetIfindex()); err != nil {
		return fmt.Errorf("attach the host pair: %w", err)
	}
	return d.state.SetHost(uint32(p.HostIfindex()), uint32(p.NetIfindex()), mac)
}

// AttachOverlay puts from_overlay on the overlay device and lets the programs
// send through it. Calling it again with a new device moves over to that. A
// device that tells its port, as a devices.VXLANLink does, must have that of the
// peers block: endpoints are kept from this port, and could forge packets of the
// overlay through another.
func (d *Datapath) AttachOverlay(l Link) error {
	if d.programs[hookFromOverlay.name] == nil {
		return invalid.Errorf("attach the overlay: the datapath was loaded without a peers block: pass a tunnel.Peers to Load")
	}
	if v, ok := l.(interface{ OverlayPort() uint16 }); ok && v.OverlayPort() != d.overlayPort {
		return invalid.Errorf("attach the overlay: the device has port %d and the peers block %d: set tunnel.Config.Port", v.OverlayPort(), d.overlayPort)
	}
	if _, err := d.attach(hookFromOverlay, l.Ifindex()); err != nil {
		return fmt.Errorf("attach the overlay: %w", err)
	}
	return d.state.SetOverlay(uint32(l.Ifindex()))
}

func (d *Datapath) pinOf(h hook, ifindex int) string {
	if d.cfg.Pins == "" {
		return ""
	}
	return filepath.Join(d.cfg.Pins, linksFolder, fmt.Sprintf("%s-%d", h.name, ifindex))
}

// attach reports whether the hook was without our program before.
func (d *Datapath) attach(h hook, ifindex int) (fresh bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false, os.ErrClosed
	}
	key := linkKey{h.name, ifindex}
	if old := d.links[key]; old != nil {
		alive, err := old.alive(ifindex)
		if alive || err != nil {
			return false, err // it has our program: that was loaded once and for all
		}
		// The device is gone and another has its number.
		d.forget(key)
		if err := old.Remove(); err != nil {
			return false, err
		}
	}
	l, err := AttachProgram(Attach{
		Program: d.programs[h.name], Namespace: d.cfg.Namespace, Ifindex: ifindex,
		Direction: h.direction, Order: d.cfg.Order, Pin: d.pinOf(h, ifindex),
	})
	if err != nil {
		return false, err
	}
	d.links[key] = l
	d.order = append(d.order, key)
	return !l.replaced, nil
}

func (d *Datapath) forget(key linkKey) {
	delete(d.links, key)
	d.order = slices.DeleteFunc(d.order, func(k linkKey) bool { return k == key })
}

func (d *Datapath) detach(h hook, ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return os.ErrClosed
	}
	key := linkKey{h.name, ifindex}
	if l := d.links[key]; l != nil {
		d.forget(key)
		return l.Remove()
	}
	if pin := d.pinOf(h, ifindex); pin != "" {
		return removePinnedLink(pin)
	}
	return nil
}

// cookie notes in the state which namespace the node is.
func (d *Datapath) cookie() error {
	var cookie uint64
	err := d.cfg.do(func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	if errors.Is(err, unix.ENOPROTOOPT) {
		return nil // before 5.14; tools then have to be told the namespace
	}
	if err != nil {
		return fmt.Errorf("read the cookie of the node's namespace: %w", err)
	}
	return d.state.SetCookie(cookie)
}
