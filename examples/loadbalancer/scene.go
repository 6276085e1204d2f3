// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
)

// The devices of the balancer: one towards the client, one towards the backends.
const (
	front = "eth0"
	back  = "eth1"
)

// backends is how many there are.
const backends = 3

// Addresses of the demonstration, IPv4 and IPv6, of those for documentation. The
// client knows that the services are behind the balancer; the backends know of
// neither, and have no route to anybody.
var (
	clientAddrs  = [2]netip.Prefix{netip.MustParsePrefix("198.51.100.10/24"), netip.MustParsePrefix("2001:db8:1::10/64")}
	frontAddrs   = [2]netip.Prefix{netip.MustParsePrefix("198.51.100.1/24"), netip.MustParsePrefix("2001:db8:1::1/64")}
	backAddrs    = [2]netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8:2::1/64")}
	serviceAddrs = [2]netip.Prefix{netip.MustParsePrefix("203.0.113.10/24"), netip.MustParsePrefix("2001:db8:3::10/64")}
)

// backendAddrs are those of the n-th backend, from 1.
func backendAddrs(n int) [2]netip.Prefix {
	return [2]netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", 10+n)),
		netip.MustParsePrefix(fmt.Sprintf("2001:db8:2::%d/64", 10+n)),
	}
}

// namespaceOf is what follows "NAME-" in the names of our namespaces.
var namespaceOf = regexp.MustCompile(`^(client|balancer|segment|backend\d+)$`)

// scene is the machines of the demonstration.
type scene struct {
	name     string
	client   devices.Namespace
	balancer devices.Namespace
	segment  devices.Namespace // the bridge that joins the balancer and the backends
	backends [backends]devices.Namespace
	undo     []func() error
}

// clearScene removes what a killed run of that name has left.
func clearScene(name string) error {
	left, err := filepath.Glob(filepath.Join(devices.NamespaceDir, name+"-*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range left {
		if at := filepath.Base(path); namespaceOf.MatchString(strings.TrimPrefix(at, name+"-")) {
			errs = append(errs, devices.RemoveNamed(at))
		}
	}
	return errors.Join(errs...)
}

// setUp makes the namespaces and joins them. The caller takes them away, also
// after an error.
func (s *scene) setUp() (err error) {
	for _, m := range []struct {
		name string
		at   *devices.Namespace
	}{{"client", &s.client}, {"balancer", &s.balancer}, {"segment", &s.segment}} {
		if *m.at, err = s.namespace(m.name); err != nil {
			return err
		}
	}
	if err := makeBridge(s.segment); err != nil {
		return err
	}
	if err := join(s.client, front, clientAddrs, s.balancer, front, frontAddrs); err != nil {
		return err
	}
	if err := plug(s.segment, "balancer", s.balancer, back, backAddrs); err != nil {
		return err
	}
	for i := range s.backends {
		name := fmt.Sprintf("backend%d", i+1)
		if s.backends[i], err = s.namespace(name); err != nil {
			return err
		}
		if err := plug(s.segment, name, s.backends[i], front, backendAddrs(i+1)); err != nil {
			return err
		}
	}
	var routes []devices.Route
	for i, p := range serviceAddrs {
		routes = append(routes, devices.Route{Prefix: p.Masked(), Via: frontAddrs[i].Addr()})
	}
	return devices.EnsureRoutes(s.client, front, routes)
}

func (s *scene) namespace(name string) (devices.Namespace, error) {
	name = s.name + "-" + name
	ns, err := devices.NewNamed(name)
	if err != nil {
		return ns, err
	}
	s.undo = append(s.undo, func() error { return errors.Join(devices.RemoveNamed(name), ns.Close()) })
	// The link-local address of a device that has just come up would be kept back
	// for a second and more, and with it all questions for neighbours.
	return ns, devices.EnsureSysctls(ns, devices.Sysctl{Family: devices.IPv6, Device: devices.DefaultDevices, Name: "accept_dad", Value: 0})
}

// takeDown takes everything away. Idempotent.
func (s *scene) takeDown() error {
	var errs []error
	for len(s.undo) > 0 {
		last := len(s.undo) - 1
		errs = append(errs, s.undo[last]())
		s.undo = s.undo[:last]
	}
	return errors.Join(errs...)
}

const bridgeName = "bridge"

func makeBridge(ns devices.Namespace) error {
	err := withNetlink(ns, func(nl *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := nl.LinkAdd(bridge); err != nil {
			return err
		}
		return nl.LinkSetUp(bridge)
	})
	if err != nil {
		return fmt.Errorf("make the bridge: %w", err)
	}
	return nil
}

// join lays a wire between two namespaces.
func join(a devices.Namespace, nameA string, addrsA [2]netip.Prefix, b devices.Namespace, nameB string, addrsB [2]netip.Prefix) error {
	if err := wire(a, nameA, b, nameB); err != nil {
		return err
	}
	if err := setAddrs(a, nameA, addrsA); err != nil {
		return err
	}
	return setAddrs(b, nameB, addrsB)
}

// plug lays a wire from a namespace to a port of the bridge.
func plug(segment devices.Namespace, port string, ns devices.Namespace, name string, addrs [2]netip.Prefix) error {
	if err := wire(segment, port, ns, name); err != nil {
		return err
	}
	err := withNetlink(segment, func(nl *netlink.Handle) error {
		bridge, err := nl.LinkByName(bridgeName)
		if err != nil {
			return err
		}
		dev, err := nl.LinkByName(port)
		if err != nil {
			return err
		}
		if err := nl.LinkSetMaster(dev, bridge); err != nil {
			return err
		}
		return nl.LinkSetUp(dev)
	})
	if err != nil {
		return fmt.Errorf("plug %s into the bridge: %w", port, err)
	}
	return setAddrs(ns, name, addrs)
}

// wire makes a veth between two namespaces.
func wire(a devices.Namespace, nameA string, b devices.Namespace, nameB string) error {
	far, err := os.Open(b.Path())
	if err != nil {
		return err
	}
	defer far.Close()
	err = withNetlink(a, func(nl *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = nameA
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace = nameB, netlink.NsFd(far.Fd())
		return nl.LinkAdd(veth)
	})
	if err != nil {
		return fmt.Errorf("lay a wire between %s and %s: %w", a, b, err)
	}
	return nil
}

// setAddrs gives a device its addresses and sets it up.
func setAddrs(ns devices.Namespace, name string, addrs [2]netip.Prefix) error {
	err := withNetlink(ns, func(nl *netlink.Handle) error {
		dev, err := nl.LinkByName(name)
		if err != nil {
			return err
		}
		for _, p := range addrs {
			to := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
			// Duplicate detection would keep the address back for a second.
			if err := nl.AddrAdd(dev, &netlink.Addr{IPNet: to, Flags: unix.IFA_F_NODAD}); err != nil {
				return fmt.Errorf("address %s: %w", p, err)
			}
		}
		return nl.LinkSetUp(dev)
	})
	if err != nil {
		return fmt.Errorf("set up %s in %s: %w", name, ns, err)
	}
	return nil
}

func withNetlink(ns devices.Namespace, fn func(*netlink.Handle) error) error {
	return ns.Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer nl.Close()
		return fn(nl)
	})
}
