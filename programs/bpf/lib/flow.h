/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The flow table: one hash, two entries a flow, each with the verdict for its
 * direction. This file knows how entries are born, confirmed and given up;
 * expire.c knows how they end.
 */
#pragma once

#include "bpf.h"
#include "config.h"
#include "parse.h"
#include "tables.h"
#include "types.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct flow);
	__uint(max_entries, 1);
} flow_drafts SEC(".maps");

static __always_inline struct flow *flow_lookup(const struct tuple *t)
{
	return bpf_map_lookup_elem(&flows, t);
}

static __always_inline void flow_count(__u32 event)
{
	__u64 *n = bpf_map_lookup_elem(&flow_events, &event);

	if (n)
		*n += 1;
}

/* A packet that may open a connection anew is looked at closely. */
static __always_inline int flow_is_quiet(const struct flow *f, const struct packet *p)
{
	return f->epoch == node.epoch && !(p->tcp_flags & TCP_SYN);
}

/* The whole question of the fast path: may the cached verdict be used as it is? */
static __always_inline int flow_is_settled(const struct flow *f, const struct __sk_buff *skb, const struct packet *p)
{
	return f->verdict.iif == skb->ifindex && flow_is_quiet(f, p);
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

static __always_inline void flow_touch(struct flow *f, const struct __sk_buff *skb, const struct packet *p)
{
	f->last_seen = (__u32)bpf_jiffies64();
	f->packets++;
	f->bytes += skb->len;
	if (unlikely(p->tcp_flags & (TCP_FIN | TCP_RST)))
		f->seen |= seen_of(p->tcp_flags);
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
	bpf_map_delete_elem(&flows, &f->peer);
	bpf_map_delete_elem(&flows, t);
}

/*
 * A new flow takes the place of the oldest one that is still unconfirmed, if
 * the ring is full, so a flood of openings costs the table no more than the
 * ring's size and can not touch what is confirmed. old: room for its tuple.
 */
__global __u32 flow_take_slot(struct tuple *t, struct tuple *old)
{
	__u32 slot = __sync_fetch_and_add(&flow_ring_head, 1) & unconfirmed_mask;
	struct tuple *place = bpf_map_lookup_elem(&flow_ring, &slot);
	struct flow *f;

	if (!place || !t || !old)
		return slot;
	*old = *place;
	*place = *t;
	if (!old->protocol)
		return slot;
	f = flow_lookup(old);
	if (f && f->slot == slot && __sync_val_compare_and_swap(&f->stage, FLOW_NEW, FLOW_DEAD) == FLOW_NEW) {
		flow_delete(old, f);
		flow_count(FLOW_EVICTED);
	}
	return slot;
}

/*
 * A flow that is confirmed gives its slot back, so that whoever comes to it
 * later need not ask what became of the flow. By exchange: the slot may be
 * another's by now.
 */
static __always_inline void flow_leave_slot(const struct flow *f, const struct tuple *t)
{
	__u32 slot = f->slot;
	struct tuple *place = bpf_map_lookup_elem(&flow_ring, &slot);

	if (place && address_is_equal(&place->saddr, &t->saddr) && address_is_equal(&place->daddr, &t->daddr))
		__sync_val_compare_and_swap((__u64 *)&place->sport, *(const __u64 *)&t->sport, 0);
}
_Static_assert(__builtin_offsetof(struct tuple, sport) % 8 == 0 && sizeof(struct tuple) == __builtin_offsetof(struct tuple, sport) + 8,
	       "ports and protocol are one word");

static __always_inline void flow_count_failure(long err)
{
	flow_count(err == -E2BIG ? FLOW_FULL : err == -ENOMEM ? FLOW_NO_MEMORY : err == -EBUSY ? FLOW_BUSY : FLOW_FAILED);
}

/* A reply's entry that no flow stands behind: what is left of one that has gone. */
static __always_inline int flow_is_orphan(const struct tuple *t, const struct tuple *original)
{
	const struct flow *f = flow_lookup(t), *other = flow_lookup(original);

	return f && (f->flags & FLOW_REPLY) && (!other || (other->flags & FLOW_REPLY));
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

/* An empty flow to be filled in: too large for the stack. One packet at a time on each CPU. */
static __always_inline struct flow *flow_draft(void)
{
	__u32 zero = 0;
	struct flow *f = bpf_map_lookup_elem(&flow_drafts, &zero);

	if (f)
		__builtin_memset(f, 0, sizeof(*f));
	return f;
}

/*
 * Remembers a flow with the verdict for the packet's direction. The reply's
 * entry is empty: its first packet is judged where it arrives. A table that is
 * full is not the packet's fault: it goes on, and the next one is judged anew.
 *
 * What is left of an earlier flow is written over, for whatever it has seen was
 * not of this one. Two sides that open at once may both become originators,
 * each with the other for its reply; both look closely at their next packet,
 * which confirms.
 */
__global int flow_create(struct __sk_buff *skb, struct packet *p, struct verdict *v)
{
	struct flow *f = flow_draft();
	struct tuple reply;
	struct flow *other;
	int fresh;
	long err;

	if (!p || !v || !f)
		return 0;
	tuple_reverse(&p->tuple, &reply);
	f->last_seen = (__u32)bpf_jiffies64();
	f->created = f->last_seen;
	f->peer = p->tuple;
	f->flags = FLOW_REPLY;
	err = bpf_map_update_elem(&flows, &reply, f, BPF_NOEXIST);
	if (err == -EEXIST && flow_is_orphan(&reply, &p->tuple)) {
		if (!flow_claim_orphan(&reply))
			return 0; /* about to be deleted: the next packet finds its place free */
		err = bpf_map_update_elem(&flows, &reply, f, BPF_ANY);
	}
	if (err && err != -EEXIST) {
		flow_count_failure(err);
		return 0;
	}
	fresh = !err;

	f->peer = reply;
	f->flags = 0;
	f->stage = FLOW_NEW;
	f->seen = seen_of(p->tcp_flags);
	f->packets = 1;
	f->bytes = skb->len;
	f->verdict = *v;
	f->judged = node.epoch;
	f->epoch = fresh ? f->judged : 0;
	f->slot = flow_take_slot(&p->tuple, &reply);
	err = bpf_map_update_elem(&flows, &p->tuple, f, BPF_NOEXIST);
	if (err == -EEXIST && flow_is_orphan(&p->tuple, &f->peer) && flow_claim_orphan(&p->tuple)) {
		f->epoch = 0;
		err = bpf_map_update_elem(&flows, &p->tuple, f, BPF_ANY);
	}
	if (!err) {
		flow_count(FLOW_CREATED);
		other = f->epoch ? NULL : flow_lookup(&f->peer);
		if (other)
			__sync_lock_test_and_set(&other->epoch, 0);
	} else if (err != -EEXIST) { /* EEXIST: another CPU was first */
		flow_count_failure(err);
		if (fresh)
			bpf_map_delete_elem(&flows, &f->peer);
	}
	return 0;
}

/*
 * Writes a new verdict. Where it differs, the entry is replaced as a whole: a
 * packet on another CPU sees the old verdict or the new one, never a mixture.
 */
__global int flow_judge_again(struct tuple *t, struct verdict *v)
{
	struct flow *f, copy;

	if (!t || !v)
		return 0;
	f = flow_lookup(t);
	if (!f)
		return 0;
	if (!__builtin_memcmp(&f->verdict, v, sizeof(*v))) {
		f->judged = node.epoch;
		return 0;
	}
	copy = *f;
	/* Expiry takes a mark back when it sees that we are here: do not keep it. */
	if (copy.stage == FLOW_DEAD)
		return 0;
	copy.verdict = *v;
	copy.judged = node.epoch;
	return (int)bpf_map_update_elem(&flows, t, &copy, BPF_EXIST);
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
	f->bytes += skb->len;
	f->seen |= seen_of(p->tcp_flags);
	/*
	 * The other direction may be here on another CPU. The exchanges put what
	 * is written of this one before the look at that one, so at least one of
	 * the two packets notices the other.
	 */
	__sync_lock_test_and_set(&f->epoch, f->judged);
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
			if (p->tcp_flags & TCP_SYN) /* sent again: what confirms is still to come */
				f->epoch = 0;
			else if (__sync_val_compare_and_swap(&f->stage, FLOW_NEW, FLOW_CONFIRMED) == FLOW_NEW) {
				flow_leave_slot(f, &p->tuple);
				flow_count(FLOW_CONFIRMATIONS);
			}
		}
	}
	return 0;
}
