// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/undo"
	"github.com/godatapath/datapath/internal/wire"
)

// PrepareEndpoint puts the programs on the host-side device of an endpoint to
// come. What the device sends is dropped until the endpoint is known, and
// nothing is delivered to it before AttachEndpoint. If it fails, what was on the
// device before is there as before.
//
// Attaching with tcx makes the kernel wait for an RCU grace period, some
// milliseconds, whatever is attached. Our programs do not depend on the
// endpoint, so an agent that adds endpoints often keeps a few devices prepared:
// AttachEndpoint of one costs microseconds.
func (d *Datapath) PrepareEndpoint(l Link) (err error) {
	var u undo.Stack
	defer u.Run(&err)
	return d.prepare(&u, l.Ifindex())
}

func (d *Datapath) prepare(u *undo.Stack, ifindex int) error {
	if d.endpoints == nil {
		return invalid.Errorf("prepare an endpoint: the datapath was loaded without an endpoint table: pass a maps.Endpoints to Load")
	}
	for _, h := range d.endpointHooks() {
		fresh, err := d.attach(h, ifindex)
		if err != nil {
			return fmt.Errorf("prepare interface %d: %w", ifindex, err)
		}
		if fresh {
			u.Push(func() error { return d.detach(h, ifindex) })
		}
	}
	return nil
}

// AttachEndpoint puts the programs on the host-side device of an endpoint and
// opens it: from then on, and not before, packets are delivered to it. The
// endpoint table must have the endpoint: what the programs do not know they
// drop. Of each family of its addresses the node must have a gateway, if it has
// one at all, for nobody else answers the endpoint's questions about it. On a
// device that has our programs already they are replaced in place. If it fails,
// what was on the device before is there as before.
func (d *Datapath) AttachEndpoint(l Link) (err error) {
	if d.endpoints == nil {
		return invalid.Errorf("attach an endpoint: the datapath was loaded without an endpoint table: pass a maps.Endpoints to Load")
	}
	ifindex := uint32(l.Ifindex())
	var ep bpf.TableEndpoint
	if err := d.endpoints.Lookup(ifindex, &ep); err != nil {
		return fmt.Errorf("attach the endpoint of interface %d: set it in the endpoint table first: %w", ifindex, err)
	}
	if err := d.hasGateways(ep); err != nil {
		return fmt.Errorf("attach endpoint %d: %w", ep.Id, err)
	}
	var u undo.Stack
	defer u.Run(&err)
	if err := d.prepare(&u, l.Ifindex()); err != nil {
		return fmt.Errorf("attach endpoint %d: %w", ep.Id, err)
	}
	if err := d.open(ifindex, ep.Id); err != nil {
		return fmt.Errorf("attach endpoint %d: open it to packets: %w", ep.Id, err)
	}
	return d.state.Bump()
}

// hasGateways checks the families of an endpoint against those of the node.
func (d *Datapath) hasGateways(ep bpf.TableEndpoint) error {
	if len(d.cfg.Gateways) == 0 {
		return nil
	}
	has := map[bool]bool{}
	for _, g := range d.cfg.Gateways {
		has[g.Unmap().Is4()] = true
	}
	for _, a := range ep.Addrs {
		if a == (bpf.TableAddress{}) {
			continue
		}
		if addr := wire.GoAddr(a); !has[addr.Is4()] {
			return fmt.Errorf("it has address %s, and the node no gateway of that family: add one to Config.Gateways: %w", addr, unix.EAFNOSUPPORT)
		}
	}
	return nil
}

// open lets packets in. The table has room for as many endpoints as there can
// be, so if it is full it holds some that are gone.
func (d *Datapath) open(ifindex, id uint32) error {
	err := d.attached.Put(ifindex, id)
	if errors.Is(err, unix.E2BIG) {
		if err := d.prune(); err != nil {
			return err
		}
		err = d.attached.Put(ifindex, id)
	}
	if err != nil {
		return fmt.Errorf("table %s: %w", attachedTable, err)
	}
	return nil
}

// prune forgets what endpoints have left that went without DetachEndpoint:
// their entries among the attached, and pins whose device is gone.
func (d *Datapath) prune() error {
	var gone []uint32
	var ifindex, id uint32
	for all := d.attached.Iterate(); all.Next(&ifindex, &id); {
		var ep bpf.TableEndpoint
		switch err := d.endpoints.Lookup(ifindex, &ep); {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			gone = append(gone, ifindex)
		case err != nil:
			return fmt.Errorf("forget the endpoints that are gone: %w", err)
		case ep.Id != id:
			gone = append(gone, ifindex)
		}
	}
	for _, ifindex := range gone {
		if err := d.attached.Delete(ifindex); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget the endpoints that are gone: table %s: %w", attachedTable, err)
		}
	}
	return removeDeadLinks(d.cfg.Pins)
}

// removeDeadLinks takes the pins of attachments away whose device is gone.
func removeDeadLinks(pins string) error {
	if pins == "" {
		return nil
	}
	dir := filepath.Join(pins, linksFolder)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list the pinned links: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		l, err := link.LoadPinnedLink(path, nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("open the attachment at %s: %w", path, err))
			continue
		}
		alive := &Attachment{link: l}
		is, err := alive.alive(ifindexOf(e.Name()))
		if err == nil && !is {
			err = os.Remove(path)
		}
		errs = append(errs, err, l.Close())
	}
	return errors.Join(errs...)
}

// ifindexOf reads the end of a pin's name, see pinOf.
func ifindexOf(name string) int {
	n, err := strconv.Atoi(name[strings.LastIndexByte(name, '-')+1:])
	if err != nil {
		return 0
	}
	return n
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
