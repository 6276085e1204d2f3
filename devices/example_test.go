// SPDX-License-Identifier: Apache-2.0

package devices_test

import (
	"errors"
	"fmt"
	"log"
	"net/netip"
	"os"

	"github.com/godatapath/datapath/devices"
)

// A node with an overlay device and one endpoint, in namespaces made for it.
// It needs root.
func Example() {
	node, err := devices.NewNamespace()
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()
	workload, err := devices.NewNamespace()
	if err != nil {
		log.Fatal(err)
	}
	defer workload.Close()

	gateway := netip.MustParseAddr("10.244.1.1")
	if err := devices.EnsureForwarding(node, devices.Forwarding{}); err != nil {
		log.Fatal(err)
	}
	host, err := devices.EnsureHostPair(node, devices.HostPair{Addrs: []netip.Addr{gateway}})
	if err != nil {
		log.Fatal(err)
	}
	vxlan, err := devices.EnsureVXLAN(node, devices.VXLAN{})
	if err != nil {
		log.Fatal(err)
	}
	pod, err := devices.EnsureEndpoint(node, devices.Endpoint{
		Name:      "blue",
		Namespace: workload,
		Addrs:     []netip.Addr{netip.MustParseAddr("10.244.1.10")},
		Gateways:  []netip.Addr{gateway},
		RouteMTU:  vxlan.MTU,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(host.Host.Addrs, pod.Name, pod.EndpointAddrs)
}

// Routes of a node to the pods of its peers. The set is whole: a peer that is
// not in it any more loses its route. It needs root.
func ExampleSyncRoutes() {
	self := netip.MustParseAddr("10.244.1.1")
	var routes []devices.Route
	for _, pods := range []string{"10.244.2.0/24", "10.244.3.0/24"} {
		routes = append(routes, devices.Route{
			Prefix: netip.MustParsePrefix(pods),
			Via:    self,
			MTU:    1450,
		})
	}
	if err := devices.SyncRoutes(devices.Namespace{}, "dp_host", routes); err != nil {
		log.Fatal(err)
	}
}

// Somebody else has the port. It needs root.
func ExampleEnsureVXLAN_portInUse() {
	_, err := devices.EnsureVXLAN(devices.Namespace{}, devices.VXLAN{})
	var taken *devices.PortInUseError
	if errors.As(err, &taken) {
		fmt.Println(taken.Port, "is held by", taken.Owner)
	}
}

// Bad input is found before the kernel is asked, and needs no rights.
func ExampleInputError() {
	_, err := devices.EnsureVXLAN(devices.Namespace{}, devices.VXLAN{Name: "a-name-too-long-for-it"})
	var bad *devices.InputError
	fmt.Println(errors.As(err, &bad), errors.Is(err, os.ErrInvalid))
	fmt.Println(err)
	// Output:
	// true true
	// ensure vxlan: vxlan device name "a-name-too-long-for-it" has 22 bytes and may have 15
}

func ExampleEndpointLinkName() {
	fmt.Println(devices.EndpointLinkName("blue"))
	// Output: lxcczdxncga4adj
}

func ExampleOverlayMTU() {
	for _, ipv6 := range []bool{false, true} {
		mtu, err := devices.OverlayMTU(1500, ipv6)
		fmt.Println(mtu, err)
	}
	// Output:
	// 1450 <nil>
	// 1430 <nil>
}
