/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Carrying a verdict out: the last thing that happens to a packet here. */
#pragma once

#include "bpf.h"
#include "config.h"
#include "direct.h"
#include "drop.h"
#include "encapsulate.h"
#include "parse.h"
#include "rewrite.h"
#include "types.h"

/* Only what comes from an endpoint can be the answer to who has asked at another node. */
#ifndef SENDS_ANSWERS
#define SENDS_ANSWERS 0
#endif

/*
 * May the packet leave as it is? DROP_NONE, DROP_TTL_EXCEEDED or DROP_TOO_BIG.
 * An aggregate is judged by its segments. IPv4 without DF goes on: the overlay
 * device splits the outer packet, or the stack that of an uplink, if there is a host
 * pair to it.
 */
static __always_inline int send_check(const struct __sk_buff *skb, const struct packet *p, const struct verdict *v)
{
	if ((v->flags & VERDICT_DECREMENT_TTL) && unlikely(p->ttl <= 1))
		return DROP_TTL_EXCEEDED;
	if (v->mtu && unlikely(p->l3_len > v->mtu) && (p->dont_fragment || (v->action == ACTION_TO_DEVICE && !node.host_ifindex))) {
		__u32 segment = skb->gso_size;

		if (!segment || (__u32)p->l4 - ETH_HLEN + p->l4_len + segment > v->mtu)
			return DROP_TOO_BIG;
	}
	return DROP_NONE;
}

/* Sets the outer header that the overlay device will write. */
static __always_inline int send_set_tunnel(struct __sk_buff *skb, __u32 vni, const struct address *remote)
{
	const __be32 *to = (const __be32 *)remote->bytes;
	struct bpf_tunnel_key key = {};
	__u64 flags = overlay_checksum ? 0 : BPF_F_ZERO_CSUM_TX;

	key.tunnel_id = vni;
	key.tunnel_ttl = 64;
	if (overlay_ipv6) {
		key.remote_ipv6[0] = to[0];
		key.remote_ipv6[1] = to[1];
		key.remote_ipv6[2] = to[2];
		key.remote_ipv6[3] = to[3];
		flags |= BPF_F_TUNINFO_IPV6;
	} else {
		key.remote_ipv4 = ntohl(to[3]);
	}
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags) ? DROP_NO_TUNNEL_KEY : DROP_NONE;
}

/*
 * Into a namespace. The mark and the time stamp were the sender's and would
 * reach the receiver's own rules and qdiscs; before 6.15 the helper neither
 * clears them nor makes the packet the receiver's own.
 */
static __always_inline int send_to_peer(struct __sk_buff *skb, __u32 ifindex)
{
	skb->mark = 0;
	skb->tstamp = 0;
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	return (int)bpf_redirect_peer(ifindex, 0);
}

/* The stack cuts it, and counts the hop. */
static __always_inline int send_goes_in_pieces(const struct __sk_buff *skb, const struct packet *p, const struct verdict *v)
{
	return v->action == ACTION_TO_DEVICE && v->mtu && p->l3_len > v->mtu && !p->dont_fragment && !skb->gso_size && node.host_ifindex;
}

/*
 * The next hop of what has come from the overlay, for which the verdict has no room.
 * Without one the kernel would ask its routes too, and before 6.18 lose the memory of
 * what the overlay device has told of the packet, each time. Returns 0, or that
 * there is none by this device.
 */
__global int send_ask_next_hop(struct __sk_buff *skb, struct packet *p, __u32 oif, struct bpf_redir_neigh *to)
{
	struct bpf_fib_lookup *fib;
	struct scratch *s;
	long err;

	if (!p || !to)
		return -EINVAL;
	s = scratch_take_empty(sizeof(*fib));
	if (!s)
		return -EINVAL;
	fib = (struct bpf_fib_lookup *)s->bytes;
	fib->ifindex = node.host_ifindex ? node.host_ifindex : skb->ifindex;
	if (p->family == 4) {
		fib->family = AF_INET;
		err = bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, saddr), &fib->ipv4_src, 4) ||
		      bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, daddr), &fib->ipv4_dst, 4);
	} else {
		fib->family = AF_INET6;
		err = bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, saddr), fib->ipv6_src, 16) ||
		      bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, daddr), fib->ipv6_dst, 16);
	}
	if (!err)
		err = bpf_fib_lookup(skb, fib, sizeof(*fib), BPF_FIB_LOOKUP_SKIP_NEIGH);
	if (!err && fib->ifindex != oif)
		err = -EINVAL;
	if (!err) {
		to->nh_family = fib->family;
		for (int i = 0; i < 4; i++)
			to->ipv6_nh[i] = fib->family == AF_INET && i ? 0 : fib->ipv6_dst[i];
	}
	scratch_give_back(s);
	return (int)err;
}

/*
 * Out of the node. The kernel writes the link-layer header, and finds the next
 * hop's address first if it must. A packet that has to go in pieces is left to
 * the stack, which takes the node's own addresses from the host pair.
 */
static __always_inline int send_to_device(struct __sk_buff *skb, const struct packet *p, const struct verdict *v)
{
	const __be32 *via = (const __be32 *)v->remote.bytes;
	struct bpf_redir_neigh to = {};

	if (unlikely(send_goes_in_pieces(skb, p, v))) {
		__u8 macs[2 * ETH_ALEN];

		for (int i = 0; i < ETH_ALEN; i++) {
			macs[i] = node.host_mac[i];
			macs[i + ETH_ALEN] = node.host_mac[i];
		}
		return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0) ? TCX_DROP : (int)bpf_redirect(node.host_ifindex, BPF_F_INGRESS);
	}
	if (v->vni) {
		to.nh_family = AF_INET;
		to.ipv4_nh = *(const __be32 *)v->dmac;
		if (p->family != 4 && (v->smac[0] | v->smac[1] | v->smac[2] | v->smac[3] | v->smac[4] | v->smac[5]))
			return rewrite_macs(skb, v) ? TCX_DROP : (int)bpf_redirect(v->oif, 0);
		if ((p->family != 4 || !to.ipv4_nh) && send_ask_next_hop(skb, (struct packet *)p, v->oif, &to))
			return (int)bpf_redirect_neigh(v->oif, NULL, 0, 0);
		return (int)bpf_redirect_neigh(v->oif, &to, sizeof(to), 0);
	}
	if (address_is_ipv4(&v->remote)) {
		to.nh_family = AF_INET;
		to.ipv4_nh = via[3];
	} else {
		to.nh_family = AF_INET6;
		for (int i = 0; i < 4; i++)
			to.ipv6_nh[i] = via[i];
	}
	return (int)bpf_redirect_neigh(v->oif, &to, sizeof(to), 0);
}

/* Out of the node with an outer header of ours. */
static __always_inline int send_encapsulated(struct __sk_buff *skb, const struct packet *p, const struct verdict *v, __u32 program)
{
	const __be32 *to = (const __be32 *)v->remote.bytes;
	__be32 via = *(const __be32 *)v->dmac;
	struct bpf_redir_neigh nh = {};

	if (encapsulate(skb, p, v))
		return drop(skb, program, DROP_REWRITE_FAILED);
	if (overlay_ipv6) {
		nh.nh_family = AF_INET6;
		for (int i = 0; i < 4; i++)
			nh.ipv6_nh[i] = to[i];
	} else {
		nh.nh_family = AF_INET;
		nh.ipv4_nh = via ? via : to[3];
	}
	return (int)bpf_redirect_neigh(v->oif, &nh, sizeof(nh), 0);
}

/* One hop on, and under another tuple if the flow is translated. */
static __always_inline int send_rewrite(struct __sk_buff *skb, const struct packet *p, const struct verdict *v, const struct tuple *reply)
{
	int err = DROP_NONE;

	if ((v->flags & VERDICT_DECREMENT_TTL) && likely(!send_goes_in_pieces(skb, p, v)))
		err = rewrite_ttl(skb, p);
	if (with_translation && (v->flags & VERDICT_TRANSLATE) && !err)
		err = SENDS_ANSWERS && with_nat && unlikely(v->flags & VERDICT_FRONTEND) ?
			      direct_rewrite(skb, (struct packet *)p, (struct verdict *)v, (struct tuple *)reply) :
			      rewrite_tuple(skb, p, v, reply);
	return err;
}

/* Into an endpoint. */
static __always_inline int send_into(struct __sk_buff *skb, const struct verdict *v, __u32 program)
{
	int err = rewrite_macs(skb, v);

	if (unlikely(err))
		return drop(skb, program, (__u32)err);
	count(skb, program, ACTION_TO_ENDPOINT);
	if (unlikely(v->flags & VERDICT_NO_PEER_REDIRECT))
		return (int)bpf_redirect(v->oif, 0);
	return send_to_peer(skb, v->oif);
}

/*
 * Hands the packet over. It must have passed send_check(). reply: how its
 * answers will arrive, which says under which tuple it goes on.
 */
static __always_inline int send(struct __sk_buff *skb, const struct packet *p, const struct verdict *v,
				const struct tuple *reply, __u32 program)
{
	int err = send_rewrite(skb, p, v, reply);

	if (unlikely(err))
		return drop(skb, program, (__u32)err);
	if (with_endpoints && v->action == ACTION_TO_ENDPOINT)
		return send_into(skb, v, program);
	if (with_overlay && v->action == ACTION_TO_OVERLAY) {
		if (likely((v->flags & VERDICT_ENCAPSULATE) && (p->l3_len <= v->mtu || skb->gso_size))) {
			count(skb, program, ACTION_TO_OVERLAY);
			return send_encapsulated(skb, p, v, program);
		}
		err = send_set_tunnel(skb, v->vni, &v->remote);
		if (unlikely(err))
			return drop(skb, program, (__u32)err);
		count(skb, program, ACTION_TO_OVERLAY);
		return (int)bpf_redirect(node.overlay_ifindex, 0);
	}
	if (v->action == ACTION_TO_DEVICE) {
		count(skb, program, ACTION_TO_DEVICE);
		return send_to_device(skb, p, v);
	}
	if (v->action == ACTION_TO_HOST) {
		err = rewrite_macs(skb, v);
		if (unlikely(err))
			return drop(skb, program, (__u32)err);
		count(skb, program, ACTION_TO_HOST);
		return (int)bpf_redirect(v->oif, BPF_F_INGRESS);
	}
	/* An entry that was found while another CPU gave its memory to a new flow says nothing yet. */
	if (unlikely(v->action != ACTION_PASS))
		return drop(skb, program, DROP_FLOW_CHANGED);
	count(skb, program, ACTION_PASS);
	return TCX_NEXT;
}

/* The same for the slow path, which has other things on its stack. */
__global int send_decided(struct __sk_buff *skb, struct packet *p, struct decision *d, __u32 program)
{
	if (!p || !d)
		return TCX_DROP;
	/* Each time that it is looked at, the kernel shall ask the next hop whether it is still there. */
	if (d->verdict.action == ACTION_TO_DEVICE && d->verdict.vni)
		__builtin_memset(d->verdict.smac, 0, sizeof(d->verdict.smac));
	return send(skb, p, &d->verdict, &d->reply, program);
}
