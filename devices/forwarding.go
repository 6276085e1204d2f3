// SPDX-License-Identifier: Apache-2.0

package devices

import "fmt"

// Forwarding says how a node's own stack treats packets that are not for it.
type Forwarding struct {
	// Devices are the uplinks. They take a source only from where its route
	// points (rp_filter 1), so that no machine beside the node speaks as one of
	// its endpoints; IPv6 has no such filter, and there the programs look. They
	// send no redirects. The host pair and the devices that this package makes
	// need not be named.
	Devices []string
	// Asymmetric is for a node whose packets come in by another uplink than the
	// answers leave by: the reverse path filter of Devices is off.
	Asymmetric bool
	// AcceptRA names devices that keep taking their IPv6 address and default
	// route from router advertisements. The kernel stops to listen to them on a
	// forwarding node unless accept_ra is 2.
	AcceptRA []string
}

// EnsureForwarding prepares the stack of a node: IPv4 and IPv6 forwarding on,
// the reverse path filter of "all" off (it would be added to every device, and
// packets of the overlay come in elsewhere than their routes point), that of the
// uplinks on, and redirects off, since packets leave a node by the device they
// came in by.
//
// Forwarding of IPv6 is left out where the kernel has none. Switching IPv4
// forwarding from 0 to 1 resets the forwarding setting of each device, so call
// this first. A device that is absent answers errors.Is(err, os.ErrNotExist)
// and nothing is changed.
func EnsureForwarding(ns Namespace, want Forwarding) error {
	for _, dev := range append(append([]string(nil), want.Devices...), want.AcceptRA...) {
		if err := CheckName(dev); err != nil {
			return fmt.Errorf("ensure forwarding: %w", err)
		}
	}
	err := ns.Do(func() error {
		// Devices first: if one is absent, nothing else has been touched.
		var all []Sysctl
		filter := 1
		if want.Asymmetric {
			filter = 0
		}
		for _, dev := range want.Devices {
			all = append(all,
				Sysctl{IPv4, dev, "rp_filter", filter},
				Sysctl{IPv4, dev, "send_redirects", 0},
			)
		}
		// Before forwarding of IPv6 is on, which would end the default route at once.
		for _, dev := range want.AcceptRA {
			all = append(all, Sysctl{IPv6, dev, "accept_ra", 2})
		}
		all = append(all,
			Sysctl{IPv4, AllDevices, "rp_filter", 0},
			Sysctl{IPv4, AllDevices, "send_redirects", 0},
			Sysctl{IPv4, "", "ip_forward", 1},
		)
		if kernelHasIPv6() {
			all = append(all, Sysctl{IPv6, AllDevices, "forwarding", 1})
		}
		return setSysctls(all)
	})
	if err != nil {
		return fmt.Errorf("ensure forwarding: %w", err)
	}
	return nil
}

// quiet sets up a device through which packets pass that are none of the
// stack's business: no reverse path filter, no redirects and no IPv6 of its own,
// so that no link-local traffic is born there.
func quiet(dev string) error {
	return setSysctlsWith([]Sysctl{
		{IPv4, dev, "rp_filter", 0},
		{IPv4, dev, "send_redirects", 0},
	}, []Sysctl{
		{IPv6, dev, "disable_ipv6", 1},
	})
}
