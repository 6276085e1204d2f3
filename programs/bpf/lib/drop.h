/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The one place where packets are counted, and the one function that drops. */
#pragma once

#include "bpf.h"
#include "tables.h"
#include "types.h"

/* what: enum action or enum drop_reason */
static __always_inline void count(const struct __sk_buff *skb, __u32 program, __u32 what)
{
	__u32 index = program * DROP_COUNT + what;
	struct counters *m = bpf_map_lookup_elem(&metrics, &index);

	if (m) {
		m->packets++;
		m->bytes += packet_length(skb);
	}
}

__global int drop(struct __sk_buff *skb, __u32 program, __u32 reason)
{
	count(skb, program, reason & (DROP_COUNT - 1));
	return TCX_DROP;
}
