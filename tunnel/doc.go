// SPDX-License-Identifier: Apache-2.0

// Package tunnel holds the table of the other nodes of an overlay: which prefix
// is behind which node. With it programs send to endpoints of other nodes by
// VXLAN, with the sender's identity as VNI, and accept from a node only what
// comes from its prefixes.
//
//	peers, err := tunnel.New(tunnel.Config{MTU: vxlan.MTU})
//	if err != nil {
//		return err
//	}
//	defer peers.Close()
//	dp, err := programs.Load(programs.Config{Namespace: node}, endpoints, flows, peers)
//	...
//	err = dp.AttachOverlay(vxlan) // a devices.EnsureVXLAN
//	err = peers.Set(tunnel.Peer{
//		Prefix: netip.MustParsePrefix("10.244.2.0/24"),
//		Node:   netip.MustParseAddr("172.16.16.121"),
//	})
//
// The longest prefix that covers an address counts, so an address can move to
// another node ahead of the rest of its prefix. A change reaches established
// flows with their next packet; a call that changes nothing disturbs none.
//
// A node's own address in the underlay can be a prefix of that node, as a /32 or
// /128 of the family that carries the overlay:
//
//	err = peers.Set(tunnel.Peer{Prefix: netip.PrefixFrom(other, other.BitLen()), Node: other})
//
// Without it, endpoints here can not reach that address: nobody masquerades, so a
// packet to it would have to leave through the underlay with an endpoint's address,
// to which no answer comes back. With it the packet takes the overlay, and the
// other node accepts it if Config.Node there is that address. The answer comes
// from the same address, and is accepted because the prefix is the node's. The
// nodes' stacks go on to reach one another by the underlay: no route of the prefix
// may lead to the host pair.
//
// # Agreement
//
// The overlay device is made apart from this table, and the two must agree: Port,
// IPv6 and UDPChecksum of [Config] are those of devices.VXLAN, and MTU is that of
// the devices.VXLANLink. programs.Datapath.AttachOverlay refuses a device of
// another port; of the others nobody tells. All nodes of an overlay have the same
// Port and IPv6.
//
// # Lifetime
//
// With Config.Pins the table outlives the process and the next New adopts it
// with its peers; one of another layout or size is a [*maps.IncompatibleError].
// With maps.Migrate as Config.OnMismatch the peers go over to a table of another
// size.
// Close drops our handle, Remove takes the pin away. Programs that run keep the
// table alive on their own. [Open] is for tools.
//
// # Concurrency
//
// All methods may be called by many goroutines at once. Of the processes that
// share a pinned table one writes; any number read.
//
// # Needs
//
// The table alone needs Linux 5.10, the programs that use it 6.6, for tcx. Root,
// or CAP_BPF, and for a pinned table CAP_SYS_ADMIN, to read its types.
package tunnel
