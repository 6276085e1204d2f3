// SPDX-License-Identifier: Apache-2.0

// Package programs puts BPF programs to work: ours, which it loads with the
// tables of the blocks that the caller chose, and the caller's own, before or
// after ours on the same hook.
//
//	dp, err := programs.Load(programs.Config{Namespace: node, Gateways: gateways}, endpoints, flows, peers)
//	defer dp.Close()
//	err = dp.AttachHost(host)      // devices.EnsureHostPair
//	err = dp.AttachOverlay(vxlan)  // devices.EnsureVXLAN
//	err = dp.AttachEndpoint(veth)  // devices.EnsureEndpoint, and endpoints.Set
//
// Around them the node needs devices.EnsureForwarding, and a route of the prefix of
// its endpoints to the host pair (devices.EnsureRoute with Dev dp_host and Via the
// gateway): what the node's stack sends to endpoints, its answers too, takes that
// way to from_host. An agent runs conntrack.Table.Run as well, else no idle flow
// ever ends.
//
// The world outside is reached by the uplinks that [Datapath.AttachDevice] gets,
// where the node's own routes lead; [Datapath.SetNodeAddrs] tells the node's
// addresses. What endpoints send there leaves with an address of the node if the
// flow table masquerades (conntrack.NAT), and services are there for clients from
// outside (lb.Service). [Config].StackRouting leaves the way out to the stack.
//
// A block that is not passed is a dead branch, which the verifier takes out:
// without the flow table every packet is judged, without peers there is no
// overlay. One program serves all endpoints of a node.
//
// [AttachProgram], [Hooks] and [Compile] work for any tc program and know
// nothing about ours. Their [Direction] is the device's: what an endpoint sends is
// [Ingress] of its device on the node. The direction in a maps.Metric is the
// endpoint's, where the same packets are egress.
//
// # Lifetime
//
// Without [Config].Pins the programs leave the devices with [Datapath.Close] or
// with the process. With it they go on, and the next [Load] takes over: each
// Attach replaces the program of a pinned attachment in place, and no packet
// meets the hook without one. [Datapath.Remove] takes everything away. The
// tables are the blocks'; the programs keep them alive on their own.
//
// # Concurrency
//
// All methods may be called from any goroutine. A namespace is an argument, and
// no thread of the caller ever moves to it.
//
// # Needs
//
// Linux 6.6 for tcx, with BTF; root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN,
// and CAP_SYS_ADMIN for pins and for other namespaces. clang for [Compile] alone.
// A kernel that lacks something answers ebpf.ErrNotSupported, who has no right
// os.ErrPermission, a folder for pins on another filesystem maps.ErrNoBPFFS, and
// input that can not be used os.ErrInvalid.
package programs
