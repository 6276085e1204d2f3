//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * xdp: an uplink, before the kernel has made anything of a packet. A flow that
 * goes out of the node again, to the backend of a service or back from it, and
 * has its verdict, needs nothing else: it is rewritten and sent from here. All
 * else goes on to from_device, which makes the verdicts.
 */
#define DATAPATH_XDP
#include "lib/bpf.h"
#include "lib/checksum.h"
#include "lib/config.h"
#include "lib/drop.h"
#include "lib/flow.h"
#include "lib/parse.h"
#include "lib/rewrite.h"
#include "lib/tables.h"

#define HOOK PROGRAM_XDP

static __always_inline int parse(struct __sk_buff *ctx, struct packet *p)
{
	struct ethhdr *eth = packet_at(ctx, 0);

	if ((void *)(eth + 1) > packet_end(ctx))
		return DROP_TRUNCATED;
	if (eth->type == htons(ETH_P_IP))
		return parse_ipv4(ctx, p, ETH_HLEN);
	if (eth->type == htons(ETH_P_IPV6))
		return parse_ipv6(ctx, p, ETH_HLEN);
	return DROP_UNKNOWN_L3;
}

/* A frame for another host, which a switch has flooded, has another address than this device. */
static __always_inline int is_for(const struct __sk_buff *ctx, const __u8 *mac)
{
	const struct ethhdr *eth = packet_at(ctx, 0);

	return (void *)(eth + 1) <= packet_end(ctx) && !__builtin_memcmp(eth->dst, mac, ETH_ALEN);
}

/* Can it go out of the node as it is? The next hop must be known, and take packets from here. */
static __always_inline int can_leave(const struct __sk_buff *ctx, const struct packet *p, const struct verdict *v)
{
	const struct uplink *u;
	__u32 oif = v->oif;

	if (v->action != ACTION_TO_DEVICE || p->ttl <= 1 || (v->mtu && p->l3_len > v->mtu) || !(v->smac[0] | v->smac[1] | v->smac[2] | v->smac[3] | v->smac[4] | v->smac[5]))
		return 0;
	if (oif == ctx->ifindex)
		return is_for(ctx, v->smac);
	u = bpf_map_lookup_elem(&uplinks, &oif);
	return u && (u->flags & UPLINK_XDP);
}

SEC("xdp")
int xdp_device(struct __sk_buff *ctx)
{
	struct packet p;
	struct flow *f;

	if (!with_flows || parse(ctx, &p) || p.kind != PACKET_PLAIN)
		return XDP_PASS;
	f = flow_lookup(&p.tuple);
	if (!f || !flow_is_settled(f, ctx->ifindex, &p) || !can_leave(ctx, &p, &f->verdict))
		return XDP_PASS;
	flow_touch(f, ctx, &p);
	if (rewrite_ttl(ctx, &p) || ((f->verdict.flags & VERDICT_TRANSLATE) && rewrite_tuple(ctx, &p, &f->verdict, &f->peer)) ||
	    rewrite_macs(ctx, &f->verdict)) {
		count(ctx, HOOK, DROP_REWRITE_FAILED);
		return XDP_DROP;
	}
	count(ctx, HOOK, ACTION_TO_DEVICE);
	return f->verdict.oif == ctx->ifindex ? XDP_TX : (int)bpf_redirect(f->verdict.oif, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
