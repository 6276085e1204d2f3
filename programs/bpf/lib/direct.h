/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Direct return: a backend on another node answers the client itself, with the
 * address that was asked. The node that was asked turns the destination into the
 * backend and leaves the source alone; its first packets tell the backend's node in
 * an IP option what the destination was. There the flow is as it arrives, from
 * client to backend, and its entry keeps the frontend for the answers.
 */
#pragma once

#include "bpf.h"
#include "checksum.h"
#include "config.h"
#include "flow.h"
#include "net.h"
#include "parse.h"
#include "rewrite.h"
#include "scratch.h"
#include "service.h"
#include "tables.h"
#include "types.h"

/* RFC 4727: numbers for experiments. Copied into fragments, and skipped by who does not know it. */
#define DIRECT_OPTION4 158
#define DIRECT_OPTION6 0x1e

struct direct4 {
	__u8 type;
	__u8 len;
	__be16 port;
	__be32 addr;
};
_Static_assert(sizeof(struct direct4) == 8, "a multiple of four");

/* A header of destination options (RFC 8200 section 4.6). */
struct direct6 {
	__u8 nexthdr;
	__u8 words; /* of eight bytes, without the first */
	__u8 pad_type;
	__u8 pad_len;
	__u8 type;
	__u8 len;
	__be16 port;
	__be32 addr[4];
};
_Static_assert(sizeof(struct direct6) == 24, "a multiple of eight");

static __always_inline __u32 direct_len(int family)
{
	return family == 4 ? sizeof(struct direct4) : sizeof(struct direct6);
}

/* The entry is that of answers which leave with the address of a frontend elsewhere. */
static __always_inline int direct_is_answer(const struct flow *f)
{
	const struct flow *original;

	if (!(f->flags & FLOW_REPLY))
		return 0;
	original = flow_lookup(&f->peer);
	return original && (original->verdict.flags & VERDICT_FRONTEND);
}

/* What the answers are translated by: their flow, as it was where it was asked. */
static __always_inline int direct_tuple(const struct tuple *original, struct tuple *to)
{
	const struct flow *f = flow_lookup(original);

	if (!f || !(f->verdict.flags & VERDICT_FRONTEND))
		return 0;
	*to = *original;
	to->daddr = f->verdict.remote;
	to->dport = (__be16)f->verdict.vni;
	return 1;
}

__global int direct_note(struct packet *p, struct decision *d)
{
	struct tuple t;

	if (!with_nat)
		return 0;
	if (!p || !d || !direct_tuple(&d->reply, &t))
		return 0;
	d->verdict.flags |= VERDICT_TRANSLATE | VERDICT_FRONTEND;
	d->verdict.addr_delta = checksum_fold((__u32)bpf_csum_diff(&p->tuple, 32, &t, 32, 0));
	d->verdict.port_delta = checksum_fold((__u32)bpf_csum_diff(&p->tuple.sport, 4, &t.sport, 4, 0));
	return 0;
}

/* An error of the endpoint about what it was sent: d->reply is as the flow was where it was asked. */
__global int direct_note_error(struct decision *d)
{
	struct tuple t;

	if (!with_nat)
		return 0;
	if (!d || !direct_tuple(&d->reply, &t))
		return 0;
	d->reply = t;
	return 0;
}

/* Rewrites an answer. original: its flow, as it arrives here. */
__global int direct_rewrite(struct __sk_buff *skb, struct packet *p, struct verdict *v, struct tuple *original)
{
	struct tuple t;

	if (!with_nat)
		return DROP_FLOW_CHANGED;
	if (!p || !v || !original || !direct_tuple(original, &t))
		return DROP_FLOW_CHANGED;
	return rewrite_tuple(skb, p, v, &t);
}

/* The header says that the packet is longer by so much, or shorter, and what comes next. */
static __always_inline int direct_mend4(struct __sk_buff *skb, __s32 more)
{
	struct iphdr *ip = packet_at(skb, ETH_HLEN);
	__u16 before, after, len;

	if ((void *)(ip + 1) > packet_end(skb))
		return DROP_REWRITE_FAILED;
	before = *(__u16 *)ip;
	len = ip->tot_len;
	ip->version_ihl = (__u8)(ip->version_ihl + more / 4);
	ip->tot_len = htons((__u16)(ntohs(ip->tot_len) + more));
	after = *(__u16 *)ip;
	ip->check = checksum_adjust(ip->check, (__u32)(__u16)~before + after + (__u32)(__u16)~len + ip->tot_len);
	return DROP_NONE;
}

/* What the two fields that change add to a sum. */
static __always_inline __u32 direct_sum6(const struct ipv6hdr *ip)
{
	return (__u32)ip->payload_len + *(const __u16 *)&ip->nexthdr;
}

/* Tells the backend's node what the packet was sent to. It must not be an aggregate. */
__global int direct_tell(struct __sk_buff *skb, struct packet *p)
{
	if (!with_nat)
		return DROP_REWRITE_FAILED;
	if (!p)
		return DROP_REWRITE_FAILED;
	if (p->family == 4) {
		struct direct4 o = {.type = DIRECT_OPTION4, .len = sizeof(o), .port = p->tuple.dport};
		struct iphdr *ip;
		__u16 words;

		o.addr = ((const __be32 *)p->tuple.daddr.bytes)[3];
		if (p->l4 > ETH_HLEN + 60 - sizeof(o) || bpf_skb_adjust_room(skb, sizeof(o), BPF_ADJ_ROOM_NET, 0) ||
		    bpf_skb_store_bytes(skb, ETH_HLEN + sizeof(*ip), &o, sizeof(o), 0) || direct_mend4(skb, sizeof(o)))
			return DROP_REWRITE_FAILED;
		ip = packet_at(skb, ETH_HLEN);
		if ((void *)(ip + 1) > packet_end(skb))
			return DROP_REWRITE_FAILED;
		/* The option is in the header's sum. */
		words = checksum_fold((__u32)bpf_csum_diff(NULL, 0, (void *)&o, sizeof(o), 0));
		ip->check = checksum_adjust(ip->check, words);
	} else {
		struct direct6 o = {.words = 2, .pad_type = 1, .pad_len = 0, .type = DIRECT_OPTION6, .len = 18, .port = p->tuple.dport};
		__u32 before, after;
		struct ipv6hdr *ip = packet_at(skb, ETH_HLEN);

		if ((void *)(ip + 1) > packet_end(skb) || ip->nexthdr == IPPROTO_HOPOPTS)
			return DROP_REWRITE_FAILED;
		o.nexthdr = ip->nexthdr;
		before = direct_sum6(ip);
		for (int i = 0; i < 4; i++)
			o.addr[i] = ((const __be32 *)p->tuple.daddr.bytes)[i];
		if (bpf_skb_adjust_room(skb, sizeof(o), BPF_ADJ_ROOM_NET, 0) ||
		    bpf_skb_store_bytes(skb, ETH_HLEN + sizeof(*ip), &o, sizeof(o), 0))
			return DROP_REWRITE_FAILED;
		ip = packet_at(skb, ETH_HLEN);
		if ((void *)(ip + 1) > packet_end(skb))
			return DROP_REWRITE_FAILED;
		ip->nexthdr = IPPROTO_DSTOPTS;
		ip->payload_len = htons((__u16)(ntohs(ip->payload_len) + sizeof(o)));
		/* The kernel's sum over the packet has only got zeros. */
		after = direct_sum6(ip) + checksum_fold((__u32)bpf_csum_diff(NULL, 0, (void *)&o, sizeof(o), 0));
		checksum_update(skb, (__u32)(__u16)~checksum_fold(before) + after);
	}
	p->l4 += (__u16)direct_len(p->family);
	p->l3_len += (__u16)direct_len(p->family);
	return DROP_NONE;
}

/* Reads what another node tells, and takes it out of the packet. 0: it tells nothing. */
static __always_inline int direct_read(struct __sk_buff *skb, struct packet *p, struct frontend_key *at)
{
	if (p->family == 4) {
		struct direct4 o;

		if (p->l4 < ETH_HLEN + sizeof(struct iphdr) + sizeof(o) ||
		    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(struct iphdr), &o, sizeof(o)) || o.type != DIRECT_OPTION4 || o.len != sizeof(o))
			return 0;
		address_from_ipv4(&at->addr, o.addr);
		at->port = o.port;
	} else {
		struct direct6 o;

		if (p->l4 < ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(o) ||
		    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(struct ipv6hdr), &o, sizeof(o)) || o.words != 2 || o.type != DIRECT_OPTION6 || o.len != 18)
			return 0;
		address_from_ipv6(&at->addr, o.addr);
		at->port = o.port;
	}
	at->protocol = p->tuple.protocol;
	at->scope = SCOPE_ALL;
	return 1;
}

static __always_inline int direct_strip(struct __sk_buff *skb, struct packet *p)
{
	__u32 len = direct_len(p->family);

	if (p->family == 4) {
		struct direct4 o;
		struct iphdr *ip;
		__u16 words;

		if (bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(struct iphdr), &o, sizeof(o)) ||
		    bpf_skb_adjust_room(skb, -(__s32)len, BPF_ADJ_ROOM_NET, 0) || direct_mend4(skb, -(__s32)len))
			return DROP_REWRITE_FAILED;
		ip = packet_at(skb, ETH_HLEN);
		if ((void *)(ip + 1) > packet_end(skb))
			return DROP_REWRITE_FAILED;
		words = checksum_fold((__u32)bpf_csum_diff(NULL, 0, (void *)&o, sizeof(o), 0));
		ip->check = checksum_adjust(ip->check, (__u16)~words);
		/* The kernel has taken the option out of its sum over the packet, and the header's has taken its place. */
		checksum_update(skb, words);
	} else {
		struct ipv6hdr *ip;
		__u32 before, after;
		__u8 nexthdr;

		if (bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(*ip), &nexthdr, sizeof(nexthdr)) ||
		    bpf_skb_adjust_room(skb, -(__s32)len, BPF_ADJ_ROOM_NET, 0))
			return DROP_REWRITE_FAILED;
		ip = packet_at(skb, ETH_HLEN);
		if ((void *)(ip + 1) > packet_end(skb))
			return DROP_REWRITE_FAILED;
		before = direct_sum6(ip);
		ip->nexthdr = nexthdr;
		ip->payload_len = htons((__u16)(ntohs(ip->payload_len) - len));
		after = direct_sum6(ip);
		checksum_update(skb, (__u32)(__u16)~checksum_fold(before) + after);
	}
	p->l4 -= (__u16)len;
	p->l3_len -= (__u16)len;
	return DROP_NONE;
}

/* Does a service have the backend that the packet is for, at the frontend that another node tells? */
static __always_inline int direct_is_sound(const struct packet *p, struct service_work *w, const struct address *told)
{
	const struct frontend *any;
	int is4 = p->family == 4;

	if (service_read(w) != SERVICE_CHOSEN) {
		/* A port of that node is one of ours too, if it is at all addresses. */
		__builtin_memset(&w->key.addr, 0, sizeof(w->key.addr));
		if (is4)
			address_from_ipv4(&w->key.addr, 0);
		any = bpf_map_lookup_elem(&frontends, &w->key);
		/* It is the other node's address, so none of ours, nor one that nobody can have. */
		if (address_is_martian(told) || address_is_multicast(told) || address_is_link_local(told) ||
		    bpf_map_lookup_elem(&node_addresses, told) || (with_endpoints && bpf_map_lookup_elem(&endpoint_by_addr, told)))
			return 0;
		if (!any || any->type != FRONTEND_NODE_PORT || service_read(w) != SERVICE_CHOSEN)
			return 0;
	}
	w->member.service = w->frontend.service;
	w->member.addr = p->tuple.daddr;
	w->member.port = p->tuple.dport;
	w->member.reserved = 0;
	return (w->frontend.flags & FRONTEND_DIRECT) && bpf_map_lookup_elem(&service_members, &w->member) != NULL;
}

/*
 * A packet for an endpoint, which may come from a node that was asked for a service.
 * Notes in the verdict what the answers are to have. Returns DROP_NONE or the
 * reason to drop it.
 */
__global int direct_take(struct __sk_buff *skb, struct packet *p, struct verdict *v)
{
	struct service_work *w;
	struct address told;
	struct scratch *s;
	__be16 port = 0;
	int sound;

	if (!with_nat)
		return DROP_NONE;
	if (!p || !v)
		return DROP_REWRITE_FAILED;
	s = scratch_take();
	if (!s)
		return DROP_NO_ROOM;
	w = (struct service_work *)s->bytes;
	if (!direct_read(skb, p, &w->key)) {
		scratch_give_back(s);
		return DROP_NONE;
	}
	told = w->key.addr;
	port = w->key.port;
	sound = direct_is_sound(p, w, &told);
	scratch_give_back(s);
	if (!sound)
		return DROP_BAD_FRONTEND;
	v->flags |= VERDICT_FRONTEND;
	v->remote = told;
	v->vni = port;
	return direct_strip(skb, p);
}
