// SPDX-License-Identifier: Apache-2.0

package lb_test

import (
	"fmt"
	"log"
	"net/netip"

	"github.com/godatapath/datapath/lb"
)

// A service is set as a whole, and again when it changes. What is pinned goes on
// without the process; this one is not.
func Example() {
	services, err := lb.New(lb.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer services.Close()

	// From here, pass services to programs.Load for the packets of endpoints, or
	// call services.AttachSockets for the sockets of a cgroup.
	web := lb.Service{
		Name:      "default/web:http",
		Frontends: []lb.Frontend{{Addr: netip.MustParseAddrPort("10.96.0.1:80")}},
		Backends: []lb.Backend{
			{Addr: netip.MustParseAddrPort("10.244.1.10:8080")},
			{Addr: netip.MustParseAddrPort("10.244.2.10:8080"), Weight: 3},
		},
	}
	if err := services.SetService(web); err != nil {
		log.Fatal(err)
	}
	web.Backends[0].State = lb.Terminating // its connections go on, and new ones go elsewhere
	if err := services.SetService(web); err != nil {
		log.Fatal(err)
	}

	all, err := services.Services()
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range all {
		fmt.Println(s.Name, s.Frontends[0].Addr, s.Frontends[0].Protocol, s.Frontends[0].Type)
		for _, b := range s.Backends {
			fmt.Println(" ", b.Addr, b.State, b.Weight)
		}
	}
	// Output:
	// default/web:http 10.96.0.1:80 TCP ClusterIP
	//   10.244.1.10:8080 terminating 1
	//   10.244.2.10:8080 active 3
}
