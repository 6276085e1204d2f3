/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Only the first fragment of a datagram tells the ports. They are remembered,
 * and so are the bytes that have come, because one who sends a byte twice
 * (RFC 5722) wants us and the receiver to see two different packets.
 */
#pragma once

#include "bpf.h"
#include "flow.h"
#include "parse.h"
#include "tables.h"
#include "types.h"

static __always_inline void fragment_key_of(const struct packet *p, struct fragment_key *key)
{
	key->saddr = p->tuple.saddr;
	key->daddr = p->tuple.daddr;
	key->id = p->frag_id;
	key->protocol = p->family == 4 ? p->tuple.protocol : 0;
	__builtin_memset(key->reserved, 0, sizeof(key->reserved));
}

/*
 * Adds [start, end) to what has come. The parts of a datagram come one after the
 * other on one CPU; where they do not, one of two may be forgotten, and the
 * identifier is free again when its time is up.
 */
static __always_inline int fragment_add(struct fragments *f, __u16 start, __u16 end)
{
	/* What is read is read anew each time, or the verifier would follow every mixture of what there may be. */
	for (int i = 0; i < FRAGMENT_SPANS; i++) {
		barrier();
		if (f->got[i].end && start < f->got[i].end && end > f->got[i].start)
			return DROP_FRAGMENT_OVERLAP;
	}
	for (int i = 0; i < FRAGMENT_SPANS; i++) {
		barrier();
		if (!f->got[i].end)
			continue;
		if (f->got[i].end == start) {
			f->got[i].end = end;
			return DROP_NONE;
		}
		if (f->got[i].start == end) {
			f->got[i].start = start;
			return DROP_NONE;
		}
	}
	for (int i = 0; i < FRAGMENT_SPANS; i++) {
		barrier();
		if (!f->got[i].end) {
			f->got[i].start = start;
			f->got[i].end = end;
			return DROP_NONE;
		}
	}
	return DROP_FRAGMENT_DISORDER;
}

static __always_inline __u16 fragment_end(const struct packet *p)
{
	return (__u16)(p->frag_start + (p->frag_len + 7) / 8);
}

/* All bytes from the first to the last have come. Spans never overlap, so their lengths add up. */
static __always_inline int fragment_is_complete(const struct fragments *f)
{
	__u32 total = 0;

	for (int i = 0; i < FRAGMENT_SPANS; i++)
		total += (__u32)(f->got[i].end - f->got[i].start);
	return f->end && total == f->end;
}

/* Notes the ports of a first fragment. It has been judged and may go on. */
__global int fragment_first(struct packet *p)
{
	struct fragments f = {}, *known;
	struct fragment_key key;

	if (!p)
		return DROP_BAD_FRAGMENT;
	fragment_key_of(p, &key);
	f.sport = p->tuple.sport;
	f.dport = p->tuple.dport;
	f.protocol = p->tuple.protocol;
	f.started = (__u32)bpf_jiffies64();
	f.got[0].end = fragment_end(p);
	known = bpf_map_lookup_elem(&fragments_seen, &key);
	if (known && !known->complete && f.started - known->started < fragment_timeout)
		return DROP_FRAGMENT_OVERLAP;
	if (bpf_map_update_elem(&fragments_seen, &key, &f, BPF_ANY))
		flow_count(FLOW_FRAGMENTS_FULL);
	return DROP_NONE;
}

static __always_inline struct fragments *fragment_lookup(const struct fragment_key *key)
{
	struct fragments *f = bpf_map_lookup_elem(&fragments_seen, key);

	return f && (__u32)bpf_jiffies64() - f->started < fragment_timeout ? f : NULL;
}

/*
 * Gives a later fragment the transport and the ports of its first one. Nothing
 * is noted yet: who knows who has sent it. Those of a complete datagram are
 * told too, for the program that meets its last part a second time on the
 * device of an endpoint.
 */
__global int fragment_ports(struct packet *p)
{
	struct fragment_key key;
	struct fragments *f;

	if (!p)
		return DROP_BAD_FRAGMENT;
	fragment_key_of(p, &key);
	f = fragment_lookup(&key);
	if (!f)
		return DROP_FRAGMENT_UNKNOWN;
	p->tuple.protocol = f->protocol;
	p->tuple.sport = f->sport;
	p->tuple.dport = f->dport;
	return DROP_NONE;
}

/*
 * Notes the bytes of a later fragment that has been judged. With the last
 * missing piece the identifier may come again at once.
 */
__global int fragment_later(struct packet *p)
{
	struct fragment_key key;
	struct fragments *f;
	int err;

	if (!p)
		return DROP_BAD_FRAGMENT;
	fragment_key_of(p, &key);
	f = fragment_lookup(&key);
	if (!f || f->complete)
		return DROP_FRAGMENT_UNKNOWN;
	err = fragment_add(f, p->frag_start, fragment_end(p));
	if (err)
		return err;
	if (!p->frag_more)
		f->end = fragment_end(p);
	f->complete = (__u8)fragment_is_complete(f);
	return DROP_NONE;
}
