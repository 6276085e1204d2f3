/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * An ICMP error about a packet of a translated flow. Its sender knows the flow by
 * the other tuple, so the quoted packet gets the addresses and ports with which
 * it was sent, and what the translation hides is hidden here too: an error of the
 * other side comes from the address that was asked. A router keeps its own.
 */
#pragma once

#include "bpf.h"
#include "checksum.h"
#include "net.h"
#include "parse.h"
#include "types.h"

/* Source and destination as they stand behind one another in a header. */
struct quote_addresses {
	__be32 words[8];
};

static __always_inline void quote_fill(struct quote_addresses *q, int family, const struct address *src, const struct address *dst)
{
	const __be32 *s = (const __be32 *)src->bytes, *t = (const __be32 *)dst->bytes;

	if (family == 4) {
		q->words[0] = s[3];
		q->words[1] = t[3];
		return;
	}
	for (int i = 0; i < 4; i++) {
		q->words[i] = s[i];
		q->words[i + 4] = t[i];
	}
}

/* Writes addresses into a header, and for IPv4 mends its checksum. Returns what that adds to a sum, or -1. */
static __always_inline __s64 quote_write(struct __sk_buff *skb, int family, __u32 l3, const struct quote_addresses *from,
					 const struct quote_addresses *to)
{
	__u32 diff, len = family == 4 ? 8 : 32;
	__be16 check;

	if (family != 4) {
		diff = checksum_fold((__u32)bpf_csum_diff(from, 32, to, 32, 0));
		return bpf_skb_store_bytes(skb, l3 + __builtin_offsetof(struct ipv6hdr, saddr), to, 32, 0) ? -1 : (__s64)diff;
	}
	diff = checksum_fold((__u32)bpf_csum_diff(from, 8, to, 8, 0));
	if (bpf_skb_load_bytes(skb, l3 + __builtin_offsetof(struct iphdr, check), &check, sizeof(check)))
		return -1;
	check = checksum_adjust(check, diff);
	if (bpf_skb_store_bytes(skb, l3 + __builtin_offsetof(struct iphdr, check), &check, sizeof(check), 0) ||
	    bpf_skb_store_bytes(skb, l3 + __builtin_offsetof(struct iphdr, saddr), to, len, 0))
		return -1;
	return 0; /* the header adds up to what it did */
}

/* Ports, or the identifier of an echo, which is one of the two in a tuple. Returns what that adds to a sum, or -1. */
static __always_inline __s64 quote_write_ports(struct __sk_buff *skb, const struct packet *p, const struct tuple *reply)
{
	__be16 before[2] = {p->tuple.dport, p->tuple.sport}, after[2] = {reply->sport, reply->dport};
	__u32 at = p->quoted_l4, len = sizeof(after);

	if (p->tuple.protocol == IPPROTO_ICMP || p->tuple.protocol == IPPROTO_ICMPV6) {
		at += __builtin_offsetof(struct icmphdr, id);
		len = sizeof(after[0]);
		before[0] |= before[1];
		after[0] |= after[1];
		before[1] = 0;
		after[1] = 0;
	}
	if (bpf_skb_store_bytes(skb, at, after, len, 0))
		return -1;
	return checksum_fold((__u32)bpf_csum_diff(before, sizeof(before), after, sizeof(after), 0));
}

/*
 * The checksum of the quoted transport follows, if it is quoted: some tell their
 * probes by it. Returns what that adds to a sum, or -1.
 */
static __always_inline __s64 quote_write_check(struct __sk_buff *skb, const struct packet *p, __u32 diff)
{
	__u32 at = p->quoted_l4, end = ETH_HLEN + (__u32)p->l3_len;
	int udp = p->tuple.protocol == IPPROTO_UDP;
	__be16 before, after;

	if (udp)
		at += __builtin_offsetof(struct udphdr, check);
	else if (p->tuple.protocol == IPPROTO_TCP)
		at += __builtin_offsetof(struct tcphdr, check);
	else if (p->tuple.protocol != IPPROTO_SCTP)
		at += __builtin_offsetof(struct icmphdr, check);
	else
		return 0;
	if (at + sizeof(before) > end)
		return 0;
	if (bpf_skb_load_bytes(skb, at, &before, sizeof(before)))
		return -1;
	if (udp && !before)
		return 0;
	after = checksum_adjust(before, diff);
	if (udp && !after)
		after = 0xffff;
	if (bpf_skb_store_bytes(skb, at, &after, sizeof(after), 0))
		return -1;
	return checksum_fold((__u32)(__u16)~before + after);
}

__global int quote_translate(struct __sk_buff *skb, struct packet *p, struct decision *d)
{
	struct quote_addresses from = {}, to = {};
	__u32 check;
	__s64 inner, ports, sum, outer;

	if (!p || !d)
		return DROP_REWRITE_FAILED;
	check = (__u32)p->l4 + __builtin_offsetof(struct icmphdr, check);
	/* The quoted packet went the other way. */
	quote_fill(&from, p->family, &p->tuple.daddr, &p->tuple.saddr);
	quote_fill(&to, p->family, &d->reply.saddr, &d->reply.daddr);
	inner = quote_write(skb, p->family, (__u32)p->l4 + sizeof(struct icmphdr), &from, &to);
	if (inner < 0)
		return DROP_REWRITE_FAILED;
	ports = quote_write_ports(skb, p, &d->reply);
	if (ports < 0)
		return DROP_REWRITE_FAILED;
	/* ICMP alone does not sum up the addresses. */
	sum = p->tuple.protocol == IPPROTO_ICMP ? 0 : checksum_fold((__u32)bpf_csum_diff(&from, sizeof(from), &to, sizeof(to), 0));
	sum = quote_write_check(skb, p, (__u32)(sum + ports));
	if (sum < 0)
		return DROP_REWRITE_FAILED;
	inner += ports + sum;

	quote_fill(&from, p->family, &p->icmp_from, &p->tuple.daddr);
	quote_fill(&to, p->family, address_is_equal(&p->icmp_from, &p->tuple.saddr) ? &d->reply.daddr : &p->icmp_from, &d->reply.saddr);
	outer = quote_write(skb, p->family, ETH_HLEN, &from, &to);
	if (outer < 0)
		return DROP_REWRITE_FAILED;
	if (bpf_l4_csum_replace(skb, check, 0, checksum_fold((__u64)inner), 0))
		return DROP_REWRITE_FAILED;
	if (p->family != 4 && bpf_l4_csum_replace(skb, check, 0, (__u64)outer, BPF_F_PSEUDO_HDR))
		return DROP_REWRITE_FAILED;
	return DROP_NONE;
}
