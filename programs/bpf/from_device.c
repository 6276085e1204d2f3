//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * from_device: tcx ingress of an uplink. What is for an endpoint, for a service
 * or an answer to one of our flows goes on from here, past the node's stack; all
 * else is left to that as it came.
 */
#include "lib/bpf.h"
#include "lib/config.h"
#include "lib/drop.h"
#include "lib/flow.h"
#include "lib/overlay.h"
#include "lib/parse.h"
#include "lib/path.h"
#include "lib/refuse.h"
#include "lib/route.h"
#include "lib/scratch.h"
#include "lib/send.h"
#include "lib/shortcut.h"

#define HOOK PROGRAM_FROM_DEVICE

/* Back to where the packet came from. */
static __always_inline int answer(struct __sk_buff *skb)
{
	return (int)bpf_redirect(skb->ifindex, 0);
}

/* What an address of services answers itself: an echo, and who asks for what is not there. */
static __always_inline int serve(struct __sk_buff *skb, struct packet *p, struct flow *f, const struct decision *d, int err)
{
	int refused;

	if (err == SERVICE_ECHO) {
		err = echo_answer(skb, p);
		if (err)
			return drop(skb, HOOK, (__u32)err);
		count(skb, HOOK, ACTION_ANSWERED);
		return answer(skb);
	}
	drop(skb, HOOK, (__u32)err);
	refused = (d->flags & DECISION_REFUSE) && !refuse(skb, p);
	/* Whose backend has gone has no connection any more. */
	if (f && (d->flags & DECISION_REFUSE)) {
		p->tcp_flags |= TCP_RST;
		flow_note_end(p, f);
	}
	return refused ? answer(skb) : TCX_DROP;
}

/* Into an endpoint: what another node says of the answers, now or at the first packet. */
static __always_inline int answer_as(struct __sk_buff *skb, struct packet *p, const struct flow *f, struct decision *d)
{
	if (!with_nat || !with_services || d->verdict.action != ACTION_TO_ENDPOINT || !tuple_is_reverse(&p->tuple, &d->reply))
		return DROP_NONE;
	if (f && !path_starts_anew(p, f) && (f->verdict.flags & VERDICT_FRONTEND)) {
		d->verdict.flags |= VERDICT_FRONTEND;
		d->verdict.remote = f->verdict.remote;
		d->verdict.vni = f->verdict.vni;
	}
	return direct_take(skb, p, &d->verdict);
}

/* Is the backend's node told what was asked? When a flow begins, which is too big if that does not fit; later if it fits. */
static __always_inline int tells(const struct __sk_buff *skb, const struct packet *p, const struct flow *f, const struct decision *d)
{
	if (!with_nat || !(d->verdict.flags & VERDICT_DIRECT) || p->kind != PACKET_PLAIN || skb->gso_size)
		return 0;
	return !f || p->l3_len + direct_len(p->family) <= d->verdict.mtu;
}

static __always_inline int decide(struct __sk_buff *skb, struct packet *p, struct decision *d)
{
	struct flow *f = NULL;
	int decided, err;

	/* Of a flow that is not ours: a later part of a datagram, an error. */
	if (path_prepare(p, &f, d))
		return source_is_inside(p) ? drop(skb, HOOK, DROP_SPOOFED_SOURCE) : TCX_NEXT;
	decided = path_is_decided(skb, p, f, d);
	if (!decided) {
		if (source_is_inside(p))
			return drop(skb, HOOK, DROP_SPOOFED_SOURCE);
		err = path_translate(p, f, d, CLIENT_OUTSIDE);
		if (err)
			return serve(skb, p, f, d, err);
		err = route_from_device(skb, p, d);
		if (err)
			return drop(skb, HOOK, (__u32)err);
		if (d->verdict.action == ACTION_PASS)
			return TCX_NEXT;
		err = answer_as(skb, p, f, d);
		if (err)
			return drop(skb, HOOK, (__u32)err);
	}
	err = send_check(skb, p, &d->verdict);
	if (!err && tells(skb, p, f, d))
		err = p->l3_len + direct_len(p->family) > d->verdict.mtu ? DROP_TOO_BIG : DROP_NONE;
	if (err) {
		drop(skb, HOOK, (__u32)err);
		if (d->verdict.flags & VERDICT_DIRECT)
			d->verdict.mtu -= (__u16)direct_len(p->family);
		return icmp_answer(skb, p, err, d->verdict.mtu, SPEAKER_UPLINK) ? TCX_DROP : answer(skb);
	}
	err = path_remember(skb, p, f, decided, d);
	if (!err && tells(skb, p, f, d))
		err = direct_tell(skb, p);
	if (err)
		return drop(skb, HOOK, (__u32)err);
	return send_decided(skb, p, d, HOOK);
}

/* The source of what is not looked into any further: the stack may know what to do with it. */
__global int is_forged(struct __sk_buff *skb)
{
	struct packet p = {.kind = PACKET_PLAIN};
	__be32 from[4];

	if (skb->vlan_present) /* of another network */
		return 0;
	if (skb->protocol == htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, saddr), from, 4))
			return 0;
		address_from_ipv4(&p.tuple.saddr, from[0]);
	} else if (skb->protocol == htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, saddr), from, sizeof(from)))
			return 0;
		address_from_ipv6(&p.tuple.saddr, from);
	} else {
		return 0;
	}
	return source_is_inside(&p);
}

__global int slow(struct __sk_buff *skb, struct packet *p)
{
	struct scratch *s;
	int verdict;

	if (!p)
		return TCX_DROP;
	s = scratch_take_empty(sizeof(struct decision));
	if (!s)
		return drop(skb, HOOK, DROP_NO_ROOM);
	verdict = decide(skb, p, (struct decision *)s->bytes);
	scratch_give_back(s);
	return verdict;
}

SEC("tc")
int from_device(struct __sk_buff *skb)
{
	struct sender from;
	struct packet p;

	/* What a switch has flooded, or a listener has asked for, is another host's. */
	if (!with_flows || skb->pkt_type == PACKET_OTHERHOST)
		return TCX_NEXT;
	if (with_overlay && overlay_read(skb, &from))
		return shortcut(skb, &from, &p, HOOK);
	/* What is no sound packet is none of ours, but nobody has sent it in the name of one of us. */
	if (packet_parse(skb, &p))
		return is_forged(skb) ? drop(skb, HOOK, DROP_SPOOFED_SOURCE) : TCX_NEXT;
	if (p.kind == PACKET_NEIGHBOUR)
		return TCX_NEXT;
	if (with_overlay && p.tuple.protocol == IPPROTO_UDP && p.tuple.dport == htons(overlay_port))
		return TCX_NEXT;
	if (likely(p.kind == PACKET_PLAIN && !packet_opens(&p))) {
		struct flow *f = flow_lookup(&p.tuple);
		int settled = f && flow_is_settled(f, skb->ifindex, &p);

		if ((likely(settled) || (f && path_goes_on(skb->ifindex, &p, f))) && likely(!send_check(skb, &p, &f->verdict))) {
			if (likely(settled))
				flow_touch(f, skb, &p);
			else
				flow_track(skb, &p, f);
			return send(skb, &p, &f->verdict, &f->peer, HOOK);
		}
	}
	return slow(skb, &p);
}

char _license[] SEC("license") = "Dual BSD/GPL";
