/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The bytes that a forwarded packet changes on this node. */
#pragma once

#include "bpf.h"
#include "checksum.h"
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
		checksum_update(skb, (__u32)(__u16)~before + after);
	}
	return DROP_NONE;
}

/*
 * The transport checksum follows a translation. Where the packet has only the
 * sum of the pseudo-header, which is not inverted, that alone follows, and the
 * ports are none of its business.
 */
static __always_inline __be16 rewrite_checksum(__be16 check, const struct verdict *v, __u32 kind)
{
	if (kind == CHECKSUM_PARTIAL)
		return (__be16)checksum_fold((__u64)check + v->addr_delta);
	return checksum_adjust(check, (__u32)v->addr_delta + v->port_delta);
}

/* Ports and transport checksum. A later fragment has neither. SCTP's checksum covers no address. */
static __always_inline int rewrite_transport(struct __sk_buff *skb, const struct packet *p, const struct verdict *v,
					     const struct tuple *reply, __u32 kind)
{
	__u32 l4 = p->l4;
	__be16 *ports;

	/* No packet that was parsed is so, but the verifier wants to see it. */
	asm volatile("" : "+r"(l4));
	if (l4 > PARSE_PULL)
		return DROP_REWRITE_FAILED;
	ports = packet_at(skb, l4);
	if ((void *)(ports + 4) > packet_end(skb))
		return DROP_REWRITE_FAILED;
	if (p->tuple.protocol == IPPROTO_ICMP || p->tuple.protocol == IPPROTO_ICMPV6) {
		struct icmphdr *icmp = (void *)ports;

		/* An echo has one identifier, and only that of IPv6 sums up the addresses too. */
		icmp->id = reply->dport | reply->sport;
		icmp->check = p->family == 4 ? checksum_adjust(icmp->check, v->port_delta) : rewrite_checksum(icmp->check, v, kind);
		return DROP_NONE;
	}
	ports[0] = reply->dport;
	ports[1] = reply->sport;
	if (p->tuple.protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = (void *)ports;

		if ((void *)(tcp + 1) > packet_end(skb))
			return DROP_REWRITE_FAILED;
		tcp->check = rewrite_checksum(tcp->check, v, kind);
	} else if (p->tuple.protocol == IPPROTO_UDP) {
		struct udphdr *udp = (void *)ports;

		/* 0 says that there is none (RFC 768), so a sum of 0 is written as its other form. */
		if (udp->check || kind == CHECKSUM_PARTIAL) {
			__be16 check = rewrite_checksum(udp->check, v, kind);

			udp->check = check ? check : 0xffff;
		}
	}
	return DROP_NONE;
}

/* The packet goes on under the reverse of reply. */
static __always_inline int rewrite_tuple(struct __sk_buff *skb, const struct packet *p, const struct verdict *v,
					 const struct tuple *reply)
{
	const __u32 *saddr = (const __u32 *)reply->daddr.bytes, *daddr = (const __u32 *)reply->saddr.bytes;
	__u32 kind = checksum_kind(skb);

	if (p->family == 4) {
		struct iphdr *ip = packet_at(skb, ETH_HLEN);

		if ((void *)(ip + 1) > packet_end(skb))
			return DROP_REWRITE_FAILED;
		ip->saddr = saddr[3];
		ip->daddr = daddr[3];
		ip->check = checksum_adjust(ip->check, v->addr_delta);
		/* The header adds up to what it did; what is behind it, if it sums them up, has lost what the addresses have won. */
		if (unlikely(kind == CHECKSUM_COMPLETE) && p->kind != PACKET_LATER_FRAGMENT && p->tuple.protocol != IPPROTO_ICMP)
			checksum_update(skb, (__u16)~v->addr_delta);
	} else {
		struct ipv6hdr *ip = packet_at(skb, ETH_HLEN);

		if ((void *)(ip + 1) > packet_end(skb))
			return DROP_REWRITE_FAILED;
		for (int i = 0; i < 4; i++) {
			ip->saddr[i] = saddr[i];
			ip->daddr[i] = daddr[i];
		}
	}
	if (unlikely(p->kind == PACKET_LATER_FRAGMENT))
		return DROP_NONE;
	return rewrite_transport(skb, p, v, reply, kind);
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
