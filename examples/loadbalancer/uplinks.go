// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/godatapath/datapath/devices"
)

// uplink is a device that packets of services come in and go out by.
type uplink struct {
	devices.Link
	as []netip.Addr // what leaves there has one of these as its source: one of a family
}

func (u uplink) String() string {
	var as []string
	for _, a := range u.as {
		as = append(as, a.String())
	}
	return fmt.Sprintf("%s (%s)", u.Name, strings.Join(as, ", "))
}

// findUplinks looks the devices up, and all addresses of the machine.
func findUplinks(ns devices.Namespace, names []string) (uplinks []uplink, own []netip.Addr, err error) {
	for _, name := range names {
		l, err := devices.FindLink(ns, name)
		if err != nil {
			return nil, nil, err
		}
		u := uplink{l, sources(l.Addrs)}
		if len(u.as) == 0 {
			return nil, nil, fmt.Errorf("device %s has no address that packets could leave it with", name)
		}
		uplinks = append(uplinks, u)
	}
	links, err := devices.ListLinks(ns)
	if err != nil {
		return nil, nil, err
	}
	for _, l := range links {
		for _, p := range l.Addrs {
			if a := p.Addr(); a.IsGlobalUnicast() && !slices.Contains(own, a) {
				own = append(own, a)
			}
		}
	}
	return uplinks, own, nil
}

// sources chooses an address of each family. One that is alone in its network, as
// those that a machine is given for its services are, is the second choice.
func sources(all []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, family := range []int{32, 128} {
		var best netip.Prefix
		for _, p := range all {
			if p.Addr().BitLen() != family || !p.Addr().IsGlobalUnicast() {
				continue
			}
			if !best.IsValid() || best.IsSingleIP() && !p.IsSingleIP() {
				best = p
			}
		}
		if best.IsValid() {
			out = append(out, best.Addr())
		}
	}
	return out
}

// forward lets the kernel forward between the devices: it tells no route for a
// packet that comes in by a device that does not forward. A machine that has its
// IPv6 addresses and routes by router advertisements keeps them.
func forward(ns devices.Namespace, names []string) error {
	want := devices.Forwarding{Devices: names}
	links, err := devices.ListLinks(ns)
	if err != nil {
		return err
	}
	on, err := readSysctl(ns, devices.IPv6, devices.AllDevices, "forwarding")
	if err != nil {
		return err
	}
	for _, l := range links {
		if listens, err := readSysctl(ns, devices.IPv6, l.Name, "accept_ra"); err != nil {
			return err
		} else if listens == 1 && on == 0 {
			want.AcceptRA = append(want.AcceptRA, l.Name)
		}
	}
	if err := devices.EnsureForwarding(ns, want); err != nil {
		return err
	}
	// A device keeps its own setting if the machine forwarded before.
	for _, name := range names {
		for _, family := range []devices.Family{devices.IPv4, devices.IPv6} {
			err := devices.EnsureSysctls(ns, devices.Sysctl{Family: family, Device: name, Name: "forwarding", Value: 1})
			if err != nil && !(family == devices.IPv6 && errors.Is(err, os.ErrNotExist)) {
				return err
			}
		}
	}
	return nil
}

// readSysctl is 0 where there is no such setting: without IPv6.
func readSysctl(ns devices.Namespace, family devices.Family, device, name string) (int, error) {
	value, err := devices.ReadSysctl(ns, devices.Sysctl{Family: family, Device: device, Name: name})
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	return value, err
}
