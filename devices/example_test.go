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
	fmt.Println(host.Host.Name, host.Host.Addrs)
	fmt.Println(vxlan.Name, vxlan.MTU)
	fmt.Println(pod.Name, pod.EndpointAddrs)
	// Output:
	// dp_host [10.244.1.1/32]
	// dp_vxlan 1450
	// lxcczdxncga4adj [10.244.1.10]
}

// Routes of a node to the pods of its peers. The set is whole: a peer that is
// not in it any more loses its route. It needs root.
func ExampleSyncRoutes() {
	node, err := devices.NewNamespace()
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()
	self := netip.MustParseAddr("10.244.1.1")
	if _, err := devices.EnsureHostPair(node, devices.HostPair{Addrs: []netip.Addr{self}}); err != nil {
		log.Fatal(err)
	}

	for _, peers := range [][]string{{"10.244.2.0/24", "10.244.3.0/24"}, {"10.244.3.0/24"}} {
		var routes []devices.Route
		for _, pods := range peers {
			routes = append(routes, devices.Route{
				Prefix: netip.MustParsePrefix(pods),
				Via:    self,
				MTU:    1450,
			})
		}
		if err := devices.SyncRoutes(node, "dp_host", routes); err != nil {
			log.Fatal(err)
		}
		now, err := devices.ListRoutes(node, "dp_host")
		if err != nil {
			log.Fatal(err)
		}
		for _, r := range now {
			fmt.Println(r.Prefix, "via", r.Via, "mtu", r.MTU)
		}
		fmt.Println()
	}
	// Output:
	// 10.244.2.0/24 via 10.244.1.1 mtu 1450
	// 10.244.3.0/24 via 10.244.1.1 mtu 1450
	//
	// 10.244.3.0/24 via 10.244.1.1 mtu 1450
}

// Somebody else has the port. It needs root.
func ExampleEnsureVXLAN_portInUse() {
	node, err := devices.NewNamespace()
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()
	if _, err := devices.EnsureVXLAN(node, devices.VXLAN{Name: "other_vxlan"}); err != nil {
		log.Fatal(err)
	}

	_, err = devices.EnsureVXLAN(node, devices.VXLAN{})
	var taken *devices.PortInUseError
	if errors.As(err, &taken) {
		fmt.Println(taken.Port, "is held by", taken.Owner)
	}
	// Output: 8472 is held by vxlan device other_vxlan (ifindex 2)
}

// What is there, with the settings that a [devices.Link] does not tell. It
// needs root, but only to make the device.
func ExampleFindVXLAN() {
	node, err := devices.NewNamespace()
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()
	want := devices.VXLAN{SourcePorts: devices.PortRange{Low: 32768, High: 61000}}
	if _, err := devices.EnsureVXLAN(node, want); err != nil {
		log.Fatal(err)
	}
	vxlan, err := devices.FindVXLAN(node, "")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(vxlan.Name, vxlan.Port, vxlan.SourcePorts, vxlan.UDPChecksum)
	// Output: dp_vxlan 8472 {32768 61000} false
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
