// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/godatapath/datapath/devices"
	"golang.org/x/sys/unix"
)

// Host is one namespace of a [Lab]: a host, a node, an outside host or an
// endpoint.
type Host struct {
	lab    *Lab
	name   string
	nsName string // in /run/netns, or ""
	ns     devices.Namespace
	// fd is a descriptor of our own of the namespace, for system calls that
	// want one.
	fd     int
	inode  uint64
	cookie uint64

	link devices.EndpointLink // only of an endpoint that the lab joined

	rawMu sync.Mutex
	raw   *int // a packet socket, from the first SendRaw on

	mu       sync.Mutex
	pending  []netip.Prefix // addresses that wait for the first device
	addrs    []netip.Addr
	prefixes []netip.Prefix // addresses that are on a device
	device   string
	devices  int
}

// Name returns the name that the host was made with.
func (h *Host) Name() string { return h.name }

// String is Name.
func (h *Host) String() string { return h.name }

// Namespace returns the namespace of the host, for the functions that take
// one. The lab closes it.
func (h *Host) Namespace() devices.Namespace { return h.ns }

// Device returns the name of the first device of the host beside lo, or "".
func (h *Host) Device() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.device
}

// Addr4 returns the first IPv4 address that the host was given, or the zero
// Addr.
func (h *Host) Addr4() netip.Addr { return h.addr(true) }

// Addr6 returns the first IPv6 address that the host was given, or the zero
// Addr.
func (h *Host) Addr6() netip.Addr { return h.addr(false) }

func (h *Host) addr(is4 bool) netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range h.addrs {
		if a.Is4() == is4 {
			return a
		}
	}
	return netip.Addr{}
}

// Do runs fn on a thread inside the namespace and returns its error, see
// [devices.Namespace.Do]. Sockets that fn opens stay in the namespace and can
// be used from anywhere.
func (h *Host) Do(fn func() error) error { return h.ns.Do(fn) }

// Run runs fn as a subtest of t that is inside the namespace, and tells whether
// it passed. It is for code that must itself run there, such as a function that
// opens its own sockets. Goroutines and subtests that fn starts are outside
// again.
func (h *Host) Run(t *testing.T, name string, fn func(t *testing.T)) bool {
	t.Helper()
	return t.Run(name, func(t *testing.T) {
		// Never unlocked: the thread ends with the goroutine of the subtest, so
		// that nobody else ever runs on it, however the subtest ends.
		lockOtherThread()
		if err := unix.Setns(h.fd, unix.CLONE_NEWNET); err != nil {
			t.Fatalf("netnstest: enter the namespace of %s: %v", h.name, err)
		}
		fn(t)
	})
}

// lockOtherThread locks the goroutine to a thread that is not the first of the
// process, which cannot end and would keep the namespace.
func lockOtherThread() {
	release := make(chan struct{})
	defer close(release)
	for {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			return
		}
		runtime.UnlockOSThread()
		// While we wait here, the other goroutine is likely to get our thread.
		// It keeps it until we are on another.
		held := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			close(held)
			<-release
		}()
		<-held
	}
}

// Sysctl writes settings below /proc/sys inside the namespace, for example
// {"net/ipv4/ip_forward": "1"}.
func (h *Host) Sysctl(settings map[string]string) error {
	return h.ns.Do(func() error {
		var errs []error
		for key, value := range settings {
			// The kernel resolves /proc/sys/net by the namespace of the thread.
			if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0); err != nil {
				errs = append(errs, fmt.Errorf("set %s of %s to %s: %w", strings.ReplaceAll(key, "/", "."), h.name, value, err))
			}
		}
		return errors.Join(errs...)
	})
}

// prepare opens our descriptor and makes the settings independent of the
// machine: a new namespace inherits some from the first one.
func (h *Host) prepare() error {
	err := h.ns.Do(func() error {
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the namespace of %s: %w", h.name, err)
		}
		h.fd = fd
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("look at the namespace of %s: %w", h.name, err)
		}
		h.inode = st.Ino
		return nil
	})
	if err != nil {
		return err
	}
	if h.cookie, err = h.ns.Cookie(); err != nil {
		return err
	}
	if err := h.Sysctl(map[string]string{
		"net/ipv4/ip_forward":             "0",
		"net/ipv4/conf/all/rp_filter":     "0",
		"net/ipv4/conf/default/rp_filter": "0",
		"net/ipv4/icmp_ratelimit":         "0",
		"net/ipv4/ping_group_range":       "0 2147483647",
	}); err != nil {
		return err
	}
	settings := map[string]string{"net/ipv6/icmp/ratelimit": "0"}
	for _, which := range []string{"all", "default"} {
		base := "net/ipv6/conf/" + which + "/"
		settings[base+"disable_ipv6"] = "0"
		settings[base+"accept_dad"] = "0"
		settings[base+"accept_ra"] = "0"
		settings[base+"forwarding"] = "0"
		settings[base+"keep_addr_on_down"] = "1"
	}
	return h.Sysctl(settings)
}

// remove gives up the namespace but for our own descriptor, which keeps the
// kernel from giving its inode number to a new one while we look for leaks.
func (h *Host) remove() error {
	err := h.ns.Close()
	if h.nsName != "" {
		err = errors.Join(err, devices.RemoveNamed(h.nsName))
	}
	return err
}

// forget lets the kernel end the namespace, with all that is in it.
func (h *Host) forget() {
	if h.fd >= 0 {
		unix.Close(h.fd)
		h.fd = -1
	}
}
