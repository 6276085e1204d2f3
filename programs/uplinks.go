// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/undo"
	"github.com/godatapath/datapath/internal/wire"
)

// MostUplinks and MostNodeAddrs is how many a node can have.
const (
	MostUplinks   = 64
	MostNodeAddrs = 1024
)

// AttachDevice puts from_device on an uplink and makes it a way out of the node:
// what endpoints send to where the node's routes lead by it leaves without the
// node's stack, and what comes in by it for an endpoint, for a service or as an
// answer goes straight on; all else is left to the stack. Packets of the overlay
// whose flow has its verdict take a short cut from here into their endpoint, if
// tunnel.Config.Node tells the node's own address. None of them meets the node's
// netfilter rules.
//
// addrs are what leaves here in the node's name has as its source, at most one of
// a family: by masquerade (conntrack.NAT) and to backends of services on other
// nodes. The answers must come back by one of the uplinks. Calling it again with
// other addresses changes them; flows that leave with an address that has gone
// begin anew. A flow table is needed. The kernel must forward: see
// devices.EnsureForwarding.
func (d *Datapath) AttachDevice(l Link, addrs ...netip.Addr) (err error) {
	if d.programs[hookFromDevice.name] == nil {
		return invalid.Errorf("attach a device: the datapath was loaded without a flow table: pass a conntrack.Table to Load")
	}
	var row bpf.TableUplink
	for _, a := range addrs {
		a, err := wire.CheckAddr(a)
		if err != nil {
			return fmt.Errorf("attach device %d: %w", l.Ifindex(), err)
		}
		at := &row.Addrs[1]
		if a.Is4() {
			at = &row.Addrs[0]
		}
		if *at != (bpf.TableAddress{}) {
			return invalid.Errorf("attach device %d: address %s: a second one of its family", l.Ifindex(), a)
		}
		*at = wire.Addr(a)
	}
	if err := d.enter(); err != nil {
		return fmt.Errorf("attach device %d: %w", l.Ifindex(), err)
	}
	defer d.own.Unlock()
	var u undo.Stack
	defer u.Run(&err)
	// The answers must find the program before anything leaves.
	fresh, err := d.attach(hookFromDevice, l.Ifindex())
	if err != nil {
		return fmt.Errorf("attach device %d: %w", l.Ifindex(), err)
	}
	if fresh {
		u.Push(func() error { return d.detach(hookFromDevice, l.Ifindex()) })
	}
	ifindex := uint32(l.Ifindex())
	var have bpf.TableUplink
	if err := d.uplinks.Lookup(ifindex, &have); err == nil {
		if d.programs[hookXDP.name] != nil {
			row.Flags = have.Flags
		} else if err := d.detach(hookXDP, l.Ifindex()); err != nil {
			return fmt.Errorf("attach device %d: take off the XDP program of an earlier load: %w", ifindex, err)
		}
		if have == row {
			return nil
		}
	}
	if err := d.uplinks.Put(ifindex, row); err != nil {
		if errors.Is(err, unix.E2BIG) {
			return fmt.Errorf("attach device %d: %d are all that a node can have: %w", l.Ifindex(), MostUplinks, err)
		}
		return fmt.Errorf("attach device %d: table %s: %w", l.Ifindex(), uplinksTable, err)
	}
	return d.countUplinks()
}

// DetachDevice makes a device no way out of the node any more and takes
// from_device off it. Nil if it is not there, or if the device is gone.
func (d *Datapath) DetachDevice(l Link) error {
	ifindex := uint32(l.Ifindex())
	if err := d.enter(); err != nil {
		return fmt.Errorf("detach device %d: %w", ifindex, err)
	}
	defer d.own.Unlock()
	if err := d.uplinks.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("detach device %d: table %s: %w", ifindex, uplinksTable, err)
	}
	if err := d.countUplinks(); err != nil {
		return err
	}
	if err := errors.Join(d.detach(hookXDP, l.Ifindex()), d.detach(hookFromDevice, l.Ifindex())); err != nil {
		return fmt.Errorf("detach device %d: %w", ifindex, err)
	}
	return nil
}

// AttachXDP puts a short cut before from_device on an uplink: packets that leave
// the node again as soon as they have come, to a backend of a service that is on
// another node and back from it, are sent by the driver before the kernel has
// made anything of them. Only flows that have their verdict take it; those of
// NodePorts with backends here, of the overlay and of masquerade do not.
//
// AttachDevice comes first, and does all of it where this can not be had: a
// driver without XDP answers [ebpf.ErrNotSupported]. Between two uplinks packets
// take it if both have it. What arrives must have its checksums: on a veth, a
// neighbour namespace must not leave them to a device (ethtool -K tx off), and the
// other end needs a program of XDP too, or it does not wake up for what is sent.
func (d *Datapath) AttachXDP(l Link) (err error) {
	if d.programs[hookXDP.name] == nil {
		return invalid.Errorf("attach XDP: the program is not loaded: set Config.XDP, and pass a conntrack.Table to Load")
	}
	ifindex := uint32(l.Ifindex())
	if err := d.enter(); err != nil {
		return fmt.Errorf("attach XDP to device %d: %w", ifindex, err)
	}
	defer d.own.Unlock()
	var row bpf.TableUplink
	if err := d.uplinks.Lookup(ifindex, &row); err != nil {
		return fmt.Errorf("attach XDP to device %d: it is no uplink yet: call AttachDevice first: %w", ifindex, err)
	}
	if _, err := d.attach(hookXDP, l.Ifindex()); err != nil {
		return fmt.Errorf("attach XDP to device %d: %w", ifindex, err)
	}
	if row.Flags&uint32(bpf.TableUplinkFlagUPLINK_XDP) != 0 {
		return nil
	}
	row.Flags |= uint32(bpf.TableUplinkFlagUPLINK_XDP)
	if err := d.uplinks.Put(ifindex, row); err != nil {
		return errors.Join(fmt.Errorf("attach XDP to device %d: table %s: %w", ifindex, uplinksTable, err), d.detach(hookXDP, l.Ifindex()))
	}
	return nil
}

// DetachXDP takes it off again. Nil if it is not there.
func (d *Datapath) DetachXDP(l Link) error {
	ifindex := uint32(l.Ifindex())
	if err := d.enter(); err != nil {
		return fmt.Errorf("detach XDP from device %d: %w", ifindex, err)
	}
	defer d.own.Unlock()
	var row bpf.TableUplink
	if err := d.uplinks.Lookup(ifindex, &row); err == nil && row.Flags != 0 {
		row.Flags = 0
		if err := d.uplinks.Put(ifindex, row); err != nil {
			return fmt.Errorf("detach XDP from device %d: table %s: %w", ifindex, uplinksTable, err)
		}
	}
	if err := d.detach(hookXDP, l.Ifindex()); err != nil {
		return fmt.Errorf("detach XDP from device %d: %w", ifindex, err)
	}
	return nil
}

// enter takes the lock of the tables of uplinks and addresses, unless they are closed.
func (d *Datapath) enter() error {
	d.own.Lock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		d.own.Unlock()
		return os.ErrClosed
	}
	return nil
}

// countUplinks tells the programs how many there are, and ends the epoch.
func (d *Datapath) countUplinks() error {
	all, err := d.listUplinks()
	if err != nil {
		return err
	}
	return d.state.SetUplinks(uint16(len(all)))
}

func (d *Datapath) listUplinks() ([]uint32, error) {
	var all []uint32
	var ifindex uint32
	var row bpf.TableUplink
	rows := d.uplinks.Iterate()
	for rows.Next(&ifindex, &row) {
		all = append(all, ifindex)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list the uplinks: %w", err)
	}
	return all, nil
}

// pruneUplinks forgets the pinned uplinks whose device is gone, by their pins.
func (d *Datapath) pruneUplinks() error {
	if err := removeDeadLinks(d.cfg.Pins); err != nil {
		return err
	}
	all, err := d.listUplinks()
	if err != nil {
		return err
	}
	for _, ifindex := range all {
		if _, err := os.Lstat(d.pinOf(hookFromDevice, int(ifindex))); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := d.uplinks.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget uplink %d, which is gone: %w", ifindex, err)
		}
	}
	return d.countUplinks()
}

// SetNodeAddrs tells the programs all addresses of the node, those of its uplinks
// and of its other devices; the gateways and the node's address in the overlay are
// known already. Nobody else may send from one, and what is for one is for the
// node's stack, whatever a route says. A node that masquerades must tell them
// all: what endpoints send to one that is not told is dropped. Call it again
// after a change.
func (d *Datapath) SetNodeAddrs(addrs ...netip.Addr) error {
	want := map[bpf.TableAddress]bool{}
	for _, a := range addrs {
		a, err := wire.CheckAddr(a)
		if err != nil {
			return fmt.Errorf("set the node's addresses: %w", err)
		}
		want[wire.Addr(a)] = true
	}
	if len(want) > MostNodeAddrs {
		return fmt.Errorf("set the node's addresses: %d, and %d are all that a node can have: %w", len(want), MostNodeAddrs, unix.E2BIG)
	}
	if err := d.enter(); err != nil {
		return fmt.Errorf("set the node's addresses: %w", err)
	}
	defer d.own.Unlock()
	var gone []bpf.TableAddress
	var a bpf.TableAddress
	var nothing uint32
	rows := d.addresses.Iterate()
	for rows.Next(&a, &nothing) {
		if want[a] {
			delete(want, a)
		} else {
			gone = append(gone, a)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("list the node's addresses: %w", err)
	}
	for _, a := range gone {
		if err := d.addresses.Delete(a); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("set the node's addresses: forget %s: %w", wire.GoAddr(a), err)
		}
	}
	for a := range want {
		if err := d.addresses.Put(a, nothing); err != nil {
			return fmt.Errorf("set the node's addresses: %s: %w", wire.GoAddr(a), err)
		}
	}
	if len(gone)+len(want) == 0 {
		return nil
	}
	return d.state.Bump()
}
