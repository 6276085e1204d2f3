/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From the frontend of a service to one of its backends. A frontend's row names
 * a set of slots that belongs to it alone and is never changed: a service is
 * changed by writing another set, and then the row. Who looks while that happens
 * finds the old state or the new one, or begins again.
 */
#pragma once

#include "bpf.h"
#include "config.h"
#include "scratch.h"
#include "tables.h"
#include "types.h"

/* What a choice works on. It is too large for the stack. */
struct service_work {
	/* in */
	struct frontend_key key;
	struct affinity_key client; /* service is filled in here */
	__u32 hash;                 /* of a socket; of a packet it is made where it is wanted */
	__u16 steady;               /* the choice by weight is made by that hash too, not at random */
	__be16 port;                /* of the client */
	__u32 outside;              /* the client is: what is for inside only is not there */
	/* out */
	struct frontend frontend;
	struct backend backend;
	/* in between */
	struct slot_key slot;
	struct member_key member;
	struct source_range_key range;
	__u32 id;
};
_Static_assert(sizeof(struct service_work) <= SCRATCH_SIZE, "it lies in the scratch room");

/* Who may ask for a service. */
enum service_client {
	CLIENT_NONE = 0,    /* nobody comes this way who would */
	CLIENT_INSIDE = 1,
	CLIENT_OUTSIDE = 2, /* does not get to what is for the inside only */
};

/* What comes of a choice, besides a drop reason. */
enum service_result {
	SERVICE_NONE = 0, /* no service */
	SERVICE_CHOSEN = 1,
	SERVICE_ECHO = 2, /* an echo request to an address of services */
};

/* So often a choice begins again that a change has come in between. */
#define SERVICE_TRIES 4

/*
 * Reads the row of a frontend as a whole. The memory of a row that is replaced
 * may become another's at once: what is found twice has not been.
 */
static __always_inline int service_read(struct service_work *w)
{
	__loop
	for (int i = 0; i < SERVICE_TRIES; i++) {
		const struct frontend *fe = bpf_map_lookup_elem(&frontends, &w->key);

		if (!fe)
			return SERVICE_NONE;
		w->frontend = *fe;
		if (bpf_map_lookup_elem(&frontends, &w->key) == fe)
			return SERVICE_CHOSEN;
	}
	return DROP_SERVICE_CHANGED;
}

/* Notes the backend under w->id. */
static __always_inline int service_take(struct service_work *w)
{
	const struct backend *b = bpf_map_lookup_elem(&backends, &w->id);

	if (!b)
		return 0;
	w->backend = *b;
	return 1;
}

/* The same for one that is not of the set: is it the service's, and one for new flows? */
static __always_inline int service_can_have(struct service_work *w)
{
	const struct member *m;

	if (!service_take(w))
		return 0;
	w->member.service = w->frontend.service;
	w->member.addr = w->backend.addr;
	w->member.port = w->backend.port;
	w->member.reserved = 0;
	m = bpf_map_lookup_elem(&service_members, &w->member);
	return m && m->backend == w->id && (m->state == MEMBER_ACTIVE || ((w->frontend.flags & FRONTEND_LAST) && m->state == MEMBER_TERMINATING));
}

/* The same on every node and for every packet of a flow. */
static __always_inline __u32 service_hash(const struct service_work *w)
{
	const __u32 *client = (const __u32 *)w->client.client.bytes, *at = (const __u32 *)&w->key;
	__u32 h = 0x9e3779b9 ^ ntohs(w->port);

	for (int i = 0; i < 4; i++) {
		h = (h ^ ntohl(client[i])) * 0x85ebca6b;
		h ^= h >> 15;
	}
	for (int i = 0; i < 5; i++) {
		h = (h ^ ntohl(at[i])) * 0xc2b2ae35;
		h ^= h >> 13;
	}
	return h;
}
_Static_assert(sizeof(struct frontend_key) == 20, "five words");

/*
 * A backend of the set, by the client's hash or by weight. 0: the set is gone.
 * What a set has is for new flows, and who was put into it is not asked again.
 */
static __always_inline __u32 service_pick(struct service_work *w)
{
	const struct slot *s;
	__u64 random;

	w->slot.set = w->frontend.set;
	if (w->frontend.flags & FRONTEND_MAGLEV) {
		void *table = bpf_map_lookup_elem(&maglev, &w->slot.set);
		__u32 *id;

		if (!table)
			return 0;
		w->slot.index = ((w->client.kind & AFFINITY_COOKIE) ? w->hash : service_hash(w)) % (maglev_size ? maglev_size : 1);
		id = bpf_map_lookup_elem(table, &w->slot.index);
		return id ? *id : 0;
	}
	/* The whole part chooses a slot, the rest one of its two. */
	random = (__u64)(w->steady ? w->hash : bpf_get_prandom_u32()) * w->frontend.count;
	w->slot.index = (__u32)(random >> 32);
	s = bpf_map_lookup_elem(&service_slots, &w->slot);
	if (!s)
		return 0;
	return (__u32)random <= s->below ? s->first : s->second;
}

/* Does the service of w->frontend take this client? */
static __always_inline int service_takes(struct service_work *w, const struct address *client)
{
	int listed;

	if (!(w->frontend.flags & FRONTEND_RANGES))
		return 1;
	w->range.prefixlen = 32 + 128;
	w->range.set = htonl(w->frontend.set);
	w->range.addr = *client;
	listed = bpf_map_lookup_elem(&source_ranges, &w->range) != NULL;
	return w->frontend.flags & FRONTEND_DENY ? !listed : listed;
}

/* The backend that the client had last, if that is not too long ago; else 0. */
static __always_inline __u32 service_known(struct service_work *w)
{
	struct affinity *a = bpf_map_lookup_elem(&affinities, &w->client);
	__u32 last, now;

	if (!a)
		return 0;
	last = *(volatile __u32 *)&a->last_used; /* before now, which may go on on another CPU */
	now = (__u32)bpf_jiffies64();
	if (now - last >= w->frontend.affinity)
		return 0;
	a->last_used = now;
	return a->backend;
}

static __always_inline void service_remember(struct service_work *w)
{
	struct affinity a = {.backend = w->id, .last_used = (__u32)bpf_jiffies64()};

	bpf_map_update_elem(&affinities, &w->client, &a, BPF_ANY);
}

/*
 * The backend for a new flow to w->key. Returns SERVICE_CHOSEN, SERVICE_NONE,
 * or the reason to drop it.
 */
__global int service_choose(struct service_work *w)
{
	int err;

	if (!w)
		return SERVICE_NONE;
	__loop
	for (int i = 0; i < SERVICE_TRIES; i++) {
		err = service_read(w);
		if (err != SERVICE_CHOSEN)
			return err;
		if (w->outside && w->frontend.type == FRONTEND_CLUSTER_IP)
			return SERVICE_NONE;
		if (w->outside && (w->frontend.flags & FRONTEND_SCOPED)) {
			w->key.scope = SCOPE_OUTSIDE;
			err = service_read(w);
			w->key.scope = SCOPE_ALL;
			if (err != SERVICE_CHOSEN)
				continue;
		}
		/* Before anything is remembered of the client. */
		if ((w->client.kind & AFFINITY_ADDRESS) && !service_takes(w, &w->client.client))
			return DROP_SOURCE_RANGE;
		if (!w->frontend.count)
			return DROP_NO_BACKEND;
		w->client.service = w->frontend.service;
		w->client.kind &= ~(__u32)AFFINITY_LOCAL; /* of an earlier try */
		if (w->frontend.flags & FRONTEND_LOCAL)
			w->client.kind |= AFFINITY_LOCAL;
		if (w->frontend.affinity) {
			w->id = service_known(w);
			if (w->id && service_can_have(w))
				return SERVICE_CHOSEN;
		}
		w->id = service_pick(w);
		if (!w->id || !service_take(w))
			continue;
		if (w->frontend.affinity)
			service_remember(w);
		return SERVICE_CHOSEN;
	}
	return DROP_SERVICE_CHANGED;
}
