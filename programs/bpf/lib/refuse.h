/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Answers in the name of an address of services: to an echo, and a refusal to
 * what nobody will take. They come from the address that was asked.
 */
#pragma once

#include "bpf.h"
#include "checksum.h"
#include "icmp.h"
#include "net.h"
#include "parse.h"
#include "scratch.h"
#include "types.h"

struct reset4 {
	struct ethhdr eth;
	struct iphdr ip;
	struct tcphdr tcp;
} __packed;

struct reset6 {
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct tcphdr tcp;
} __packed;

struct pseudo_header {
	__be32 len;
	__be32 protocol;
};

struct reset_draft {
	struct reset4 v4;
	__u8 reserved[2];
	struct reset6 v6;
	__u8 reserved2[2];
	struct tcphdr asked;
	struct tcphdr answer;
	struct pseudo_header pseudo;
};
_Static_assert(sizeof(struct reset_draft) <= SCRATCH_SIZE, "it is made in the scratch room");

/* RFC 9293 section 3.10.7.1: what answers a segment of no connection. */
static __always_inline void reset_numbers(const struct packet *p, const struct tcphdr *asked, struct tcphdr *tcp)
{
	__u32 len = (__u32)p->l3_len + ETH_HLEN - p->l4 - p->l4_len;

	tcp->source = asked->dest;
	tcp->dest = asked->source;
	tcp->doff = 5 << 4;
	if (asked->flags & TCP_ACK) {
		tcp->seq = asked->ack;
		tcp->flags = TCP_RST;
		return;
	}
	len += !!(asked->flags & TCP_SYN) + !!(asked->flags & TCP_FIN);
	tcp->ack = htonl(ntohl(asked->seq) + len);
	tcp->flags = TCP_RST | TCP_ACK;
}

static __always_inline __u32 reset_pseudo(struct reset_draft *d)
{
	d->pseudo.len = htonl(sizeof(struct tcphdr));
	d->pseudo.protocol = htonl(IPPROTO_TCP);
	return (__u32)bpf_csum_diff(NULL, 0, &d->pseudo, sizeof(d->pseudo), 0);
}

static __always_inline int reset_write(struct __sk_buff *skb, struct packet *p, struct reset_draft *d)
{
	struct ethhdr *eth = p->family == 4 ? &d->v4.eth : &d->v6.eth;
	__u32 sum;

	if (bpf_skb_load_bytes(skb, p->l4, &d->asked, sizeof(d->asked)) || bpf_skb_load_bytes(skb, ETH_ALEN, eth->dst, ETH_ALEN) ||
	    bpf_skb_load_bytes(skb, 0, eth->src, ETH_ALEN))
		return DROP_TRUNCATED;
	reset_numbers(p, &d->asked, &d->answer);
	sum = reset_pseudo(d);
	if (p->family == 4) {
		struct reset4 *h = &d->v4;

		h->eth.type = htons(ETH_P_IP);
		h->ip.version_ihl = 0x45;
		h->ip.tot_len = htons(sizeof(*h) - ETH_HLEN);
		h->ip.frag_off = htons(IP_DF);
		h->ip.ttl = 64;
		h->ip.protocol = IPPROTO_TCP;
		h->ip.saddr = ((const __u32 *)p->tuple.daddr.bytes)[3];
		h->ip.daddr = ((const __u32 *)p->tuple.saddr.bytes)[3];
		h->ip.check = checksum_of((__u32)bpf_csum_diff(NULL, 0, &h->ip, sizeof(h->ip), 0));
		h->tcp = d->answer;
		sum = (__u32)bpf_csum_diff(NULL, 0, &h->ip.saddr, 8, sum);
		h->tcp.check = checksum_of((__u32)bpf_csum_diff(NULL, 0, &h->tcp, sizeof(h->tcp), sum));
		if (icmp_resize(skb, p, sizeof(*h)) || bpf_skb_store_bytes(skb, 0, h, sizeof(*h), 0))
			return DROP_REWRITE_FAILED;
	} else {
		struct reset6 *h = &d->v6;

		h->eth.type = htons(ETH_P_IPV6);
		h->ip.version_class = 0x60;
		h->ip.payload_len = htons(sizeof(h->tcp));
		h->ip.nexthdr = IPPROTO_TCP;
		h->ip.hop_limit = 64;
		for (int i = 0; i < 4; i++) {
			h->ip.saddr[i] = ((const __u32 *)p->tuple.daddr.bytes)[i];
			h->ip.daddr[i] = ((const __u32 *)p->tuple.saddr.bytes)[i];
		}
		h->tcp = d->answer;
		sum = (__u32)bpf_csum_diff(NULL, 0, &h->ip.saddr, 32, sum);
		h->tcp.check = checksum_of((__u32)bpf_csum_diff(NULL, 0, &h->tcp, sizeof(h->tcp), sum));
		if (icmp_resize(skb, p, sizeof(*h)) || bpf_skb_store_bytes(skb, 0, h, sizeof(*h), 0))
			return DROP_REWRITE_FAILED;
	}
	return DROP_NONE;
}

/* The packet becomes the reset of its connection. A reset is not answered. */
__global int refuse_tcp(struct __sk_buff *skb, struct packet *p)
{
	struct reset_draft *d;
	struct scratch *s;
	int err;

	if (!p || (p->tcp_flags & TCP_RST) || p->kind != PACKET_PLAIN)
		return DROP_REWRITE_FAILED;
	s = scratch_take();
	if (!s)
		return DROP_REWRITE_FAILED;
	d = (struct reset_draft *)s->bytes;
	__builtin_memset(d, 0, sizeof(*d));
	err = reset_write(skb, p, d);
	scratch_give_back(s);
	return err;
}

/* The packet becomes its refusal. Anything but DROP_NONE: there is none to send. */
static __always_inline int refuse(struct __sk_buff *skb, struct packet *p)
{
	if (p->tuple.protocol == IPPROTO_TCP)
		return refuse_tcp(skb, p);
	if (!icmp_may_answer(p))
		return DROP_REWRITE_FAILED;
	return icmp_write(skb, p,
			  p->family == 4 ? ICMP_WHAT(ICMP_UNREACHABLE, ICMP_PORT_UNREACHABLE) :
					   ICMP_WHAT(ICMPV6_UNREACHABLE, ICMPV6_PORT_UNREACHABLE),
			  0, SPEAKER_DESTINATION);
}

/*
 * The request becomes its reply. The addresses change places, which no checksum
 * notices; the type changes, and the TTL begins anew.
 */
__global int echo_answer(struct __sk_buff *skb, struct packet *p)
{
	__u8 macs[2 * ETH_ALEN];
	__u16 before, after;

	if (!p || p->kind != PACKET_PLAIN)
		return DROP_REWRITE_FAILED;
	if (bpf_skb_load_bytes(skb, 0, &macs[ETH_ALEN], ETH_ALEN) || bpf_skb_load_bytes(skb, ETH_ALEN, macs, ETH_ALEN) ||
	    bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return DROP_REWRITE_FAILED;
	before = p->family == 4 ? htons(ICMP_ECHO << 8) : htons(ICMPV6_ECHO << 8);
	after = p->family == 4 ? htons(ICMP_ECHO_REPLY << 8) : htons(ICMPV6_ECHO_REPLY << 8);
	if (bpf_skb_store_bytes(skb, p->l4, &after, sizeof(after), 0) ||
	    bpf_l4_csum_replace(skb, p->l4 + __builtin_offsetof(struct icmphdr, check), before, after, sizeof(after)))
		return DROP_REWRITE_FAILED;
	if (p->family == 4) {
		struct iphdr *ip = packet_at(skb, ETH_HLEN);
		__be32 to;
		__u32 was;

		if ((void *)(ip + 1) > packet_end(skb))
			return DROP_REWRITE_FAILED;
		to = ip->saddr;
		ip->saddr = ip->daddr;
		ip->daddr = to;
		was = htons((__u16)(ip->ttl << 8));
		ip->ttl = 64;
		ip->check = checksum_adjust(ip->check, (__u32)(__u16)~was + htons(64 << 8));
	} else {
		struct ipv6hdr *ip = packet_at(skb, ETH_HLEN);

		if ((void *)(ip + 1) > packet_end(skb))
			return DROP_REWRITE_FAILED;
		for (int i = 0; i < 4; i++) {
			__be32 to = ip->saddr[i];

			ip->saddr[i] = ip->daddr[i];
			ip->daddr[i] = to;
		}
		ip->hop_limit = 64;
	}
	return DROP_NONE;
}
