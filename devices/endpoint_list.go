// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ListEndpoints returns the endpoints of a node whose device name begins with
// prefix, in the order of their ifindex. "" means all; with [EndpointPrefix] only
// those with a built name. Devices that this package did not make are left out.
//
// The peers are read from the node, by the number that the node's namespace has
// for each of the others; no namespace is entered. An endpoint that vanishes
// during the call is left out.
func ListEndpoints(node Namespace, prefix string) ([]EndpointLink, error) {
	var all []EndpointLink
	err := withConn(node, func(c conn) error {
		links, err := retryDump(c.LinkList)
		if err != nil {
			return err
		}
		far, err := newFarReader()
		if err != nil {
			return err
		}
		defer far.Close()
		for _, l := range links {
			a := l.Attrs()
			name, ours := strings.CutPrefix(a.Alias, endpointAliasPrefix)
			if !ours || l.Type() != "veth" || !strings.HasPrefix(a.Name, prefix) || a.NetNsID < 0 {
				continue
			}
			peer, err := far.link(a.NetNsID, a.ParentIndex)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("read the peer of device %s: %w", a.Name, err)
			}
			addrs, err := far.addrs(a.NetNsID, a.ParentIndex)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("read the addresses of the peer of device %s: %w", a.Name, err)
			}
			all = append(all, EndpointLink{
				Link:          toLink(l, nil),
				PeerIndex:     peer.Attrs().Index,
				PeerName:      peer.Attrs().Name,
				PeerMAC:       slices.Clone(peer.Attrs().HardwareAddr),
				EndpointAddrs: addrs,
				EndpointName:  name,
			})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	slices.SortFunc(all, func(a, b EndpointLink) int { return a.Index - b.Index })
	return all, nil
}

// farReader reads devices of other namespaces through a socket of ours. The
// kernel takes the number of the other namespace in the request (4.20).
type farReader struct {
	sockets map[int]*nl.SocketHandle
}

// newFarReader opens the socket in the namespace of the calling thread.
func newFarReader() (farReader, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return farReader{}, fmt.Errorf("open netlink: %w", explainPermission(err))
	}
	// Without this the kernel ignores the number and the ifindex in the request
	// for addresses, and answers with all of ours.
	if err := unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		s.Close()
		return farReader{}, fmt.Errorf("set netlink to strict checks: %w", err)
	}
	return farReader{map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

func (f farReader) Close() { f.sockets[unix.NETLINK_ROUTE].Close() }

func (f farReader) request(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = f.sockets
	return req
}

// gone adds to absent what the kernel says about a namespace that has ended.
func gone(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENONET) {
		return os.ErrNotExist
	}
	return absent(err)
}

func (f farReader) link(nsid, index int) (netlink.Link, error) {
	req := f.request(unix.RTM_GETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(nsid))))
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, gone(err)
	}
	if len(answers) != 1 {
		return nil, os.ErrNotExist
	}
	return netlink.LinkDeserialize(nil, answers[0])
}

// addrs returns the addresses of a device without IPv6 link-local ones.
func (f farReader) addrs(nsid, index int) ([]netip.Addr, error) {
	var all []netip.Addr
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		answers, err := retryDump(func() ([][]byte, error) {
			req := f.request(unix.RTM_GETADDR, unix.NLM_F_DUMP)
			msg := nl.NewIfAddrmsg(family)
			msg.Index = uint32(index)
			req.AddData(msg)
			req.AddData(nl.NewRtAttr(unix.IFA_TARGET_NETNSID, nl.Uint32Attr(uint32(nsid))))
			return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
		})
		if err != nil {
			return nil, gone(err)
		}
		for _, m := range answers {
			a, ok, err := parseAddrMessage(m)
			if err != nil {
				return nil, err
			}
			if ok && (a.Is4() || !a.IsLinkLocalUnicast()) {
				all = append(all, a)
			}
		}
	}
	return all, nil
}

// parseAddrMessage returns the local address of an RTM_NEWADDR message.
func parseAddrMessage(m []byte) (netip.Addr, bool, error) {
	head := nl.NewIfAddrmsg(0)
	if len(m) < head.Len() {
		return netip.Addr{}, false, errors.New("a short address message")
	}
	attrs, err := nl.ParseRouteAttr(m[head.Len():])
	if err != nil {
		return netip.Addr{}, false, err
	}
	var found netip.Addr
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFA_LOCAL:
			// The right one where both are given: IFA_ADDRESS is then the far end.
			addr, ok := netip.AddrFromSlice(a.Value)
			return addr, ok, nil
		case unix.IFA_ADDRESS:
			found, _ = netip.AddrFromSlice(a.Value)
		}
	}
	return found, found.IsValid(), nil
}
