//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The system calls of sockets in a cgroup: who connects or sends to a frontend
 * talks to a backend from the first packet on, and sees the frontend. No packet
 * of such a socket needs a translation.
 */
#include "lib/bpf.h"
#include "lib/socket.h"

/* What a program answers: the system call goes on, or it fails with what bpf_set_retval() says. */
#define ALLOW 1

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct socket_end to;

	socket_read4(ctx, &to);
	if (socket_translate(ctx, &to, 0))
		return 0;
	socket_write4(ctx, &to);
	return ALLOW;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct socket_end to;

	socket_read6(ctx, &to);
	if (socket_translate(ctx, &to, 0))
		return 0;
	socket_write6(ctx, &to);
	return ALLOW;
}

/* A datagram of a socket that is not connected: all of them to one frontend go to one backend. */
SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct socket_end to;

	socket_read4(ctx, &to);
	if (socket_translate(ctx, &to, 1))
		return 0;
	socket_write4(ctx, &to);
	return ALLOW;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	struct socket_end to;

	socket_read6(ctx, &to);
	if (socket_translate(ctx, &to, 1))
		return 0;
	socket_write6(ctx, &to);
	return ALLOW;
}

/* The answer to it comes from the frontend, as far as the program can see. */
SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *ctx)
{
	struct socket_end from;

	socket_read4(ctx, &from);
	if (socket_reverse(ctx, &from))
		socket_write4(ctx, &from);
	return ALLOW;
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *ctx)
{
	struct socket_end from;

	socket_read6(ctx, &from);
	if (socket_reverse(ctx, &from))
		socket_write6(ctx, &from);
	return ALLOW;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *ctx)
{
	struct socket_end peer;

	socket_read4(ctx, &peer);
	if (socket_reverse(ctx, &peer))
		socket_write4(ctx, &peer);
	return ALLOW;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *ctx)
{
	struct socket_end peer;

	socket_read6(ctx, &peer);
	if (socket_reverse(ctx, &peer))
		socket_write6(ctx, &peer);
	return ALLOW;
}

/* A port of the node that a service has is not for a socket of the node. */
SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	struct socket_end at;

	socket_read4(ctx, &at);
	return socket_may_bind(ctx, &at) ? ALLOW : 0;
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	struct socket_end at;

	socket_read6(ctx, &at);
	return socket_may_bind(ctx, &at) ? ALLOW : 0;
}

SEC("cgroup/sock_release")
int sock_release(struct bpf_sock *ctx)
{
	socket_forget_peer(bpf_get_socket_cookie(ctx));
	return ALLOW;
}

char _license[] SEC("license") = "Dual BSD/GPL";
