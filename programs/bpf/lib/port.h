/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Source ports of the node for flows that leave in its name. A port is free if
 * the tuple of the answers can be put into the flow table; what is kept here only
 * says where to look, so that a destination whose ports are nearly all taken
 * does not cost a look-up for each of them.
 */
#pragma once

#include "bpf.h"
#include "config.h"
#include "parse.h"
#include "tables.h"
#include "types.h"

/* So many ports are tried for a flow. */
#define PORT_TRIES 128
/* So many words of hints are looked at for each. */
#define PORT_WORDS 16

static __always_inline struct nat_ports *port_hints(const struct tuple *reply)
{
	const __u64 *w = (const __u64 *)reply;
	__u64 h = w[0] ^ w[1] * 3 ^ ((__u64)reply->sport << 8 | reply->protocol) * 5;
	__u32 place = (__u32)(h * 0x9e3779b97f4a7c15ULL >> 40) & nat_mask;

	return bpf_map_lookup_elem(&nat_hints, &place);
}

/* Its place among the ports that a flow may get; the range's length and more: it is none of them. */
static __always_inline __u32 port_index(__be16 port)
{
	return (__u32)ntohs(port) - nat_first;
}

static __always_inline int port_in_range(__be16 port)
{
	return port_index(port) < nat_count;
}

static __always_inline void port_mark(const struct tuple *reply, int used)
{
	struct nat_ports *hints = port_hints(reply);
	__u32 index = port_index(reply->dport);
	__u64 bit = 1ULL << (index & 63), *word;

	if (!hints || index >= nat_count)
		return;
	word = &hints->used[index >> 6 & (NAT_WORDS - 1)];
	if (used)
		__sync_fetch_and_or(word, bit);
	else
		__sync_fetch_and_and(word, ~bit);
}

/* A flow that had a port of the node has gone. reply: the tuple of its answers. */
static __always_inline void port_give_back(const struct tuple *reply, const struct tuple *original)
{
	if (with_nat && !address_is_equal(&reply->daddr, &original->saddr))
		port_mark(reply, 0);
}

static __always_inline __u32 port_lowest_bit(__u64 w)
{
	__u32 n = 0;

	if (!(w & 0xffffffff)) {
		n += 32;
		w >>= 32;
	}
	if (!(w & 0xffff)) {
		n += 16;
		w >>= 16;
	}
	if (!(w & 0xff)) {
		n += 8;
		w >>= 8;
	}
	if (!(w & 0xf)) {
		n += 4;
		w >>= 4;
	}
	if (!(w & 3)) {
		n += 2;
		w >>= 2;
	}
	return n + !(w & 1);
}

/*
 * A port that seems to be free, at random (RFC 6056), or any one where none seems to
 * be: others share the hints. Some are forgotten then, now and again: flows may have
 * gone that nobody told us of. Not each time, or words that really are full would be
 * looked through over and over.
 */
__global __u32 port_seek(struct tuple *reply, __u32 tries)
{
	__u32 words = (nat_count + 63) / 64, random = bpf_get_prandom_u32(), turn = random & 63, word = 0;
	struct nat_ports *hints;

	if (!with_nat || !reply || !words)
		return nat_first;
	hints = port_hints(reply);
	if (!hints)
		return nat_first + random % (nat_count ? nat_count : 1);
	word = (random >> 6) % words;
	for (int i = 0; i < PORT_WORDS; i++) {
		__u64 free = ~hints->used[word & (NAT_WORDS - 1)];
		__u32 left = nat_count - word * 64;

		if (left < 64)
			free &= (1ULL << left) - 1;
		if (free) {
			__u64 turned = turn ? free >> turn | free << (64 - turn) : free;

			return nat_first + word * 64 + ((port_lowest_bit(turned) + turn) & 63);
		}
		if (tries)
			break; /* they have lied to this search: it does not go where they lead */
		word = word + 1 < words ? word + 1 : 0;
	}
	if (!(random >> 26))
		hints->used[word & (NAT_WORDS - 1)] = 0;
	return nat_first + random % (nat_count ? nat_count : 1);
}

/* Is a socket of the node reached by what has this tuple? */
static __always_inline int port_has_socket(struct __sk_buff *skb, const struct tuple *reply)
{
	const __be32 *src = (const __be32 *)reply->saddr.bytes, *dst = (const __be32 *)reply->daddr.bytes;
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	__u32 len;

	if (address_is_ipv4(&reply->daddr)) {
		t.ipv4.saddr = src[3];
		t.ipv4.daddr = dst[3];
		t.ipv4.sport = reply->sport;
		t.ipv4.dport = reply->dport;
		len = sizeof(t.ipv4);
	} else {
		for (int i = 0; i < 4; i++) {
			t.ipv6.saddr[i] = src[i];
			t.ipv6.daddr[i] = dst[i];
		}
		t.ipv6.sport = reply->sport;
		t.ipv6.dport = reply->dport;
		len = sizeof(t.ipv6);
	}
	if (reply->protocol == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, &t, len, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &t, len, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	bpf_sk_release(sk);
	return 1;
}

/* Ports of the node that are somebody's without a flow: of the overlay, of services, of its own sockets. */
__global int port_is_reserved(struct __sk_buff *skb, struct tuple *reply)
{
	struct frontend_key at = {};

	if (!with_nat)
		return 1;
	if (!reply)
		return 1;
	if (reply->protocol != IPPROTO_TCP && reply->protocol != IPPROTO_UDP)
		return 0;
	if (with_overlay && reply->protocol == IPPROTO_UDP && reply->dport == htons(overlay_port))
		return 1;
	if (with_services) {
		at.addr = reply->daddr;
		at.port = reply->dport;
		at.protocol = reply->protocol;
		if (bpf_map_lookup_elem(&frontends, &at))
			return 1;
		/* A NodePort is the node's at whatever address, also at one that the services were not told of. */
		__builtin_memset(&at.addr, 0, sizeof(at.addr));
		if (address_is_ipv4(&reply->daddr))
			address_from_ipv4(&at.addr, 0);
		if (bpf_map_lookup_elem(&frontends, &at))
			return 1;
	}
	return port_has_socket(skb, reply);
}

/* May the flow keep the port that it came with? That of SCTP it must: its checksum is over all of the packet. */
static __always_inline int port_can_stay(struct __sk_buff *skb, struct tuple *reply)
{
	if (reply->protocol != IPPROTO_TCP && reply->protocol != IPPROTO_UDP)
		return 1;
	return port_in_range(reply->dport) && !port_is_reserved(skb, reply);
}

static __always_inline void port_count(__u32 event)
{
	__u64 *n = bpf_map_lookup_elem(&nat_events, &event);

	if (n)
		__sync_fetch_and_add(n, 1);
}

/* tries: how many ports were tried, 1 and more */
static __always_inline void port_count_tries(__u32 tries)
{
	__u32 event = NAT_TRIES;

	for (int i = 0; i < NAT_KEPT - 1 && tries > 1; i++) {
		tries >>= 1;
		event++;
	}
	port_count(event);
}
