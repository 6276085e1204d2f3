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
	Name   string // as in /proc, such as "rp_filter"
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
	if s.Name == "" || strings.Trim(s.Name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return &InputError{Field: "sysctl name", Value: s.Name, Reason: "is not made of lower-case letters, digits and underscores"}
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

// setSysctls works in the namespace of the calling thread.
func setSysctls(all []Sysctl) (err error) {
	var back undo.Stack
	defer back.Run(&err)
	for _, s := range all {
		old, err := readSysctl(s)
		if err != nil {
			return err
		}
		if old == s.Value {
			continue
		}
		if err := writeSysctl(s); err != nil {
			return err
		}
		was := s
		was.Value = old
		back.Push(func() error { return writeSysctl(was) })
		// Some settings take a write and keep their value.
		now, err := readSysctl(s)
		if err != nil {
			return err
		}
		if now != s.Value {
			return fmt.Errorf("set sysctl %s: the kernel keeps %d", s, now)
		}
	}
	return nil
}

func readSysctl(s Sysctl) (int, error) {
	text, err := os.ReadFile(s.path())
	if err != nil {
		return 0, fmt.Errorf("read sysctl %s: %w", s.key(), cause(err))
	}
	value, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read sysctl %s: %w", s.key(), err)
	}
	return value, nil
}

func writeSysctl(s Sysctl) error {
	f, err := os.OpenFile(s.path(), os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(strconv.Itoa(s.Value))
		err = errors.Join(err, f.Close())
	}
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("set sysctl %s: %w; mount /proc/sys writable or set it from outside", s, cause(err))
	case err != nil:
		return fmt.Errorf("set sysctl %s: %w", s, explainPermission(cause(err)))
	}
	return nil
}

// cause drops the path from an error of package os, since our text has the key.
func cause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// kernelHasIPv6 tells whether the namespace of the calling thread knows IPv6 at
// all, which a kernel may be built or started without.
func kernelHasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// hasIPv6 tells whether a device can have IPv6: the kernel takes it away from
// devices with an MTU below 1280, settings included.
func hasIPv6(dev string) bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf/" + dev)
	return err == nil
}
