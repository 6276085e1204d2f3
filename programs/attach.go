// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpffs"
	"github.com/godatapath/datapath/internal/invalid"
)

// linksFolder holds the pinned attachments, below Config.Pins.
const linksFolder = "links"

// Direction is the side of a device, as the device sees it: Ingress is what it
// receives, which for the host side of an endpoint is what the endpoint sends.
type Direction uint8

const (
	Ingress Direction = iota + 1 // what the device receives
	Egress                       // what is sent through the device
	XDP                          // what the device receives, in its driver, before the kernel has made a packet of it
)

// String names the direction.
func (d Direction) String() string {
	switch d {
	case Ingress:
		return "ingress"
	case Egress:
		return "egress"
	case XDP:
		return "XDP"
	default:
		return fmt.Sprintf("Direction(%d)", uint8(d))
	}
}

func (d Direction) attachType() (ebpf.AttachType, error) {
	switch d {
	case Ingress:
		return ebpf.AttachTCXIngress, nil
	case Egress:
		return ebpf.AttachTCXEgress, nil
	case XDP:
		return ebpf.AttachXDP, nil
	default:
		return 0, invalid.Errorf("direction %s: want Ingress, Egress or XDP", d)
	}
}

// Attach says what to attach where.
type Attach struct {
	// Program is any tc program (type SchedCLS), or for XDP any of that type, ours or
	// the caller's. It is borrowed: the attachment holds it on its own.
	Program *ebpf.Program
	// Namespace is where the device is; nil: where the call is made.
	Namespace Namespace
	// Ifindex is the device, as Namespace counts.
	Ifindex int
	// Direction is the side of the device.
	Direction Direction
	// Order is the place among the programs of the hook: link.Head(),
	// link.Tail(), link.BeforeProgram(p), link.AfterProgram(p) and so on; nil:
	// behind all others. An attachment that exists keeps its place. XDP has one place.
	Order link.Anchor
	// Pin is a path on a bpf filesystem that makes the attachment outlive the
	// process; empty: it ends with Close.
	Pin string
}

// Attachment is a program on a hook.
type Attachment struct {
	link     link.Link
	pin      string
	id       link.ID // tells our pin from one that has taken its place; 0: not pinned
	replaced bool    // the hook had an attachment of ours before
}

// AttachProgram attaches a program with tcx (kernel 6.6). If something of ours
// is pinned at Pin already, its program is replaced in place: no packet sees
// the hook without one. A pinned attachment whose device is gone is thrown away
// and made anew. A device that does not exist answers unix.ENODEV, a kernel
// without tcx [ebpf.ErrNotSupported], and so does a driver without XDP.
func AttachProgram(a Attach) (*Attachment, error) {
	what := fmt.Sprintf("attach to interface %d %s", a.Ifindex, a.Direction)
	kind, err := a.Direction.attachType()
	switch {
	case err != nil:
	case a.Program == nil:
		err = invalid.Errorf("Program is nil")
	case a.Ifindex <= 0:
		err = invalid.Errorf("Ifindex is not that of a device")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if a.Pin != "" {
		l, err := replacePinned(a, kind)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		if l != nil {
			t, err := pinned(l, a.Pin, what)
			if err == nil {
				t.replaced = true
			}
			return t, err
		}
	}
	var l link.Link
	attach := func() (err error) {
		if a.Direction == XDP {
			l, err = link.AttachXDP(link.XDPOptions{Interface: a.Ifindex, Program: a.Program, Flags: link.XDPDriverMode})
			return err
		}
		l, err = link.AttachTCX(link.TCXOptions{Interface: a.Ifindex, Program: a.Program, Attach: kind, Anchor: a.Order})
		return err
	}
	if a.Namespace == nil {
		err = attach()
	} else {
		err = a.Namespace.Do(attach)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, explainAttach(err))
	}
	if a.Pin != "" {
		if err := l.Pin(a.Pin); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: pin at %s: %w", what, a.Pin, explainPin(a.Pin, err)), l.Close())
		}
		return pinned(l, a.Pin, what)
	}
	return &Attachment{link: l}, nil
}

// pinned is the attachment of a link that has a pin. If it fails the pin stays:
// there is nothing wrong with it.
func pinned(l link.Link, pin, what string) (*Attachment, error) {
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: ask the attachment: %w", what, err), l.Close())
	}
	return &Attachment{link: l, pin: pin, id: info.ID}, nil
}

// explainPin says so if the folder of a pin can not hold one.
func explainPin(pin string, err error) error {
	if is, failed := bpffs.Is(filepath.Dir(pin)); failed == nil && !is {
		return fmt.Errorf("%s is %w: mount one there or choose a folder below /sys/fs/bpf", filepath.Dir(pin), bpffs.ErrNone)
	}
	return err
}

// explainAttach says what to do about the errors that a caller meets first.
func explainAttach(err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: %w: the device's driver has none", ebpf.ErrNotSupported, err)
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w (is the device in this namespace?)", err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w (root, or CAP_BPF and CAP_NET_ADMIN, are needed)", err)
	default:
		return err
	}
}

// replacePinned puts the program into the pinned attachment. It returns nil
// without an error if there is none that can be used any more.
func replacePinned(a Attach, kind ebpf.AttachType) (link.Link, error) {
	l, err := link.LoadPinnedLink(a.Pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the attachment at %s: %w", a.Pin, err)
	}
	info, err := l.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask the attachment at %s: %w", a.Pin, err), l.Close())
	}
	// The index in the kernel's answer is 0 once the device is gone.
	if on, is := placeOf(info); on == a.Ifindex && is == kind {
		err := l.Update(a.Program)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.ENOLINK) {
			return nil, errors.Join(fmt.Errorf("replace the program at %s: %w", a.Pin, err), l.Close())
		}
	}
	return nil, errors.Join(os.Remove(a.Pin), l.Close())
}

// placeOf tells where an attachment is: its device, 0 if that is gone, and the side.
func placeOf(info *link.Info) (ifindex int, kind ebpf.AttachType) {
	if tcx := info.TCX(); tcx != nil {
		return int(tcx.Ifindex), ebpf.AttachType(tcx.AttachType)
	}
	if xdp := info.XDP(); xdp != nil {
		return int(xdp.Ifindex), ebpf.AttachXDP
	}
	return 0, 0
}

// Replace puts another program in the place of the attached one, in one step.
func (t *Attachment) Replace(p *ebpf.Program) error {
	if err := t.link.Update(p); err != nil {
		return fmt.Errorf("replace the attached program: %w", err)
	}
	return nil
}

// ProgramID returns the id of the program that is attached now.
func (t *Attachment) ProgramID() (ebpf.ProgramID, error) {
	info, err := t.link.Info()
	if err != nil {
		return 0, fmt.Errorf("ask the attachment: %w", err)
	}
	return info.Program, nil
}

// alive reports whether the attachment is still on that device. The kernel
// answers with index 0 once the device is gone.
func (t *Attachment) alive(ifindex int) (bool, error) {
	info, err := t.link.Info()
	if err != nil {
		return false, fmt.Errorf("ask the attachment: %w", err)
	}
	on, _ := placeOf(info)
	return on != 0 && on == ifindex, nil
}

// Close drops our handle. A pinned attachment stays, any other ends. Idempotent.
func (t *Attachment) Close() error { return t.link.Close() }

// Remove takes the program off the device, with its pin, also after Close. Nil
// if the device is gone, which has done it already. Idempotent: a pin that
// another attachment has put there since stays.
func (t *Attachment) Remove() error {
	var err error
	if t.pin != "" {
		err = removePinned(t.pin, t.id)
	}
	return errors.Join(err, detach(t.link), t.link.Close())
}

// detach takes a program off its device at once, whoever else has a handle.
func detach(l link.Link) error {
	err := l.Detach()
	switch {
	case errors.Is(err, unix.ENOLINK): // the device is gone
	case errors.Is(err, unix.EBADF): // closed
	case errors.Is(err, ebpf.ErrNotSupported): // before 5.9: closing must do
	case err != nil:
		return fmt.Errorf("detach: %w", err)
	}
	return nil
}

// removePinnedLinks ends all attachments that are pinned below pins.
func removePinnedLinks(pins string) error {
	dir := filepath.Join(pins, linksFolder)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list the pinned links: %w", err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, removePinnedLink(filepath.Join(dir, e.Name())))
	}
	return errors.Join(append(errs, os.Remove(dir))...)
}

func removePinnedLink(path string) error { return removePinned(path, 0) }

// removePinned ends the attachment that is pinned at path, if it is that of the
// id; 0: whichever. Nil if there is none.
func removePinned(path string, id link.ID) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the attachment at %s: %w", path, err)
	}
	if id != 0 {
		info, err := l.Info()
		if err != nil || info.ID != id {
			return errors.Join(err, l.Close())
		}
	}
	if err = os.Remove(path); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, detach(l), l.Close())
}
