/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who has sent a packet of the overlay: the kernel tells, or the outer header. */
#pragma once

#include "bpf.h"
#include "config.h"
#include "net.h"
#include "parse.h"
#include "route.h"
#include "types.h"

/* The verdict holds for one sender: a node can not continue the flow of another. */
static __always_inline int sender_is_known(const struct flow *f, const struct sender *from)
{
	return f->verdict.vni == from->vni && address_is_equal(&f->verdict.remote, &from->node);
}

/* What the overlay device has taken off the packet. */
static __always_inline int sender_read(struct __sk_buff *skb, struct sender *from)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), overlay_ipv6 ? BPF_F_TUNINFO_IPV6 : 0))
		return DROP_NO_TUNNEL_KEY;
	from->vni = key.tunnel_id;
	if (overlay_ipv6)
		address_from_ipv6(&from->node, key.remote_ipv6);
	else
		address_from_ipv4(&from->node, htonl(key.remote_ipv4));
	return DROP_NONE;
}

#define OVERLAY_HEADERS4 (ETH_HLEN + 20 + 8 + 8)
#define OVERLAY_HEADERS6 (ETH_HLEN + 40 + 8 + 8)

/* Length of all that stands before the inner frame. */
static __always_inline __u32 overlay_headers(void)
{
	return overlay_ipv6 ? OVERLAY_HEADERS6 : OVERLAY_HEADERS4;
}

/*
 * Reads the outer headers in place. Answers 0 for all that is not a plain
 * packet of our overlay to this node: that is for the kernel to look at. So is
 * one that has met congestion, which must be told inside (RFC 6040).
 */
static __always_inline int overlay_read(const struct __sk_buff *skb, struct sender *from)
{
	struct address to, self = config_address(&overlay_node);
	struct vxlanhdr *vxlan = packet_at(skb, overlay_headers() - sizeof(*vxlan));
	struct udphdr *udp = packet_at(skb, overlay_headers() - sizeof(*vxlan) - sizeof(*udp));

	/* Segments in one packet are told by the outer headers: the kernel knows how to take them apart. */
	if (skb->gso_size || skb->vlan_present || (void *)(vxlan + 1) + ETH_HLEN > packet_end(skb))
		return 0;
	if (overlay_ipv6) {
		struct ipv6hdr *ip = packet_at(skb, ETH_HLEN);

		if (skb->protocol != htons(ETH_P_IPV6) || ip->version_class >> 4 != 6 || ip->nexthdr != IPPROTO_UDP ||
		    (ip->class_flow[0] & IPV6_ECN_MASK) == IPV6_ECN_MASK || ip->payload_len != udp->len)
			return 0;
		address_from_ipv6(&to, ip->daddr);
		address_from_ipv6(&from->node, ip->saddr);
	} else {
		struct iphdr *ip = packet_at(skb, ETH_HLEN);

		if (skb->protocol != htons(ETH_P_IP) || ip->version_ihl != 0x45 || ip->protocol != IPPROTO_UDP ||
		    (ip->tos & IP_ECN_MASK) == IP_ECN_MASK || (ip->frag_off & htons(IP_MF | IP_OFFSET)) ||
		    ntohs(ip->tot_len) != ntohs(udp->len) + sizeof(*ip))
			return 0;
		address_from_ipv4(&to, ip->daddr);
		address_from_ipv4(&from->node, ip->saddr);
	}
	/* All that has arrived is of the datagram. A checksum is left to the kernel to verify. */
	if (udp->dest != htons(overlay_port) || udp->check || vxlan->flags != htonl(VXLAN_VNI) ||
	    (vxlan->vni & htonl(0xff)) || ntohs(udp->len) + overlay_headers() - sizeof(*vxlan) - sizeof(*udp) != skb->len ||
	    !address_is_equal(&to, &self))
		return 0;
	from->vni = ntohl(vxlan->vni) >> 8;
	return 1;
}

/*
 * Takes the outer headers off. The outer Ethernet header stays in front and
 * becomes the packet's own, with the type of what is inside. What has been parsed
 * is then as far from the start as if nothing had been around it.
 */
static __always_inline int overlay_strip(struct __sk_buff *skb, struct packet *p)
{
	__u64 inner = p->family == 4 ? BPF_F_ADJ_ROOM_DECAP_L3_IPV4 : BPF_F_ADJ_ROOM_DECAP_L3_IPV6;
	struct ethhdr *eth;

	if (bpf_skb_adjust_room(skb, -(__s32)overlay_headers(), BPF_ADJ_ROOM_MAC, inner))
		return DROP_REWRITE_FAILED;
	eth = packet_at(skb, 0);
	if ((void *)(eth + 1) > packet_end(skb))
		return DROP_REWRITE_FAILED;
	eth->type = p->family == 4 ? htons(ETH_P_IP) : htons(ETH_P_IPV6);
	p->l4 -= (__u16)overlay_headers();
	return DROP_NONE;
}
