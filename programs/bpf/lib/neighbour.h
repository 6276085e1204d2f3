/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ARP (RFC 826) and NDP (RFC 4861) for the gateway of the endpoints. The host
 * pair does not speak either, so the program answers, with the address of the
 * host side of the endpoint's own device.
 */
#pragma once

#include "bpf.h"
#include "checksum.h"
#include "config.h"
#include "icmp.h"
#include "net.h"
#include "parse.h"
#include "tables.h"
#include "types.h"

struct arp_frame {
	struct ethhdr eth;
	struct arphdr arp;
} __packed;

/* It is no question but the endpoint's answer to the node, which has a route to its device. */
#define NEIGHBOUR_TELLS -1

/* Turns the question into the answer, or says why there is none. */
__global int neighbour_answer_arp(struct __sk_buff *skb, struct endpoint *ep)
{
	struct address gateway = config_address(&gateway_ipv4);
	struct arp_frame f;
	__u8 asked[4];

	if (!ep)
		return DROP_UNKNOWN_ENDPOINT;
	if (bpf_skb_load_bytes(skb, 0, &f, sizeof(f)))
		return DROP_TRUNCATED;
	if (f.arp.hardware != htons(1) || f.arp.protocol != htons(ETH_P_IP) || f.arp.hardware_len != ETH_ALEN ||
	    f.arp.protocol_len != 4)
		return DROP_BAD_LENGTH;
	if (f.arp.operation == htons(ARP_REPLY) && !__builtin_memcmp(f.eth.dst, ep->node_mac, ETH_ALEN) &&
	    !__builtin_memcmp(f.arp.sender_mac, ep->mac, ETH_ALEN) && !address_is_zero(&ep->addrs[0]) &&
	    !__builtin_memcmp(f.arp.sender_ip, &ep->addrs[0].bytes[12], 4))
		return NEIGHBOUR_TELLS;
	if (address_is_zero(&gateway) || f.arp.operation != htons(ARP_REQUEST) ||
	    __builtin_memcmp(f.arp.target_ip, &gateway.bytes[12], 4))
		return DROP_NOT_FOR_GATEWAY;

	__builtin_memcpy(asked, f.arp.target_ip, 4);
	__builtin_memcpy(f.eth.dst, f.eth.src, ETH_ALEN);
	__builtin_memcpy(f.eth.src, ep->node_mac, ETH_ALEN);
	f.arp.operation = htons(ARP_REPLY);
	__builtin_memcpy(f.arp.target_mac, f.arp.sender_mac, ETH_ALEN);
	__builtin_memcpy(f.arp.target_ip, f.arp.sender_ip, 4);
	__builtin_memcpy(f.arp.sender_mac, ep->node_mac, ETH_ALEN);
	__builtin_memcpy(f.arp.sender_ip, asked, 4);
	return bpf_skb_store_bytes(skb, 0, &f, sizeof(f), 0) ? DROP_REWRITE_FAILED : DROP_NONE;
}

/* RFC 4861 section 4.4, with the target link-layer address option. */
struct neighbour_advertisement {
	__u8 type;
	__u8 code;
	__be16 check;
	__be32 flags;
	__be32 target[4];
	__u8 option;
	__u8 option_len;
	__u8 mac[ETH_ALEN];
} __packed;

struct nd_frame {
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct neighbour_advertisement na;
} __packed;

/* router, solicited, override */
#define NA_FLAGS 0xe0000000

__global int neighbour_answer_ndp(struct __sk_buff *skb, struct packet *p, struct endpoint *ep)
{
	struct address gateway = config_address(&gateway_ipv6);
	struct nd_frame f = {};
	struct {
		__be32 len;
		__be32 nexthdr;
	} pseudo = {};
	__u32 sum;

	if (!p || !ep)
		return DROP_UNKNOWN_ENDPOINT;
	/* The option of a solicitation, and all that would follow it, is not read. */
	if (bpf_skb_load_bytes(skb, 0, &f, __builtin_offsetof(struct nd_frame, na.option)))
		return DROP_TRUNCATED;
	if (p->l4 != ETH_HLEN + sizeof(struct ipv6hdr) || p->ttl != 255 || f.na.code ||
	    p->l3_len < __builtin_offsetof(struct nd_frame, na.option) - ETH_HLEN)
		return DROP_BAD_LENGTH;
	if (address_is_zero(&gateway) || f.na.type != ICMPV6_NEIGHBOUR_SOLICITATION || address_is_zero(&p->tuple.saddr) ||
	    __builtin_memcmp(f.na.target, gateway.bytes, 16))
		return DROP_NOT_FOR_GATEWAY;

	__builtin_memcpy(f.eth.dst, f.eth.src, ETH_ALEN);
	__builtin_memcpy(f.eth.src, ep->node_mac, ETH_ALEN);
	f.ip.payload_len = htons(sizeof(f.na));
	__builtin_memcpy(f.ip.daddr, p->tuple.saddr.bytes, 16);
	__builtin_memcpy(f.ip.saddr, gateway.bytes, 16);
	f.na.type = ICMPV6_NEIGHBOUR_ADVERTISEMENT;
	f.na.check = 0;
	f.na.flags = htonl(NA_FLAGS);
	f.na.option = 2;
	f.na.option_len = 1;
	__builtin_memcpy(f.na.mac, ep->node_mac, ETH_ALEN);
	pseudo.len = htonl(sizeof(f.na));
	pseudo.nexthdr = htonl(IPPROTO_ICMPV6);
	sum = (__u32)bpf_csum_diff(NULL, 0, &f.ip.saddr, 32, 0);
	sum = (__u32)bpf_csum_diff(NULL, 0, &pseudo, sizeof(pseudo), sum);
	f.na.check = checksum_of((__u32)bpf_csum_diff(NULL, 0, &f.na, sizeof(f.na), sum));

	if (bpf_skb_change_tail(skb, sizeof(f), 0) || bpf_skb_store_bytes(skb, 0, &f, sizeof(f), 0))
		return DROP_REWRITE_FAILED;
	return DROP_NONE;
}
