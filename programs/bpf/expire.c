//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A pass over the flow table inside the kernel: a million entries without a
 * system call for each, and without a moment between looking and deleting.
 *
 * A flow that nobody used for its time loses its verdict first (condemn): from
 * then on its packets take the slow path, which notices and revives it. After
 * all programs that had the old verdict in hand are through (the caller waits
 * a grace period), a second pass deletes what was not revived (reap).
 */
#include "lib/bpf.h"
#include "lib/flow.h"
#include "lib/net.h"
#include "lib/tables.h"
#include "lib/types.h"

static __always_inline __u32 timeout_of(const struct pass *pass, __u8 protocol, const struct flow *f,
					const struct flow *reply)
{
	int confirmed = f->stage == FLOW_CONFIRMED;

	switch (protocol) {
	case IPPROTO_TCP:
	case IPPROTO_SCTP:
		if (flow_is_closing(f, reply))
			return pass->tcp_closing;
		return confirmed ? pass->tcp_established : pass->tcp_new;
	case IPPROTO_UDP:
		return confirmed ? pass->udp_confirmed : pass->udp_new;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return pass->icmp;
	default:
		return confirmed ? pass->other_confirmed : pass->other_new;
	}
}

/* Entries are used while the pass goes on: so many ticks ahead of its start are now. */
#define AHEAD (1U << 24)

static __always_inline __u32 idle_of(const struct pass *pass, const struct flow *f)
{
	__u32 idle = pass->now - f->last_seen;

	return idle > -AHEAD ? 0 : idle;
}

static __always_inline int is_idle(const struct pass *pass, const struct flow *f, const struct flow *reply, __u32 timeout)
{
	return idle_of(pass, f) >= timeout && (!reply || idle_of(pass, reply) >= timeout);
}

static __always_inline int is_due(const struct pass *pass, __u8 protocol, const struct flow *f, const struct flow *reply)
{
	return is_idle(pass, f, reply, timeout_of(pass, protocol, f, reply));
}

static __always_inline void condemn(struct pass *pass, const struct tuple *t, struct flow *f)
{
	struct flow *reply = flow_lookup(&f->peer);

	/* Dead already: whoever killed it did not come to delete it. */
	if (f->stage != FLOW_DEAD && !is_due(pass, t->protocol, f, reply))
		return;
	f->epoch = 0;
	if (reply)
		reply->epoch = 0;
	pass->condemned++;
}

/* A reply without its flow, which was taken away by hand. */
static __always_inline void condemn_orphan(struct pass *pass, const struct tuple *t, struct flow *f)
{
	if (f->stage != FLOW_DEAD && !is_due(pass, t->protocol, f, NULL))
		return;
	f->epoch = 0;
	pass->condemned++;
}

/*
 * Marks a flow as dead, unless somebody has used it since it was condemned.
 * f is the originator's entry. The exchange orders the second look behind the
 * mark: see flow_revive().
 */
static __always_inline int kill(struct pass *pass, __u8 protocol, struct flow *f, struct flow *reply)
{
	__u32 timeout = timeout_of(pass, protocol, f, reply); /* of its stage, before that changes */
	__u32 stage = f->stage;

	if (stage == FLOW_DEAD)
		return 1;
	if (f->epoch || (reply && reply->epoch) || !is_idle(pass, f, reply, timeout))
		return 0;
	if (__sync_val_compare_and_swap(&f->stage, stage, FLOW_DEAD) != stage)
		return 0;
	if (is_idle(pass, f, reply, timeout))
		return 1;
	/* By exchange too: meanwhile the memory may have become another flow's. */
	__sync_val_compare_and_swap(&f->stage, FLOW_DEAD, stage);
	return 0;
}

/*
 * Deletes the visited entry if its flow is to go. Whichever of the two comes
 * first decides, and each is deleted on its own visit: never the neighbour
 * under the iterator. A reply that comes second finds nobody to ask, so it is
 * marked; what it knows itself is not enough, for example of a reset.
 */
static __always_inline void reap(struct pass *pass, struct tuple *key, struct flow *f)
{
	struct flow *peer = flow_lookup(&f->peer);
	struct tuple t = *key;

	if (!(f->flags & FLOW_REPLY)) {
		if (!kill(pass, t.protocol, f, peer))
			return;
		if (peer && (peer->flags & FLOW_REPLY))
			peer->stage = FLOW_DEAD;
	} else if (peer && !(peer->flags & FLOW_REPLY)) {
		if (!kill(pass, t.protocol, peer, f))
			return;
	} else if (f->stage != FLOW_DEAD) {
		if (!is_due(pass, t.protocol, f, NULL))
			return;
		f = flow_claim_orphan(&t);
		if (!f)
			return;
		if (!is_due(pass, t.protocol, f, NULL)) {
			__sync_val_compare_and_swap(&f->stage, FLOW_DEAD, 0);
			return;
		}
	}
	if (f->flags & FLOW_REPLY)
		port_give_back(&t, &f->peer);
	bpf_map_delete_elem(&flows, &t);
	pass->deleted++;
}

/* Most entries are in use: they are passed over without a look at their other half. */
static __always_inline int is_fresh(const struct pass *pass, const struct flow *f)
{
	return f->stage != FLOW_DEAD && idle_of(pass, f) < pass->shortest;
}

static long visit(__unused void *map, struct tuple *key, struct flow *f, struct pass *pass)
{
	struct flow *peer;

	switch (pass->mode) {
	case PASS_CONDEMN:
		if (is_fresh(pass, f))
			return 0;
		if (!(f->flags & FLOW_REPLY)) {
			condemn(pass, key, f);
			return 0;
		}
		peer = flow_lookup(&f->peer);
		if (!peer || (peer->flags & FLOW_REPLY))
			condemn_orphan(pass, key, f);
		return 0;
	case PASS_REAP:
		if (!f->epoch)
			reap(pass, key, f);
		return 0;
	default:
		pass->entries++;
		if (f->flags & FLOW_REPLY)
			return 0;
		if (f->stage == FLOW_CONFIRMED || f->stage == FLOW_CLOSED)
			pass->confirmed++;
		else
			pass->unconfirmed++;
		return 0;
	}
}

SEC("syscall")
int flow_pass(struct pass *ctx)
{
	struct pass pass = *ctx;

	pass.now = (__u32)bpf_jiffies64();
	if (pass.mode)
		bpf_for_each_map_elem(&flows, visit, &pass, 0);
	*ctx = pass;
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
