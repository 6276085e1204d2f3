/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A packet of the overlay, where it comes off the wire. One whose flow has its
 * verdict needs nothing that the node's stack and the overlay device would do:
 * its outer headers are taken off here and it goes straight into the endpoint.
 * All else comes out at from_overlay.
 */
#pragma once

#include "bpf.h"
#include "config.h"
#include "drop.h"
#include "flow.h"
#include "overlay.h"
#include "parse.h"
#include "path.h"
#include "send.h"
#include "types.h"

static __always_inline int shortcut_parse(struct __sk_buff *skb, struct packet *p)
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
static __always_inline int shortcut_leads_there(const struct flow *f, const struct sender *from)
{
	return f->verdict.action == ACTION_TO_ENDPOINT && sender_is_known(f, from);
}

/* p: room for what is inside */
static __always_inline int shortcut(struct __sk_buff *skb, const struct sender *from, struct packet *p, __u32 program)
{
	struct flow *f;
	int settled;

	if (shortcut_parse(skb, p) || p->kind != PACKET_PLAIN)
		return TCX_NEXT;
	f = flow_lookup(&p->tuple);
	if (!f || !shortcut_leads_there(f, from) || send_check(skb, p, &f->verdict))
		return TCX_NEXT;
	/* What would come from the overlay device comes from here. */
	settled = flow_is_settled(f, node.overlay_ifindex, p);
	if (!settled && !path_goes_on(node.overlay_ifindex, p, f))
		return TCX_NEXT;
	if (overlay_strip(skb, p))
		return drop(skb, program, DROP_REWRITE_FAILED);
	if (likely(settled))
		flow_touch(f, skb, p);
	else
		flow_track(skb, p, f);
	if (send_rewrite(skb, p, &f->verdict, &f->peer))
		return drop(skb, program, DROP_REWRITE_FAILED);
	return send_into(skb, &f->verdict, program);
}
