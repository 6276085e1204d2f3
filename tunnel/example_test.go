// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"fmt"
	"log"
	"net/netip"

	"github.com/godatapath/datapath/tunnel"
)

func Example() {
	peers, err := tunnel.New(tunnel.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer peers.Close()
	for prefix, node := range map[string]string{
		"10.244.2.0/24":   "172.16.16.121",
		"10.244.2.77/32":  "172.16.16.122", // this one has moved
		"fd00:244:2::/64": "172.16.16.121",
	} {
		err := peers.Set(tunnel.Peer{Prefix: netip.MustParsePrefix(prefix), Node: netip.MustParseAddr(node)})
		if err != nil {
			log.Fatal(err)
		}
	}
	for _, addr := range []string{"10.244.2.10", "10.244.2.77", "fd00:244:2::10"} {
		node, err := peers.Lookup(netip.MustParseAddr(addr))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(addr, "is on", node)
	}
	// Output:
	// 10.244.2.10 is on 172.16.16.121
	// 10.244.2.77 is on 172.16.16.122
	// fd00:244:2::10 is on 172.16.16.121
}

// The whole state at once, as an agent that watches nodes has it.
func ExamplePeers_Sync() {
	peers, err := tunnel.New(tunnel.Config{IPv6: true, MTU: 1430})
	if err != nil {
		log.Fatal(err)
	}
	defer peers.Close()
	node := netip.MustParseAddr("2001:db8::121")
	changes, err := peers.Sync([]tunnel.Peer{
		{Prefix: netip.MustParsePrefix("10.244.2.0/24"), Node: node},
		{Prefix: netip.MustParsePrefix("fd00:244:2::/64"), Node: node},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(changes.Set, "set,", changes.Deleted, "deleted")
	for peer, err := range peers.All() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(peer.Prefix, peer.Node)
	}
	// Unordered output:
	// 2 set, 0 deleted
	// 10.244.2.0/24 2001:db8::121
	// fd00:244:2::/64 2001:db8::121
}
