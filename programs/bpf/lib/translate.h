/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The packets of services: of new flows, which get a backend, and of those that
 * have one, which is looked at again after every change.
 */
#pragma once

#include "bpf.h"
#include "config.h"
#include "flow.h"
#include "nat.h"
#include "net.h"
#include "parse.h"
#include "peer.h"
#include "scratch.h"
#include "service.h"
#include "tables.h"
#include "types.h"

/*
 * The row for what is sent to to:port. The NodePorts of the other nodes are this
 * one's too, so that who asks there from inside need not go there. may_be_there:
 * the address itself has services.
 */
static __always_inline void service_key(struct service_work *w, const struct address *to, __be16 port, __u8 protocol, int may_be_there)
{
	const struct frontend *any;
	int is4 = address_is_ipv4(to);

	w->key.addr = *to;
	w->key.port = port;
	w->key.protocol = protocol;
	w->key.scope = SCOPE_ALL;
	if (!with_overlay || (may_be_there && bpf_map_lookup_elem(&frontends, &w->key)))
		return;
	__builtin_memset(&w->key.addr, 0, sizeof(w->key.addr));
	if (is4)
		address_from_ipv4(&w->key.addr, 0);
	any = bpf_map_lookup_elem(&frontends, &w->key);
	if (!any || any->type != FRONTEND_NODE_PORT || !peer_is_node(to))
		w->key.addr = *to;
}

/* May a flow between the two go on? original: as its originator's packets arrive. */
static __always_inline int service_holds(struct service_work *w, const struct tuple *original, const struct address *addr,
					 __be16 port)
{
	int err;

	service_key(w, &original->daddr, original->dport, original->protocol, 1);
	err = service_read(w);
	if (err != SERVICE_CHOSEN)
		return err == SERVICE_NONE ? DROP_BACKEND_GONE : err;
	w->member.service = w->frontend.service;
	w->member.addr = *addr;
	w->member.port = port;
	w->member.reserved = 0;
	if (!bpf_map_lookup_elem(&service_members, &w->member))
		return DROP_BACKEND_GONE;
	return service_takes(w, &original->saddr) ? DROP_NONE : DROP_SOURCE_RANGE;
}

/* Is there a service at all where a flow is for? By what service_holds() has asked. */
static __always_inline int service_is_there(struct service_work *w)
{
	return bpf_map_lookup_elem(&frontends, &w->key) != NULL;
}

/*
 * A packet of a new flow. Most are not for a service: one look-up tells, of the
 * address.
 */
static __always_inline int service_new(struct packet *p, struct decision *d, struct service_work *w, enum service_client who)
{
	const struct frontend *at;
	int owned, itself, err;

	/* All of a node's addresses have a row too. Nothing is sent there. */
	if (address_is_martian(&p->tuple.daddr))
		return DROP_NONE;
	w->key.addr = p->tuple.daddr;
	w->key.port = 0;
	w->key.protocol = 0;
	w->key.scope = SCOPE_ALL;
	at = bpf_map_lookup_elem(&frontends, &w->key);
	if (!at && who == CLIENT_OUTSIDE)
		return DROP_NONE;
	if (!at) {
		service_key(w, &p->tuple.daddr, p->tuple.dport, p->tuple.protocol, 0);
		if (address_is_equal(&w->key.addr, &p->tuple.daddr))
			return DROP_NONE;
	}
	owned = at && (at->flags & FRONTEND_OWNED);
	if (p->tuple.protocol != IPPROTO_ICMP && p->tuple.protocol != IPPROTO_ICMPV6) {
		w->key.port = p->tuple.dport;
		w->key.protocol = p->tuple.protocol;
		w->client.kind = AFFINITY_ADDRESS;
		w->client.client = p->tuple.saddr;
		w->port = p->tuple.sport;
		w->steady = 0;
		w->outside = who == CLIENT_OUTSIDE;
		err = service_choose(w);
	} else {
		err = owned && (p->icmp_type == ICMP_ECHO || p->icmp_type == ICMPV6_ECHO) ? SERVICE_ECHO : SERVICE_NONE;
	}
	if (err == SERVICE_ECHO)
		return err;
	if (err == SERVICE_NONE) {
		if (!owned)
			return DROP_NONE;
		d->flags |= DECISION_REFUSE;
		return DROP_NO_SUCH_PORT;
	}
	if (err == DROP_NO_BACKEND && (w->frontend.flags & FRONTEND_REJECT))
		d->flags |= DECISION_REFUSE;
	if (err != SERVICE_CHOSEN)
		return err;
	d->reply.saddr = w->backend.addr;
	d->reply.sport = w->backend.port;
	itself = address_is_equal(&w->backend.addr, &p->tuple.saddr);
	/* A part of a datagram has no room to tell of the frontend, and who talks to himself would answer himself. */
	if (w->outside && (w->frontend.flags & FRONTEND_DIRECT) && p->kind == PACKET_PLAIN && !itself)
		d->flags |= DECISION_DIRECT;
	/* To itself: from its own address it would not take it, nor send the answer to us. */
	if (itself)
		d->reply.daddr = p->family == 4 ? config_address(&hairpin_ipv4) : config_address(&hairpin_ipv6);
	return DROP_NONE;
}

/*
 * A packet of a flow that is known: is it still between the two that it was between?
 * A function of its own, for a choice needs the stack that this takes.
 */
__global int service_again(struct packet *p, struct flow *f, struct decision *d, struct service_work *w, enum service_client who)
{
	const struct tuple *original, *answer;
	int reply, err;

	if (!p || !f || !d || !w)
		return DROP_NONE;
	/* As its originator's packets arrive, and as those of the other side do. */
	reply = f->flags & FLOW_REPLY;
	original = reply ? &f->peer : &p->tuple;
	answer = reply ? &p->tuple : &f->peer;
	if (address_is_equal(&original->daddr, &answer->saddr) && original->dport == answer->sport) {
		/*
		 * It was for no service. Perhaps there is one at its address since, that
		 * it is not a backend of itself; a connection stays where it is.
		 */
		if (who && (p->tuple.protocol != IPPROTO_TCP || packet_opens(p)) &&
		    service_holds(w, &p->tuple, &p->tuple.daddr, p->tuple.dport) == DROP_BACKEND_GONE && service_is_there(w))
			d->flags |= DECISION_ANEW;
		return DROP_NONE;
	}
	err = service_holds(w, original, &answer->saddr, answer->sport);
	if (err != DROP_BACKEND_GONE || reply || !who)
		return err;
	if (p->tuple.protocol == IPPROTO_TCP && !packet_opens(p)) {
		d->flags |= DECISION_REFUSE; /* nobody can go on with this connection */
		return err;
	}
	d->flags |= DECISION_ANEW;
	return DROP_NONE;
}

/*
 * Where a packet goes on to, by the services. f: its flow, NULL if it has none
 * or is about to begin another. who: asks for services where it comes from. Returns DROP_NONE, SERVICE_ECHO, or the reason to drop it.
 */
__global int service_translate(struct packet *p, struct flow *f, struct decision *d, enum service_client who)
{
	struct scratch *s;
	struct service_work *w;
	int err = DROP_NONE;

	if (!p || !d)
		return DROP_NONE;
	s = scratch_take();
	if (!s)
		return DROP_SERVICE_CHANGED;
	w = (struct service_work *)s->bytes;
	if (f && p->kind == PACKET_ICMP_ERROR) {
		d->reply = f->peer;
	} else {
		if (f) {
			d->reply = f->peer;
			err = service_again(p, f, d, w, who);
		}
		if (!f || (d->flags & DECISION_ANEW)) {
			tuple_reverse(&p->tuple, &d->reply);
			if (who)
				err = service_new(p, d, w, who);
		}
	}
	scratch_give_back(s);
	return err;
}
