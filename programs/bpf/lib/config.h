/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Settings that are fixed when a program is loaded. The verifier knows them,
 * so the code of what is off is not there. Each has its text in BTF.
 */
#pragma once

#include "bpf.h"
#include "types.h"

#define CONFIG(type, name, text) \
	volatile const type name SEC(".rodata.config") __attribute__((btf_decl_tag("doc:" text)))

CONFIG(__u8, with_endpoints, "deliver to the endpoints of the endpoint table");
CONFIG(__u8, with_flows, "remember flows and their verdicts");
CONFIG(__u8, with_overlay, "send to the nodes of the peers table");
CONFIG(__u8, with_translation, "flows may go on under another tuple than they came with");
CONFIG(__u8, with_nat, "flows may leave with an address and a port of the node");
CONFIG(__u8, with_masquerade, "what endpoints send out of the node leaves with an address of the node");
CONFIG(__u8, stack_routing, "leave the way out of the node to its stack");
CONFIG(__u16, nat_first, "first source port that a flow may get, host byte order");
CONFIG(__u32, nat_count, "how many there are");
CONFIG(__u32, nat_mask, "tables of port hints, less one");
CONFIG(__u32, route_age, "how long a verdict by the node's routes holds, in jiffies");
CONFIG(__u8, with_services, "turn frontends of services into backends");
CONFIG(__u32, maglev_size, "slots of a Maglev table, a prime");
CONFIG(struct address, hairpin_ipv4, "source of what an endpoint sends to itself through a service, IPv4, mapped");
CONFIG(struct address, hairpin_ipv6, "source of what an endpoint sends to itself through a service, IPv6");
CONFIG(__u64, socket_netns, "cookie of the network namespace whose sockets are translated; 0: all");
CONFIG(__u64, socket_node, "cookie of the node's network namespace, where its ports are kept; 0: not known");
CONFIG(__u8, overlay_ipv6, "the overlay runs over IPv6");
CONFIG(__u8, overlay_checksum, "send overlay packets with a UDP checksum");
CONFIG(__u8, overlay_pass_foreign, "leave foreign overlay packets to the stack, do not drop them");
CONFIG(__u16, overlay_mtu, "longest IP packet that fits the overlay, in bytes");
CONFIG(__u16, overlay_port, "UDP port of the overlay, host byte order");
CONFIG(__u16, overlay_source_first, "first source port of what we encapsulate, host byte order");
CONFIG(__u32, overlay_source_count, "how many there are");
CONFIG(struct address, overlay_node, "this node's address in the underlay");
CONFIG(struct address, gateway_ipv4, "the node's address in the overlay, IPv4, mapped");
CONFIG(struct address, gateway_ipv6, "the node's address in the overlay, IPv6");
CONFIG(__u32, unconfirmed_mask, "slots of the ring of unconfirmed flows, less one");
CONFIG(__u32, fragment_timeout, "how long the parts of a datagram are waited for, in jiffies");

/* A setting is read as volatile, else the compiler takes its empty text for the value. */
static __always_inline struct address config_address(const volatile struct address *a)
{
	const volatile __u32 *w = (const volatile __u32 *)a->bytes;
	struct address out;
	__u32 *to = (__u32 *)out.bytes;

	to[0] = w[0];
	to[1] = w[1];
	to[2] = w[2];
	to[3] = w[3];
	return out;
}
