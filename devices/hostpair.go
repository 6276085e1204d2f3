// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/godatapath/datapath/internal/undo"
	"github.com/vishvananda/netlink"
)

// Default names of the host pair.
const (
	DefaultHostName = "dp_host"
	DefaultNetName  = "dp_net"
)

// HostPair is the veth by which a node's own stack and the datapath meet. The
// host end owns the overlay addresses of the node.
type HostPair struct {
	HostName string // host end; "" means dp_host
	NetName  string // datapath end; "" means dp_net
	// Addrs are the addresses of the node in the overlay, at least one and at
	// most one per family. The host end gets them as /32 and /128.
	Addrs []netip.Addr
	MTU   int // of both ends in bytes; 0 means 1500
}

// HostLinks are the two ends of the host pair.
type HostLinks struct {
	Host, Net Link
}

// HostIfindex returns the ifindex of the host end.
func (h HostLinks) HostIfindex() int { return h.Host.Index }

// NetIfindex returns the ifindex of the datapath end.
func (h HostLinks) NetIfindex() int { return h.Net.Index }

// HostMAC returns the MAC of the host end, the one that packets for the node's
// stack must be sent to.
func (h HostLinks) HostMAC() net.HardwareAddr { return h.Host.MAC }

func (p HostPair) check() (HostPair, error) {
	if p.HostName == "" {
		p.HostName = DefaultHostName
	}
	if p.NetName == "" {
		p.NetName = DefaultNetName
	}
	if p.MTU == 0 {
		p.MTU = DefaultMTU
	}
	if err := checkName("host device name", p.HostName); err != nil {
		return p, err
	}
	if err := checkName("net device name", p.NetName); err != nil {
		return p, err
	}
	if p.HostName == p.NetName {
		return p, &InputError{Field: "net device name", Value: p.NetName, Reason: "is also the host device name"}
	}
	addrs, err := checkOwnAddrs("host address", p.Addrs)
	if err != nil {
		return p, err
	}
	p.Addrs = addrs
	return p, checkMTU("host MTU", p.MTU, has6(addrs))
}

// EnsureHostPair makes the host pair exist as described, both ends up, NOARP and
// of one MTU, and the addresses on the host end and no others. The host end
// takes packets whose source is an address of the node (accept_local), and the
// datapath end has no IPv6 of its own.
//
// The MACs are chosen once, in the request that makes the pair, so that udev
// has no reason to change them. The pair is made anew only if one end lost the
// other. A device of either name that is not ours answers [ErrForeign]; ours
// carry an alias, see the text of the package.
func EnsureHostPair(ns Namespace, want HostPair) (HostLinks, error) {
	want, err := want.check()
	if err != nil {
		return HostLinks{}, fmt.Errorf("ensure host pair: %w", err)
	}
	var got HostLinks
	err = withConn(ns, func(c conn) error {
		var err error
		got, err = c.ensureHostPair(want)
		return err
	})
	if err != nil {
		return HostLinks{}, fmt.Errorf("ensure host pair %s: %w", want.HostName, err)
	}
	return got, nil
}

func (c conn) ensureHostPair(want HostPair) (got HostLinks, err error) {
	var back undo.Stack
	defer back.Run(&err)

	host, peer, err := c.hostPairEnds(want)
	if err != nil {
		return got, err
	}
	switch {
	case peer != nil:
		err = c.claim(host, hostPairAlias, end{c, peer})
	case host != nil:
		err = checkMark(host, hostPairAlias)
	}
	if err != nil {
		return got, err
	}
	if host == nil || peer == nil {
		// Whoever has the other name must not be found out half-way.
		if other, err := c.findKind(want.NetName, "veth"); err != nil {
			return got, err
		} else if other != nil && (host == nil || other.Attrs().Index != host.Attrs().ParentIndex) {
			return got, fmt.Errorf("device %s exists and is not the peer of %s: %w; remove it or choose another name", want.NetName, want.HostName, ErrForeign)
		}
		if host != nil {
			if err := c.remove(host); err != nil {
				return got, err
			}
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = want.HostName, want.MTU, orRandom(nil)
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerMTU, veth.PeerHardwareAddr = want.NetName, uint32(want.MTU), orRandom(nil)
		if err := c.LinkAdd(veth); err != nil {
			return got, fmt.Errorf("make the veth: %w", explainPermission(err))
		}
		back.Push(func() error { return c.remove(veth) })
		if err := c.mark(veth, hostPairAlias); err != nil {
			return got, err
		}
		if host, peer, err = c.findHostPair(want); err != nil {
			return got, err
		}
		if host == nil || peer == nil {
			return got, fmt.Errorf("the veth vanished while it was set up: %w", os.ErrNotExist)
		}
	}

	if err := c.reshape(host, shape{mtu: want.MTU, noARP: true}); err != nil {
		return got, err
	}
	if err := c.reshape(peer, shape{mtu: want.MTU, noARP: true}); err != nil {
		return got, err
	}
	if err := hostSettings(want); err != nil {
		return got, err
	}
	if err := quiet(want.NetName); err != nil {
		return got, err
	}
	if err := errors.Join(c.up(host), c.up(peer)); err != nil {
		return got, err
	}
	if err := c.ensureAddrs(host, want.Addrs, false); err != nil {
		return got, err
	}
	if got.Host, err = c.again(host); err != nil {
		return got, err
	}
	got.Net, err = c.again(peer)
	return got, err
}

// hostSettings let the host end take the overlay's packets for the node.
func hostSettings(want HostPair) error {
	all := []Sysctl{
		{IPv4, want.HostName, "rp_filter", 0},
		{IPv4, want.HostName, "send_redirects", 0},
		{IPv4, want.HostName, "accept_local", 1},
	}
	if !has6(want.Addrs) {
		return setSysctlsWith(all, []Sysctl{{IPv6, want.HostName, "disable_ipv6", 1}})
	}
	return setSysctls(append(all,
		// No link-local address: nobody is there to speak to. It would be born at
		// once when IPv6 is switched on, so that comes last.
		Sysctl{IPv6, want.HostName, "addr_gen_mode", 1},
		Sysctl{IPv6, want.HostName, "accept_ra", 0},
		Sysctl{IPv6, want.HostName, "accept_dad", 0},
		Sysctl{IPv6, want.HostName, "disable_ipv6", 0},
	))
}

// findHostPair returns the ends that exist and carry our mark. A host end
// without a peer is one that has to be made anew.
func (c conn) findHostPair(want HostPair) (host, peer netlink.Link, err error) {
	host, peer, err = c.hostPairEnds(want)
	if err != nil || host == nil {
		return nil, nil, err
	}
	if err := checkMark(host, hostPairAlias); err != nil {
		return nil, nil, err
	}
	return host, peer, nil
}

// hostPairEnds returns the ends that exist, whosever they are.
func (c conn) hostPairEnds(want HostPair) (host, peer netlink.Link, err error) {
	host, err = c.findKind(want.HostName, "veth")
	if err != nil || host == nil {
		return nil, nil, err
	}
	a := host.Attrs()
	// NetNsID is set when the peer lives in another namespace, where its ifindex
	// means something else.
	if a.NetNsID < 0 && a.ParentIndex != 0 {
		peer, err = c.byIndex(a.ParentIndex)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, nil, err
		}
		if err == nil && (peer.Attrs().Name != want.NetName || peer.Attrs().ParentIndex != a.Index) {
			peer = nil
		}
	}
	return host, peer, nil
}

// RemoveHostPair removes both ends. Only the names of want are used. Nil if the
// pair is absent; a device of the name that is not ours answers [ErrForeign].
func RemoveHostPair(ns Namespace, want HostPair) error {
	if want.HostName == "" {
		want.HostName = DefaultHostName
	}
	if want.NetName == "" {
		want.NetName = DefaultNetName
	}
	if err := errors.Join(checkName("host device name", want.HostName), checkName("net device name", want.NetName)); err != nil {
		return fmt.Errorf("remove host pair: %w", err)
	}
	err := withConn(ns, func(c conn) error {
		host, _, err := c.findHostPair(want)
		if err != nil || host == nil {
			return err
		}
		return c.remove(host)
	})
	if err != nil {
		return fmt.Errorf("remove host pair %s: %w", want.HostName, err)
	}
	return nil
}

// FindHostPair returns the ends of a host pair that exists. Only the names of
// want are used. If there is none, errors.Is(err, os.ErrNotExist); a device of
// the name that is not ours answers [ErrForeign].
func FindHostPair(ns Namespace, want HostPair) (HostLinks, error) {
	if want.HostName == "" {
		want.HostName = DefaultHostName
	}
	if want.NetName == "" {
		want.NetName = DefaultNetName
	}
	var got HostLinks
	err := withConn(ns, func(c conn) error {
		host, peer, err := c.findHostPair(want)
		if err != nil {
			return err
		}
		if host == nil || peer == nil {
			return os.ErrNotExist
		}
		if got.Host, err = c.describe(host); err != nil {
			return err
		}
		got.Net, err = c.describe(peer)
		return err
	})
	if err != nil {
		return HostLinks{}, fmt.Errorf("find host pair %s: %w", want.HostName, err)
	}
	return got, nil
}
