/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The way of a packet that the fast path does not take: the first of a flow,
 * the first after a change, one that opens or closes a connection, a fragment,
 * an ICMP error. The same for every hook; what differs is route, the hook's
 * question to route.h.
 */
#pragma once

#include "bpf.h"
#include "config.h"
#include "direct.h"
#include "drop.h"
#include "flow.h"
#include "fragment.h"
#include "icmp.h"
#include "parse.h"
#include "quote.h"
#include "send.h"
#include "translate.h"
#include "types.h"

/* A SYN on a connection that is over starts a new one under the same tuple. */
static __always_inline int path_starts_anew(const struct packet *p, const struct flow *f)
{
	return packet_opens(p) && flow_is_closing(f, flow_lookup(&f->peer));
}

/* An existing verdict is good for this packet: current, and for this way in. */
static __always_inline int path_is_judged(__u32 iif, const struct flow *f)
{
	return f->judged == node.epoch && f->verdict.iif == iif && !(f->flags & FLOW_CONDEMNED) && !flow_is_aged(f);
}

/*
 * Before the verdict: what kind of packet is it, and which flow's? Nothing is
 * written that the sender of a forged packet could use against another.
 */
static __always_inline int path_prepare(struct packet *p, struct flow **f, struct decision *d)
{
	int err;

	d->epoch = node.epoch;
	if (!with_flows)
		return p->kind == PACKET_ICMP_ERROR ? DROP_ICMP_UNTRACKED : DROP_NONE;
	if (p->kind == PACKET_LATER_FRAGMENT) {
		err = fragment_ports(p);
		if (err)
			return err;
	}
	*f = flow_lookup(&p->tuple);
	if (p->kind == PACKET_ICMP_ERROR && !*f)
		return DROP_ICMP_UNTRACKED;
	return DROP_NONE;
}

/*
 * A packet that is not settled, and whose verdict stands all the same: the first
 * answer, what confirms, an opening that is answered. Only what it says of its
 * connection is left to note. An opening never is one, nor settled: hooks do not
 * look for its flow before they come to path_prepare().
 */
static __always_inline int path_goes_on(__u32 iif, const struct packet *p, struct flow *f)
{
	return path_is_judged(iif, f) && !flow_tells_always(f, &p->tuple) && !packet_opens(p) && flow_revive(f);
}

/* A decision that was made before and holds for this packet. */
static __always_inline int path_is_decided(const struct __sk_buff *skb, const struct packet *p, struct flow *f,
					   struct decision *d)
{
	/* The source of an ICMP error is not in the tuple: it is judged each time. */
	if (!f || !path_is_judged(skb->ifindex, f) || p->kind == PACKET_ICMP_ERROR || path_starts_anew(p, f))
		return 0;
	flow_decision(f, d);
	return 1;
}

/*
 * Where a packet goes on to: by the services, and by what its flow has been told.
 * who: asks for services there, where it comes from.
 */
static __always_inline int path_translate(struct packet *p, struct flow *f, struct decision *d, enum service_client who)
{
	if (f && path_starts_anew(p, f))
		f = NULL;
	if (f)
		d->flags |= f->flags & FLOW_REPLY ? DECISION_REPLY : DECISION_KNOWN;
	if (f && (f->verdict.flags & VERDICT_DIRECT))
		d->flags |= DECISION_DIRECT;
	if (with_nat && f && direct_is_answer(f))
		d->flags |= DECISION_FRONTEND;
	if (with_services && (who || f))
		return service_translate(p, f, d, who);
	if (f)
		d->reply = f->peer;
	else
		tuple_reverse(&p->tuple, &d->reply);
	return DROP_NONE;
}

/*
 * After the verdict: remember the flow, and the ports of a datagram in parts. An
 * error is not of the flow that it is about, and is told in that one's words.
 */
static __always_inline int path_remember(struct __sk_buff *skb, struct packet *p, struct flow *f, int decided,
					 struct decision *d)
{
	int err = DROP_NONE;

	if (!with_flows)
		return DROP_NONE;
	if (with_nat && p->kind == PACKET_ICMP_ERROR && (d->flags & DECISION_FRONTEND))
		direct_note_error(d);
	if (p->kind == PACKET_ICMP_ERROR)
		return with_translation && !tuple_is_reverse(&p->tuple, &d->reply) ? quote_translate(skb, p, d) : DROP_NONE;
	if (p->kind == PACKET_FIRST_FRAGMENT)
		err = fragment_first(p);
	else if (p->kind == PACKET_LATER_FRAGMENT)
		err = fragment_later(p);
	if (err)
		return err;
	if (f && (path_starts_anew(p, f) || (d->flags & DECISION_ANEW))) {
		flow_delete(&p->tuple, f);
		flow_count(FLOW_REUSED);
		f = NULL;
	}
	f = flow_revive(f);
	if (!f)
		return flow_create(skb, p, d);
	if (!decided) {
		nat_note(&p->tuple, d);
		if (with_nat && (d->flags & DECISION_FRONTEND))
			direct_note(p, d);
		flow_judge_again(&p->tuple, d);
		f = flow_lookup(&p->tuple);
	}
	if (f)
		flow_track(skb, p, f);
	return DROP_NONE;
}
