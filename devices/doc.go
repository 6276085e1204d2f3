// SPDX-License-Identifier: Apache-2.0

// Package devices sets up what the kernel needs around a datapath: network
// namespaces, links, addresses, routes, sysctls and MTUs. It speaks netlink and
// knows nothing about BPF, so it is useful alone.
//
//	gateway := netip.MustParseAddr("10.244.1.1")
//	err := devices.EnsureForwarding(node, devices.Forwarding{Devices: []string{"eth0"}})
//	host, err := devices.EnsureHostPair(node, devices.HostPair{Addrs: []netip.Addr{gateway}})
//	vxlan, err := devices.EnsureVXLAN(node, devices.VXLAN{Underlay: "eth0"})
//	err = devices.EnsureRoute(node, devices.Route{
//		Prefix: netip.MustParsePrefix("10.244.1.0/24"), Dev: devices.DefaultHostName, Via: gateway, MTU: vxlan.MTU,
//	})
//	pod, err := devices.EnsureEndpoint(node, devices.Endpoint{
//		Name:      "blue",
//		Namespace: ns,
//		Addrs:     []netip.Addr{netip.MustParseAddr("10.244.1.10")},
//		Gateways:  []netip.Addr{gateway},
//		RouteMTU:  vxlan.MTU,
//	})
//	err = devices.RemoveEndpoint(node, pod)
//
// The route is the node's own way to its endpoints, and the way of its answers to
// them: without it nothing passes between the node, its gateway address among it,
// and an endpoint. The prefixes of other nodes get one like it. An address that
// another node has in the underlay gets none: that way the overlay itself goes.
//
// # Agreement
//
// This package knows nothing of the programs, so the caller keeps [VXLAN] and
// tunnel.Config in step: Port, IPv6, UDPChecksum, and as MTU that of the
// [VXLANLink]. programs.Datapath.AttachOverlay refuses a device of another port.
// Of the others nobody tells: IPv6 decides the MTU that is computed here, and with
// another MTU large packets are lost. For what the programs send, the UDPChecksum
// of tunnel.Config counts; for all else, that of the device.
//
// # Lifetime
//
// The state is in the kernel and outlives the process. An Ensure function makes
// the machine equal to what it is given: a second call changes nothing, drift
// is repaired in place with the ifindex kept, and a device is made anew only
// when the kernel can not change it. What an Ensure function has begun it takes
// back when it fails. A Remove function of something absent is nil.
//
// # Ownership
//
// A device that this package makes carries an alias which says what it is, such
// as "datapath vxlan"; "ip link" shows it. A device of a wanted name with another
// alias or without one is not ours: the answer is [ErrForeign], and it is left
// alone. Only what a process leaves that is killed in the middle of making a
// device is finished by the next Ensure call: a device as wanted that has no
// alias, is down and has no address. Acts that take a [Link] go by ifindex and
// name together.
//
// # Concurrency
//
// All functions may be called from any goroutine. Two calls for different
// things do not disturb each other; two calls for the same thing should be put
// in order by the caller. A [Namespace] is an argument, and no thread of the
// caller ever moves.
//
// # Needs
//
// Linux 5.14 for [Namespace.Cookie], 4.20 for the rest, and root or CAP_NET_ADMIN
// and CAP_SYS_ADMIN. /proc/sys must be writable where a sysctl differs.
package devices
