/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Headers on the wire, as the RFCs draw them, and the numbers we look for. */
#pragma once

#include "bpf.h"

enum ethertype {
	ETH_P_IP = 0x0800,
	ETH_P_ARP = 0x0806,
	ETH_P_IPV6 = 0x86dd,
};

enum ip_protocol {
	IPPROTO_HOPOPTS = 0,
	IPPROTO_ICMP = 1,
	IPPROTO_TCP = 6,
	IPPROTO_UDP = 17,
	IPPROTO_ROUTING = 43,
	IPPROTO_FRAGMENT = 44,
	IPPROTO_AH = 51,
	IPPROTO_ICMPV6 = 58,
	IPPROTO_NONE = 59,
	IPPROTO_DSTOPTS = 60,
	IPPROTO_SCTP = 132,
};

#define ETH_HLEN 14
#define ETH_ALEN 6

struct ethhdr {
	__u8 dst[ETH_ALEN];
	__u8 src[ETH_ALEN];
	__be16 type;
} __packed;

/* RFC 826, for IPv4 over Ethernet. */
struct arphdr {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__u8 sender_ip[4];
	__u8 target_mac[ETH_ALEN];
	__u8 target_ip[4];
} __packed;

enum {
	ARP_REQUEST = 1,
	ARP_REPLY = 2,
};

/* RFC 791 */
struct iphdr {
	__u8 version_ihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__be16 check;
	__be32 saddr;
	__be32 daddr;
};

#define IP_DF 0x4000
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

/* RFC 3168: both bits of the ECN field are set on a packet that has met congestion. */
#define IP_ECN_MASK 0x03
#define IPV6_ECN_MASK 0x30 /* in class_flow[0] */

/* RFC 8200 */
struct ipv6hdr {
	__u8 version_class;
	__u8 class_flow[3];
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	__be32 saddr[4];
	__be32 daddr[4];
};

struct ipv6_ext {
	__u8 nexthdr;
	__u8 len;
};

struct ipv6_frag {
	__u8 nexthdr;
	__u8 reserved;
	__be16 offset; /* in units of eight bytes, in the upper 13 bits; bit 0: more */
	__be32 id;
};

/* RFC 9293 */
struct tcphdr {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack;
	__u8 doff;
	__u8 flags;
	__be16 window;
	__be16 check;
	__be16 urgent;
};

enum tcp_flag {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

/* RFC 768 */
struct udphdr {
	__be16 source;
	__be16 dest;
	__be16 len;
	__be16 check;
};

/* RFC 7348 */
struct vxlanhdr {
	__be32 flags; /* VXLAN_VNI, and nothing else */
	__be32 vni;   /* in the upper 24 bits */
};

#define VXLAN_VNI 0x08000000

/* RFC 9260, the common header and the first chunk. */
struct sctphdr {
	__be16 source;
	__be16 dest;
	__be32 tag;
	__be32 check;
};

enum {
	SCTP_INIT = 1,
	SCTP_INIT_ACK = 2,
	SCTP_ABORT = 6,
	SCTP_SHUTDOWN_ACK = 8,
	SCTP_SHUTDOWN_COMPLETE = 14,
};

/* RFC 792 and RFC 4443 share this shape. */
struct icmphdr {
	__u8 type;
	__u8 code;
	__be16 check;
	__be16 id; /* echo; unused otherwise */
	__be16 seq; /* echo; the next hop's MTU of ICMP_FRAG_NEEDED */
};

enum icmp_type {
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER = 12,
};

enum {
	/* codes of ICMP_UNREACHABLE */
	ICMP_PROTOCOL_UNREACHABLE = 2,
	ICMP_PORT_UNREACHABLE = 3,
	ICMP_FRAG_NEEDED = 4,
	/* code of ICMPV6_UNREACHABLE */
	ICMPV6_PORT_UNREACHABLE = 4,
};

enum icmpv6_type {
	ICMPV6_UNREACHABLE = 1,
	ICMPV6_TOO_BIG = 2,
	ICMPV6_TIME_EXCEEDED = 3,
	ICMPV6_PARAMETER = 4,
	ICMPV6_ECHO = 128,
	ICMPV6_ECHO_REPLY = 129,
	ICMPV6_NEIGHBOUR_SOLICITATION = 135,
	ICMPV6_NEIGHBOUR_ADVERTISEMENT = 136,
};

_Static_assert(sizeof(struct ethhdr) == 14, "RFC 894");
_Static_assert(sizeof(struct arphdr) == 28, "RFC 826");
_Static_assert(sizeof(struct iphdr) == 20, "RFC 791");
_Static_assert(sizeof(struct ipv6hdr) == 40, "RFC 8200");
_Static_assert(sizeof(struct ipv6_frag) == 8, "RFC 8200");
_Static_assert(sizeof(struct tcphdr) == 20, "RFC 9293");
