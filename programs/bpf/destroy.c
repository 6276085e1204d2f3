//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Walks over the sockets of a network namespace and ends those that were
 * connected to a service and talk to one backend of it: exactly these, by what
 * the programs at their system calls have noted. Kernel 6.5.
 */
#include "lib/bpf.h"
#include "lib/net.h"
#include "lib/parse.h"
#include "lib/tables.h"
#include "lib/types.h"

struct in6_addr {
	union {
		__be32 u6_addr32[4];
	} in6_u;
} __attribute__((preserve_access_index));

struct sock_common {
	__be32 skc_daddr;
	__be16 skc_dport;
	__u16 skc_family;
	__u8 skc_state;
	struct in6_addr skc_v6_daddr;
} __attribute__((preserve_access_index));

struct udp_sock {
	int udp_flags_are_not_read;
};

struct bpf_iter__tcp {
	void *meta;
	struct sock_common *sk_common;
};

struct bpf_iter__udp {
	void *meta;
	struct udp_sock *udp_sk;
};

extern int bpf_sock_destroy(struct sock_common *sk) SEC_KSYMS;

#define AF_INET 2
#define AF_INET6 10
/* Of TCP and of a connected datagram socket; TIME_WAIT and openings have no program behind them. */
#define STATE_ESTABLISHED 1
#define STATE_SYN_SENT 2
#define STATE_FIN_WAIT1 4
#define STATE_FIN_WAIT2 5
#define STATE_CLOSE_WAIT 8

/* What is remembered of a socket may be of an earlier connection of it. */
static __always_inline int is_connected_to(struct sock_common *sk, const struct address *addr, __be16 port)
{
	__u8 state = sk->skc_state;
	struct address to = {};

	if (state != STATE_ESTABLISHED && state != STATE_SYN_SENT && state != STATE_FIN_WAIT1 && state != STATE_FIN_WAIT2 &&
	    state != STATE_CLOSE_WAIT)
		return 0;
	if (sk->skc_family == AF_INET) {
		address_from_ipv4(&to, sk->skc_daddr);
	} else if (sk->skc_family == AF_INET6) {
		__u32 *w = address_words(&to);

		w[0] = sk->skc_v6_daddr.in6_u.u6_addr32[0];
		w[1] = sk->skc_v6_daddr.in6_u.u6_addr32[1];
		w[2] = sk->skc_v6_daddr.in6_u.u6_addr32[2];
		w[3] = sk->skc_v6_daddr.in6_u.u6_addr32[3];
	}
	return sk->skc_dport == port && address_is_equal(&to, addr);
}

static __always_inline void end(struct sock_common *sk, __u8 protocol)
{
	__u64 cookie = bpf_get_socket_cookie(sk);
	const struct socket_peer *peer = bpf_map_lookup_elem(&socket_peers, &cookie);
	struct socket_request *want;
	__u32 zero = 0;

	want = bpf_map_lookup_elem(&socket_requests, &zero);
	if (!peer || !want || !is_connected_to(sk, &peer->backend, peer->backend_port))
		return;
	if (peer->protocol == protocol && peer->service == want->service && peer->backend_port == want->port &&
	    address_is_equal(&peer->backend, &want->addr) && !bpf_sock_destroy(sk))
		want->ended++;
}

SEC("iter/tcp")
int end_tcp(struct bpf_iter__tcp *ctx)
{
	if (ctx->sk_common)
		end(ctx->sk_common, IPPROTO_TCP);
	return 0;
}

SEC("iter/udp")
int end_udp(struct bpf_iter__udp *ctx)
{
	if (ctx->udp_sk)
		end((struct sock_common *)ctx->udp_sk, IPPROTO_UDP);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
