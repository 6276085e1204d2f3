// SPDX-License-Identifier: Apache-2.0

// Package conntrack holds the flow table of a node: every connection that the
// programs have let through, with the verdict that its next packets get without
// being judged again.
//
//	flows, err := conntrack.New(conntrack.Config{Flows: 100_000})
//	if err != nil {
//		return err
//	}
//	defer flows.Close()
//	dp, err := programs.Load(programs.Config{Namespace: node}, endpoints, flows)
//	...
//	for flow, err := range flows.Filter(conntrack.Filter{DstPort: 443}) {
//		if err != nil {
//			return err
//		}
//		fmt.Println(flow.Original, flow.State, flow.Sent.Packets, flow.Idle)
//	}
//	return flows.Run(ctx) // expires idle flows until ctx ends
//
// A flow has two entries, one for each direction, under the tuples as their
// packets arrive. It is new until its originator has gone on from a reply; then
// it is established, and only time ends it. New flows have a budget of their
// own, [Config].Unconfirmed: when it is used up, each takes the place of the
// oldest of them, so no flood of openings pushes out what is established. A
// table that is full of established flows remembers no more; packets go on and
// are judged one by one, and [Stats] tells.
//
// # NAT
//
// With [Config].NAT flows may leave in the node's name: what endpoints send out of
// the node (masquerade), and the packets of services to backends on other nodes.
// That is no table of its own: the translation is the difference between the two
// tuples of a flow, and a port is free if the tuple of the answers can be put in.
// [Table.PortUse] counts the ports of each destination, [Table.NATStats] how long
// they were looked for.
//
// # Lifetime
//
// With Config.Pins the table outlives the process, and the next New adopts it
// with its flows; one of another layout or size is a [*maps.IncompatibleError].
// With maps.Migrate as Config.OnMismatch the flows go over to a table of another
// size.
// Close drops our handles, Remove takes the pins away. Programs that run keep
// the table alive on their own, but nothing expires without [Table.Run]. [Open]
// is for tools.
//
// # Concurrency
//
// All methods may be called by many goroutines at once, while programs read and
// write the same table. Of the processes that share a pinned table one expires.
//
// # Needs
//
// Linux 5.14 for the pass inside the kernel, with CONFIG_MEMBARRIER; the
// programs that write the table need 6.6, for tcx. Root, or CAP_BPF and
// CAP_PERFMON, and for a pinned table CAP_SYS_ADMIN, to read its types. The
// memory for all entries is taken at once.
package conntrack
