// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/godatapath/datapath/internal/undo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultPeerName is the device of an endpoint inside its own namespace.
const DefaultPeerName = "eth0"

// Endpoint is a workload's namespace that is joined to a node by a veth.
type Endpoint struct {
	// Name identifies the endpoint on its node; any text of any length, such as
	// a container id. It is stored on the device.
	Name string
	// HostName of the device on the node; "" means EndpointLinkName(Name).
	HostName string
	// Namespace of the workload, required and not the node's. It is borrowed.
	Namespace Namespace
	PeerName  string // device in the workload's namespace; "" means eth0
	// Addrs of the workload, at least one and at most one per family. The device
	// gets them as /32 and /128.
	Addrs []netip.Addr
	// Gateways of the default routes, at most one per family and only for
	// families of Addrs. A family without one gets no default route. A gateway
	// need not be on the link: somebody on the node must answer ARP and NDP.
	Gateways []netip.Addr
	MTU      int // of both devices in bytes; 0 means 1500
	RouteMTU int // of the default routes in bytes, at most MTU; 0 means the device's
	// MAC of the workload's device and of the node's. Nil means a random locally
	// administered address, chosen at creation and kept then.
	MAC, HostMAC net.HardwareAddr
	// Hold leaves the node's device down, so that nothing passes before a program
	// is attached to it. SetLinkUp ends it.
	Hold bool
}

// EndpointLink is an endpoint's veth as seen from the node.
type EndpointLink struct {
	Link                 // the device on the node
	PeerIndex     int    // ifindex in the workload's namespace
	PeerName      string // name there
	PeerMAC       net.HardwareAddr
	EndpointAddrs []netip.Addr // of the workload's device, without link-local ones
	EndpointName  string       // Endpoint.Name, or "sha256:" and the hash of one that a device can not store
}

func (e Endpoint) check() (Endpoint, error) {
	if e.Name == "" {
		return e, &InputError{Field: "endpoint name", Reason: "is empty"}
	}
	if e.HostName == "" {
		e.HostName = EndpointLinkName(e.Name)
	}
	if e.PeerName == "" {
		e.PeerName = DefaultPeerName
	}
	if e.MTU == 0 {
		e.MTU = DefaultMTU
	}
	if err := checkName("host device name", e.HostName); err != nil {
		return e, err
	}
	if err := checkName("peer device name", e.PeerName); err != nil {
		return e, err
	}
	if e.Namespace.file == nil {
		return e, &InputError{Field: "endpoint namespace", Value: e.Namespace.String(), Reason: "is not set"}
	}
	var err error
	if e.Addrs, err = checkOwnAddrs("endpoint address", e.Addrs); err != nil {
		return e, err
	}
	if e.Gateways, err = checkAddrs("gateway", e.Gateways); err != nil {
		return e, err
	}
	for _, g := range e.Gateways {
		if contains(e.Addrs, g) {
			return e, &InputError{Field: "gateway", Value: g.String(), Reason: "is the endpoint's own address"}
		}
		if g.Is6() && !has6(e.Addrs) || g.Is4() && !has4(e.Addrs) {
			return e, &InputError{Field: "gateway", Value: g.String(), Reason: "is of a family of which the endpoint has no address"}
		}
	}
	if err := checkMTU("endpoint MTU", e.MTU, has6(e.Addrs)); err != nil {
		return e, err
	}
	if e.RouteMTU != 0 {
		if err := checkMTU("route MTU", e.RouteMTU, has6(e.Gateways)); err != nil {
			return e, err
		}
		if e.RouteMTU > e.MTU {
			return e, &InputError{Field: "route MTU", Value: fmt.Sprint(e.RouteMTU), Reason: fmt.Sprintf("is above the device's %d", e.MTU)}
		}
	}
	if err := errors.Join(checkMAC("endpoint MAC", e.MAC), checkMAC("host MAC", e.HostMAC)); err != nil {
		return e, err
	}
	if e.MAC != nil && e.MAC.String() == e.HostMAC.String() {
		return e, &InputError{Field: "endpoint MAC", Value: e.MAC.String(), Reason: "is also the host MAC"}
	}
	return e, nil
}

func has4(addrs []netip.Addr) bool {
	for _, a := range addrs {
		if a.Is4() {
			return true
		}
	}
	return false
}

// EnsureEndpoint joins a namespace to the node. One request makes the veth with
// both MACs, the peer already in its namespace and under its name, so there is
// no moment in which it stands somewhere else. The peer then gets its addresses
// and default routes; duplicate address detection and router advertisements are
// off there, so a /128 can be used at once. The node's device has no IPv6 of
// its own. The loopback device of the workload is brought up.
//
// Drift of a veth that exists is repaired in place. The veth is made anew only
// if its peer is in another namespace than it should be. A device on the node
// or in the workload's namespace that has the name and is not this endpoint's
// answers [ErrForeign]; this endpoint's carries an alias with its name, see the
// text of the package. If a step fails, a veth that this call made is removed.
//
// With IPv4 forwarding on, a node forwards what an endpoint sends before a
// program is attached, see [Endpoint.Hold].
func EnsureEndpoint(node Namespace, want Endpoint) (EndpointLink, error) {
	want, err := want.check()
	if err != nil {
		return EndpointLink{}, fmt.Errorf("ensure endpoint %q: %w", want.Name, err)
	}
	var got EndpointLink
	err = withConn(node, func(c conn) error {
		var err error
		got, err = c.ensureEndpoint(want)
		return err
	})
	if err != nil {
		return EndpointLink{}, fmt.Errorf("ensure endpoint %q: %w", want.Name, err)
	}
	return got, nil
}

// RemoveEndpoint removes the veth of an endpoint, with the guard of
// [RemoveLink]: the peer goes with it, and the workload's namespace stays. Nil
// if it is absent.
func RemoveEndpoint(node Namespace, l EndpointLink) error {
	return RemoveLink(node, l.Link)
}

// ensureEndpoint runs on a thread of the node. Settings in /proc follow the
// thread, so the peer's part runs on another one.
func (c conn) ensureEndpoint(want Endpoint) (got EndpointLink, err error) {
	var back undo.Stack
	defer back.Run(&err)

	fd, err := want.Namespace.dup()
	if err != nil {
		return got, err
	}
	defer unix.Close(fd)
	if err := notThisNamespace(fd); err != nil {
		return got, err
	}

	var host netlink.Link
	err = withConn(want.Namespace, func(pc conn) error {
		var peer netlink.Link
		var err error
		if host, peer, err = c.vethFor(want, fd, pc, &back); err != nil {
			return err
		}
		if peer, err = pc.ensurePeer(want, peer); err != nil {
			return err
		}
		lo, err := pc.find("lo")
		if err != nil {
			return err
		}
		if lo.Attrs().RawFlags&unix.IFF_UP == 0 {
			if err := pc.up(lo); err != nil {
				return err
			}
			back.Push(func() error {
				return withConn(want.Namespace, func(pc conn) error { return pc.LinkSetDown(lo) })
			})
		}
		a := peer.Attrs()
		got.PeerIndex, got.PeerName, got.PeerMAC = a.Index, a.Name, slices.Clone(a.HardwareAddr)
		return nil
	})
	if err != nil {
		return got, err
	}

	if err := c.reshape(host, shape{mtu: want.MTU, mac: want.HostMAC}); err != nil {
		return got, err
	}
	if err := quiet(want.HostName); err != nil {
		return got, err
	}
	if !want.Hold {
		if err := c.up(host); err != nil {
			return got, err
		}
	}
	fresh, err := c.byIndex(host.Attrs().Index)
	if err != nil {
		return got, err
	}
	got.Link = toLink(fresh, nil)
	got.EndpointAddrs = want.Addrs
	got.EndpointName = endpointAlias(want.Name)[len(endpointAliasPrefix):]
	return got, nil
}

// vethFor returns both ends of the endpoint's veth, and makes it if there is
// none that fits. fd and pc are the workload's namespace.
func (c conn) vethFor(want Endpoint, fd int, pc conn, back *undo.Stack) (host, peer netlink.Link, err error) {
	if host, peer, err = c.findVeth(want, fd, pc); err != nil || peer != nil {
		return host, peer, err
	}
	// Before something is taken away: can the new one be made?
	if _, err := pc.find(want.PeerName); err == nil {
		// Unless another call for the same endpoint has just made it.
		if host, peer, err = c.findVeth(want, fd, pc); err != nil || peer != nil {
			return host, peer, err
		}
		return nil, nil, fmt.Errorf("device %s exists in namespace %s: %w; remove it or choose another name", want.PeerName, want.Namespace, ErrForeign)
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	if host != nil {
		if err := c.remove(host); err != nil {
			return nil, nil, err
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = want.HostName, want.MTU, orRandom(want.HostMAC)
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU, veth.PeerHardwareAddr = want.PeerName, uint32(want.MTU), orRandom(want.MAC)
	veth.PeerNamespace = netlink.NsFd(fd)
	err = c.LinkAdd(veth)
	if errors.Is(err, os.ErrExist) {
		// As above.
		if host, peer, err := c.findVeth(want, fd, pc); err != nil || peer != nil {
			return host, peer, err
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make the veth: %w", explainPermission(err))
	}
	back.Push(func() error { return c.remove(veth) })
	if err := c.mark(veth, endpointAlias(want.Name)); err != nil {
		return nil, nil, err
	}
	if host, peer, err = c.findVeth(want, fd, pc); err != nil {
		return nil, nil, err
	}
	if host == nil || peer == nil {
		return nil, nil, fmt.Errorf("the veth vanished while it was set up: %w", os.ErrNotExist)
	}
	return host, peer, nil
}

// findVeth returns the ends that exist and are this endpoint's, and marks one
// that was left unfinished. A host end without a peer is this endpoint's but
// leads into another namespace.
func (c conn) findVeth(want Endpoint, fd int, pc conn) (host, peer netlink.Link, err error) {
	host, err = c.findKind(want.HostName, "veth")
	if err != nil || host == nil {
		return nil, nil, err
	}
	a := host.Attrs()
	id, err := c.GetNetNsIdByFd(fd)
	if err != nil {
		return nil, nil, fmt.Errorf("identify namespace %s: %w", want.Namespace, err)
	}
	// The ifindex of the peer means something only in the namespace it is in.
	if id >= 0 && a.NetNsID == id {
		peer, err = pc.byIndex(a.ParentIndex)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, nil, err
		}
	}
	// Only a peer in the right place can speak for a veth without a mark.
	if peer != nil && peer.Attrs().Name == want.PeerName {
		err = c.claim(host, endpointAlias(want.Name), end{pc, peer})
	} else {
		err = checkMark(host, endpointAlias(want.Name))
	}
	if err != nil {
		return nil, nil, err
	}
	return host, peer, nil
}

// ensurePeer sets up the workload's end, in its namespace and on a thread of it.
func (c conn) ensurePeer(want Endpoint, peer netlink.Link) (netlink.Link, error) {
	if peer.Attrs().Name != want.PeerName {
		if err := c.rename(peer, want.PeerName); err != nil {
			return nil, err
		}
	}
	if err := c.reshape(peer, shape{mtu: want.MTU, mac: want.MAC}); err != nil {
		return nil, err
	}
	// After the MTU: the kernel takes IPv6 away from a device that is too small.
	if err := peerSettings(want); err != nil {
		return nil, err
	}
	if err := c.up(peer); err != nil {
		return nil, err
	}
	if err := c.ensureAddrs(peer, want.Addrs, true); err != nil {
		return nil, err
	}
	var routes []Route
	for _, gateway := range want.Gateways {
		r := Route{Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: gateway, Dev: want.PeerName, MTU: want.RouteMTU, Onlink: true}
		if gateway.Is6() {
			r.Prefix = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		r, err := r.check()
		if err != nil {
			return nil, err
		}
		routes = append(routes, r)
	}
	if err := c.syncRoutes(peer, routes, true); err != nil {
		return nil, err
	}
	return c.byIndex(peer.Attrs().Index)
}

// rename takes the device down for it, which kernels before 6.2 demand.
func (c conn) rename(l netlink.Link, name string) error {
	old := l.Attrs().Name
	if other, err := c.find(name); err == nil {
		return fmt.Errorf("rename device %s: the name %s is of ifindex %d: %w", old, name, other.Attrs().Index, ErrForeign)
	}
	if err := errors.Join(c.LinkSetDown(l), c.LinkSetName(l, name)); err != nil {
		return fmt.Errorf("rename device %s to %s: %w", old, name, err)
	}
	l.Attrs().Name = name
	l.Attrs().RawFlags &^= unix.IFF_UP
	return nil
}

// peerSettings let the workload use its addresses at once and take its routes
// from nobody else. Link-local addresses stay with the kernel's default.
func peerSettings(want Endpoint) error {
	all := []Sysctl{
		{IPv6, want.PeerName, "accept_dad", 0},
		{IPv6, want.PeerName, "dad_transmits", 0},
		{IPv6, want.PeerName, "accept_ra", 0},
	}
	if !has6(want.Addrs) {
		return setSysctlsWith(nil, all)
	}
	return setSysctls(append(all, Sysctl{IPv6, want.PeerName, "disable_ipv6", 0}))
}

// notThisNamespace refuses an endpoint in the node's own namespace.
func notThisNamespace(fd int) error {
	var theirs, ours unix.Stat_t
	if err := unix.Fstat(fd, &theirs); err != nil {
		return fmt.Errorf("look at the endpoint namespace: %w", err)
	}
	if err := unix.Stat("/proc/thread-self/ns/net", &ours); err != nil {
		return fmt.Errorf("look at the node namespace: %w", err)
	}
	if theirs.Ino == ours.Ino && theirs.Dev == ours.Dev {
		return &InputError{Field: "endpoint namespace", Reason: "is the node's own"}
	}
	return nil
}
