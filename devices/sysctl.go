// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/godatapath/datapath/internal/undo"
	"golang.org/x/sys/unix"
)

// Family is the part of /proc/sys/net that a [Sysctl] lives in.
type Family string

// The families of settings.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
	Core Family = "core"
)

// Device names that mean more than one device in a [Sysctl].
const (
	AllDevices     = "all"     // combined by the kernel with each device, by a rule of its own per setting
	DefaultDevices = "default" // what devices that are made later begin with
)

// Sysctl is one numeric setting of a namespace.
type Sysctl struct {
	Family Family
	// Device is a device name, [AllDevices] or [DefaultDevices]. Empty for a
	// setting that is not per device, such as ip_forward.
	Device string
	Name   string // as in /proc, such as "rp_filter" or "icmp/ratelimit"
	Value  int
}

// String returns the setting as the file of the sysctl command has it, with
// slashes because a device name may have dots: "net/ipv4/conf/all/rp_filter=0".
func (s Sysctl) String() string {
	return s.key() + "=" + strconv.Itoa(s.Value)
}

func (s Sysctl) key() string {
	if s.Device == "" {
		return "net/" + string(s.Family) + "/" + s.Name
	}
	return "net/" + string(s.Family) + "/conf/" + s.Device + "/" + s.Name
}

// path is right for the thread that opens it: below /proc/sys/net the kernel
// shows each thread the namespace that the thread is in. (Unlike /proc/net,
// which shows the namespace of the first thread.)
func (s Sysctl) path() string { return filepath.Join("/proc/sys", s.key()) }

func (s Sysctl) check() error {
	switch s.Family {
	case IPv4, IPv6:
	case Core:
		if s.Device != "" {
			return &InputError{Field: "sysctl device", Value: s.Device, Reason: "is given for a setting of net/core, which has no devices"}
		}
	default:
		return &InputError{Field: "sysctl family", Value: string(s.Family), Reason: "is not ipv4, ipv6 or core"}
	}
	if s.Device != "" {
		if err := checkName("sysctl device", s.Device); err != nil {
			return err
		}
	}
	for part := range strings.SplitSeq(s.Name, "/") {
		if part == "" || strings.Trim(part, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			return &InputError{Field: "sysctl name", Value: s.Name, Reason: "is not made of lower-case letters, digits and underscores, with slashes between"}
		}
	}
	return nil
}

// EnsureSysctls makes all settings hold in a namespace, in the given order, and
// writes only what differs. If one can not be set, those before it get their
// old values back. A setting that does not exist answers
// errors.Is(err, os.ErrNotExist).
func EnsureSysctls(ns Namespace, all ...Sysctl) error {
	for _, s := range all {
		if err := s.check(); err != nil {
			return fmt.Errorf("ensure sysctls: %w", err)
		}
	}
	return ns.Do(func() error { return setSysctls(all) })
}

// ReadSysctl returns the value of a setting in a namespace. The Value of key is
// not looked at. A setting that does not exist answers
// errors.Is(err, os.ErrNotExist).
func ReadSysctl(ns Namespace, key Sysctl) (int, error) {
	if err := key.check(); err != nil {
		return 0, fmt.Errorf("read sysctl: %w", err)
	}
	var value int
	err := ns.Do(func() error {
		var err error
		value, err = readSysctl(key)
		return err
	})
	return value, err
}

// EffectiveRPFilter returns the reverse path filter that the kernel applies to
// packets which arrive at a device: 0 none, 1 strict, 2 loose. It is the greater
// of the values of the device and of "all", so a device that is set to 0 may
// still be filtered (Documentation/networking/ip-sysctl.rst).
func EffectiveRPFilter(ns Namespace, dev string) (int, error) {
	own := Sysctl{Family: IPv4, Device: dev, Name: "rp_filter"}
	if err := checkName("device name", dev); err != nil {
		return 0, fmt.Errorf("read the reverse path filter: %w", err)
	}
	var value int
	err := ns.Do(func() error {
		all, err := readSysctl(Sysctl{Family: IPv4, Device: AllDevices, Name: "rp_filter"})
		if err != nil {
			return err
		}
		one, err := readSysctl(own)
		value = max(all, one)
		return err
	})
	return value, err
}

// setSysctls works in the namespace of the calling thread. If one setting can
// not be made, those before it get their old values back.
func setSysctls(all []Sysctl) error { return setSysctlsWith(all, nil) }

// setSysctlsWith also makes the settings of more that exist: a kernel may have
// no IPv6, or none on a device with a small MTU.
func setSysctlsWith(all, more []Sysctl) (err error) {
	var back undo.Stack
	defer back.Run(&err)
	var dir sysctlDir
	defer dir.close()
	for i := range len(all) + len(more) {
		var s Sysctl
		if i < len(all) {
			s = all[i]
		} else {
			s = more[i-len(all)]
		}
		old, err := dir.set(s)
		if errors.Is(err, os.ErrNotExist) && i >= len(all) {
			continue
		}
		if err != nil {
			return err
		}
		if old == s.Value {
			continue
		}
		was := s
		was.Value = old
		back.Push(func() error {
			var dir sysctlDir
			defer dir.close()
			_, err := dir.set(was)
			return err
		})
	}
	return nil
}

func readSysctl(s Sysctl) (int, error) {
	var dir sysctlDir
	defer dir.close()
	fd, err := dir.open(s, unix.O_RDONLY)
	if err != nil {
		return 0, fmt.Errorf("read sysctl %s: %w", s.key(), err)
	}
	defer unix.Close(fd)
	return readSysctlFile(s, fd)
}

// sysctlDir remembers the folder of the last setting. Each namespace has its
// own folders of the same names, and the kernel looks through all of them one
// by one, so with a thousand namespaces a walk from the root is slow.
type sysctlDir struct {
	path string
	fd   int
}

func (d *sysctlDir) close() {
	if d.path != "" {
		unix.Close(d.fd)
		d.path = ""
	}
}

func (d *sysctlDir) open(s Sysctl, mode int) (int, error) {
	folder, file := filepath.Split(s.path())
	if d.path != folder {
		d.close()
		fd, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		d.path, d.fd = folder, fd
	}
	return unix.Openat(d.fd, file, mode|unix.O_CLOEXEC, 0)
}

// set makes a setting hold, writes only if it differs, and returns what it was.
func (d *sysctlDir) set(s Sysctl) (int, error) {
	// A setting that is right already needs no right to write.
	fd, openErr := d.open(s, unix.O_RDWR)
	if openErr != nil {
		var err error
		if fd, err = d.open(s, unix.O_RDONLY); err != nil {
			return 0, fmt.Errorf("read sysctl %s: %w", s.key(), err)
		}
	}
	defer unix.Close(fd)
	old, err := readSysctlFile(s, fd)
	if err != nil || old == s.Value {
		return old, err
	}
	err = openErr
	if err == nil {
		_, err = unix.Pwrite(fd, strconv.AppendInt(nil, int64(s.Value), 10), 0)
	}
	switch {
	case errors.Is(err, unix.EROFS):
		return old, fmt.Errorf("set sysctl %s: %w; mount /proc/sys writable or set it from outside", s, err)
	case err != nil:
		return old, fmt.Errorf("set sysctl %s: %w", s, explainPermission(err))
	}
	// Some settings take a write and keep their value.
	now, err := readSysctlFile(s, fd)
	if err == nil && now != s.Value {
		err = fmt.Errorf("set sysctl %s: the kernel keeps %d", s, now)
	}
	return old, err
}

func readSysctlFile(s Sysctl, fd int) (int, error) {
	var text [32]byte
	n, err := unix.Pread(fd, text[:], 0)
	if err == nil {
		var value int
		if value, err = strconv.Atoi(strings.TrimSpace(string(text[:n]))); err == nil {
			return value, nil
		}
	}
	return 0, fmt.Errorf("read sysctl %s: %w", s.key(), err)
}

// kernelHasIPv6 tells whether the kernel knows IPv6 at all, which it may be
// built or started without.
func kernelHasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}
