/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The flow table: one hash, two entries a flow, each with the verdict for its
 * direction. This file knows how entries are born, confirmed and given up;
 * expire.c knows how they end.
 */
#pragma once

#include "bpf.h"
#include "config.h"
#include "nat.h"
#include "parse.h"
#include "port.h"
#include "scratch.h"
#include "tables.h"
#include "types.h"

static __always_inline struct flow *flow_lookup(const struct tuple *t)
{
	return bpf_map_lookup_elem(&flows, t);
}

static __always_inline void flow_count(__u32 event)
{
	__u64 *n = bpf_map_lookup_elem(&flow_events, &event);

	if (n)
		__sync_fetch_and_add(n, 1); /* exact also where a program can be put aside for another */
}

/* A packet that may open a connection anew is looked at closely. */
static __always_inline int flow_is_quiet(const struct flow *f, const struct packet *p)
{
	return f->epoch == node.epoch && !(p->tcp_flags & TCP_SYN);
}

/* A verdict by the node's routes holds for a while only. */
static __always_inline int flow_is_aged(const struct flow *f)
{
	return (f->verdict.flags & VERDICT_AGES) && (__u32)bpf_jiffies64() - f->found > route_age;
}

/* Now, or so long ago that it is looked at again at once: the next hop was not known yet. */
static __always_inline __u32 flow_found(const struct verdict *v)
{
	__u32 now = (__u32)bpf_jiffies64();

	if (v->action == ACTION_TO_DEVICE && !v->smac[0] && !v->smac[1] && !v->smac[2] && !v->smac[3] && !v->smac[4] && !v->smac[5])
		return now - route_age;
	return now;
}

/*
 * A datagram may be lost, or overtaken by the next one, and nobody sends it again: so
 * each of a flow whose backend answers past us says as whom. Such flows are never
 * confirmed either, since no answer comes this way; they are chosen by Maglev, so one
 * that is pushed out gets the same backend again.
 */
static __always_inline int flow_tells_always(const struct flow *f, const struct tuple *t)
{
	return (f->verdict.flags & VERDICT_DIRECT) && t->protocol == IPPROTO_UDP;
}

/* The whole question of the fast path: may the cached verdict be used as it is? */
static __always_inline int flow_is_settled(const struct flow *f, __u32 iif, const struct packet *p)
{
	return f->verdict.iif == iif && flow_is_quiet(f, p) && !flow_is_aged(f);
}

static __always_inline __u8 seen_of(__u8 tcp_flags)
{
	__u8 seen = SEEN_PACKET;

	if (tcp_flags & TCP_FIN)
		seen |= SEEN_FIN;
	if (tcp_flags & TCP_RST)
		seen |= SEEN_RST;
	return seen;
}

/* Closed in both directions, or broken off. */
static __always_inline int flow_is_closing(const struct flow *f, const struct flow *peer)
{
	__u8 any = f->seen, both = f->seen;

	if (peer) {
		any |= peer->seen;
		both &= peer->seen;
	}
	return (any & SEEN_RST) || (both & SEEN_FIN);
}

/*
 * An entry that may be used, or NULL. The store comes before the look at the
 * stage, both ordered by the exchange: expiry does the reverse, so one of the
 * two always notices the other.
 */
static __always_inline struct flow *flow_revive(struct flow *f)
{
	struct flow *original = f;

	if (!f)
		return NULL;
	__sync_lock_test_and_set(&f->last_seen, (__u32)bpf_jiffies64());
	if (f->flags & FLOW_REPLY) {
		original = flow_lookup(&f->peer);
		if (!original || (original->flags & FLOW_REPLY))
			return NULL;
	}
	return original->stage == FLOW_DEAD ? NULL : f;
}

/* Both entries. The peer's key lies in the first one, so that goes last. */
static __always_inline void flow_delete(const struct tuple *t, const struct flow *f)
{
	if (f->flags & FLOW_REPLY)
		port_give_back(t, &f->peer);
	else
		port_give_back(&f->peer, t);
	bpf_map_delete_elem(&flows, &f->peer);
	bpf_map_delete_elem(&flows, t);
}

/*
 * Connections that are over, by their tuples: each has one place, and whoever
 * comes to it next takes it. So a node that opens and closes many has the memory
 * of few in its caches, and does not wait for expiry to have room. 4096 places
 * cost 5% of a connect cycle, and 256 one: what went was no longer in the caches.
 */
#define FLOW_CLOSED_PLACES 64
/*
 * The last packets of a connection with the world are on their way for longer, and
 * must find it still: one that comes late would begin another flow, perhaps to
 * another backend.
 */
#define FLOW_CLOSED_FAR_PLACES 4096

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct tuple);
	__uint(max_entries, FLOW_CLOSED_PLACES + FLOW_CLOSED_FAR_PLACES);
} flows_closed SEC(".maps");

static __always_inline __u32 flow_closed_place(const struct tuple *t, int far)
{
	const __u64 *w = (const __u64 *)t;
	__u64 h = (w[4] ^ w[1] * 3 ^ w[3] * 5) * 0x9e3779b97f4a7c15ULL;

	if (far)
		return FLOW_CLOSED_PLACES + ((__u32)(h >> 52) & (FLOW_CLOSED_FAR_PLACES - 1));
	return (__u32)(h >> 58) & (FLOW_CLOSED_PLACES - 1);
}

/*
 * A packet has finished a direction or broken off. If that was the end, nobody
 * uses the verdicts from the cache any more, and the next connection that ends
 * at this place makes the flow go. evicted: room for the tuple of who goes now.
 */
static __always_inline void flow_close(const struct tuple *t, struct flow *f, struct flow *reply, struct tuple *evicted)
{
	int far = f->verdict.action == ACTION_TO_DEVICE || (reply && reply->verdict.action == ACTION_TO_DEVICE);
	__u32 place = flow_closed_place(t, far);
	struct tuple *at = bpf_map_lookup_elem(&flows_closed, &place);
	struct flow *other;

	if (!at || __sync_val_compare_and_swap(&f->stage, FLOW_CONFIRMED, FLOW_CLOSED) != FLOW_CONFIRMED)
		return;
	__sync_lock_test_and_set(&f->epoch, 0);
	if (reply)
		__sync_lock_test_and_set(&reply->epoch, 0);
	*evicted = *at;
	*at = *t;
	if (!evicted->protocol)
		return;
	other = flow_lookup(evicted);
	if (other && other != f && !(other->flags & FLOW_REPLY) &&
	    __sync_val_compare_and_swap(&other->stage, FLOW_CLOSED, FLOW_DEAD) == FLOW_CLOSED) {
		flow_delete(evicted, other);
		flow_count(FLOW_ENDED);
	}
}

__global int flow_note_end(struct packet *p, struct flow *f)
{
	struct tuple evicted, original;
	struct flow *other;

	if (!p || !f)
		return 0;
	f->seen |= seen_of(p->tcp_flags);
	other = flow_lookup(&f->peer);
	if (other && (f->verdict.flags & VERDICT_DIRECT)) /* its end is not seen from here */
		other->seen |= f->seen & SEEN_FIN;
	if (!other || !flow_is_closing(f, other))
		return 0;
	/* The answers may go on, past us: such a flow ends when it is idle. */
	if ((f->verdict.flags & VERDICT_DIRECT) && !(f->seen & SEEN_RST))
		return 0;
	original = f->flags & FLOW_REPLY ? f->peer : p->tuple;
	if (f->flags & FLOW_REPLY)
		flow_close(&original, other, f, &evicted);
	else
		flow_close(&original, f, other, &evicted);
	return 0;
}

static __always_inline void flow_touch(struct flow *f, const struct __sk_buff *skb, struct packet *p)
{
	f->last_seen = (__u32)bpf_jiffies64();
	f->packets++;
	f->bytes += packet_length(skb);
	if (unlikely(p->tcp_flags & (TCP_FIN | TCP_RST)))
		flow_note_end(p, f);
}

/*
 * The memory of a deleted entry is another flow's at once, while a program on
 * another CPU may still have the old verdict in hand. So a flow loses its verdict
 * a quarter of the ring before it loses its place.
 */
static __always_inline void flow_condemn(__u32 slot)
{
	struct tuple *t = bpf_map_lookup_elem(&flow_ring, &slot);
	struct flow *f, *reply;

	if (!t || !t->protocol)
		return;
	f = flow_lookup(t);
	if (!f || f->slot != slot || f->stage != FLOW_NEW || (f->flags & FLOW_REPLY))
		return;
	f->flags |= FLOW_CONDEMNED;
	__sync_lock_test_and_set(&f->epoch, 0);
	reply = flow_lookup(&f->peer);
	if (reply) {
		reply->flags |= FLOW_CONDEMNED;
		__sync_lock_test_and_set(&reply->epoch, 0);
	}
}

/*
 * The slot that a confirmed flow has just left, if there is one: its memory is in
 * the caches, while the next one in turn never is. Not one that its turn would come
 * to soon again.
 */
static __always_inline struct tuple *flow_take_spare(__u32 *slot)
{
	__u32 spare = flow_ring_spare, head = flow_ring_head;
	struct tuple *place;

	if (!spare || __sync_val_compare_and_swap(&flow_ring_spare, spare, 0) != spare)
		return NULL;
	*slot = (spare - 1) & unconfirmed_mask;
	if (((head - spare) & unconfirmed_mask) > unconfirmed_mask / 4)
		return NULL;
	place = bpf_map_lookup_elem(&flow_ring, slot);
	return place && !place->protocol ? place : NULL;
}

/*
 * A new flow takes the place of the oldest one that is still unconfirmed, if
 * the ring is full, so a flood of openings costs the table no more than the
 * ring's size and can not touch what is confirmed. old: room for its tuple.
 */
__global __u32 flow_take_slot(struct tuple *t, struct tuple *old)
{
	struct tuple *place;
	struct flow *f;
	__u32 head, slot;

	if (!t || !old)
		return 0;
	old->protocol = 0;
	place = flow_take_spare(&slot);
	if (place) {
		*place = *t;
		return slot;
	}
	head = __sync_fetch_and_add(&flow_ring_head, 1);
	slot = head & unconfirmed_mask;
	place = bpf_map_lookup_elem(&flow_ring, &slot);
	if (!place)
		return slot;
	flow_condemn((head + (unconfirmed_mask + 1) / 4) & unconfirmed_mask);
	*old = *place;
	*place = *t;
	if (!old->protocol)
		return slot;
	f = flow_lookup(old);
	if (f && f->slot == slot && !(f->flags & FLOW_REPLY) &&
	    __sync_val_compare_and_swap(&f->stage, FLOW_NEW, FLOW_DEAD) == FLOW_NEW) {
		flow_delete(old, f);
		flow_count(FLOW_EVICTED);
	} else {
		old->protocol = 0; /* nothing has gone */
	}
	return slot;
}

/* So many slots are looked into for a flow that can make room in a full table. */
#define FLOW_ROOM_TRIES 16

/* The table is full: of flows that are confirmed, or of ones that are not and must go first. */
__global int flow_make_room(struct tuple *t, struct tuple *old)
{
	if (!t || !old)
		return 0;
	for (int i = 0; i < FLOW_ROOM_TRIES; i++) {
		flow_take_slot(t, old);
		if (old->protocol)
			return 1;
	}
	return 0;
}

/*
 * A flow that is confirmed gives its slot back, so that whoever comes to it
 * later need not ask what became of the flow, and the next new one can have it.
 * By exchange: the slot may be another's by now.
 */
static __always_inline void flow_leave_slot(const struct flow *f, const struct tuple *t)
{
	__u32 slot = f->slot;
	struct tuple *place = bpf_map_lookup_elem(&flow_ring, &slot);
	__u64 rest = *(const __u64 *)&t->sport;

	if (place && address_is_equal(&place->saddr, &t->saddr) && address_is_equal(&place->daddr, &t->daddr) &&
	    __sync_val_compare_and_swap((__u64 *)&place->sport, rest, 0) == rest)
		flow_ring_spare = slot + 1;
}
_Static_assert(__builtin_offsetof(struct tuple, sport) % 8 == 0 && sizeof(struct tuple) == __builtin_offsetof(struct tuple, sport) + 8,
	       "ports and protocol are one word");

static __always_inline void flow_count_failure(long err)
{
	flow_count(err == -E2BIG ? FLOW_FULL : err == -ENOMEM ? FLOW_NO_MEMORY : err == -EBUSY ? FLOW_BUSY : FLOW_FAILED);
}

/* A reply's entry that no flow stands behind: what is left of one that has gone. */
static __always_inline int flow_is_orphan(const struct tuple *t)
{
	const struct flow *f = flow_lookup(t), *other;

	if (!f || !(f->flags & FLOW_REPLY))
		return 0;
	other = flow_lookup(&f->peer);
	return !other || (other->flags & FLOW_REPLY);
}

/* Another flow's answers arrive with that tuple, so they could not be told from ours. */
static __always_inline int flow_is_taken(const struct tuple *reply, const struct tuple *original)
{
	const struct flow *f = flow_lookup(reply);

	return f && !tuple_is_equal(&f->peer, original);
}

/*
 * Of those who would end an orphan, expiry by deleting it and a new flow by
 * writing over it, one gets it: whoever sets its mark. Both act by key, perhaps
 * much later, so the entry under the key must be the marked one; the memory of
 * an entry that was replaced may be another flow's by now.
 */
static __always_inline struct flow *flow_claim_orphan(const struct tuple *t)
{
	struct flow *f = flow_lookup(t);

	if (!f || !(f->flags & FLOW_REPLY) || __sync_val_compare_and_swap(&f->stage, 0, FLOW_DEAD))
		return NULL;
	if (flow_lookup(t) == f)
		return f;
	__sync_val_compare_and_swap(&f->stage, FLOW_DEAD, 0);
	return NULL;
}

/* A flow as it is made. */
struct flow_draft {
	struct flow flow;
	struct tuple evicted; /* whose place it takes */
};
_Static_assert(sizeof(struct flow_draft) <= SCRATCH_SIZE, "it is made in the scratch room");

/* So many source ports are tried for a flow whose answers would be taken for another's. */
#define FLOW_PORT_TRIES 32
#define FLOW_PORT_FIRST 1024

/* May another port or identifier be written into its packets? */
static __always_inline int flow_can_move(const struct tuple *t)
{
	return t->protocol == IPPROTO_TCP || t->protocol == IPPROTO_UDP || t->protocol == IPPROTO_ICMP || t->protocol == IPPROTO_ICMPV6;
}

/* Tries one more port of the node. Answers -EEXIST if it is somebody's. */
__global int flow_try_port(struct __sk_buff *skb, struct tuple *reply, struct flow *f, __u32 tries)
{
	long err;

	if (!with_nat || !reply || !f)
		return -EEXIST;
	reply->dport = htons((__u16)port_seek(reply, tries));
	if (port_is_reserved(skb, reply))
		return -EEXIST;
	err = bpf_map_update_elem(&flows, reply, f, BPF_NOEXIST);
	if (!err || err == -EEXIST)
		port_mark(reply, 1);
	return (int)err;
}

/* The port that the flow has come with, if the node can give that. */
__global int flow_keep_port(struct __sk_buff *skb, struct tuple *reply, struct flow *f)
{
	long err;

	if (!with_nat || !reply || !f || !port_can_stay(skb, reply))
		return -EADDRINUSE;
	err = bpf_map_update_elem(&flows, reply, f, BPF_NOEXIST);
	if (!err) {
		port_mark(reply, 1);
		port_count(NAT_KEPT);
	}
	return (int)err;
}

/* The node's address is in the tuple: the port must be the node's to give. */
static __always_inline int flow_insert_own(struct __sk_buff *skb, struct tuple *original, struct tuple *reply, struct flow *f)
{
	int err = flow_keep_port(skb, reply, f);
	__u32 tries = 0;

	if (err != -EADDRINUSE && (err != -EEXIST || !flow_is_taken(reply, original) || flow_is_orphan(reply)))
		return err;
	if (!flow_can_move(reply))
		return -EADDRINUSE;
	for (err = -EEXIST; tries < PORT_TRIES && err == -EEXIST; tries++)
		err = flow_try_port(skb, reply, f, tries);
	if (!err)
		port_count_tries(tries);
	if (err != -EEXIST)
		return err;
	port_count(NAT_EXHAUSTED);
	return -EADDRINUSE;
}

/*
 * Puts the entry of the replies in, under another source port if theirs is
 * taken: what is free is what can be inserted. Returns 0, or the error of the
 * last try. flags: enum decision_flag
 */
__global int flow_insert_reply(struct __sk_buff *skb, struct tuple *original, struct tuple *reply, struct flow *f, __u32 flags)
{
	__u32 port;
	long err;

	if (!original || !reply || !f)
		return -EEXIST;
	if (with_nat && (flags & DECISION_OWN_PORT))
		return flow_insert_own(skb, original, reply, f);
	err = bpf_map_update_elem(&flows, reply, f, BPF_NOEXIST);
	if (err != -EEXIST || !with_translation || !flow_is_taken(reply, original) || flow_is_orphan(reply) || !flow_can_move(reply))
		return (int)err;
	port = bpf_get_prandom_u32();
	for (int i = 0; i < FLOW_PORT_TRIES && err == -EEXIST; i++) {
		port = port * 1664525 + 1013904223; /* spread well, the upper half best */
		reply->dport = htons(FLOW_PORT_FIRST + ((port >> 16) * (65536 - FLOW_PORT_FIRST) >> 16));
		err = bpf_map_update_elem(&flows, reply, f, BPF_NOEXIST);
	}
	return (int)err;
}

/* What was decided for the packets of an entry. A function of its own: the copy would lie on the stack twice. */
__global int flow_decision(struct flow *f, struct decision *d)
{
	if (!f || !d)
		return 0;
	d->verdict = f->verdict;
	d->reply = f->peer;
	return 0;
}

/*
 * Another CPU was first to make the flow. If it has chosen another translation,
 * its choice counts.
 */
static __always_inline int flow_yield(const struct tuple *original, struct decision *d, int fresh)
{
	struct flow *f = flow_lookup(original);

	if (!with_translation || (f && tuple_is_equal(&f->peer, &d->reply)))
		return DROP_NONE;
	if (fresh) {
		port_give_back(&d->reply, original);
		bpf_map_delete_elem(&flows, &d->reply);
	}
	if (!f || f->judged != d->epoch || f->verdict.iif != d->verdict.iif)
		return DROP_FLOW_CHANGED;
	flow_decision(f, d);
	return DROP_NONE;
}

/*
 * Remembers a flow with the verdict for the packet's direction, and with that of
 * the other as far as it is known; else its first packet is judged where it
 * arrives. A table that is full is not the packet's fault: it goes on, and the
 * next one is judged anew; unless the flow is translated, for its answers could
 * not be undone. Returns DROP_NONE or the reason to drop the packet.
 *
 * What is left of an earlier flow is written over, for whatever it has seen was
 * not of this one. Two sides that open at once may both become originators,
 * each with the other for its reply; both look closely at their next packet,
 * which confirms.
 */
static __always_inline int flow_write(struct __sk_buff *skb, struct packet *p, struct decision *d, struct flow_draft *draft)
{
	struct flow *f = &draft->flow, *other;
	__be16 port;
	__u32 slot;
	int fresh;
	long err;

	slot = flow_take_slot(&p->tuple, &draft->evicted);
	f->last_seen = (__u32)bpf_jiffies64();
	f->created = f->last_seen;
	f->found = flow_found(&d->verdict);
	f->peer = p->tuple;
	f->flags = FLOW_REPLY;
	nat_note(&p->tuple, d);
	/* Its first packet is looked at closely all the same: for what it says of the connection. */
	if (d->back.action) {
		f->verdict = d->back;
		nat_note_back(&d->verdict, &f->verdict);
		f->judged = d->epoch;
	}
	port = d->reply.dport;
	err = flow_insert_reply(skb, &p->tuple, &d->reply, f, d->flags);
	if (err == -E2BIG && flow_make_room(&p->tuple, &draft->evicted))
		err = flow_insert_reply(skb, &p->tuple, &d->reply, f, d->flags);
	if (port != d->reply.dport) {
		nat_note(&p->tuple, d);
		other = err ? NULL : flow_lookup(&d->reply);
		if (other)
			other->judged = 0; /* what was noted is of another port */
	}
	if (err == -EEXIST && flow_is_orphan(&d->reply)) {
		if (!flow_claim_orphan(&d->reply))
			return DROP_NONE; /* about to be deleted: the next packet finds its place free */
		err = bpf_map_update_elem(&flows, &d->reply, f, BPF_ANY);
	}
	if (err == -EADDRINUSE || (err == -EEXIST && flow_is_taken(&d->reply, &p->tuple)))
		return DROP_NO_PORT;
	if (err && err != -EEXIST) {
		flow_count_failure(err);
		return d->verdict.flags & VERDICT_TRANSLATE ? DROP_FLOWS_FULL : DROP_NONE;
	}
	fresh = !err;

	f->peer = d->reply;
	f->flags = 0;
	f->stage = FLOW_NEW;
	f->seen = seen_of(p->tcp_flags);
	f->packets = 1;
	f->bytes = packet_length(skb);
	f->verdict = d->verdict;
	f->judged = d->epoch;
	f->epoch = fresh && !flow_tells_always(f, &p->tuple) ? f->judged : 0;
	f->slot = slot;
	err = bpf_map_update_elem(&flows, &p->tuple, f, BPF_NOEXIST);
	if (err == -EEXIST && flow_is_orphan(&p->tuple) && flow_claim_orphan(&p->tuple)) {
		f->epoch = 0;
		err = bpf_map_update_elem(&flows, &p->tuple, f, BPF_ANY);
	}
	if (!err) {
		flow_count(FLOW_CREATED);
		other = f->epoch ? NULL : flow_lookup(&f->peer);
		if (other)
			__sync_lock_test_and_set(&other->epoch, 0);
		return DROP_NONE;
	}
	if (err == -EEXIST)
		return flow_yield(&p->tuple, d, fresh);
	flow_count_failure(err);
	if (fresh) {
		port_give_back(&f->peer, &p->tuple);
		bpf_map_delete_elem(&flows, &f->peer);
	}
	return d->verdict.flags & VERDICT_TRANSLATE ? DROP_FLOWS_FULL : DROP_NONE;
}

/* Without room for a draft, which nobody has ever seen happen, the flow is as with a full table. */
__global int flow_create(struct __sk_buff *skb, struct packet *p, struct decision *d)
{
	struct scratch *s;
	int err;

	if (!p || !d)
		return DROP_NONE;
	s = scratch_take_empty(sizeof(struct flow_draft));
	if (!s) {
		flow_count(FLOW_FAILED);
		nat_note(&p->tuple, d);
		return d->verdict.flags & VERDICT_TRANSLATE ? DROP_FLOWS_FULL : DROP_NONE;
	}
	err = flow_write(skb, p, d, (struct flow_draft *)s->bytes);
	scratch_give_back(s);
	return err;
}

/*
 * Writes a new verdict. Where it differs, the entry is replaced as a whole: a
 * packet on another CPU sees the old verdict or the new one, never a mixture.
 */
__global int flow_judge_again(struct tuple *t, struct decision *d)
{
	struct flow *f, *copy;
	struct scratch *s;

	if (!t || !d)
		return 0;
	f = flow_lookup(t);
	if (!f)
		return 0;
	if (!__builtin_memcmp(&f->verdict, &d->verdict, sizeof(d->verdict))) {
		f->found = flow_found(&d->verdict);
		f->judged = d->epoch;
		return 0;
	}
	s = scratch_take();
	if (!s)
		return 0;
	copy = (struct flow *)s->bytes;
	*copy = *f;
	copy->verdict = d->verdict;
	copy->judged = d->epoch;
	copy->found = flow_found(&d->verdict);
	/* Expiry takes a mark back when it sees that we are here: do not keep it. */
	if (copy->stage != FLOW_DEAD)
		bpf_map_update_elem(&flows, t, copy, BPF_EXIST);
	scratch_give_back(s);
	return 0;
}

/* The originator has gone on from a reply: no flood of openings can push the flow out. */
static __always_inline void flow_confirm(struct flow *f, struct flow *other, const struct tuple *t)
{
	if (__sync_val_compare_and_swap(&f->stage, FLOW_NEW, FLOW_CONFIRMED) != FLOW_NEW)
		return;
	f->flags &= (__u8)~FLOW_CONDEMNED;
	other->flags &= (__u8)~FLOW_CONDEMNED;
	flow_leave_slot(f, t);
	flow_count(FLOW_CONFIRMATIONS);
}

/* An acknowledgement may be this far behind the opening that it answers, in bytes. */
#define FLOW_ACK_WINDOW 65536

/*
 * Does the packet show that its sender has seen the reply? One who forges his
 * address can not: of TCP he would have to guess the number that the reply has
 * begun with. Nothing can be asked of other protocols; an echo is over with its
 * reply, and stays what it is.
 */
static __always_inline int flow_is_answer(struct __sk_buff *skb, const struct packet *p, const struct flow *reply)
{
	__be32 ack;

	if (p->tuple.protocol == IPPROTO_ICMP || p->tuple.protocol == IPPROTO_ICMPV6)
		return 0;
	if (p->tuple.protocol != IPPROTO_TCP || !(reply->flags & FLOW_OPENED))
		return 1;
	if (!(p->tcp_flags & TCP_ACK) || p->kind != PACKET_PLAIN ||
	    bpf_skb_load_bytes(skb, p->l4 + __builtin_offsetof(struct tcphdr, ack), &ack, sizeof(ack)))
		return 0;
	return ntohl(ack) - reply->slot < FLOW_ACK_WINDOW;
}

/* Notes what the opening of the replying side is to be answered with. */
static __always_inline void flow_note_opening(struct __sk_buff *skb, const struct packet *p, struct flow *reply)
{
	__be32 seq;

	if (p->tuple.protocol != IPPROTO_TCP || (p->tcp_flags & (TCP_SYN | TCP_ACK)) != (TCP_SYN | TCP_ACK) ||
	    bpf_skb_load_bytes(skb, p->l4 + __builtin_offsetof(struct tcphdr, seq), &seq, sizeof(seq)))
		return;
	reply->slot = ntohl(seq) + 1;
	reply->flags |= FLOW_OPENED;
}

/*
 * What a packet says of its connection. A flow is confirmed when its
 * originator has sent a packet after having got a reply: a forged opening gets
 * a reply perhaps, but its sender can not go on from it.
 */
__global int flow_track(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	struct flow *other;
	int first;

	if (!p || !f)
		return 0;
	first = !(f->seen & SEEN_PACKET);
	f->packets++;
	f->bytes += packet_length(skb);
	f->seen |= seen_of(p->tcp_flags);
	if (p->tcp_flags & (TCP_FIN | TCP_RST))
		flow_note_end(p, f);
	if (f->flags & FLOW_REPLY)
		flow_note_opening(skb, p, f);
	/*
	 * The other direction may be here on another CPU. The exchanges put what
	 * is written of this one before the look at that one, so at least one of
	 * the two packets notices the other.
	 */
	__sync_lock_test_and_set(&f->epoch, f->judged);
	if ((f->flags & FLOW_CONDEMNED) || f->stage == FLOW_CLOSED || flow_tells_always(f, &p->tuple)) /* looked at after the exchange: it may have come in between */
		__sync_lock_test_and_set(&f->epoch, 0);
	if (f->flags & FLOW_REPLY) {
		if (first) {
			/* The originator's next packet must come this way to confirm. */
			other = flow_lookup(&f->peer);
			if (other && other->stage == FLOW_NEW)
				__sync_lock_test_and_set(&other->epoch, 0);
		}
	} else if (f->stage == FLOW_NEW) {
		other = flow_lookup(&f->peer);
		if (other && (other->seen & SEEN_PACKET)) {
			/* A refusal is a reply too, and nothing can be said to it. */
			if ((p->tcp_flags & TCP_SYN) || flow_is_closing(f, other) || !flow_is_answer(skb, p, other))
				f->epoch = 0; /* what confirms is still to come */
			else
				flow_confirm(f, other, &p->tuple);
		}
	}
	return 0;
}
