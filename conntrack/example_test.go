// SPDX-License-Identifier: Apache-2.0

package conntrack_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/godatapath/datapath/conntrack"
)

func Example() {
	flows, err := conntrack.New(conntrack.Config{
		Flows:    1000,
		Timeouts: conntrack.Timeouts{TCPEstablished: 24 * time.Hour},
		Interval: 5 * time.Millisecond,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer flows.Close()

	// Programs that are loaded with it fill the table; here there are none.
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := flows.Run(ctx); err != nil {
		log.Fatal(err)
	}
	stats, err := flows.Stats()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d of %d entries, %d flows pushed out\n", stats.Entries, stats.Capacity, stats.Evicted)
	// Output: 0 of 2000 entries, 0 flows pushed out
}

func ExampleTable_Filter() {
	flows, err := conntrack.New(conntrack.Config{Flows: 1000})
	if err != nil {
		log.Fatal(err)
	}
	defer flows.Close()
	web := conntrack.Filter{Src: netip.MustParsePrefix("10.244.0.0/16"), DstPort: 443, Protocol: conntrack.TCP}
	for flow, err := range flows.Filter(web) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(flow.Original, flow.State, flow.Forward.Action, flow.Idle)
	}
	n, err := flows.Flush(web)
	fmt.Println(n, "flows forgotten,", err)
	// Output: 0 flows forgotten, <nil>
}

func ExampleTable_Lookup() {
	flows, err := conntrack.New(conntrack.Config{Flows: 1000})
	if err != nil {
		log.Fatal(err)
	}
	defer flows.Close()
	tuple := conntrack.Tuple{
		Src: netip.MustParseAddrPort("10.244.1.10:40000"), Dst: netip.MustParseAddrPort("10.244.2.10:443"), Protocol: conntrack.TCP,
	}
	_, err = flows.Lookup(tuple)
	fmt.Println(err, errors.Is(err, ebpf.ErrKeyNotExist))
	// Output: look up flow TCP 10.244.1.10:40000 -> 10.244.2.10:443: look up in table flows: key does not exist true
}
