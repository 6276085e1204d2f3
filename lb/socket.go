// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/bpffs"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/names"
	"github.com/godatapath/datapath/internal/undo"
	"github.com/godatapath/datapath/programs"
)

// Scope says whose sockets are translated.
type Scope uint8

const (
	// AllSockets is every socket of a process in the cgroup.
	AllSockets Scope = iota
	// NodeSockets is those that are in the node's own network namespace. What
	// endpoints send is then left to the programs on their devices, which know who
	// they are.
	NodeSockets
)

// SocketConfig says where sockets are translated.
type SocketConfig struct {
	// Cgroup is the folder of a cgroup (version 2). The sockets of its processes,
	// and of those in the cgroups below, are translated; a socket belongs to the
	// cgroup in which it was made.
	Cgroup string
	Scope  Scope
	// Namespace is the node's; nil: that of the calling thread. Needed for
	// NodeSockets, and for the ports of the node: a socket there can not be bound to
	// the port of a NodePort or a HostPort.
	Namespace programs.Namespace
	// Namespaces are those whose sockets end with a backend, see [Removal], asked
	// for each time: the node's, and those of its endpoints. nil: Namespace alone.
	// Sockets of the cgroup that are in others are translated, and stay.
	Namespaces func() []programs.Namespace
}

// Sockets is the translation of a cgroup's sockets.
type Sockets struct {
	cfg SocketConfig

	mu    sync.Mutex
	links []link.Link
	pins  []string
	of    *Balancer
}

// The system calls, with the names of the programs.
var calls = []struct {
	name   string
	attach ebpf.AttachType
}{
	{"connect4", ebpf.AttachCGroupInet4Connect}, {"connect6", ebpf.AttachCGroupInet6Connect},
	{"sendmsg4", ebpf.AttachCGroupUDP4Sendmsg}, {"sendmsg6", ebpf.AttachCGroupUDP6Sendmsg},
	{"recvmsg4", ebpf.AttachCGroupUDP4Recvmsg}, {"recvmsg6", ebpf.AttachCGroupUDP6Recvmsg},
	{"getpeername4", ebpf.AttachCgroupInet4GetPeername}, {"getpeername6", ebpf.AttachCgroupInet6GetPeername},
	{"bind4", ebpf.AttachCGroupInet4Bind}, {"bind6", ebpf.AttachCGroupInet6Bind},
	{"sock_release", ebpf.AttachCgroupInetSockRelease},
}

// AttachSockets makes sockets of a cgroup talk to backends where they ask for
// frontends: TCP when they connect, UDP when they connect or send. They see the
// frontend as their peer and as the source of answers, and their packets need no
// translation. Nothing else is needed for it: no flow table, no programs on
// devices. A frontend with source ranges is left to the packet, since a socket's
// address is not known yet.
//
// With Config.Pins the programs outlive the process, and the next AttachSockets
// replaces them in place; [Sockets.Remove] takes them away. Without, they end with
// Close. After an error nothing is attached.
func (b *Balancer) AttachSockets(cfg SocketConfig) (_ *Sockets, err error) {
	if b.cfg.MaglevSize == 0 {
		return nil, invalid.Errorf("attach to the sockets of %s: the services were opened for reading", cfg.Cgroup)
	}
	if cfg.Cgroup == "" || cfg.Scope > NodeSockets {
		return nil, invalid.Errorf("attach to sockets: want a Cgroup, and a Scope of AllSockets or NodeSockets")
	}
	fail := func(err error) (*Sockets, error) {
		return nil, fmt.Errorf("attach to the sockets of %s: %w", cfg.Cgroup, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(cfg.Cgroup, &fs); err != nil {
		return fail(err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return fail(invalid.Errorf("it is no cgroup of version 2: where those are is the mount of type cgroup2 in /proc/mounts"))
	}
	cookie, err := netnsCookie(cfg.Namespace)
	if err != nil {
		return fail(err)
	}
	settings := b.settings()
	settings["socket_node"] = cookie
	if cfg.Scope == NodeSockets {
		settings["socket_netns"] = cookie
	}
	var u undo.Stack
	defer u.Run(&err)
	coll, err := b.loadSockets(settings)
	if err != nil {
		return fail(err)
	}
	defer coll.Close()
	dir := ""
	if b.cfg.Pins != "" {
		dir = filepath.Join(b.cfg.Pins, "sockets")
		takeBack, err := bpffs.Ensure(dir)
		if err != nil {
			return fail(err)
		}
		u.Push(takeBack)
	}
	s := &Sockets{cfg: cfg, of: b}
	for _, c := range calls {
		pin := ""
		if dir != "" {
			pin = filepath.Join(dir, c.name)
		}
		l, fresh, err := attachSocket(cfg.Cgroup, coll.Programs[c.name], c.attach, pin)
		if err != nil {
			return fail(fmt.Errorf("%s: %w", c.name, err))
		}
		if fresh {
			u.Push(func() error { return endLink(l, pin) })
		} else {
			u.Push(l.Close)
		}
		s.links, s.pins = append(s.links, l), append(s.pins, pin)
	}
	if err := b.enter(); err != nil {
		return fail(err)
	}
	defer b.mu.Unlock()
	b.sockets = append(b.sockets, s)
	return s, nil
}

// forget leaves the sockets of s alone from now on.
func (b *Balancer) forget(s *Sockets) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sockets = slices.DeleteFunc(b.sockets, func(o *Sockets) bool { return o == s })
}

func (b *Balancer) loadSockets(settings map[string]any) (*ebpf.Collection, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the limit on locked memory: %w", err)
	}
	spec, err := bpf.LoadSocket()
	if err != nil {
		return nil, fmt.Errorf("read the object: %w", err)
	}
	for name, value := range settings {
		if v := spec.Variables[name]; v != nil {
			if err := v.Set(value); err != nil {
				return nil, fmt.Errorf("setting %s: %w", name, err)
			}
		}
	}
	replace, tables := map[string]*ebpf.Map{}, b.tables.ebpf()
	for name, ms := range spec.Maps {
		if m := tables[name]; m != nil {
			ms.MaxEntries, ms.Flags = m.MaxEntries(), m.Flags()
			if ms.InnerMap != nil {
				ms.InnerMap.MaxEntries = uint32(b.cfg.MaglevSize)
			}
			replace[name] = m
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return nil, fmt.Errorf("load the programs: %w", err)
	}
	return coll, nil
}

// attachSocket attaches a program, or puts it into the place of the pinned one.
func attachSocket(cgroup string, p *ebpf.Program, kind ebpf.AttachType, pin string) (_ link.Link, fresh bool, err error) {
	if pin != "" {
		l, err := link.LoadPinnedLink(pin, nil)
		if err == nil {
			var here bool
			if here, err = isAttachedTo(l, cgroup); err == nil && !here {
				return nil, false, errors.Join(invalid.Errorf("the programs at %s are attached to another cgroup: take them away there first (Sockets.Remove)", pin), l.Close())
			}
			if err == nil {
				err = l.Update(p)
			}
			if err == nil {
				return l, false, nil
			}
			err = errors.Join(err, l.Close())
			if !errors.Is(err, unix.ENOLINK) { // else its cgroup is gone
				return nil, false, fmt.Errorf("replace the program at %s: %w", pin, err)
			}
			err = os.Remove(pin)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, false, fmt.Errorf("open the attachment at %s: %w", pin, err)
		}
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: kind, Program: p})
	if err != nil {
		return nil, false, err
	}
	if pin != "" {
		if err := l.Pin(pin); err != nil {
			return nil, false, errors.Join(fmt.Errorf("pin at %s: %w", pin, err), l.Close())
		}
	}
	return l, true, nil
}

// isAttachedTo tells whether an attachment is to the cgroup of a folder: its number
// is that of the folder's inode. One whose cgroup is gone is unix.ENOLINK.
func isAttachedTo(l link.Link, cgroup string) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	at := info.Cgroup()
	if at == nil {
		return false, errors.New("it is no attachment to a cgroup")
	}
	if at.CgroupId == 0 {
		return false, unix.ENOLINK
	}
	var st unix.Stat_t
	if err := unix.Stat(cgroup, &st); err != nil {
		return false, err
	}
	return at.CgroupId == st.Ino, nil
}

func endLink(l link.Link, pin string) error {
	var errs []error
	if pin != "" {
		if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) && !errors.Is(err, unix.EBADF) {
		errs = append(errs, fmt.Errorf("detach: %w", err))
	}
	return errors.Join(append(errs, l.Close())...)
}

// Close drops our handles: what is pinned goes on, what is not ends. Connected
// sockets keep their backends. Idempotent.
func (s *Sockets) Close() error {
	s.of.forget(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, l := range slices.Backward(s.links) {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// Remove takes the programs off the cgroup, with their pins, and closes.
func (s *Sockets) Remove() error {
	s.of.forget(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for i, l := range slices.Backward(s.links) {
		errs = append(errs, endLink(l, s.pins[i]))
	}
	if len(s.pins) > 0 && s.pins[0] != "" {
		if err := os.Remove(filepath.Dir(s.pins[0])); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	s.links, s.pins = nil, nil
	return errors.Join(errs...)
}

// SocketEvents counts what was done at sockets, by name: "translated",
// "no backend", "reversed", "bind refused", "table full".
func (b *Balancer) SocketEvents() (map[string]uint64, error) {
	all, err := names.Of("socket_event", "SOCKET")
	if err != nil {
		return nil, err
	}
	out := map[string]uint64{}
	for i, name := range all {
		perCPU, err := b.tables.events.Lookup(i)
		if err != nil {
			return nil, fmt.Errorf("count the events of sockets: %w", err)
		}
		for _, n := range perCPU {
			out[name] += n
		}
	}
	return out, nil
}

// netnsCookie is the number of a namespace that no other ever has (kernel 5.14).
func netnsCookie(ns programs.Namespace) (cookie uint64, err error) {
	ask := func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	}
	if err := inNamespace(ns, ask); err != nil {
		return 0, fmt.Errorf("ask for the cookie of the node's namespace: %w", err)
	}
	return cookie, nil
}
