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
