//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * from_host: tcx ingress of the far end of the host pair. What the node's
 * stack routes to endpoints and peers leaves it through the near end and comes
 * out here, where a packet can be put straight into a namespace.
 */
#include "lib/bpf.h"
#include "lib/config.h"
#include "lib/drop.h"
#include "lib/flow.h"
#include "lib/parse.h"
#include "lib/path.h"
#include "lib/route.h"
#include "lib/scratch.h"
#include "lib/send.h"

#define HOOK PROGRAM_FROM_HOST

static __always_inline int decide(struct __sk_buff *skb, struct packet *p, struct decision *d)
{
	struct flow *f = NULL;
	int decided, err;

	err = path_prepare(p, &f, d);
	if (err)
		return drop(skb, HOOK, (__u32)err);
	decided = path_is_decided(skb, p, f, d);
	if (!decided) {
		err = path_translate(p, f, d, CLIENT_NONE);
		if (err)
			return drop(skb, HOOK, (__u32)err);
		err = route_from_host(skb, p, d);
		if (err)
			return drop(skb, HOOK, (__u32)err);
	}
	err = send_check(skb, p, &d->verdict);
	if (err) {
		drop(skb, HOOK, (__u32)err);
		if (icmp_answer(skb, p, err, d->verdict.mtu, SPEAKER_GATEWAY))
			return TCX_DROP;
		/* The error's addresses are the node's own and known to be right: back up the pair. */
		return (int)bpf_redirect(node.host_ifindex, BPF_F_INGRESS);
	}
	err = path_remember(skb, p, f, decided, d);
	if (err)
		return drop(skb, HOOK, (__u32)err);
	return send_decided(skb, p, d, HOOK);
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
int from_host(struct __sk_buff *skb)
{
	struct packet p;
	int err = packet_parse(skb, &p);

	if (err)
		return drop(skb, HOOK, (__u32)err);
	if (likely(p.kind == PACKET_PLAIN && !packet_opens(&p)) && with_flows) {
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
	if (p.kind == PACKET_NEIGHBOUR)
		return drop(skb, HOOK, DROP_NOT_FOR_GATEWAY);
	return slow(skb, &p);
}

char _license[] SEC("license") = "Dual BSD/GPL";
