//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * from_underlay: tcx ingress of an uplink, a short cut. A packet of the overlay
 * whose flow has its verdict needs nothing that the node's stack and the overlay
 * device would do: its outer headers are taken off here and it goes straight
 * into the endpoint. All else is left as it came, and what is of the overlay
 * comes out at from_overlay.
 */
#include "lib/bpf.h"
#include "lib/config.h"
#include "lib/drop.h"
#include "lib/flow.h"
#include "lib/overlay.h"
#include "lib/parse.h"
#include "lib/path.h"
#include "lib/send.h"

#define HOOK PROGRAM_FROM_UNDERLAY

static __always_inline int parse_inner(struct __sk_buff *skb, struct packet *p)
{
	__u32 l2 = overlay_headers();
	struct ethhdr *eth = packet_at(skb, l2);

	if ((void *)(eth + 1) > packet_end(skb))
		return DROP_TRUNCATED;
	if (eth->type == htons(ETH_P_IP))
		return parse_ipv4(skb, p, l2 + ETH_HLEN);
	if (eth->type == htons(ETH_P_IPV6))
		return parse_ipv6(skb, p, l2 + ETH_HLEN);
	return DROP_UNKNOWN_L3;
}

/* The flow is this sender's, and ends in an endpoint. */
static __always_inline int is_for_endpoint(const struct flow *f, const struct sender *from)
{
	return f->verdict.action == ACTION_TO_ENDPOINT && sender_is_known(f, from);
}

SEC("tc")
int from_underlay(struct __sk_buff *skb)
{
	struct sender from;
	struct packet p;
	struct flow *f;
	int settled;

	/* Segments in one packet are told by the outer headers: the kernel knows how to take them apart. */
	if (!with_flows || !with_overlay || skb->gso_size || skb->vlan_present || !overlay_read(skb, &from))
		return TCX_NEXT;
	if (parse_inner(skb, &p) || p.kind != PACKET_PLAIN)
		return TCX_NEXT;
	f = flow_lookup(&p.tuple);
	if (!f || !is_for_endpoint(f, &from) || send_check(skb, &p, &f->verdict))
		return TCX_NEXT;
	/* What would come from the overlay device comes from here. */
	settled = flow_is_settled(f, node.overlay_ifindex, &p);
	if (!settled && !path_goes_on(node.overlay_ifindex, &p, f))
		return TCX_NEXT;
	if (overlay_strip(skb, &p))
		return drop(skb, HOOK, DROP_REWRITE_FAILED);
	if (likely(settled))
		flow_touch(f, skb, &p);
	else
		flow_track(skb, &p, f);
	return send(skb, &p, &f->verdict, &f->peer, HOOK);
}

char _license[] SEC("license") = "Dual BSD/GPL";
