/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The outer header of the overlay, written here: the packet then goes straight to
 * the uplink, without the overlay device and the node's stack, which take more
 * time than all the rest. What does not fit, or is to have a checksum outside, is
 * left to them.
 */
#pragma once

#include "bpf.h"
#include "checksum.h"
#include "config.h"
#include "device.h"
#include "net.h"
#include "parse.h"
#include "scratch.h"
#include "tables.h"
#include "types.h"

/* All that comes before the inner packet, in bytes of the outer one. */
#define ENCAPSULATE_HEADERS ((overlay_ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(struct udphdr) + sizeof(struct vxlanhdr) + ETH_HLEN)

/* What a question for a way works on. It is too large for the stack. */
struct way_work {
	struct bpf_fib_lookup fib;
	struct way way;
};

static __always_inline void way_ask(struct __sk_buff *skb, const struct address *to, struct bpf_fib_lookup *fib, struct way *w)
{
	struct address self = config_address(&overlay_node);
	const __be32 *src = (const __be32 *)self.bytes, *dst = (const __be32 *)to->bytes;
	int direct = 1;

	if (overlay_ipv6) {
		fib->family = AF_INET6;
		for (int i = 0; i < 4; i++) {
			fib->ipv6_src[i] = src[i];
			fib->ipv6_dst[i] = dst[i];
		}
	} else {
		fib->family = AF_INET;
		fib->ipv4_src = src[3];
		fib->ipv4_dst = dst[3];
	}
	fib->l4_protocol = IPPROTO_UDP;
	fib->dport = htons(overlay_port);
	fib->mtu = 1; /* any length, so that the answer is the MTU */
	fib->ifindex = node.host_ifindex ? node.host_ifindex : skb->ifindex;
	/* A neighbour that is not known yet is asked for by the kernel, which sends this packet. */
	if (bpf_fib_lookup(skb, fib, sizeof(*fib), 0) || !bpf_map_lookup_elem(&uplinks, &fib->ifindex))
		return;
	if (overlay_ipv6) {
		for (int i = 0; i < 4; i++)
			direct &= fib->ipv6_dst[i] == dst[i];
	} else {
		direct = fib->family == AF_INET;
		w->via = fib->ipv4_dst == dst[3] ? 0 : fib->ipv4_dst;
	}
	if (direct) {
		w->oif = fib->ifindex;
		w->mtu = fib->mtu;
	}
}

/* Asks the routes for the way to another node. One that is not ours to take is one too. */
__global int way_find(struct __sk_buff *skb, struct address *to)
{
	struct way_work *w;
	struct scratch *s;

	if (!with_overlay)
		return 0;
	if (!to)
		return 0;
	s = scratch_take_empty(sizeof(*w));
	if (!s)
		return 0;
	w = (struct way_work *)s->bytes;
	w->way.found = (__u32)bpf_jiffies64();
	w->way.epoch = node.epoch;
	way_ask(skb, to, &w->fib, &w->way);
	if (!w->way.oif) /* perhaps not yet: look again soon */
		w->way.found -= route_age;
	bpf_map_update_elem(&ways, to, &w->way, BPF_ANY);
	scratch_give_back(s);
	return 0;
}

/* May there be ways at all that the kernel need not take for us? */
static __always_inline int way_is_ours(void)
{
	struct address self = config_address(&overlay_node);

	return !overlay_checksum && !address_is_zero(&self) && node.uplinks;
}

/* Fills in the way to another node. 0: the kernel has to do it. */
static __always_inline int way_to(struct __sk_buff *skb, const struct address *to, struct way *out)
{
	struct address key = *to;
	const struct way *w;

	/* A verdict by it is believed for a while too, so it must not be old itself. */
	w = bpf_map_lookup_elem(&ways, &key);
	if (!w || w->epoch != node.epoch || (__u32)bpf_jiffies64() - w->found > route_age / 8) {
		way_find(skb, &key);
		w = bpf_map_lookup_elem(&ways, &key);
	}
	if (!w)
		return 0;
	*out = *w; /* its place may become another's */
	return out->oif != 0;
}

/* The ports of a flow make the port outside, so that what is on the way can spread flows. */
static __always_inline __be16 encapsulate_source(const struct tuple *t)
{
	const __u64 *w = (const __u64 *)t;
	__u64 h = (w[4] ^ w[1] * 3 ^ w[3] * 5) * 0x9e3779b97f4a7c15ULL;

	return htons((__u16)(overlay_source_first + ((h >> 32) * overlay_source_count >> 32)));
}

/* What stands between the outer IP header and the frame, whose own Ethernet header is to be in front of it. */
#define ENCAPSULATED (sizeof(struct udphdr) + sizeof(struct vxlanhdr))

/* at: where it begins; len: with all that is inside */
static __always_inline int encapsulate_frame(struct __sk_buff *skb, __u32 at, const struct packet *p, const struct verdict *v, __u32 len)
{
	struct udphdr *udp = packet_at(skb, at);
	struct vxlanhdr *vxlan = packet_at(skb, at + sizeof(*udp));
	__u16 *inner = packet_at(skb, at + ENCAPSULATED), *outer = packet_at(skb, 0);

	if ((void *)(inner + ETH_HLEN / 2) > packet_end(skb))
		return DROP_REWRITE_FAILED;
	udp->source = encapsulate_source(&p->tuple);
	udp->dest = htons(overlay_port);
	udp->len = htons((__u16)len);
	udp->check = 0;
	vxlan->flags = htonl(VXLAN_VNI);
	vxlan->vni = htonl(v->vni << 8);
	for (int i = 0; i < ETH_HLEN / 2; i++)
		inner[i] = outer[i];
	outer[ETH_HLEN / 2 - 1] = overlay_ipv6 ? htons(ETH_P_IPV6) : htons(ETH_P_IP);
	return DROP_NONE;
}

/* Congestion is told outside as inside (RFC 6040). */
static __always_inline __u8 encapsulate_ecn(struct __sk_buff *skb, const struct packet *p)
{
	const __u8 *ip = packet_at(skb, ETH_HLEN);

	if ((void *)(ip + 2) > packet_end(skb))
		return 0;
	return p->family == 4 ? ip[1] & IP_ECN_MASK : (ip[1] >> 4) & IP_ECN_MASK;
}

static __always_inline int encapsulate(struct __sk_buff *skb, const struct packet *p, const struct verdict *v)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) |
		      (overlay_ipv6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4);
	struct address self = config_address(&overlay_node);
	const __be32 *src = (const __be32 *)self.bytes, *dst = (const __be32 *)v->remote.bytes;
	__u32 l3 = overlay_ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	__u32 len = skb->len + ENCAPSULATED, ecn = encapsulate_ecn(skb, p);

	if (bpf_skb_adjust_room(skb, (__s32)(l3 + ENCAPSULATED + ETH_HLEN), BPF_ADJ_ROOM_MAC, flags))
		return DROP_REWRITE_FAILED;
	if (overlay_ipv6) {
		struct ipv6hdr *ip = packet_at(skb, ETH_HLEN);

		if ((void *)(ip + 1) > packet_end(skb))
			return DROP_REWRITE_FAILED;
		*(__be32 *)ip = htonl(6 << 28 | ecn << 20);
		ip->payload_len = htons((__u16)len);
		ip->nexthdr = IPPROTO_UDP;
		ip->hop_limit = 64;
		for (int i = 0; i < 4; i++) {
			ip->saddr[i] = src[i];
			ip->daddr[i] = dst[i];
		}
	} else {
		struct iphdr *ip = packet_at(skb, ETH_HLEN);
		__u32 id = bpf_get_prandom_u32() & 0xffff; /* a router may split it */
		__u16 total = htons((__u16)(len + sizeof(*ip)));

		if ((void *)(ip + 1) > packet_end(skb))
			return DROP_REWRITE_FAILED;
		ip->version_ihl = 0x45;
		ip->tos = (__u8)ecn;
		ip->tot_len = total;
		ip->id = (__be16)id;
		ip->frag_off = 0;
		ip->ttl = 64;
		ip->protocol = IPPROTO_UDP;
		ip->check = (__be16)~checksum_fold((__u64)htons((__u16)(0x4500 | ecn)) + total + id + htons(64 << 8 | IPPROTO_UDP) + src[3] + dst[3]);
		ip->saddr = src[3];
		ip->daddr = dst[3];
	}
	return encapsulate_frame(skb, ETH_HLEN + l3, p, v, len);
}
