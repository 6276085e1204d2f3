//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * to_endpoint: tcx egress of an endpoint's host-side device. Our own programs
 * deliver past it; it meets what the stack or another program puts on the
 * device, and what we hand to an endpoint that is not to be entered directly.
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

#define HOOK PROGRAM_TO_ENDPOINT

static __always_inline int pass(struct __sk_buff *skb)
{
	count(skb, HOOK, ACTION_PASS);
	return TCX_NEXT;
}

/*
 * The flow was admitted to this device: by this program, or by the one that
 * sent the packet here, which also keeps its state. A verdict that was made with
 * the flow, before any packet of this direction, has let in none.
 */
static __always_inline int is_admitted(const struct flow *f, const struct __sk_buff *skb)
{
	return f->judged == node.epoch && f->verdict.oif == skb->ifindex && f->packets;
}

static __always_inline int is_ours(const struct flow *f)
{
	return !f->verdict.iif;
}

static __always_inline int decide(struct __sk_buff *skb, struct packet *p, struct decision *d)
{
	struct flow *f = NULL;
	int decided = 0, err;

	err = path_prepare(p, &f, d);
	if (err)
		return drop(skb, HOOK, (__u32)err);
	if (f && is_admitted(f, skb)) {
		if (!is_ours(f))
			return pass(skb);
		flow_decision(f, d);
		decided = 1;
	} else {
		err = path_translate(p, f, d, CLIENT_NONE);
		if (err)
			return drop(skb, HOOK, (__u32)err);
		err = route_to_endpoint_device(skb, p, d);
		if (err)
			return drop(skb, HOOK, (__u32)err);
	}
	err = path_remember(skb, p, f, decided, d);
	if (err)
		return drop(skb, HOOK, (__u32)err);
	return pass(skb);
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
int to_endpoint(struct __sk_buff *skb)
{
	struct packet p;
	int err = packet_parse(skb, &p);

	/* The node asks for the endpoint's address where it has a route to the device. */
	if (err == DROP_UNKNOWN_L3 && skb->protocol == htons(ETH_P_ARP))
		return pass(skb);
	if (err)
		return drop(skb, HOOK, (__u32)err);
	if (p.kind == PACKET_NEIGHBOUR)
		return pass(skb);
	if (p.kind == PACKET_PLAIN && with_flows) {
		struct flow *f = flow_lookup(&p.tuple);

		if (f && is_admitted(f, skb)) {
			if (!is_ours(f))
				return pass(skb);
			if (flow_is_quiet(f, &p)) {
				flow_touch(f, skb, &p);
				return pass(skb);
			}
		}
	}
	return slow(skb, &p);
}

char _license[] SEC("license") = "Dual BSD/GPL";
