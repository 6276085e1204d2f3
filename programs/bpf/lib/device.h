/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The ways out of the node: which uplink the node's routes name for a packet, and
 * with which address it leaves.
 */
#pragma once

#include "bpf.h"
#include "config.h"
#include "parse.h"
#include "scratch.h"
#include "tables.h"
#include "types.h"

/* What a look at the routes tells, besides a drop reason. */
enum device_result {
	WAY_OUT = 0,    /* by an uplink; the verdict says which */
	WAY_STACK = -1, /* the stack knows: it has the destination, or a device that is not ours */
};

static __always_inline void device_ask(const struct __sk_buff *skb, const struct packet *p, const struct decision *d, struct bpf_fib_lookup *fib)
{
	const __be32 *src = (const __be32 *)d->reply.daddr.bytes, *dst = (const __be32 *)d->reply.saddr.bytes;

	if (p->family == 4) {
		fib->family = AF_INET;
		fib->ipv4_src = src[3];
		fib->ipv4_dst = dst[3];
	} else {
		fib->family = AF_INET6;
		for (int i = 0; i < 4; i++) {
			fib->ipv6_src[i] = src[i];
			fib->ipv6_dst[i] = dst[i];
		}
	}
	fib->l4_protocol = p->tuple.protocol;
	fib->sport = d->reply.dport;
	fib->dport = d->reply.sport;
	fib->mtu = 1; /* any length, so that the answer is the MTU */
	fib->ifindex = node.host_ifindex ? node.host_ifindex : skb->ifindex;
}

/* Fills in device, next hop and MTU. */
static __always_inline int device_choose(struct __sk_buff *skb, const struct packet *p, struct decision *d, struct bpf_fib_lookup *fib)
{
	struct verdict *v = &d->verdict;
	long err;

	device_ask(skb, p, d, fib);
	err = bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
	if (err == BPF_FIB_LKUP_RET_NO_NEIGH) {
		/* Then the MTU is not told, unless it is asked for without. */
		__builtin_memset(fib, 0, sizeof(*fib));
		device_ask(skb, p, d, fib);
		err = bpf_fib_lookup(skb, fib, sizeof(*fib), BPF_FIB_LOOKUP_SKIP_NEIGH);
		if (err == -EINVAL) /* before 6.3 */
			err = bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
		if (err == BPF_FIB_LKUP_RET_NO_NEIGH)
			fib->mtu = 0;
	}
	if (err == BPF_FIB_LKUP_RET_UNSUPP_LWT)
		return WAY_STACK;
	/* What the stack would send after all, once it has a route again, would leave as it is. */
	if (err == BPF_FIB_LKUP_RET_NOT_FWDED)
		return with_masquerade ? DROP_NO_ROUTE : WAY_STACK;
	if (err != BPF_FIB_LKUP_RET_SUCCESS && err != BPF_FIB_LKUP_RET_NO_NEIGH)
		return DROP_NO_ROUTE;
	if (!bpf_map_lookup_elem(&uplinks, &fib->ifindex))
		return WAY_STACK;
	v->action = ACTION_TO_DEVICE;
	v->flags |= VERDICT_AGES;
	v->oif = fib->ifindex;
	v->mtu = fib->mtu;
	__builtin_memcpy(v->dmac, fib->dmac, sizeof(v->dmac));
	__builtin_memcpy(v->smac, fib->smac, sizeof(v->smac));
	/* From the overlay: the place is taken by who has sent it, and an IPv4 next hop is where its MAC would be. */
	if (v->vni) {
		if (p->family == 4)
			*(__be32 *)v->dmac = fib->family == AF_INET ? fib->ipv4_dst : 0;
	} else {
		if (fib->family == AF_INET)
			address_from_ipv4(&v->remote, fib->ipv4_dst);
		else
			address_from_ipv6(&v->remote, fib->ipv6_dst);
	}
	return WAY_OUT;
}

/*
 * Asks the node's routes where the packet would go, as if its stack had it from
 * the host pair. A next hop whose link-layer address is not known yet is asked for
 * when the packet is sent.
 */
__global int device_find(struct __sk_buff *skb, struct packet *p, struct decision *d)
{
	struct scratch *s;
	int err;

	if (!p || !d)
		return DROP_NO_ROUTE;
	if (!node.uplinks)
		return WAY_STACK;
	s = scratch_take_empty(sizeof(struct bpf_fib_lookup));
	if (!s)
		return DROP_NO_ROOM;
	err = device_choose(skb, p, d, (struct bpf_fib_lookup *)s->bytes);
	scratch_give_back(s);
	return err;
}

/* What leaves by the uplink in the node's name has this address; NULL: none of that family. */
static __always_inline const struct address *device_address(__u32 ifindex, __u8 family)
{
	const struct uplink *u = bpf_map_lookup_elem(&uplinks, &ifindex);
	const struct address *a;

	if (!u)
		return NULL;
	a = family == 4 ? &u->addrs[0] : &u->addrs[1];
	return address_is_zero(a) ? NULL : a;
}

/*
 * The packet is to go on with that source, and a port of the node. A flow that
 * had another one before can not go on: whatever was left of its address may be
 * somebody else's now.
 */
static __always_inline void device_leave_as(const struct packet *p, const struct address *source, struct decision *d)
{
	if (d->flags & DECISION_KNOWN) {
		if (p->kind == PACKET_ICMP_ERROR || address_is_equal(&d->reply.daddr, source))
			return;
		d->flags |= DECISION_ANEW;
	}
	d->reply.daddr = *source;
	d->reply.dport = p->tuple.sport;
	if (!address_is_equal(source, &p->tuple.saddr))
		d->flags |= DECISION_OWN_PORT;
}

/* Is the destination among those that see the endpoints' own addresses? */
static __always_inline int device_sees_endpoints(const struct address *to)
{
	struct prefix_key key;

	key.prefixlen = 128;
	key.addr = *to;
	return bpf_map_lookup_elem(&unmasqueraded, &key) != NULL;
}

/* An endpoint's packet leaves the node. Not called for answers, which leave as they are asked. */
static __always_inline int device_masquerade(const struct packet *p, struct decision *d)
{
	const struct address *source;

	if (!with_masquerade || (d->flags & DECISION_REPLY))
		return DROP_NONE;
	if (device_sees_endpoints(&d->reply.saddr)) {
		device_leave_as(p, &p->tuple.saddr, d);
		return DROP_NONE;
	}
	source = device_address(d->verdict.oif, p->family);
	if (!source)
		return DROP_NO_ADDRESS;
	device_leave_as(p, source, d);
	return DROP_NONE;
}
