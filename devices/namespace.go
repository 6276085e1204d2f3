// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NamespaceDir is where namespaces with a name are found. It is the folder
// that iproute2 uses, so "ip netns exec NAME" works on them.
const NamespaceDir = "/run/netns"

// Namespace is a network namespace, as a value that is passed around. Copies
// share one descriptor, so Close ends them all.
//
// The zero Namespace means the namespace of the thread that uses it. No method
// and no function of this package ever moves the caller's thread: work inside
// a namespace runs on a thread of its own.
type Namespace struct {
	file *nsFile
}

type nsFile struct {
	mu     sync.Mutex
	handle netns.NsHandle
	path   string
}

// CurrentNamespace returns the namespace of the calling thread. The caller
// owns the result and closes it.
func CurrentNamespace() (Namespace, error) {
	// The look-up goes by thread number, so the goroutine must not change its
	// thread half-way.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	h, err := netns.Get()
	if err != nil {
		return Namespace{}, fmt.Errorf("open the current namespace: %w", err)
	}
	return Namespace{file: &nsFile{handle: h}}, nil
}

// OpenNamespace opens the namespace at path, for example
// "/run/netns/blue" or "/proc/4711/ns/net". The caller owns the result and
// closes it. An absent path answers errors.Is(err, os.ErrNotExist).
func OpenNamespace(path string) (Namespace, error) {
	h, err := netns.GetFromPath(path)
	if err != nil {
		return Namespace{}, fmt.Errorf("open namespace %s: %w", path, err)
	}
	return Namespace{file: &nsFile{handle: h, path: path}}, nil
}

// OpenNamed opens the namespace of that name in [NamespaceDir].
func OpenNamed(name string) (Namespace, error) {
	if err := checkNamespaceName(name); err != nil {
		return Namespace{}, fmt.Errorf("open namespace: %w", err)
	}
	return OpenNamespace(filepath.Join(NamespaceDir, name))
}

// NewNamespace makes a namespace that lives as long as a descriptor, a socket
// or a process holds it. Its loopback device is up. The caller owns the result
// and closes it.
func NewNamespace() (Namespace, error) {
	var ns Namespace
	err := onFreshThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a namespace: %w", explainPermission(err))
		}
		var err error
		if ns, err = CurrentNamespace(); err != nil {
			return err
		}
		if err := loopbackUp(); err != nil {
			return errors.Join(err, ns.Close())
		}
		return nil
	})
	if err != nil {
		return Namespace{}, err
	}
	return ns, nil
}

// NewNamed makes a namespace and mounts it at [NamespaceDir]/name, where it
// stays until [RemoveNamed]. A name that is taken answers
// errors.Is(err, os.ErrExist). The caller closes the result; closing does not
// remove the name.
func NewNamed(name string) (Namespace, error) {
	if err := checkNamespaceName(name); err != nil {
		return Namespace{}, fmt.Errorf("make namespace: %w", err)
	}
	if err := os.MkdirAll(NamespaceDir, 0o755); err != nil {
		return Namespace{}, fmt.Errorf("make namespace %s: %w", name, explainPermission(err))
	}
	path := filepath.Join(NamespaceDir, name)
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return Namespace{}, fmt.Errorf("make namespace %s: %w", name, explainPermission(err))
	}
	f.Close()
	ns, err := NewNamespace()
	if err != nil {
		return Namespace{}, errors.Join(err, os.Remove(path))
	}
	// A descriptor that another thread opened is reached through its own
	// process entry, which every thread of the process sees.
	from := fmt.Sprintf("/proc/self/fd/%d", int(ns.file.handle))
	if err := unix.Mount(from, path, "none", unix.MS_BIND, ""); err != nil {
		return Namespace{}, errors.Join(fmt.Errorf("name namespace %s: %w", name, err), ns.Close(), os.Remove(path))
	}
	ns.file.path = path
	return ns, nil
}

// RemoveNamed takes the name of a namespace away. The kernel ends the
// namespace, with its devices, when nothing else holds it. Nil if the name is
// absent.
func RemoveNamed(name string) error {
	if err := checkNamespaceName(name); err != nil {
		return fmt.Errorf("remove namespace: %w", err)
	}
	path := filepath.Join(NamespaceDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace %s: %w", name, explainPermission(err))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace %s: %w", name, err)
	}
	return nil
}

// checkNamespaceName keeps names inside [NamespaceDir]: an empty name or one
// with a slash would reach the folder itself or another one.
func checkNamespaceName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return &InputError{Field: "namespace name", Value: name, Reason: "is not one path element"}
	}
	return nil
}

// Do runs fn on a thread that is inside the namespace and returns its error.
// The caller's goroutine waits and its thread stays where it is; the thread of
// fn ends with fn, so nothing fn does to it can leak. Goroutines that fn starts
// are not in the namespace, but sockets and descriptors that it opens belong to
// the namespace for good and can be used from anywhere.
func (n Namespace) Do(fn func() error) error {
	if n.file == nil {
		return fn()
	}
	return onFreshThread(func() error {
		n.file.mu.Lock()
		handle := n.file.handle
		var err error
		if !handle.IsOpen() {
			err = os.ErrClosed
		} else {
			err = netns.Set(handle)
		}
		n.file.mu.Unlock()
		if err != nil {
			return fmt.Errorf("enter namespace %s: %w", n, explainPermission(err))
		}
		return fn()
	})
}

// dup returns a descriptor of the namespace that the caller closes, so that a
// Close elsewhere can not pull it away in the middle of a request.
func (n Namespace) dup() (int, error) {
	if n.file == nil {
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("open namespace %s: %w", n, err)
		}
		return fd, nil
	}
	n.file.mu.Lock()
	defer n.file.mu.Unlock()
	if !n.file.handle.IsOpen() {
		return -1, fmt.Errorf("use namespace %s: %w", n, os.ErrClosed)
	}
	fd, err := unix.FcntlInt(uintptr(n.file.handle), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("use namespace %s: %w", n, err)
	}
	return fd, nil
}

// Cookie returns the number that the kernel gave the namespace at its birth.
// Unlike its name and its inode number it is never used again while the
// machine runs (SO_NETNS_COOKIE, kernel 5.14).
func (n Namespace) Cookie() (uint64, error) {
	var cookie uint64
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("read the cookie of namespace %s: %w", n, err)
	}
	return cookie, nil
}

// Path returns the path that the namespace was opened at or made at, or "".
func (n Namespace) Path() string {
	if n.file == nil {
		return ""
	}
	return n.file.path
}

// String names the namespace in errors.
func (n Namespace) String() string {
	switch {
	case n.file == nil:
		return "(current)"
	case n.file.path != "":
		return n.file.path
	default:
		return "(unnamed)"
	}
}

// Close drops the descriptor, for all copies of n. It is idempotent and nil
// for the zero Namespace. A namespace that has a name goes on without us.
func (n Namespace) Close() error {
	if n.file == nil {
		return nil
	}
	n.file.mu.Lock()
	defer n.file.mu.Unlock()
	if !n.file.handle.IsOpen() {
		return nil
	}
	return n.file.handle.Close()
}

// onFreshThread runs fn on a goroutine whose thread ends with it: a locked
// goroutine that returns without unlocking takes its thread along, so a
// changed namespace can never reach another goroutine.
//
// The first thread of a process is the exception. It can not end before the
// process, the runtime only parks it, and /proc/self of the whole process
// would show the foreign namespace and keep it alive. So it is never moved.
func onFreshThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// While this goroutine holds the first thread, the next one gets another.
			err := onFreshThread(fn)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		// A panic or runtime.Goexit inside fn must not leave the caller waiting.
		finished := false
		defer func() {
			if !finished {
				done <- errors.New("the function inside the namespace did not return")
			}
		}()
		err := fn()
		finished = true
		done <- err
	}()
	return <-done
}

func loopbackUp() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	if err := h.LinkSetUp(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: 1, Name: "lo"}}); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// explainPermission adds what to do to an error that says no.
func explainPermission(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w (root or CAP_NET_ADMIN and CAP_SYS_ADMIN are needed)", err)
	}
	return err
}
