//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * from_endpoint: tcx ingress of an endpoint's host-side device. All that a
 * workload sends comes here first; one program serves all endpoints.
 */
#define SENDS_ANSWERS 1
#include "lib/bpf.h"
#include "lib/checksum.h"
#include "lib/config.h"
#include "lib/drop.h"
#include "lib/flow.h"
#include "lib/neighbour.h"
#include "lib/parse.h"
#include "lib/path.h"
#include "lib/refuse.h"
#include "lib/route.h"
#include "lib/scratch.h"
#include "lib/send.h"
#include "lib/translate.h"

#define HOOK PROGRAM_FROM_ENDPOINT

/* Back into the endpoint that the packet came from. */
static __always_inline int answer(struct __sk_buff *skb, __u32 counted_as)
{
	count(skb, HOOK, counted_as);
	return send_to_peer(skb, skb->ifindex);
}

/* What leaves the node must be what was judged. In another endpoint nobody writes into it. */
static __always_inline int is_honest(struct __sk_buff *skb, const struct packet *p, const struct verdict *v)
{
	return v->action == ACTION_TO_ENDPOINT || checksum_is_honest(skb, p->l4, p->tuple.protocol);
}

/* ARP and NDP end here: an endpoint has one neighbour, the gateway. */
__global int neighbour(struct __sk_buff *skb, struct packet *p, int is_arp)
{
	__u32 ifindex = skb->ifindex;
	struct endpoint *ep = bpf_map_lookup_elem(&endpoint_by_ifindex, &ifindex);
	int err;

	if (!ep || !p)
		return drop(skb, HOOK, DROP_UNKNOWN_ENDPOINT);
	err = is_arp ? neighbour_answer_arp(skb, ep) : neighbour_answer_ndp(skb, p, ep);
	if (err == NEIGHBOUR_TELLS) {
		count(skb, HOOK, ACTION_PASS);
		return TCX_NEXT;
	}
	return err ? drop(skb, HOOK, (__u32)err) : answer(skb, ACTION_ANSWERED);
}

/* What an address of services answers itself: an echo, and who asks for what is not there. */
static __always_inline int serve(struct __sk_buff *skb, struct packet *p, struct flow *f, const struct decision *d, int err)
{
	int refused;

	if (err == SERVICE_ECHO) {
		err = echo_answer(skb, p);
		return err ? drop(skb, HOOK, (__u32)err) : answer(skb, ACTION_ANSWERED);
	}
	drop(skb, HOOK, (__u32)err);
	refused = (d->flags & DECISION_REFUSE) && !refuse(skb, p);
	/* Whose backend has gone has no connection any more. */
	if (f && (d->flags & DECISION_REFUSE)) {
		p->tcp_flags |= TCP_RST;
		flow_note_end(p, f);
	}
	return refused ? send_to_peer(skb, skb->ifindex) : TCX_DROP;
}

static __always_inline int decide(struct __sk_buff *skb, struct packet *p, struct decision *d)
{
	struct endpoint *from = NULL;
	struct flow *f = NULL;
	int decided, forged, err;

	err = path_prepare(p, &f, d);
	if (err)
		return drop(skb, HOOK, (__u32)err);
	decided = path_is_decided(skb, p, f, d);
	if (!decided) {
		/* Services remember who has asked: in his name nobody else may. */
		forged = source_is_endpoint(skb, p, &from);
		err = path_translate(p, f, d, forged ? CLIENT_NONE : CLIENT_INSIDE);
		if (err)
			return serve(skb, p, f, d, err);
		err = route_from_endpoint(skb, p, forged ? NULL : from, d);
		if (err)
			return drop(skb, HOOK, (__u32)err);
	}
	if (!is_honest(skb, p, &d->verdict))
		return drop(skb, HOOK, DROP_BAD_CHECKSUM);
	err = send_check(skb, p, &d->verdict);
	if (err) {
		drop(skb, HOOK, (__u32)err);
		return icmp_answer(skb, p, err, d->verdict.mtu, SPEAKER_GATEWAY) ? TCX_DROP : send_to_peer(skb, d->verdict.iif);
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
int from_endpoint(struct __sk_buff *skb)
{
	struct packet p;
	int err = packet_parse(skb, &p);

	if (likely(!err && p.kind == PACKET_PLAIN && !packet_opens(&p)) && with_flows) {
		struct flow *f = flow_lookup(&p.tuple);
		int settled = f && flow_is_settled(f, skb->ifindex, &p);

		if ((likely(settled) || (f && path_goes_on(skb->ifindex, &p, f))) && likely(!send_check(skb, &p, &f->verdict)) &&
		    likely(is_honest(skb, &p, &f->verdict))) {
			if (likely(settled))
				flow_touch(f, skb, &p);
			else
				flow_track(skb, &p, f);
			return send(skb, &p, &f->verdict, &f->peer, HOOK);
		}
	}
	if (err == DROP_UNKNOWN_L3 && skb->protocol == htons(ETH_P_ARP))
		return neighbour(skb, &p, 1);
	if (err)
		return drop(skb, HOOK, (__u32)err);
	if (p.kind == PACKET_NEIGHBOUR)
		return neighbour(skb, &p, 0);
	return slow(skb, &p);
}

char _license[] SEC("license") = "Dual BSD/GPL";
