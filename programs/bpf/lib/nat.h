/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A translation is the difference between the two tuples of a flow, and nothing
 * else: a packet goes on under the reverse of the tuple that its answers will
 * arrive with. This file says what that changes; rewrite.h changes it.
 */
#pragma once

#include "bpf.h"
#include "checksum.h"
#include "config.h"
#include "parse.h"
#include "types.h"

/* Tuples lie at multiples of eight, so do their addresses and the rest. */
static __always_inline const __u64 *tuple_words(const struct tuple *t)
{
	return (const __u64 *)t;
}
_Static_assert(__builtin_offsetof(struct tuple, daddr) == 16 && __builtin_offsetof(struct tuple, sport) == 32, "words of a tuple");

static __always_inline int tuple_is_equal(const struct tuple *a, const struct tuple *b)
{
	const __u64 *x = tuple_words(a), *y = tuple_words(b);

	return x[4] == y[4] && x[1] == y[1] && x[3] == y[3] && x[0] == y[0] && x[2] == y[2];
}

static __always_inline int tuple_is_reverse(const struct tuple *a, const struct tuple *b)
{
	const __u64 *x = tuple_words(a), *y = tuple_words(b);

	return a->sport == b->dport && a->dport == b->sport && a->protocol == b->protocol && x[1] == y[3] && x[3] == y[1] &&
	       x[0] == y[2] && x[2] == y[0];
}

/*
 * Notes in the verdict what becomes of a packet whose answers have that tuple.
 * What a tuple adds to a sum, its reverse does too.
 */
__global int nat_note(struct tuple *in, struct decision *d)
{
	if (!in || !d)
		return 0;
	d->verdict.flags &= (__u8)~VERDICT_TRANSLATE;
	d->verdict.addr_delta = 0;
	d->verdict.port_delta = 0;
	if (!with_translation || tuple_is_reverse(in, &d->reply))
		return 0;
	d->verdict.flags |= VERDICT_TRANSLATE;
	d->verdict.addr_delta = checksum_fold((__u32)bpf_csum_diff(in, 32, &d->reply, 32, 0));
	d->verdict.port_delta = checksum_fold((__u32)bpf_csum_diff(&in->sport, 4, &d->reply.sport, 4, 0));
	return 0;
}

/* The answers undo what the packets of the flow go through. */
static __always_inline void nat_note_back(const struct verdict *there, struct verdict *back)
{
	if (!(there->flags & VERDICT_TRANSLATE))
		return;
	back->flags |= VERDICT_TRANSLATE;
	back->addr_delta = (__u16)~there->addr_delta;
	back->port_delta = (__u16)~there->port_delta;
}
