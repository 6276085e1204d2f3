// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
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
		return fmt.Errorf("attach the host pair: MAC address %q: want 6 bytes", mac)
	}
	if err := d.attach(hookFromHost, p.NetIfindex()); err != nil {
		return fmt.Errorf("attach the host pair: %w", err)
	}
	return d.state.SetHost(uint32(p.HostIfindex()), uint32(p.NetIfindex()), mac)
}

// AttachOverlay puts from_overlay on the overlay device and lets the programs
// send through it. Calling it again with a new device moves over to that.
func (d *Datapath) AttachOverlay(l Link) error {
	if err := d.attach(hookFromOverlay, l.Ifindex()); err != nil {
		return fmt.Errorf("attach the overlay: %w", err)
	}
	return d.state.SetOverlay(uint32(l.Ifindex()))
}

// AttachUnderlay puts from_underlay on an uplink, a short cut that is optional:
// packets of the overlay whose flow is settled go from there straight into their
// endpoint, without the node's stack and the overlay device on their way. It
// saves a quarter to a third of what the overlay adds to a veth. Such packets do not meet the
// node's netfilter rules for input. The peers block must know the node's own
// address (tunnel.Config.Node); everything else that arrives is left alone.
func (d *Datapath) AttachUnderlay(l Link) error {
	if !d.shortCut {
		return errors.New("attach the underlay: the peers block does not know the node's own address: set tunnel.Config.Node")
	}
	if err := d.attach(hookFromUnderlay, l.Ifindex()); err != nil {
		return fmt.Errorf("attach the underlay: %w", err)
	}
	return nil
}

// DetachUnderlay takes from_underlay off an uplink. Nil if it is not there.
func (d *Datapath) DetachUnderlay(l Link) error {
	if err := d.detach(hookFromUnderlay, l.Ifindex()); err != nil {
		return fmt.Errorf("detach the underlay: %w", err)
	}
	return nil
}

// PrepareEndpoint puts the programs on the host-side device of an endpoint to
// come. What the device sends is dropped until the endpoint is known, and
// nothing is delivered to it before AttachEndpoint.
//
// Attaching with tcx makes the kernel wait for an RCU grace period, some
// milliseconds, whatever is attached. Our programs do not depend on the
// endpoint, so an agent that adds endpoints often keeps a few devices prepared:
// AttachEndpoint of one costs microseconds.
func (d *Datapath) PrepareEndpoint(l Link) error {
	for _, h := range d.endpointHooks() {
		if err := d.attach(h, l.Ifindex()); err != nil {
			return errors.Join(fmt.Errorf("prepare interface %d: %w", l.Ifindex(), err), d.detachHooks(l.Ifindex()))
		}
	}
	return nil
}

// AttachEndpoint puts the programs on the host-side device of an endpoint and
// opens it: from then on, and not before, packets are delivered to it. The
// endpoint table must have the endpoint: what the programs do not know they
// drop. On a device that has our programs already they are replaced in place.
func (d *Datapath) AttachEndpoint(l Link) error {
	if d.endpoints == nil {
		return errors.New("attach an endpoint: the datapath was loaded without an endpoint table")
	}
	ifindex := uint32(l.Ifindex())
	var ep bpf.TableEndpoint
	if err := d.endpoints.Lookup(ifindex, &ep); err != nil {
		return fmt.Errorf("attach the endpoint of interface %d: set it in the endpoint table first: %w", ifindex, err)
	}
	if err := d.PrepareEndpoint(l); err != nil {
		return fmt.Errorf("attach endpoint %d: %w", ep.Id, err)
	}
	if err := d.attached.Put(ifindex, ep.Id); err != nil {
		return errors.Join(fmt.Errorf("attach endpoint %d: open it to packets: %w", ep.Id, err), d.detachHooks(l.Ifindex()))
	}
	return d.state.Bump()
}

// DetachEndpoint closes an endpoint to packets and takes our programs off its
// device. Nil if they are not there, or if the device is gone: then what it
// left behind is cleared away.
func (d *Datapath) DetachEndpoint(l Link) error {
	ifindex := uint32(l.Ifindex())
	if err := d.attached.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("detach the endpoint of interface %d: close it to packets: %w", ifindex, err)
	}
	// Established flows must stop before the check on what the endpoint sends goes.
	if err := d.state.Bump(); err != nil {
		return err
	}
	if err := d.detachHooks(l.Ifindex()); err != nil {
		return fmt.Errorf("detach the endpoint of interface %d: %w", ifindex, err)
	}
	return nil
}

func (d *Datapath) endpointHooks() []hook {
	if d.cfg.EndpointRoutes {
		return []hook{hookFromEndpoint, hookToEndpoint}
	}
	return []hook{hookFromEndpoint}
}

// detachHooks also clears what a load with other settings has attached.
func (d *Datapath) detachHooks(ifindex int) error {
	return errors.Join(d.detach(hookFromEndpoint, ifindex), d.detach(hookToEndpoint, ifindex))
}

func (d *Datapath) pinOf(h hook, ifindex int) string {
	if d.cfg.Pins == "" {
		return ""
	}
	return filepath.Join(d.cfg.Pins, linksFolder, fmt.Sprintf("%s-%d", h.name, ifindex))
}

func (d *Datapath) attach(h hook, ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return os.ErrClosed
	}
	key := linkKey{h.name, ifindex}
	if old := d.links[key]; old != nil {
		alive, err := old.alive(ifindex)
		if alive || err != nil {
			return err // it has our program: that was loaded once and for all
		}
		// The device is gone and another has its number.
		delete(d.links, key)
		if err := old.Remove(); err != nil {
			return err
		}
	}
	l, err := AttachProgram(Attach{
		Program: d.programs[h.name], Namespace: d.cfg.Namespace, Ifindex: ifindex,
		Direction: h.direction, Order: d.cfg.Order, Pin: d.pinOf(h, ifindex),
	})
	if err != nil {
		return err
	}
	d.links[key] = l
	return nil
}

func (d *Datapath) detach(h hook, ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return os.ErrClosed
	}
	key := linkKey{h.name, ifindex}
	if l := d.links[key]; l != nil {
		delete(d.links, key)
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
