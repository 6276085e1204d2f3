/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The decision, made once per flow and epoch: is the source who it says, and
 * where does the destination live? It takes from the decision where the packet
 * is to go, fills in the verdict from the tables, and touches neither the packet
 * nor a flow.
 */
#pragma once

#include "bpf.h"
#include "config.h"
#include "device.h"
#include "encapsulate.h"
#include "nat.h"
#include "parse.h"
#include "peer.h"
#include "tables.h"
#include "types.h"

/* What the outer header of a packet from the overlay told. */
struct sender {
	__u32 vni;
	struct address node;
};

static __always_inline struct endpoint *endpoint_lookup(const struct address *a)
{
	return bpf_map_lookup_elem(&endpoint_by_addr, a);
}

static __always_inline int endpoint_is_attached(const struct endpoint *ep)
{
	__u32 ifindex = ep->ifindex;
	__u32 *id = bpf_map_lookup_elem(&endpoint_attached, &ifindex);

	return id && *id == ep->id;
}

static __always_inline int vni_is_identity(__u32 vni)
{
	return (vni >= IDENTITY_HOST && vni <= IDENTITY_INGRESS) || (vni >= IDENTITY_USER && vni < 1 << 24);
}

/* An endpoint may send from its own addresses only. */
static __always_inline int source_is_endpoint(const struct __sk_buff *skb, const struct packet *p, struct endpoint **ep)
{
	*ep = endpoint_lookup(&p->tuple.saddr);
	if (!*ep || (*ep)->ifindex != skb->ifindex)
		return DROP_SPOOFED_SOURCE;
	/* An endpoint is no router: it speaks of its own flows, in its own name. */
	if (p->kind == PACKET_ICMP_ERROR && !address_is_equal(&p->icmp_from, &p->tuple.saddr))
		return DROP_SPOOFED_SOURCE;
	return DROP_NONE;
}

/* The node's own addresses, as far as they are told: in the overlay, and in the underlay. */
static __always_inline int is_node_address(const struct address *a)
{
	struct address gateway4 = config_address(&gateway_ipv4), gateway6 = config_address(&gateway_ipv6);
	struct address underlay = config_address(&overlay_node);

	/* What is not told is zero, and nobody's address. */
	if (!address_is_zero(a) && (address_is_equal(a, &gateway4) || address_is_equal(a, &gateway6) || address_is_equal(a, &underlay)))
		return 1;
	return bpf_map_lookup_elem(&node_addresses, a) != NULL;
}

/* Addresses that only our own programs put into a packet: services', and that of who asks himself through one. */
static __always_inline int is_service_address(const struct address *a)
{
	struct address hairpin4 = config_address(&hairpin_ipv4), hairpin6 = config_address(&hairpin_ipv6);
	struct frontend_key key = {.addr = *a};
	const struct frontend *at = bpf_map_lookup_elem(&frontends, &key);

	return (at && (at->flags & FRONTEND_OWNED)) || address_is_equal(a, &hairpin4) || address_is_equal(a, &hairpin6);
}

/*
 * A node may send from the prefixes that it has, and with an identity that
 * exists. An error may be a router's beyond that node, whatever its address:
 * what counts is that the packet which it is about went there.
 */
static __always_inline int source_is_peer(const struct packet *p, const struct sender *from, struct peer **found)
{
	struct peer *peer = peer_lookup(&p->tuple.saddr);

	*found = peer;
	/* Its prefix may be wide, and have ours in it. */
	if (is_node_address(&p->tuple.saddr) || (with_endpoints && endpoint_lookup(&p->tuple.saddr)) ||
	    (with_services && is_service_address(&p->tuple.saddr)))
		return DROP_SPOOFED_SOURCE;
	if (!peer || !address_is_equal(&peer->node, &from->node))
		return DROP_FOREIGN_OVERLAY;
	if (!vni_is_identity(from->vni))
		return DROP_BAD_VNI;
	return DROP_NONE;
}

/*
 * The stack forwards for whoever is outside, with whatever source. What endpoints
 * and peers send comes in elsewhere, so here nobody speaks in their name. The
 * node itself has its own identity, all others are the world.
 */
static __always_inline int source_is_stack(const struct packet *p, __u32 *identity)
{
	const struct address *from = p->kind == PACKET_ICMP_ERROR ? &p->icmp_from : &p->tuple.saddr;

	*identity = IDENTITY_HOST;
	if (is_node_address(from))
		return DROP_NONE;
	if ((with_endpoints && endpoint_lookup(from)) || (with_overlay && peer_lookup(from)) ||
	    (with_services && is_service_address(from)))
		return DROP_SPOOFED_SOURCE;
	*identity = IDENTITY_WORLD;
	return DROP_NONE;
}

/*
 * Whoever is outside has none of the addresses that are here, nor of those that
 * come by the overlay. Nodes speak for themselves outside of it.
 */
__global int source_is_inside(struct packet *p)
{
	const struct address *from;
	const struct peer *peer;

	if (!p)
		return 1;
	from = p->kind == PACKET_ICMP_ERROR ? &p->icmp_from : &p->tuple.saddr;
	if (is_node_address(from) || (with_endpoints && endpoint_lookup(from)))
		return 1;
	if (!with_overlay)
		return 0;
	peer = peer_lookup(from);
	return peer && !address_is_equal(from, &peer->node);
}

/* Addresses that are nobody's, or everybody's, among those that the packet goes on with. */
static __always_inline int addresses_are_sane(const struct packet *p, const struct decision *d)
{
	const struct address *from = &d->reply.daddr, *to = &d->reply.saddr;

	if (address_is_multicast(to) || address_is_link_local(to))
		return DROP_MULTICAST;
	if (address_is_martian(to) || address_is_martian(from) || address_is_multicast(from))
		return DROP_BAD_ADDRESS;
	/* Nobody talks to himself across a wire, and his two directions would be one flow. */
	if (address_is_equal(from, to))
		return DROP_BAD_ADDRESS;
	/* Who sends an error is not in the tuple. */
	if (p->kind == PACKET_ICMP_ERROR && (address_is_martian(&p->icmp_from) || address_is_multicast(&p->icmp_from)))
		return DROP_BAD_ADDRESS;
	return DROP_NONE;
}

static __always_inline void route_fill_endpoint(const struct endpoint *ep, struct verdict *v)
{
	v->action = ACTION_TO_ENDPOINT;
	v->oif = ep->ifindex;
	if (ep->flags & ENDPOINT_NO_PEER_REDIRECT)
		v->flags |= VERDICT_NO_PEER_REDIRECT;
	__builtin_memcpy(v->dmac, ep->mac, sizeof(v->dmac));
	__builtin_memcpy(v->smac, ep->node_mac, sizeof(v->smac));
}

/* Into an endpoint of this node. */
static __always_inline int route_to_endpoint(const struct endpoint *ep, struct verdict *v)
{
	if (!endpoint_is_attached(ep))
		return DROP_ENDPOINT_NOT_READY;
	route_fill_endpoint(ep, v);
	return DROP_NONE;
}

/*
 * What is known of the way back while the way there is looked for: it leads to
 * the one who sends, who has just been looked at. The answers come in where the
 * packet goes to.
 */
static __always_inline void route_back_to_endpoint(const struct endpoint *ep, __u32 iif, __u8 flags, struct decision *d)
{
	if (!endpoint_is_attached(ep))
		return;
	d->back.iif = iif;
	d->back.flags = flags;
	route_fill_endpoint(ep, &d->back);
}

/* To the node that has the destination. */
static __always_inline int route_to_peer(struct __sk_buff *skb, const struct peer *peer, __u32 identity, struct verdict *v)
{
	struct way w;

	if (!node.overlay_ifindex)
		return DROP_OVERLAY_NOT_READY;
	v->action = ACTION_TO_OVERLAY;
	v->oif = node.overlay_ifindex;
	v->vni = peer->flags & PEER_FIXED_VNI ? peer->vni : identity;
	v->mtu = overlay_mtu;
	v->remote = peer->node;
	if (!way_is_ours())
		return DROP_NONE;
	v->flags |= VERDICT_AGES;
	if (way_to(skb, &peer->node, &w)) {
		v->oif = w.oif;
		v->flags |= VERDICT_ENCAPSULATE;
		/* The way may be narrower than the uplink. */
		if (w.mtu > ENCAPSULATE_HEADERS && w.mtu - ENCAPSULATE_HEADERS < v->mtu)
			v->mtu = (__u16)(w.mtu - ENCAPSULATE_HEADERS);
		*(__be32 *)v->dmac = w.via;
	}
	return DROP_NONE;
}

/*
 * What an endpoint sends to the overlay port of a node would be unpacked there as
 * if a node had sent it: with any source and any identity. What it sends from that
 * port would, on a node that masquerades, make the frames of the other node its
 * answers. Nobody inside has business there.
 */
static __always_inline int is_overlay_port(const struct decision *d)
{
	return with_overlay && d->reply.protocol == IPPROTO_UDP &&
	       (d->reply.sport == htons(overlay_port) || d->reply.dport == htons(overlay_port));
}

/* To the node's own stack. */
static __always_inline int route_to_host(const struct decision *d, struct verdict *v)
{
	if (!node.host_ifindex)
		return DROP_HOST_NOT_READY;
	if (is_overlay_port(d))
		return DROP_OVERLAY_PORT;
	v->action = ACTION_TO_HOST;
	v->oif = node.host_ifindex;
	v->flags &= (__u8)~VERDICT_DECREMENT_TTL; /* the stack counts itself, if it forwards */
	for (int i = 0; i < ETH_ALEN; i++) {
		v->dmac[i] = node.host_mac[i];
		v->smac[i] = node.host_mac[i];
	}
	return DROP_NONE;
}

/* The packet is a backend's answer to who has asked for a service. */
static __always_inline int is_answer_of_service(const struct packet *p, const struct decision *d)
{
	return with_translation && (d->flags & DECISION_REPLY) && !tuple_is_reverse(&p->tuple, &d->reply);
}

/*
 * To a backend on another node, for somebody who has asked at this one: in this
 * node's name, so that the answer comes here.
 */
static __always_inline int route_to_backend(struct __sk_buff *skb, struct packet *p, __u32 identity, struct decision *d)
{
	const struct peer *peer = with_overlay ? peer_lookup(&d->reply.saddr) : NULL;
	struct address gateway = p->family == 4 ? config_address(&gateway_ipv4) : config_address(&gateway_ipv6);
	const struct address *source = &gateway;

	if (!with_nat)
		return DROP_NO_ENDPOINT;
	if (!peer) {
		if (device_find(skb, p, d) != WAY_OUT)
			return DROP_NO_ROUTE;
		if (d->flags & DECISION_DIRECT) {
			d->verdict.flags |= VERDICT_DIRECT;
			return DROP_NONE;
		}
		source = device_address(d->verdict.oif, p->family);
	}
	if (!source || address_is_zero(source))
		return DROP_NO_ADDRESS;
	device_leave_as(p, source, d);
	return peer ? route_to_peer(skb, peer, identity, &d->verdict) : DROP_NONE;
}

/*
 * Inside nobody is spoken to in the node's name: a flow that has left in it before
 * begins anew. Who talks to himself by a service keeps the address for that.
 */
static __always_inline void route_as_itself(const struct packet *p, struct decision *d)
{
	if (with_nat && (d->flags & DECISION_KNOWN) && !address_is_equal(&d->reply.saddr, &p->tuple.saddr))
		device_leave_as(p, &p->tuple.saddr, d);
}

/* from: who sends it; NULL if that is not who it says. */
__global int route_from_endpoint(struct __sk_buff *skb, struct packet *p, struct endpoint *from, struct decision *d)
{
	struct verdict *v = &d->verdict;
	struct endpoint *to;
	const struct peer *peer;
	int own, err;

	if (!p || !d)
		return DROP_NO_ROUTE;
	v->iif = skb->ifindex;
	v->flags = VERDICT_DECREMENT_TTL;
	err = addresses_are_sane(p, d);
	if (err)
		return err;
	if (!from)
		return DROP_SPOOFED_SOURCE;
	to = endpoint_lookup(&d->reply.saddr);
	if (to) {
		route_as_itself(p, d);
		route_back_to_endpoint(from, to->ifindex, VERDICT_DECREMENT_TTL, d);
		return route_to_endpoint(to, v);
	}
	if (with_overlay) {
		peer = peer_lookup(&d->reply.saddr);
		/* A node that has asked for a service has done so beside the overlay. */
		if (peer && !(is_answer_of_service(p, d) && address_is_equal(&d->reply.saddr, &peer->node))) {
			route_as_itself(p, d);
			return route_to_peer(skb, peer, from->identity, v);
		}
	}
	own = is_node_address(&d->reply.saddr);
	/* What is translated the stack could not turn back. */
	err = own || (stack_routing && tuple_is_reverse(&p->tuple, &d->reply)) ? WAY_STACK : device_find(skb, p, d);
	if (err == WAY_OUT) {
		if (is_overlay_port(d))
			return DROP_OVERLAY_PORT;
		err = device_masquerade(p, d);
		if (err)
			return err;
		route_back_to_endpoint(from, v->oif, VERDICT_DECREMENT_TTL, d);
		return DROP_NONE;
	}
	if (err != WAY_STACK)
		return err;
	/* By a device that is no uplink it would leave as it is. */
	if (with_masquerade && !own && !(d->flags & DECISION_REPLY) && !device_sees_endpoints(&d->reply.saddr))
		return DROP_NO_ADDRESS;
	route_as_itself(p, d);
	/* The stack has counted the hop of an answer, if there was one. */
	route_back_to_endpoint(from, node.net_ifindex, 0, d);
	return route_to_host(d, v);
}

/*
 * From an uplink. What is for an endpoint, or for a service and so for somebody
 * else than it says, is ours; all else is the stack's and not looked at again.
 */
__global int route_from_device(struct __sk_buff *skb, struct packet *p, struct decision *d)
{
	struct endpoint *to = NULL;
	struct verdict *v;
	const struct address *from;
	int err, translated;

	if (!p || !d)
		return DROP_NO_ROUTE;
	v = &d->verdict;
	v->iif = skb->ifindex;
	v->flags = VERDICT_DECREMENT_TTL;
	translated = with_translation && !tuple_is_reverse(&p->tuple, &d->reply);
	if (with_endpoints)
		to = endpoint_lookup(&d->reply.saddr);
	from = p->kind == PACKET_ICMP_ERROR ? &p->icmp_from : &p->tuple.saddr;
	/* The node itself may have asked a service by another node, and is answered as from the service. */
	if (!translated && (!to || stack_routing)) {
		v->action = ACTION_PASS;
		return DROP_NONE;
	}
	if (with_services && is_service_address(from))
		return DROP_SPOOFED_SOURCE;
	err = addresses_are_sane(p, d);
	if (err)
		return err;
	if (to)
		return route_to_endpoint(to, v);
	/* Its answers would leave by the stack, and nobody would turn them back. */
	if (is_node_address(&d->reply.saddr))
		return DROP_NO_ENDPOINT;
	/* The answer of a backend on another node, on its way back to who has asked here. */
	if (d->flags & DECISION_REPLY)
		return device_find(skb, p, d) == WAY_OUT ? DROP_NONE : DROP_NO_ROUTE;
	return route_to_backend(skb, p, IDENTITY_WORLD, d);
}

__global int route_from_overlay(struct __sk_buff *skb, struct packet *p, struct sender *from, struct decision *d)
{
	struct verdict *v = &d->verdict;
	const struct endpoint *to;
	struct peer *peer = NULL;
	int err;

	if (!p || !d || !from)
		return DROP_NO_ROUTE;
	v->iif = skb->ifindex;
	v->flags = VERDICT_DECREMENT_TTL;
	v->vni = from->vni;
	v->remote = from->node;
	err = source_is_peer(p, from, &peer);
	if (err)
		return err;
	err = addresses_are_sane(p, d);
	if (err)
		return err;
	if (with_endpoints) {
		to = endpoint_lookup(&d->reply.saddr);
		if (to) {
			if (peer) {
				d->back.iif = to->ifindex;
				d->back.flags = VERDICT_DECREMENT_TTL;
				route_to_peer(skb, peer, to->identity, &d->back);
			}
			return route_to_endpoint(to, v);
		}
	}
	if (is_node_address(&d->reply.saddr))
		return route_to_host(d, v);
	/* To somebody outside who has asked here. */
	if (with_nat && is_answer_of_service(p, d))
		return device_find(skb, p, d) == WAY_OUT ? DROP_NONE : DROP_NO_ROUTE;
	/* Anything else would make the node its peers' router. */
	return DROP_NO_ENDPOINT;
}

/* The stack has counted the hop if there was one. */
__global int route_from_host(struct __sk_buff *skb, struct packet *p, struct decision *d)
{
	struct verdict *v = &d->verdict;
	const struct endpoint *to;
	const struct peer *peer;
	__u32 identity;
	int err;

	if (!p || !d)
		return DROP_NO_ROUTE;
	v->iif = skb->ifindex;
	v->flags = 0;
	err = addresses_are_sane(p, d);
	if (err)
		return err;
	err = source_is_stack(p, &identity);
	if (err)
		return err;
	if (with_endpoints) {
		to = endpoint_lookup(&d->reply.saddr);
		if (to)
			return route_to_endpoint(to, v);
	}
	if (with_overlay) {
		peer = peer_lookup(&d->reply.saddr);
		if (peer)
			return route_to_peer(skb, peer, identity, v);
	}
	return DROP_NO_ROUTE;
}

/* What the stack, or another program, puts straight on an endpoint's device. */
__global int route_to_endpoint_device(struct __sk_buff *skb, struct packet *p, struct decision *d)
{
	struct verdict *v = &d->verdict;
	const struct endpoint *to;
	int err;

	if (!p || !d)
		return DROP_NO_ROUTE;
	to = endpoint_lookup(&d->reply.saddr);
	err = addresses_are_sane(p, d);
	if (err)
		return err;
	if (!to || to->ifindex != skb->ifindex)
		return DROP_WRONG_ENDPOINT;
	v->iif = 0; /* it leaves the stack: what the endpoint itself sends must not pass for it */
	v->oif = skb->ifindex;
	v->action = ACTION_PASS;
	return DROP_NONE;
}
