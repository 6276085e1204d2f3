/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The bytes that a forwarded packet changes on this node. */
#pragma once

#include "bpf.h"
#include "net.h"
#include "parse.h"
#include "types.h"

/*
 * One hop: TTL or hop limit down by one. The IPv4 header checksum moves along
 * (RFC 1624), so a device's sum over the whole packet stays right; IPv6 has no
 * such balance and the kernel is told.
 */
static __always_inline int rewrite_ttl(struct __sk_buff *skb, const struct packet *p)
{
	if (p->family == 4) {
		struct iphdr *ip = packet_at(skb, ETH_HLEN);
		__u32 check;

		if ((void *)(ip + 1) > packet_end(skb))
			return DROP_REWRITE_FAILED;
		ip->ttl--;
		check = (__u32)ip->check + htons(0x0100);
		ip->check = (__be16)(check + (check >= 0xffff));
	} else {
		struct ipv6hdr *ip = packet_at(skb, ETH_HLEN);
		__u16 before, after;

		if ((void *)(ip + 1) > packet_end(skb))
			return DROP_REWRITE_FAILED;
		before = *(__u16 *)&ip->nexthdr;
		ip->hop_limit--;
		after = *(__u16 *)&ip->nexthdr;
		bpf_csum_update(skb, (__u32)(__u16)~before + after);
	}
	return DROP_NONE;
}

/* Destination and source stand in the verdict as they stand in the frame. */
static __always_inline int rewrite_macs(struct __sk_buff *skb, const struct verdict *v)
{
	__u32 *to = packet_at(skb, 0);
	const __u32 *from = (const __u32 *)v->dmac;

	if ((void *)(to + 3) > packet_end(skb))
		return DROP_REWRITE_FAILED;
	to[0] = from[0];
	to[1] = from[1];
	to[2] = from[2];
	return DROP_NONE;
}
_Static_assert(__builtin_offsetof(struct verdict, dmac) % 4 == 0, "copied as words");
_Static_assert(__builtin_offsetof(struct verdict, smac) - __builtin_offsetof(struct verdict, dmac) == 6, "copied at once");
