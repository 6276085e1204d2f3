/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From bytes to a tuple. packet_parse() checks every length that it relies on
 * and answers with the reason to drop a packet that lies. It needs no table
 * and no setting, so a program of the user's own can use it.
 */
#pragma once

#include "bpf.h"
#include "net.h"
#include "types.h"

enum packet_kind {
	PACKET_PLAIN = 0,
	PACKET_FIRST_FRAGMENT = 1,
	PACKET_LATER_FRAGMENT = 2, /* the ports of the tuple are not known */
	PACKET_ICMP_ERROR = 3,     /* the tuple is that of the reply which it stands for */
	PACKET_NEIGHBOUR = 4,      /* NDP */
};

struct packet {
	struct tuple tuple;
	__u8 kind; /* enum packet_kind */
	__u8 family; /* 4 or 6 */
	__u8 ttl;
	__u8 tcp_flags; /* 0 unless TCP; SCTP chunks are told in the same bits */
	__u16 l4;       /* offset of the transport header from the start of the frame */
	__u16 l3_len;   /* length that the IP header tells, with the header */
	__u8 dont_fragment;
	__u8 icmp_type;
	__u8 l4_len;        /* of the transport header, in bytes */
	__u8 frag_more;
	__u16 frag_start; /* in units of eight bytes */
	__u16 frag_len;   /* of the payload, in bytes */
	__be32 frag_id;
	__u16 quoted_l4; /* of an ICMP error: offset of the quoted packet's transport header */
	__u16 reserved;
	struct address icmp_from; /* source of an ICMP error: not a part of the flow */
};

/* So many extension headers are walked, more than any sane sender builds. */
#define MAX_IPV6_EXTENSIONS 8
/* Linear bytes that the longest accepted headers need. */
#define PARSE_PULL 256

static __always_inline void *packet_at(const struct __sk_buff *skb, __u32 offset)
{
	return (void *)(long)skb->data + offset;
}

static __always_inline void *packet_end(const struct __sk_buff *skb)
{
	return (void *)(long)skb->data_end;
}

/* The first packet of a connection. */
static __always_inline int packet_opens(const struct packet *p)
{
	return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

static __always_inline __u32 *address_words(struct address *a)
{
	return (__u32 *)a->bytes;
}

static __always_inline void address_from_ipv4(struct address *to, __be32 addr)
{
	__u32 *w = address_words(to);

	w[0] = 0;
	w[1] = 0;
	w[2] = htonl(0xffff);
	w[3] = addr;
}

static __always_inline void address_from_ipv6(struct address *to, const __be32 *addr)
{
	__u32 *w = address_words(to);

	w[0] = addr[0];
	w[1] = addr[1];
	w[2] = addr[2];
	w[3] = addr[3];
}

static __always_inline int address_is_ipv4(const struct address *a)
{
	const __u32 *w = (const __u32 *)a->bytes;

	return !w[0] && !w[1] && w[2] == htonl(0xffff);
}

static __always_inline int address_is_equal(const struct address *a, const struct address *b)
{
	const __u32 *x = (const __u32 *)a->bytes, *y = (const __u32 *)b->bytes;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}

static __always_inline int address_is_zero(const struct address *a)
{
	const __u32 *w = (const __u32 *)a->bytes;

	return !(w[0] | w[1] | w[2] | w[3]);
}

/* Addresses that never name one host. The IPv4 ones are in mapped form. */
static __always_inline int address_is_multicast(const struct address *a)
{
	if (address_is_ipv4(a))
		return (a->bytes[12] & 0xf0) == 0xe0 || ((const __u32 *)a->bytes)[3] == 0xffffffff;
	return a->bytes[0] == 0xff;
}

static __always_inline int address_is_link_local(const struct address *a)
{
	if (address_is_ipv4(a))
		return a->bytes[12] == 169 && a->bytes[13] == 254;
	return a->bytes[0] == 0xfe && (a->bytes[1] & 0xc0) == 0x80;
}

/* Loopback and unspecified: no such packet may cross a wire. */
static __always_inline int address_is_martian(const struct address *a)
{
	const __u32 *w = (const __u32 *)a->bytes;

	if (address_is_ipv4(a))
		return a->bytes[12] == 127 || a->bytes[12] == 0;
	return !w[0] && !w[1] && !w[2] && (w[3] == 0 || w[3] == htonl(1));
}

static __always_inline void tuple_reverse(const struct tuple *t, struct tuple *to)
{
	to->saddr = t->daddr;
	to->daddr = t->saddr;
	to->sport = t->dport;
	to->dport = t->sport;
	to->protocol = t->protocol;
	__builtin_memset(to->reserved, 0, sizeof(to->reserved));
}

/* len: bytes from the transport header to the end that the IP header tells. */
static __always_inline int parse_transport(struct __sk_buff *skb, struct packet *p, __u32 len)
{
	void *at = packet_at(skb, p->l4), *end = packet_end(skb);

	p->tcp_flags = 0;
	p->icmp_type = 0;
	p->l4_len = 8;
	switch (p->tuple.protocol) {
	case IPPROTO_TCP: {
		struct tcphdr *tcp = at;
		__u32 header;

		if ((void *)(tcp + 1) > end)
			return DROP_TRUNCATED;
		header = (__u32)(tcp->doff >> 4) * 4;
		if (header < sizeof(*tcp) || header > len)
			return DROP_BAD_LENGTH;
		p->tuple.sport = tcp->source;
		p->tuple.dport = tcp->dest;
		p->tcp_flags = tcp->flags;
		p->l4_len = (__u8)header;
		return DROP_NONE;
	}
	case IPPROTO_UDP: {
		struct udphdr *udp = at;

		if ((void *)(udp + 1) > end)
			return DROP_TRUNCATED;
		/* The length of a datagram in fragments is that of the whole. */
		if (ntohs(udp->len) < sizeof(*udp) || (p->kind == PACKET_PLAIN && ntohs(udp->len) > len))
			return DROP_BAD_LENGTH;
		p->tuple.sport = udp->source;
		p->tuple.dport = udp->dest;
		return DROP_NONE;
	}
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6: {
		struct icmphdr *icmp = at;
		__u8 type;

		if ((void *)(icmp + 1) > end)
			return DROP_TRUNCATED;
		if (len < sizeof(*icmp))
			return DROP_BAD_LENGTH;
		type = icmp->type;
		p->icmp_type = type;
		p->tuple.sport = 0;
		p->tuple.dport = 0;
		if (p->family == 4) {
			if (p->tuple.protocol != IPPROTO_ICMP)
				return DROP_UNKNOWN_L4;
			if (type == ICMP_ECHO)
				p->tuple.sport = icmp->id;
			else if (type == ICMP_ECHO_REPLY)
				p->tuple.dport = icmp->id;
			else if (type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER)
				p->kind = PACKET_ICMP_ERROR;
			else
				return DROP_ICMP_UNSUPPORTED;
		} else {
			if (p->tuple.protocol != IPPROTO_ICMPV6)
				return DROP_UNKNOWN_L4;
			if (type == ICMPV6_ECHO)
				p->tuple.sport = icmp->id;
			else if (type == ICMPV6_ECHO_REPLY)
				p->tuple.dport = icmp->id;
			else if (type >= ICMPV6_UNREACHABLE && type <= ICMPV6_PARAMETER)
				p->kind = PACKET_ICMP_ERROR;
			else if (type == ICMPV6_NEIGHBOUR_SOLICITATION || type == ICMPV6_NEIGHBOUR_ADVERTISEMENT)
				p->kind = PACKET_NEIGHBOUR;
			else /* router solicitations and group memberships, most of all */
				return address_is_multicast(&p->tuple.daddr) ? DROP_MULTICAST : DROP_ICMP_UNSUPPORTED;
		}
		return DROP_NONE;
	}
	case IPPROTO_SCTP: {
		struct sctphdr *sctp = at;
		__u8 chunk;

		if ((void *)(sctp + 1) + 4 > end)
			return DROP_TRUNCATED;
		if (len < sizeof(*sctp) + 4)
			return DROP_BAD_LENGTH;
		p->tuple.sport = sctp->source;
		p->tuple.dport = sctp->dest;
		/* The chunks that open and close are told in TCP's words. */
		chunk = *(__u8 *)(sctp + 1);
		if (chunk == SCTP_INIT)
			p->tcp_flags = TCP_SYN;
		else if (chunk == SCTP_INIT_ACK)
			p->tcp_flags = TCP_SYN | TCP_ACK;
		else if (chunk == SCTP_ABORT)
			p->tcp_flags = TCP_RST;
		else if (chunk == SCTP_SHUTDOWN_ACK || chunk == SCTP_SHUTDOWN_COMPLETE)
			p->tcp_flags = TCP_FIN | TCP_ACK;
		else
			p->tcp_flags = TCP_ACK;
		return DROP_NONE;
	}
	default:
		return DROP_UNKNOWN_L4;
	}
}

/* What parse_transport() reads of a transport header, in bytes. */
static __always_inline __u32 transport_min(__u8 protocol)
{
	return protocol == IPPROTO_TCP ? sizeof(struct tcphdr) : protocol == IPPROTO_SCTP ? sizeof(struct sctphdr) + 4 : 8;
}

/* start: of the payload, in bytes; more: another fragment follows. */
static __always_inline int parse_fragment(struct packet *p, __u32 start, int more, __u32 len)
{
	if (start + len > 65535 || !len || (more && len % 8))
		return DROP_BAD_FRAGMENT;
	p->frag_start = (__u16)(start / 8);
	p->frag_len = (__u16)len;
	p->frag_more = !!more;
	if (!start) {
		/* RFC 1858: a first piece that does not show the header hides it on purpose. */
		if (len < transport_min(p->tuple.protocol))
			return DROP_BAD_FRAGMENT;
		p->kind = PACKET_FIRST_FRAGMENT;
		return DROP_NONE;
	}
	/* RFC 3128: offset 1 exists only to write over the TCP flags. */
	if (p->tuple.protocol == IPPROTO_TCP && start == 8)
		return DROP_BAD_FRAGMENT;
	p->kind = PACKET_LATER_FRAGMENT;
	p->tuple.sport = 0;
	p->tuple.dport = 0;
	p->tcp_flags = 0;
	p->icmp_type = 0;
	p->l4_len = 0;
	return DROP_NONE;
}

/* Reads a part of what an ICMP error quotes; end: of the error itself. */
static __always_inline int quoted(struct __sk_buff *skb, __u32 at, __u32 end, void *to, __u32 len)
{
	return at + len > end || bpf_skb_load_bytes(skb, at, to, len);
}

/* An ICMP error speaks of the packet that it quotes: take the reply's tuple from there. */
__global int parse_icmp_error(struct __sk_buff *skb, struct packet *p)
{
	__be16 ports[4] = {};
	struct tuple inner = {};
	__u32 at, end;

	if (!p)
		return DROP_TRUNCATED;
	at = (__u32)p->l4 + sizeof(struct icmphdr);
	end = ETH_HLEN + (__u32)p->l3_len;
	if (p->family == 4) {
		struct iphdr ip;
		__u32 header;

		if (quoted(skb, at, end, &ip, sizeof(ip)))
			return DROP_TRUNCATED;
		header = (__u32)(ip.version_ihl & 0xf) * 4;
		if (ip.version_ihl >> 4 != 4 || header < sizeof(ip))
			return DROP_BAD_LENGTH;
		address_from_ipv4(&inner.saddr, ip.saddr);
		address_from_ipv4(&inner.daddr, ip.daddr);
		inner.protocol = ip.protocol;
		/* Later fragments have no ports to tell the flow by. */
		if (ntohs(ip.frag_off) & IP_OFFSET)
			return DROP_ICMP_UNTRACKED;
		at += header;
	} else {
		struct ipv6hdr ip;

		if (quoted(skb, at, end, &ip, sizeof(ip)))
			return DROP_TRUNCATED;
		if (ip.version_class >> 4 != 6)
			return DROP_BAD_LENGTH;
		address_from_ipv6(&inner.saddr, ip.saddr);
		address_from_ipv6(&inner.daddr, ip.daddr);
		if (address_is_ipv4(&inner.saddr) || address_is_ipv4(&inner.daddr))
			return DROP_BAD_ADDRESS;
		inner.protocol = ip.nexthdr;
		at += sizeof(ip);
		for (int i = 0; i < MAX_IPV6_EXTENSIONS; i++) {
			struct ipv6_frag ext; /* the longest of those that are looked into */

			if (inner.protocol != IPPROTO_HOPOPTS && inner.protocol != IPPROTO_DSTOPTS &&
			    inner.protocol != IPPROTO_ROUTING && inner.protocol != IPPROTO_FRAGMENT)
				break;
			if (quoted(skb, at, end, &ext, sizeof(ext)))
				return DROP_TRUNCATED;
			if (inner.protocol == IPPROTO_FRAGMENT) {
				if (ntohs(ext.offset) & ~7)
					return DROP_ICMP_UNTRACKED;
				at += sizeof(ext);
			} else {
				at += ((__u32)ext.reserved + 1) * 8; /* reserved: the length's place */
			}
			inner.protocol = ext.nexthdr;
		}
	}

	if (quoted(skb, at, end, ports, sizeof(ports)))
		return DROP_TRUNCATED;
	switch (inner.protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case IPPROTO_SCTP:
		inner.sport = ports[0];
		inner.dport = ports[1];
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6: {
		/* Type and code are the first two bytes, the identifier is the third word. */
		__u8 type = *(__u8 *)&ports[0];

		if (type == ICMP_ECHO || type == ICMPV6_ECHO)
			inner.sport = ports[2];
		else if (type == ICMP_ECHO_REPLY || type == ICMPV6_ECHO_REPLY)
			inner.dport = ports[2];
		else
			return DROP_ICMP_UNTRACKED;
		break;
	}
	default:
		return DROP_ICMP_UNTRACKED;
	}

	/*
	 * An error goes to the one who sent the quoted packet. The source of the
	 * error itself is a router's and not part of the flow.
	 */
	if (!address_is_equal(&p->tuple.daddr, &inner.saddr))
		return DROP_ICMP_UNTRACKED;
	p->icmp_from = p->tuple.saddr;
	p->quoted_l4 = (__u16)at;
	tuple_reverse(&inner, &p->tuple);
	return DROP_NONE;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, struct packet *p, __u32 l3)
{
	struct iphdr *ip = packet_at(skb, l3);
	__u32 header, total;
	__u16 frag;

	if ((void *)(ip + 1) > packet_end(skb))
		return DROP_TRUNCATED;
	header = (__u32)(ip->version_ihl & 0xf) * 4;
	total = ntohs(ip->tot_len);
	if (ip->version_ihl >> 4 != 4 || header < sizeof(*ip) || total < header || total > packet_length(skb) - l3)
		return DROP_BAD_LENGTH;

	address_from_ipv4(&p->tuple.saddr, ip->saddr);
	address_from_ipv4(&p->tuple.daddr, ip->daddr);
	p->tuple.protocol = ip->protocol;
	__builtin_memset(p->tuple.reserved, 0, sizeof(p->tuple.reserved));
	p->family = 4;
	p->ttl = ip->ttl;
	p->l3_len = (__u16)total;
	p->l4 = (__u16)(l3 + header);
	p->kind = PACKET_PLAIN;

	frag = ntohs(ip->frag_off);
	p->dont_fragment = !!(frag & IP_DF);
	if (unlikely(frag & (IP_MF | IP_OFFSET))) {
		int err = parse_fragment(p, (frag & IP_OFFSET) * 8u, frag & IP_MF, total - header);

		if (err || p->kind == PACKET_LATER_FRAGMENT) {
			p->frag_id = ip->id;
			return err;
		}
		p->frag_id = ip->id;
	}
	return parse_transport(skb, p, total - header);
}

/*
 * Walks the extension headers. Returns the reason to drop, and leaves the
 * transport's number and place in p. A fragment header may be followed by more
 * headers in the first fragment only.
 */
__global int parse_ipv6_extensions(struct __sk_buff *skb, struct packet *p, __u32 l3)
{
	int fragmented = 0;
	__u32 at, end;

	if (!p)
		return DROP_TRUNCATED;
	at = p->l4;
	end = l3 + (__u32)p->l3_len;
	for (int i = 0; i <= MAX_IPV6_EXTENSIONS; i++) {
		struct ipv6_frag ext; /* the longest of those that are looked into */
		__u32 len;

		switch (p->tuple.protocol) {
		case IPPROTO_HOPOPTS:
			if (i) /* RFC 8200 section 4.1: first or not at all */
				return DROP_BAD_EXTENSION;
			break;
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
		case IPPROTO_FRAGMENT:
		case IPPROTO_AH:
			break;
		default:
			/* What lies behind the length that the IP header tells is not of this packet. */
			if (at + transport_min(p->tuple.protocol) > end)
				return DROP_BAD_LENGTH;
			p->l4 = (__u16)at;
			return DROP_NONE;
		}
		if (i == MAX_IPV6_EXTENSIONS)
			return DROP_BAD_EXTENSION;
		if (bpf_skb_load_bytes(skb, at, &ext, sizeof(ext)))
			return DROP_TRUNCATED;
		if (p->tuple.protocol == IPPROTO_FRAGMENT) {
			__u32 offset = ntohs(ext.offset);
			int err;

			if (fragmented++)
				return DROP_BAD_EXTENSION;
			len = sizeof(ext);
			p->tuple.protocol = ext.nexthdr;
			if (at + len > end)
				return DROP_BAD_LENGTH;
			p->frag_id = ext.id;
			/* Neither start nor more: the whole datagram, and no part of another (RFC 6946). */
			err = offset & ~6u ? parse_fragment(p, offset & ~7u, offset & 1, end - at - len) : DROP_NONE;
			if (err)
				return err;
			if (p->kind == PACKET_LATER_FRAGMENT) {
				p->l4 = (__u16)(at + len);
				return DROP_NONE;
			}
		} else {
			/* The second byte is the length: AH counts in fours, less two (RFC 4302). */
			len = p->tuple.protocol == IPPROTO_AH ? ((__u32)ext.reserved + 2) * 4 : ((__u32)ext.reserved + 1) * 8;
			p->tuple.protocol = ext.nexthdr;
		}
		at += len;
		if (at > end)
			return DROP_BAD_LENGTH;
	}
	return DROP_BAD_EXTENSION;
}

static __always_inline int ipv6_is_extension(__u8 nexthdr)
{
	return nexthdr == IPPROTO_HOPOPTS || nexthdr == IPPROTO_ROUTING || nexthdr == IPPROTO_FRAGMENT ||
	       nexthdr == IPPROTO_AH || nexthdr == IPPROTO_DSTOPTS;
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, struct packet *p, __u32 l3)
{
	struct ipv6hdr *ip = packet_at(skb, l3);
	__u32 total;

	if ((void *)(ip + 1) > packet_end(skb))
		return DROP_TRUNCATED;
	total = sizeof(*ip) + (__u32)ntohs(ip->payload_len);
	if (ip->version_class >> 4 != 6 || total > packet_length(skb) - l3)
		return DROP_BAD_LENGTH;

	address_from_ipv6(&p->tuple.saddr, ip->saddr);
	address_from_ipv6(&p->tuple.daddr, ip->daddr);
	/* A mapped address on the wire would pass for the IPv4 flow of that name. */
	if (unlikely(address_is_ipv4(&p->tuple.saddr) || address_is_ipv4(&p->tuple.daddr)))
		return DROP_BAD_ADDRESS;
	p->tuple.protocol = ip->nexthdr;
	__builtin_memset(p->tuple.reserved, 0, sizeof(p->tuple.reserved));
	p->family = 6;
	p->ttl = ip->hop_limit;
	p->l3_len = (__u16)total;
	p->l4 = (__u16)(l3 + sizeof(*ip));
	p->kind = PACKET_PLAIN;
	p->dont_fragment = 1;

	if (unlikely(ipv6_is_extension(p->tuple.protocol))) {
#ifdef DATAPATH_XDP
		int err = DROP_BAD_EXTENSION; /* none that an XDP program can look into */
#else
		int err = parse_ipv6_extensions(skb, p, l3);
#endif

		if (err || p->kind == PACKET_LATER_FRAGMENT)
			return err;
		if (p->l4 > PARSE_PULL)
			return DROP_BAD_EXTENSION;
	}
	return parse_transport(skb, p, l3 + total - p->l4);
}

#ifndef DATAPATH_XDP
static __always_inline int parse_linear(struct __sk_buff *skb, struct packet *p)
{
	/* The kernel has taken the tag out of the frame: look where it is kept. */
	if (unlikely(skb->vlan_present))
		return DROP_VLAN;
	if (likely(skb->protocol == htons(ETH_P_IP)))
		return parse_ipv4(skb, p, ETH_HLEN);
	if (likely(skb->protocol == htons(ETH_P_IPV6)))
		return parse_ipv6(skb, p, ETH_HLEN);
	return DROP_UNKNOWN_L3;
}

/* The headers may lie in a part of the packet that can not be read in place: bring them in. */
__global int parse_pulled(struct __sk_buff *skb, struct packet *p)
{
	__u32 len = skb->len;

	if (!p)
		return DROP_TRUNCATED;
	if (len > PARSE_PULL)
		len = PARSE_PULL;
	if (bpf_skb_pull_data(skb, len))
		return DROP_TRUNCATED;
	return parse_linear(skb, p);
}

/*
 * Fills p from an Ethernet frame. Returns DROP_NONE or the reason why the
 * packet must not be used; DROP_UNKNOWN_L3 for what is not IP, ARP included.
 * Pointers into the packet that the caller took before are void after it.
 */
static __always_inline int packet_parse(struct __sk_buff *skb, struct packet *p)
{
	int err = parse_linear(skb, p);

	if (unlikely(err == DROP_TRUNCATED))
		err = parse_pulled(skb, p);
	if (unlikely(!err && p->kind == PACKET_ICMP_ERROR))
		err = parse_icmp_error(skb, p);
	return err;
}
#endif
