/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a socket talks to: services in the place of packets' addresses. */
#pragma once

#include "bpf.h"
#include "config.h"
#include "net.h"
#include "parse.h"
#include "scratch.h"
#include "service.h"
#include "tables.h"
#include "types.h"

/* The other end of a socket, or its own. */
struct socket_end {
	struct address addr;
	__be16 port;
};

/* Of an IPv6 socket, a mapped address is that of an IPv4 service. */
static __always_inline void socket_read4(const struct bpf_sock_addr *ctx, struct socket_end *e)
{
	address_from_ipv4(&e->addr, ctx->user_ip4);
	e->port = (__be16)ctx->user_port;
}

static __always_inline void socket_read6(const struct bpf_sock_addr *ctx, struct socket_end *e)
{
	__u32 *w = address_words(&e->addr);

	w[0] = ctx->user_ip6[0];
	w[1] = ctx->user_ip6[1];
	w[2] = ctx->user_ip6[2];
	w[3] = ctx->user_ip6[3];
	e->port = (__be16)ctx->user_port;
}

static __always_inline void socket_write4(struct bpf_sock_addr *ctx, const struct socket_end *e)
{
	ctx->user_ip4 = ((const __u32 *)e->addr.bytes)[3];
	ctx->user_port = e->port;
}

static __always_inline void socket_write6(struct bpf_sock_addr *ctx, const struct socket_end *e)
{
	const __u32 *w = (const __u32 *)e->addr.bytes;

	ctx->user_ip6[0] = w[0];
	ctx->user_ip6[1] = w[1];
	ctx->user_ip6[2] = w[2];
	ctx->user_ip6[3] = w[3];
	ctx->user_port = e->port;
}

static __always_inline void socket_count(__u32 event)
{
	__u64 *n = bpf_map_lookup_elem(&socket_events, &event);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline void socket_key_of(struct socket_key *key, __u64 cookie, const struct socket_end *e)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->cookie = cookie;
	key->backend = e->addr;
	key->port = e->port;
}

/* Remembers what a connected socket believes to be talking to, until it is closed. */
static __always_inline void socket_remember_peer(__u64 cookie, const struct socket_end *backend, const struct service_work *w)
{
	struct socket_peer peer = {};

	peer.addr = w->key.addr;
	peer.port = w->key.port;
	peer.protocol = w->key.protocol;
	peer.backend = backend->addr;
	peer.backend_port = backend->port;
	peer.service = w->frontend.service;
	if (bpf_map_update_elem(&socket_peers, &cookie, &peer, BPF_ANY))
		socket_count(SOCKET_TABLE_FULL);
}

/* It is closed, or connects again, and not to a service. */
static __always_inline void socket_forget_peer(__u64 cookie)
{
	if (bpf_map_lookup_elem(&socket_peers, &cookie))
		bpf_map_delete_elem(&socket_peers, &cookie);
}

/* Remembers where the answers of a backend are to come from. */
static __always_inline void socket_remember_target(__u64 cookie, const struct socket_end *backend, const struct service_work *w)
{
	struct socket_target target = {};
	struct socket_key key;

	target.addr = w->key.addr;
	target.port = w->key.port;
	socket_key_of(&key, cookie, backend);
	bpf_map_update_elem(&socket_targets, &key, &target, BPF_ANY);
}

/* Datagrams to the backend itself: so are its answers. */
static __always_inline void socket_forget_target(__u64 cookie, const struct socket_end *to)
{
	struct socket_key key;

	socket_key_of(&key, cookie, to);
	if (bpf_map_lookup_elem(&socket_targets, &key))
		bpf_map_delete_elem(&socket_targets, &key);
}

/*
 * Returns SERVICE_NONE if no service is there, SERVICE_CHOSEN if the way is to
 * where it says now, else why there is none. datagram: one of a socket that is not
 * connected. All of them to one frontend go to one backend.
 */
static __always_inline int socket_choose(struct bpf_sock_addr *ctx, struct socket_end *to, int datagram, struct service_work *w)
{
	__u64 netns = bpf_get_netns_cookie(ctx), cookie = bpf_get_socket_cookie(ctx);
	int err;

	if (socket_netns && netns != socket_netns)
		return SERVICE_CHOSEN;
	w->key.addr = to->addr;
	w->key.port = to->port;
	w->key.protocol = (__u8)ctx->protocol;
	w->key.scope = SCOPE_ALL;
	w->client.kind = AFFINITY_COOKIE;
	__builtin_memset(&w->client.client, 0, sizeof(w->client.client));
	*(__u32 *)&w->client.client.bytes[8] = (__u32)(netns >> 32);
	*(__u32 *)&w->client.client.bytes[12] = (__u32)netns;
	w->hash = (__u32)(cookie * 0x9e3779b97f4a7c15ULL >> 32);
	w->steady = (__u16)datagram;
	w->outside = 0;
	err = service_choose(w);
	/* The node's own ports are at its loopback addresses too. */
	if (err == SERVICE_NONE && socket_node && netns == socket_node && address_is_martian(&to->addr)) {
		__builtin_memset(&w->key.addr, 0, sizeof(w->key.addr));
		if (address_is_ipv4(&to->addr))
			address_from_ipv4(&w->key.addr, 0);
		err = service_choose(w);
		w->key.addr = to->addr; /* as it was asked */
	}
	/* Who may reach a service by his address is for the packet to show. */
	if (err != SERVICE_NONE && (w->frontend.flags & FRONTEND_RANGES))
		return SERVICE_CHOSEN;
	if (err == SERVICE_CHOSEN) {
		to->addr = w->backend.addr;
		to->port = w->backend.port;
		if (datagram)
			socket_remember_target(cookie, to, w);
		else
			socket_remember_peer(cookie, to, w);
		socket_count(SOCKET_TRANSLATED);
	} else if (err != SERVICE_NONE) {
		socket_count(SOCKET_NO_BACKEND);
	} else if (datagram) {
		socket_forget_target(cookie, to);
	} else {
		socket_forget_peer(cookie);
	}
	return err;
}

/*
 * A port that no service has, where nothing but services is: as a packet would be
 * refused there. To connect a datagram socket says little: ping does, to learn its
 * own address.
 */
static __always_inline int socket_is_nowhere(struct service_work *w, int datagram)
{
	const struct frontend *at;

	if (w->key.protocol != IPPROTO_TCP && !datagram)
		return 0;
	w->key.port = 0;
	w->key.protocol = 0;
	at = bpf_map_lookup_elem(&frontends, &w->key);
	return at && (at->flags & FRONTEND_OWNED);
}

/* The frontend becomes a backend. Not 0: there is none, and the system call fails. */
static __always_inline int socket_translate(struct bpf_sock_addr *ctx, struct socket_end *to, int datagram)
{
	struct scratch *s = scratch_take();
	struct service_work *w;
	int err, refusal = 0;

	if (!s)
		return 0;
	w = (struct service_work *)s->bytes;
	err = socket_choose(ctx, to, datagram, w);
	/* Let go on, its packets would leave for the address of the service, where whoever is there answers. */
	if (err > SERVICE_CHOSEN)
		refusal = err == DROP_NO_BACKEND && (w->frontend.flags & FRONTEND_REJECT) ? -ECONNREFUSED : -EHOSTUNREACH;
	else if (err == SERVICE_NONE && socket_is_nowhere(w, datagram))
		refusal = -ECONNREFUSED;
	scratch_give_back(s);
	if (refusal)
		bpf_set_retval(refusal);
	return refusal;
}

/* The backend becomes the frontend that was asked. Returns whether it is one. */
static __always_inline int socket_reverse(struct bpf_sock_addr *ctx, struct socket_end *e)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	const struct socket_peer *peer = bpf_map_lookup_elem(&socket_peers, &cookie);
	const struct socket_target *target;
	struct socket_key key;

	if (peer && peer->backend_port == e->port && peer->protocol == (__u8)ctx->protocol && address_is_equal(&peer->backend, &e->addr)) {
		e->addr = peer->addr;
		e->port = peer->port;
	} else {
		if (ctx->protocol != IPPROTO_UDP)
			return 0;
		socket_key_of(&key, cookie, e);
		target = bpf_map_lookup_elem(&socket_targets, &key);
		if (!target)
			return 0;
		e->addr = target->addr;
		e->port = target->port;
	}
	socket_count(SOCKET_REVERSED);
	return 1;
}

static __always_inline int socket_is_node_port(const struct address *addr, __be16 port, __u8 protocol)
{
	struct frontend_key key = {.addr = *addr, .port = port, .protocol = protocol};
	const struct frontend *fe = bpf_map_lookup_elem(&frontends, &key);

	return fe && (fe->type == FRONTEND_NODE_PORT || fe->type == FRONTEND_HOST_PORT);
}

static __always_inline int socket_may_bind(struct bpf_sock_addr *ctx, const struct socket_end *at)
{
	__u8 protocol = (__u8)ctx->protocol;
	struct address any4;

	if (!socket_node || !at->port || bpf_get_netns_cookie(ctx) != socket_node)
		return 1;
	/* One that is bound to all of IPv6 has IPv4 too, unless it says otherwise. */
	address_from_ipv4(&any4, 0);
	if (!socket_is_node_port(&at->addr, at->port, protocol) &&
	    !(address_is_zero(&at->addr) && socket_is_node_port(&any4, at->port, protocol)))
		return 1;
	socket_count(SOCKET_BIND_REFUSED);
	bpf_set_retval(-EADDRINUSE);
	return 0;
}
