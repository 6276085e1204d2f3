// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/wire"
)

// Endpoint is a workload of this node, as the programs know it.
type Endpoint struct {
	// ID is the caller's number for the endpoint, not 0 and unique on the node.
	ID uint32
	// Identity says who the endpoint is; see [Identity].
	Identity Identity
	// Ifindex is the host-side device, as the node's namespace counts.
	Ifindex int
	// Addrs are the addresses that the endpoint may send from and receives on:
	// one or two, at most one per family.
	Addrs []netip.Addr
	// MAC is the address of the device inside, NodeMAC that of the host-side
	// device, which the endpoint takes for its gateway.
	MAC, NodeMAC net.HardwareAddr
	// NoPeerRedirect delivers through the host-side device, where a bridge or
	// a qdisc may be waiting, and not straight into the namespace.
	NoPeerRedirect bool
}

// value checks an endpoint and turns it into what the programs read.
func (ep Endpoint) value() (bpf.TableEndpoint, error) {
	var v bpf.TableEndpoint
	var err error
	switch {
	case ep.ID == 0:
		return v, invalid.Errorf("ID is 0, which means none")
	case !ep.Identity.Valid():
		return v, invalid.Errorf("Identity is %d, which is neither reserved (1 to 8) nor the user's (256 to %d)", ep.Identity, MaxIdentity)
	case !isIfindex(ep.Ifindex):
		return v, invalid.Errorf("Ifindex is %d, want the index of the host-side device", ep.Ifindex)
	case len(ep.Addrs) == 0:
		return v, invalid.Errorf("Addrs is empty, want at least one address")
	}
	v.Id, v.Identity, v.Ifindex = ep.ID, uint32(ep.Identity), uint32(ep.Ifindex)
	if v.Mac, err = wire.MAC(ep.MAC); err != nil {
		return v, fmt.Errorf("MAC: %w", err)
	}
	if v.NodeMac, err = wire.MAC(ep.NodeMAC); err != nil {
		return v, fmt.Errorf("NodeMAC: %w", err)
	}
	for _, a := range ep.Addrs {
		if a, err = wire.CheckAddr(a); err != nil {
			return v, err
		}
		slot := 0
		if a.Is6() {
			slot = 1
		}
		if v.Addrs[slot] != (bpf.TableAddress{}) {
			return v, invalid.Errorf("address %s: a second one of its family", a)
		}
		v.Addrs[slot] = wire.Addr(a)
	}
	if ep.NoPeerRedirect {
		v.Flags |= uint32(bpf.TableEndpointFlagENDPOINT_NO_PEER_REDIRECT)
	}
	return v, nil
}

// isIfindex reports whether the kernel could have given out the number.
func isIfindex(i int) bool { return i > 0 && i <= math.MaxInt32 }

func goEndpoint(v bpf.TableEndpoint) Endpoint {
	ep := Endpoint{
		ID:             v.Id,
		Identity:       Identity(v.Identity),
		Ifindex:        int(v.Ifindex),
		MAC:            net.HardwareAddr(v.Mac[:]),
		NodeMAC:        net.HardwareAddr(v.NodeMac[:]),
		NoPeerRedirect: v.Flags&uint32(bpf.TableEndpointFlagENDPOINT_NO_PEER_REDIRECT) != 0,
	}
	for _, a := range present(v) {
		ep.Addrs = append(ep.Addrs, wire.GoAddr(a))
	}
	return ep
}

func present(v bpf.TableEndpoint) []bpf.TableAddress {
	out := make([]bpf.TableAddress, 0, len(v.Addrs))
	for _, a := range v.Addrs {
		if a != (bpf.TableAddress{}) {
			out = append(out, a)
		}
	}
	return out
}
