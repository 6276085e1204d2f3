//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * from_overlay: tcx ingress of the overlay device. Packets of other nodes come
 * here without their outer header, which is told beside them.
 */
#include "lib/bpf.h"
#include "lib/config.h"
#include "lib/drop.h"
#include "lib/flow.h"
#include "lib/overlay.h"
#include "lib/parse.h"
#include "lib/path.h"
#include "lib/route.h"
#include "lib/scratch.h"
#include "lib/send.h"

#define HOOK PROGRAM_FROM_OVERLAY

static __always_inline int reject(struct __sk_buff *skb, int reason)
{
	if (overlay_pass_foreign && (reason == DROP_FOREIGN_OVERLAY || reason == DROP_BAD_VNI)) {
		count(skb, HOOK, ACTION_PASS);
		return TCX_NEXT;
	}
	return drop(skb, HOOK, (__u32)reason);
}

/* An error about the packet goes back to the node that sent it, from this node. */
static __always_inline int answer(struct __sk_buff *skb, const struct verdict *v)
{
	if (send_set_tunnel(skb, IDENTITY_HOST, &v->remote))
		return TCX_DROP;
	return (int)bpf_redirect(skb->ifindex, 0);
}

static __always_inline int decide(struct __sk_buff *skb, struct packet *p, struct sender *from, struct decision *d)
{
	struct flow *f = NULL;
	int decided, err;

	err = path_prepare(p, &f, d);
	if (err)
		return drop(skb, HOOK, (__u32)err);
	decided = f && sender_is_known(f, from) && path_is_decided(skb, p, f, d);
	if (!decided) {
		err = path_translate(p, f, d, CLIENT_NONE);
		if (err)
			return drop(skb, HOOK, (__u32)err);
		err = route_from_overlay(skb, p, from, d);
		if (err)
			return reject(skb, err);
	}
	err = send_check(skb, p, &d->verdict);
	if (err) {
		drop(skb, HOOK, (__u32)err);
		return icmp_answer(skb, p, err, d->verdict.mtu, SPEAKER_GATEWAY) ? TCX_DROP : answer(skb, &d->verdict);
	}
	err = path_remember(skb, p, f, decided, d);
	if (err)
		return drop(skb, HOOK, (__u32)err);
	return send_decided(skb, p, d, HOOK);
}

__global int slow(struct __sk_buff *skb, struct packet *p, struct sender *from)
{
	struct scratch *s;
	int verdict;

	if (!p || !from)
		return TCX_DROP;
	s = scratch_take_empty(sizeof(struct decision));
	if (!s)
		return drop(skb, HOOK, DROP_NO_ROOM);
	verdict = decide(skb, p, from, (struct decision *)s->bytes);
	scratch_give_back(s);
	return verdict;
}

SEC("tc")
int from_overlay(struct __sk_buff *skb)
{
	struct sender from;
	struct packet p;
	int err = packet_parse(skb, &p);

	if (err)
		return drop(skb, HOOK, (__u32)err);
	err = sender_read(skb, &from);
	if (err)
		return drop(skb, HOOK, (__u32)err);
	if (likely(p.kind == PACKET_PLAIN && !packet_opens(&p)) && with_flows) {
		struct flow *f = flow_lookup(&p.tuple);
		int settled = f && flow_is_settled(f, skb->ifindex, &p);

		if ((likely(settled) || (f && path_goes_on(skb->ifindex, &p, f))) && sender_is_known(f, &from) &&
		    likely(!send_check(skb, &p, &f->verdict))) {
			if (likely(settled))
				flow_touch(f, skb, &p);
			else
				flow_track(skb, &p, f);
			return send(skb, &p, &f->verdict, &f->peer, HOOK);
		}
	}
	if (p.kind == PACKET_NEIGHBOUR)
		return drop(skb, HOOK, DROP_NOT_FOR_GATEWAY);
	return slow(skb, &p, &from);
}

char _license[] SEC("license") = "Dual BSD/GPL";
