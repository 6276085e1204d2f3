//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counts the DNS questions of each endpoint, and leaves the packet to the next program. */
#include "lib/bpf.h"
#include "lib/net.h"
#include "lib/parse.h"
#include "lib/types.h"

#define DNS_PORT 53

struct questions {
	__u64 udp; /* datagrams */
	__u64 tcp; /* connections */
};

/* By interface: the source address has not been checked yet, so it can be forged. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct questions);
} dns_questions SEC(".maps");

SEC("tc")
int dns_count(struct __sk_buff *skb)
{
	struct questions none = {}, *q;
	__u32 ifindex = skb->ifindex;
	struct packet p;

	/* The tuple of an ICMP error is that of another packet; a later fragment has no ports. */
	if (packet_parse(skb, &p) || p.kind > PACKET_FIRST_FRAGMENT || p.tuple.dport != htons(DNS_PORT))
		return TCX_NEXT;
	bpf_map_update_elem(&dns_questions, &ifindex, &none, BPF_NOEXIST);
	q = bpf_map_lookup_elem(&dns_questions, &ifindex);
	if (q && p.tuple.protocol == IPPROTO_UDP)
		__sync_fetch_and_add(&q->udp, 1);
	else if (q && p.tuple.protocol == IPPROTO_TCP && (p.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		__sync_fetch_and_add(&q->tcp, 1);
	return TCX_NEXT;
}

char _license[] SEC("license") = "Dual BSD/GPL";
