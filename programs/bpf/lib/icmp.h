/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Turns a packet that can not go on into the ICMP error about it (RFC 792,
 * RFC 1191, RFC 4443): the gateway of the endpoints says it, since that is an
 * address which every sender can route to.
 */
#pragma once

#include "bpf.h"
#include "checksum.h"
#include "config.h"
#include "device.h"
#include "net.h"
#include "parse.h"
#include "scratch.h"
#include "types.h"

/*
 * Headers and the first eight bytes behind them, where the sender finds its
 * ports: as long as the longest headers that are accepted.
 */
#define ICMP_QUOTE_MAX (PARSE_PULL + 8)
struct icmp_error4 {
	struct ethhdr eth;
	struct iphdr ip;
	struct icmphdr icmp;
} __packed;

struct icmp_error6 {
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct icmphdr icmp;
} __packed;

/* An error as it is made. */
struct icmp_draft {
	union {
		struct icmp_error4 v4;
		struct icmp_error6 v6;
	};
	__u8 reserved[2];
	__u8 quote[ICMP_QUOTE_MAX]; /* zeros behind what is quoted */
};
_Static_assert(sizeof(struct icmp_draft) <= SCRATCH_SIZE, "it is made in the scratch room");
_Static_assert(ICMP_QUOTE_MAX % 4 == 0 && __builtin_offsetof(struct icmp_draft, quote) % 4 == 0, "it can be summed");

/* Errors are not answered with errors, and pieces do not say enough. */
static __always_inline int icmp_may_answer(const struct packet *p)
{
	return p->kind == PACKET_PLAIN || p->kind == PACKET_FIRST_FRAGMENT;
}

/*
 * The frame grows by the new headers at its front. What the sender left for a
 * device to do (checksum, segments) belongs to the old packet, so the old
 * bytes are taken away in a manner that makes the kernel forget it: cutting
 * the tail ends the segments, and pulling past the place where the transport
 * checksum starts ends that.
 */
static __always_inline int icmp_resize(struct __sk_buff *skb, const struct packet *p, __u32 len)
{
	__u32 pull = (__u32)p->l4 + 2;

	if (bpf_skb_change_tail(skb, len + pull, 0))
		return DROP_REWRITE_FAILED;
	if (bpf_skb_adjust_room(skb, -(__s32)pull, BPF_ADJ_ROOM_MAC, 0))
		return DROP_REWRITE_FAILED;
	return DROP_NONE;
}

static __always_inline int icmp_write4(struct __sk_buff *skb, struct packet *p, struct icmp_draft *d,
				       const struct address *from, __u32 what, __u16 mtu)
{
	struct icmp_error4 *h = &d->v4;
	struct ethhdr eth;
	__u32 len;

	len = (__u32)p->l4 - ETH_HLEN + 8;
	if (len < 28 || len > 68)
		return DROP_BAD_LENGTH;
	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) || bpf_skb_load_bytes(skb, ETH_HLEN, d->quote, len))
		return DROP_TRUNCATED;

	__builtin_memcpy(h->eth.dst, eth.src, ETH_ALEN);
	__builtin_memcpy(h->eth.src, eth.dst, ETH_ALEN);
	h->eth.type = htons(ETH_P_IP);
	h->ip.version_ihl = 0x45;
	h->ip.tos = 0xc0; /* RFC 1812 section 4.3.2.5 */
	h->ip.tot_len = htons(sizeof(*h) - ETH_HLEN + len);
	h->ip.ttl = 64;
	h->ip.protocol = IPPROTO_ICMP;
	h->ip.saddr = ((const __u32 *)from->bytes)[3];
	h->ip.daddr = ((const __u32 *)p->tuple.saddr.bytes)[3];
	h->ip.check = checksum_of((__u32)bpf_csum_diff(NULL, 0, &h->ip, sizeof(h->ip), 0));
	h->icmp.type = (__u8)what;
	h->icmp.code = (__u8)(what >> 8);
	h->icmp.seq = htons(mtu);
	h->icmp.check = checksum_of((__u32)bpf_csum_diff(NULL, 0, d->quote, ICMP_QUOTE_MAX,
						      (__u32)bpf_csum_diff(NULL, 0, &h->icmp, sizeof(h->icmp), 0)));

	if (icmp_resize(skb, p, sizeof(*h) + len) || bpf_skb_store_bytes(skb, 0, h, sizeof(*h), 0) ||
	    bpf_skb_store_bytes(skb, sizeof(*h), d->quote, len, 0))
		return DROP_REWRITE_FAILED;
	return DROP_NONE;
}

static __always_inline int icmp_write6(struct __sk_buff *skb, struct packet *p, struct icmp_draft *d,
				       const struct address *from, __u32 what, __u16 mtu)
{
	struct icmp_error6 *h = &d->v6;
	struct ethhdr eth;
	__u32 len;
	struct {
		__be32 len;
		__be32 nexthdr;
	} pseudo = {};
	__u32 sum;

	len = (__u32)p->l4 - ETH_HLEN + 8;
	if (len < 48 || len > ICMP_QUOTE_MAX)
		return DROP_BAD_LENGTH;
	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) || bpf_skb_load_bytes(skb, ETH_HLEN, d->quote, len))
		return DROP_TRUNCATED;

	__builtin_memcpy(h->eth.dst, eth.src, ETH_ALEN);
	__builtin_memcpy(h->eth.src, eth.dst, ETH_ALEN);
	h->eth.type = htons(ETH_P_IPV6);
	h->ip.version_class = 0x60;
	h->ip.payload_len = htons(sizeof(h->icmp) + len);
	h->ip.nexthdr = IPPROTO_ICMPV6;
	h->ip.hop_limit = 64;
	for (int i = 0; i < 4; i++) {
		h->ip.saddr[i] = ((const __u32 *)from->bytes)[i];
		h->ip.daddr[i] = ((const __u32 *)p->tuple.saddr.bytes)[i];
	}
	h->icmp.type = (__u8)what;
	h->icmp.code = (__u8)(what >> 8);
	h->icmp.seq = htons(mtu); /* lower half of RFC 4443's 32 bits */
	pseudo.len = htonl(sizeof(h->icmp) + len);
	pseudo.nexthdr = htonl(IPPROTO_ICMPV6);
	sum = (__u32)bpf_csum_diff(NULL, 0, &h->ip.saddr, 32, 0);
	sum = (__u32)bpf_csum_diff(NULL, 0, &pseudo, sizeof(pseudo), sum);
	sum = (__u32)bpf_csum_diff(NULL, 0, &h->icmp, sizeof(h->icmp), sum);
	h->icmp.check = checksum_of((__u32)bpf_csum_diff(NULL, 0, d->quote, ICMP_QUOTE_MAX, sum));

	if (icmp_resize(skb, p, sizeof(*h) + len) || bpf_skb_store_bytes(skb, 0, h, sizeof(*h), 0) ||
	    bpf_skb_store_bytes(skb, sizeof(*h), d->quote, len, 0))
		return DROP_REWRITE_FAILED;
	return DROP_NONE;
}

/* Type and code in one number. */
#define ICMP_WHAT(type, code) ((__u32)(type) | (__u32)(code) << 8)

/* Who says an error. */
enum icmp_speaker {
	SPEAKER_GATEWAY = 0,
	SPEAKER_DESTINATION = 1, /* the one that the packet is for */
	SPEAKER_UPLINK = 2,      /* the node, where the packet came in */
};

static __always_inline struct address icmp_speaker(const struct __sk_buff *skb, const struct packet *p, __u32 speaker)
{
	const struct address *own = NULL;

	if (speaker == SPEAKER_DESTINATION)
		return p->tuple.daddr;
	if (speaker == SPEAKER_UPLINK)
		own = device_address(skb->ifindex, p->family);
	if (own)
		return *own;
	return p->family == 4 ? config_address(&gateway_ipv4) : config_address(&gateway_ipv6);
}

/* The packet becomes the error about it. speaker: enum icmp_speaker */
__global int icmp_write(struct __sk_buff *skb, struct packet *p, __u32 what, __u16 mtu, __u32 speaker)
{
	struct icmp_draft *d;
	struct address from;
	struct scratch *s;
	int err;

	if (!p)
		return DROP_REWRITE_FAILED;
	from = icmp_speaker(skb, p, speaker);
	if (address_is_zero(&from))
		return DROP_REWRITE_FAILED;
	s = scratch_take();
	if (!s)
		return DROP_REWRITE_FAILED;
	d = (struct icmp_draft *)s->bytes;
	__builtin_memset(d, 0, sizeof(*d));
	if (p->family == 4)
		err = icmp_write4(skb, p, d, &from, what, mtu);
	else
		err = icmp_write6(skb, p, d, &from, what, mtu);
	scratch_give_back(s);
	return err;
}

/*
 * reason: DROP_TTL_EXCEEDED or DROP_TOO_BIG. Returns DROP_NONE if the packet
 * is the answer now; anything else: there is none to send.
 */
static __always_inline int icmp_answer(struct __sk_buff *skb, struct packet *p, int reason, __u16 mtu, enum icmp_speaker speaker)
{
	int expired = reason == DROP_TTL_EXCEEDED;

	if (!icmp_may_answer(p))
		return reason;
	if (p->family == 4)
		return icmp_write(skb, p, expired ? ICMP_WHAT(ICMP_TIME_EXCEEDED, 0) : ICMP_WHAT(ICMP_UNREACHABLE, ICMP_FRAG_NEEDED),
				  expired ? 0 : mtu, speaker);
	return icmp_write(skb, p, expired ? ICMP_WHAT(ICMPV6_TIME_EXCEEDED, 0) : ICMP_WHAT(ICMPV6_TOO_BIG, 0), expired ? 0 : mtu,
			  speaker);
}
