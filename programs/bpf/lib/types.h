/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the programs and their users share: keys, values and enumerations.
 * This file is their only author; Go reads the layouts from BTF. Numbers of an
 * enumeration are never used again for something else.
 */
#pragma once

#include "bpf.h"

/* An IPv6 address, or an IPv4 address as ::ffff:a.b.c.d, as on the wire. */
struct address {
	__u8 bytes[16];
} __attribute__((aligned(4)));

/*
 * The two ends of a flow as its packets show them. Ports are as on the wire;
 * an ICMP echo request has its identifier as source port and 0 as destination
 * port, an echo reply the other way round, so that each is the reverse of the
 * other. Protocols without ports have 0 in both.
 */
struct tuple {
	struct address saddr;
	struct address daddr;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 reserved[3]; /* zero: it is part of the key */
} __attribute__((aligned(8)));
_Static_assert(sizeof(struct tuple) == 40, "no hidden padding in a key");

/* Who a packet is from, 24 bits: what fits a VNI. 256 and up are the user's. */
enum identity {
	IDENTITY_UNKNOWN = 0,
	IDENTITY_HOST = 1,
	IDENTITY_WORLD = 2,
	IDENTITY_UNMANAGED = 3,
	IDENTITY_HEALTH = 4,
	IDENTITY_INIT = 5,
	IDENTITY_REMOTE_NODE = 6,
	IDENTITY_KUBE_APISERVER = 7,
	IDENTITY_INGRESS = 8,
	IDENTITY_USER = 256,
};

/* Which program met the packet. */
enum program {
	PROGRAM_FROM_ENDPOINT = 1,
	PROGRAM_TO_ENDPOINT = 2,
	PROGRAM_FROM_HOST = 3,
	PROGRAM_FROM_OVERLAY = 4,
	PROGRAM_FROM_DEVICE = 5,
	PROGRAM_XDP = 6,
	PROGRAM_COUNT = 8, /* room for the hooks to come */
};

/* What was done with a packet that was not dropped. */
enum action {
	ACTION_NONE = 0,
	ACTION_TO_ENDPOINT = 1, /* into an endpoint of this node */
	ACTION_TO_OVERLAY = 2,  /* to the node that has the destination */
	ACTION_TO_HOST = 3,     /* to the node's own stack */
	ACTION_PASS = 4,        /* left to the next program and the stack */
	ACTION_ANSWERED = 5,    /* answered here: ARP, NDP */
	ACTION_TO_DEVICE = 6,   /* out of the node by one of its uplinks */
	ACTION_COUNT = 16,
};

/* Why a packet was dropped. Counted together with the actions, so they start behind. */
enum drop_reason {
	DROP_NONE = 0,
	DROP_TRUNCATED = 16,            /* ends before its headers do */
	DROP_BAD_LENGTH = 17,           /* a length field that can not be */
	DROP_UNKNOWN_L3 = 18,           /* neither ARP, IPv4 nor IPv6 */
	DROP_UNKNOWN_L4 = 19,           /* a transport that is not tracked */
	DROP_BAD_ADDRESS = 20,          /* an address that can not be on the wire */
	DROP_BAD_EXTENSION = 21,        /* IPv6 extension headers: too many, out of place, unknown */
	DROP_BAD_FRAGMENT = 22,         /* tiny, or beyond the largest datagram */
	DROP_FRAGMENT_OVERLAP = 23,     /* covers bytes that another fragment has brought */
	DROP_FRAGMENT_UNKNOWN = 24,     /* its first fragment has not been seen */
	DROP_SPOOFED_SOURCE = 25,       /* the source is not the sender's */
	DROP_MULTICAST = 26,            /* multicast and broadcast are not carried */
	DROP_NOT_FOR_GATEWAY = 27,      /* an ARP or NDP question for somebody else */
	DROP_ENDPOINT_NOT_READY = 28,   /* no program is attached to the destination yet */
	DROP_NO_ENDPOINT = 29,          /* no endpoint of this node has the destination */
	DROP_NO_ROUTE = 30,             /* neither an endpoint nor a peer has the destination, nor does a route lead to it */
	DROP_HOST_NOT_READY = 31,       /* the host pair is not attached */
	DROP_OVERLAY_NOT_READY = 32,    /* the overlay device is not attached */
	DROP_OVERLAY_PORT = 33,         /* a forged overlay packet from an endpoint */
	DROP_FOREIGN_OVERLAY = 34,      /* the sending node is not the peer of that source */
	DROP_BAD_VNI = 35,              /* the VNI is not an identity */
	DROP_NO_TUNNEL_KEY = 36,        /* no outer header could be read or set */
	DROP_TTL_EXCEEDED = 37,         /* answered with time-exceeded */
	DROP_TOO_BIG = 38,              /* answered with fragmentation-needed or packet-too-big */
	DROP_ICMP_UNTRACKED = 39,       /* an ICMP error about a flow that is not known */
	DROP_ICMP_UNSUPPORTED = 40,     /* an ICMP message that is neither echo nor error */
	DROP_REWRITE_FAILED = 41,       /* the kernel did not let us change the packet */
	DROP_WRONG_ENDPOINT = 42,       /* on its way into an endpoint that it is not for */
	DROP_UNKNOWN_ENDPOINT = 43,     /* the interface is not an endpoint in the table */
	DROP_VLAN = 44,                 /* a VLAN tag: neither endpoints nor the overlay have VLANs */
	DROP_FRAGMENT_DISORDER = 45,    /* more holes in the datagram than are kept track of */
	DROP_FLOWS_FULL = 46,           /* a flow that is translated must be remembered, and there is no room */
	DROP_FLOW_CHANGED = 48,         /* two CPUs made the flow at once, and a table changed between them */
	DROP_NO_PORT = 47,              /* no source port is free for a flow that is translated */
	DROP_BAD_CHECKSUM = 49,         /* the sender wants the checksum written where none belongs */
	DROP_NO_BACKEND = 50,           /* a service that has nobody to serve */
	DROP_BACKEND_GONE = 51,         /* the backend of this flow is not the service's any more */
	DROP_SOURCE_RANGE = 52,         /* the service does not serve this client */
	DROP_NO_SUCH_PORT = 53,         /* an address of services, and none at this port */
	DROP_SERVICE_CHANGED = 54,      /* a service changed again and again while it was looked at */
	DROP_NO_ROOM = 55,              /* all pieces of this CPU's scratch room are in use */
	DROP_NO_ADDRESS = 56,           /* the way out of the node has no address that the packet could leave with */
	DROP_BAD_FRONTEND = 57,         /* another node says that it is from a frontend which the backend does not serve */
	DROP_COUNT = 64,
};

enum endpoint_flag {
	/* deliver through the host-side device, where bridges and qdiscs are, not straight into the namespace */
	ENDPOINT_NO_PEER_REDIRECT = 1,
};

/* A workload of this node, found by each of its addresses and by its interface. */
struct endpoint {
	__u32 id;
	__u32 identity;
	__u32 ifindex; /* of the host-side device */
	__u32 flags;   /* enum endpoint_flag */
	__u8 mac[6];      /* of the device inside */
	__u8 node_mac[6]; /* of the host-side device: the gateway's, as the endpoint sees it */
	struct address addrs[2]; /* IPv4, IPv6; all zero: has none */
};
_Static_assert(sizeof(struct endpoint) == 60, "no hidden padding in a value");

/* Under program * DROP_COUNT + action or reason. */
struct counters {
	__u64 packets; /* as the hook sees them: an aggregate of segments is one */
	__u64 bytes;
};

struct prefix_key {
	__u32 prefixlen; /* 0..128; an IPv4 prefix has 96 more */
	struct address addr;
};

enum peer_flag {
	PEER_FIXED_VNI = 1, /* send with vni and not with the sender's identity */
};

/* How another node is reached, as the routes told a moment ago. */
struct way {
	__u32 oif; /* an uplink; 0: the kernel has to do it */
	__be32 via; /* gateway; 0: none is between */
	__u32 found; /* lower half of the jiffies */
	__u32 epoch;
	__u32 mtu; /* longest outer packet, in bytes */
};
_Static_assert(sizeof(struct way) == 20, "no hidden padding in a value");

/* The node that has a prefix. */
struct peer {
	struct address node;
	__u32 vni;
	__u32 flags;     /* enum peer_flag */
	__u32 prefixlen; /* of the key: a trie answers with the longest match, and this says which that was */
};
_Static_assert(sizeof(struct peer) == 28, "no hidden padding in a value");

/* A way out of the node, by its interface. */
struct uplink {
	struct address addrs[2]; /* IPv4, IPv6: what leaves in the node's name has it; all zero: none */
	__u32 flags; /* enum uplink_flag */
};
_Static_assert(sizeof(struct uplink) == 36, "no hidden padding in a value");

enum uplink_flag {
	UPLINK_XDP = 1, /* takes packets from an XDP program */
};

#define NAT_WORDS 1024

/*
 * Which source ports the flows to a destination have, one bit each: a hint of
 * where to look. Destinations share it, and what counts is the flow table.
 */
struct nat_ports {
	__u64 used[NAT_WORDS];
};
_Static_assert(sizeof(struct nat_ports) == 8192, "no hidden padding in a value");

/* What Go wants to know again. No program reads it: they have it as constants. */
struct nat_range {
	__u16 first;
	__u16 last;
};
_Static_assert(sizeof(struct nat_range) == 4, "no hidden padding in a value");

/* How many ports were tried for a flow: 1, 2 to 3, 4 to 7, and so on. */
enum nat_event {
	NAT_TRIES = 0,
	NAT_KEPT = 8,      /* the port is its own */
	NAT_EXHAUSTED = 9, /* none of those tried was free */
	NAT_EVENT_COUNT = 16,
};

enum verdict_flag {
	VERDICT_DECREMENT_TTL = 1,
	VERDICT_NO_PEER_REDIRECT = 2,
	VERDICT_TRANSLATE = 4, /* the packet goes on under the reverse of the entry's peer */
	VERDICT_AGES = 8,      /* found by the node's routes, which change without telling us; the MACs, if any, are those of the next hop */
	VERDICT_DIRECT = 32,   /* the backend answers past us: the first packets tell it as whom */
	VERDICT_FRONTEND = 64, /* into an endpoint: remote and vni are the address and port that the answers have; of the answers: they do */
	VERDICT_ENCAPSULATE = 16, /* to the overlay: the outer header is ours to write, and oif is the uplink; dmac has the gateway, if there is one */
};

/* What to do with the packets of one direction of a flow. */
struct verdict {
	__u32 iif; /* interface that they must have arrived on; 0: they leave the node's stack */
	__u32 oif; /* interface to send to; 0: none */
	__u32 vni; /* to send with; on arrival from the overlay, the one they must have */
	__u16 mtu; /* longest IP packet that fits, in bytes; 0: any */
	__u8 action; /* enum action */
	__u8 flags;  /* enum verdict_flag */
	__u8 dmac[6];
	__u8 smac[6];
	struct address remote; /* node to send to; on arrival from the overlay, the sender; else, to a device, the next hop */
	__u16 addr_delta; /* what the translation of the addresses adds to a checksum's sum */
	__u16 port_delta; /* and that of the ports */
};
_Static_assert(sizeof(struct verdict) == 48, "no hidden padding in a value");

enum decision_flag {
	DECISION_ANEW = 1,   /* the flow that is there is over, and another begins */
	DECISION_REFUSE = 2, /* the sender is told that it was dropped, else he waits in vain */
	DECISION_KNOWN = 4,  /* the packet is of a flow that is there, and of its originator */
	DECISION_REPLY = 8,  /* the same, of the other side */
	DECISION_OWN_PORT = 16, /* the flow gets a source port of the node */
	DECISION_DIRECT = 32,   /* a backend on another node is to answer past us */
	DECISION_FRONTEND = 64, /* answers that have the address of a frontend on another node */
};

/*
 * What is to become of one packet. reply is how the answers to it will arrive:
 * the reverse of how it goes on, so its saddr and sport say where to.
 */
struct decision {
	struct verdict verdict;
	struct tuple reply;
	__u32 epoch; /* before the tables were looked at: a change since then makes it outdated */
	__u32 flags; /* enum decision_flag */
	struct verdict back; /* what is to become of the answers; without an action: to be found when they come */
};
_Static_assert(sizeof(struct decision) == 144, "no hidden padding in an argument");

enum flow_stage {
	FLOW_NEW = 1,       /* in the budget of the unconfirmed */
	FLOW_CONFIRMED = 2, /* the originator has answered the reply */
	FLOW_DEAD = 3,      /* about to be deleted: do not use */
	FLOW_CLOSED = 4,    /* was confirmed and is over: may go when its place is wanted */
};

enum flow_flag {
	FLOW_REPLY = 1,     /* this entry is the direction of the replies */
	FLOW_CONDEMNED = 2, /* its slot is about to be taken: its verdict is used no more */
	FLOW_OPENED = 4,    /* of a reply of TCP: its opening has been seen, and slot says what answers it */
};

enum flow_seen {
	SEEN_PACKET = 1,
	SEEN_FIN = 2, /* or SCTP SHUTDOWN ACK and COMPLETE */
	SEEN_RST = 4, /* or SCTP ABORT */
};

/*
 * One direction of a flow, under its tuple as the packets arrive. The other
 * direction is the entry under peer. Without translation peer is the reverse
 * of the key; with it, the difference between the two is the translation.
 */
struct flow {
	__u32 epoch;     /* verdict may be used as it is while this is the node's; 0: look closer */
	__u32 last_seen; /* lower half of the jiffies */
	struct verdict verdict;
	__u32 judged;    /* epoch in which the verdict was found */
	__u8 seen;       /* enum flow_seen, of this direction */
	__u8 flags;      /* enum flow_flag */
	__u16 reserved;
	__u64 packets;
	__u64 bytes;     /* with link-layer header */
	struct tuple peer;
	__u32 stage;     /* enum flow_stage, of the originator's entry; a reply's is 0, or dead */
	__u32 slot;      /* in the ring of the unconfirmed; of a reply of TCP: the number that its opening is to be answered with */
	__u32 created;   /* lower half of the jiffies */
	__u32 found;     /* when the verdict was, lower half of the jiffies */
};
_Static_assert(sizeof(struct flow) == 136, "no hidden padding in a value");

enum flow_event {
	FLOW_CREATED = 0,
	FLOW_CONFIRMATIONS = 1,
	FLOW_EVICTED = 2,      /* unconfirmed, for want of budget */
	FLOW_REUSED = 3,       /* a SYN on a closed flow */
	FLOW_FULL = 4,         /* insert failed: E2BIG */
	FLOW_NO_MEMORY = 5,    /* insert failed: ENOMEM */
	FLOW_BUSY = 6,         /* insert failed: EBUSY */
	FLOW_FAILED = 7,       /* insert failed otherwise */
	FLOW_FRAGMENTS_FULL = 8, /* a datagram's ports could not be remembered */
	FLOW_ENDED = 9,        /* over, and gone before its time: its place was wanted */
	FLOW_EVENT_COUNT = 16,
};

/* One datagram whose first fragment has passed. */
struct fragment_key {
	struct address saddr;
	struct address daddr;
	__be32 id;
	__u8 protocol; /* IPv6: 0, since only the first fragment tells it (RFC 8200 section 4.5) */
	__u8 reserved[3];
};
_Static_assert(sizeof(struct fragment_key) == 40, "no hidden padding in a key");

struct span {
	__u16 start; /* in units of eight bytes */
	__u16 end;
};

#define FRAGMENT_SPANS 8

struct fragments {
	__be16 sport;
	__be16 dport;
	__u32 started;  /* lower half of the jiffies */
	__u16 end;      /* of the datagram, in units of eight bytes; 0: not known */
	__u8 protocol;  /* of the transport, as the first fragment tells it */
	__u8 complete;  /* all parts have passed: the identifier may come again */
	struct span got[FRAGMENT_SPANS]; /* end 0: unused */
};
_Static_assert(sizeof(struct fragments) == 44, "no hidden padding in a value");

/* Where a service is reached. With port and protocol 0: one of the addresses themselves. */
struct frontend_key {
	struct address addr;
	__be16 port;
	__u8 protocol;
	__u8 scope; /* enum frontend_scope */
};
_Static_assert(sizeof(struct frontend_key) == 20, "no hidden padding in a key");

enum frontend_scope {
	SCOPE_ALL = 0,
	SCOPE_OUTSIDE = 1, /* for clients from outside, beside the row for all */
};

enum frontend_type {
	FRONTEND_CLUSTER_IP = 1,
	FRONTEND_NODE_PORT = 2,
	FRONTEND_EXTERNAL_IP = 3,
	FRONTEND_LOAD_BALANCER = 4,
	FRONTEND_HOST_PORT = 5,
	FRONTEND_ADDRESS = 6, /* the row of an address: see frontend_flag */
};

enum frontend_flag {
	FRONTEND_MAGLEV = 1,   /* chosen from a table by the packet's tuple, else by weight at random */
	FRONTEND_REJECT = 2,   /* without a backend it is refused, else dropped in silence */
	FRONTEND_RANGES = 4,   /* sources are looked up in source_ranges */
	FRONTEND_DENY = 8,     /* those ranges are kept out, else all others are */
	FRONTEND_OWNED = 16,   /* of an address: all of it is the services', else a node has it too */
	FRONTEND_LOCAL = 32,   /* leads to backends of this node only */
	FRONTEND_LAST = 64,    /* leads to terminating backends: there are no others */
	FRONTEND_SCOPED = 128, /* clients from outside have a row of their own */
	FRONTEND_DIRECT = 256, /* backends on other nodes answer the client themselves */
};

/*
 * What a frontend leads to. It is written as a whole, and names the set of
 * backends that goes with it, so a packet sees one state of a service.
 */
struct frontend {
	__u32 service;
	__u32 set;      /* of slots, or the table of Maglev */
	__u32 count;    /* slots of the set; 0: no backend can be chosen */
	__u32 affinity; /* how long a client stays with its backend, in jiffies; 0: not at all */
	__u8 type;      /* enum frontend_type */
	__u8 reserved;
	__u16 flags;    /* enum frontend_flag */
};
_Static_assert(sizeof(struct frontend) == 20, "no hidden padding in a value");

struct slot_key {
	__u32 set;
	__u32 index;
};
_Static_assert(sizeof(struct slot_key) == 8, "no hidden padding in a key");

/* One of the equally likely places of a set: its first backend up to a random number of below, else its second. */
struct slot {
	__u32 first;
	__u32 second;
	__u32 below;
};
_Static_assert(sizeof(struct slot) == 12, "no hidden padding in a value");

struct backend {
	struct address addr;
	__be16 port;
	__u16 reserved;
};
_Static_assert(sizeof(struct backend) == 20, "no hidden padding in a value");

enum member_state {
	MEMBER_ACTIVE = 1,
	MEMBER_TERMINATING = 2, /* established flows stay; new ones come only if nothing else is left */
	MEMBER_QUARANTINED = 3, /* unhealthy: established flows stay */
	MEMBER_MAINTENANCE = 4, /* taken out by hand: established flows stay */
	MEMBER_DRAINING = 5,    /* removed; established flows may end in peace */
};

/* Which backends a service has. By address: that is what a flow knows. */
struct member_key {
	__u32 service;
	struct address addr;
	__be16 port;
	__u16 reserved;
};
_Static_assert(sizeof(struct member_key) == 24, "no hidden padding in a key");

struct member {
	__u32 backend;
	__u16 weight;
	__u8 state; /* enum member_state */
	__u8 reserved;
	struct address node; /* that has it; zero: not told */
	__u8 zone[32];       /* name, zeros behind it */
};
_Static_assert(sizeof(struct member) == 56, "no hidden padding in a value");

/* What Go wants to know again after a restart. No program reads it. */
struct service_info {
	__u8 name[128];         /* zeros behind it */
	__u32 affinity_seconds;
	__u8 maglev;
	__u8 external_local;
	__u8 internal_local;
	__u8 reject;
	__u8 deny;
	__u8 on_remove;
	__u8 direct;
	__u8 reserved;
};
_Static_assert(sizeof(struct service_info) == 140, "no hidden padding in a value");

enum affinity_kind {
	AFFINITY_ADDRESS = 1, /* the client is an address */
	AFFINITY_COOKIE = 2,  /* it is a network namespace, by its cookie */
	AFFINITY_LOCAL = 4,   /* and it came through a frontend that leads to backends of this node only */
};

struct affinity_key {
	__u32 service;
	__u32 kind; /* enum affinity_kind */
	struct address client;
};
_Static_assert(sizeof(struct affinity_key) == 24, "no hidden padding in a key");

struct affinity {
	__u32 backend;
	__u32 last_used; /* lower half of the jiffies */
};
_Static_assert(sizeof(struct affinity) == 8, "no hidden padding in a value");

/* Longest prefix match on the address, among those that go with a set. */
struct source_range_key {
	__u32 prefixlen; /* 32 bits of set, and those of the address */
	__be32 set;      /* big-endian: compared bit by bit */
	struct address addr;
};
_Static_assert(sizeof(struct source_range_key) == 24, "no hidden padding in a key");

/* What a connected socket believes to be talking to, by its cookie. */
struct socket_peer {
	struct address addr;    /* of the frontend */
	struct address backend;
	__be16 port;
	__be16 backend_port;
	__u32 service;
	__u8 protocol;
	__u8 reserved[3];
};
_Static_assert(sizeof(struct socket_peer) == 44, "no hidden padding in a value");

/* One of the backends that a socket sends datagrams to. */
struct socket_key {
	__u64 cookie;
	struct address backend;
	__be16 port;
	__u8 reserved[6];
};
_Static_assert(sizeof(struct socket_key) == 32, "no hidden padding in a key");

/* Where it was told to send them. */
struct socket_target {
	struct address addr;
	__be16 port;
	__u16 reserved;
};
_Static_assert(sizeof(struct socket_target) == 20, "no hidden padding in a value");

/* Which sockets are to be ended, and how many have been. */
struct socket_request {
	struct address addr; /* of the backend */
	__be16 port;
	__u8 protocol;
	__u8 reserved;
	__u32 service;
	__u32 ended;
};
_Static_assert(sizeof(struct socket_request) == 28, "no hidden padding in a value");

enum socket_event {
	SOCKET_TRANSLATED = 0,
	SOCKET_NO_BACKEND = 1, /* refused or dropped for want of one */
	SOCKET_REVERSED = 2,   /* an answer that was shown as the frontend's */
	SOCKET_BIND_REFUSED = 3,
	SOCKET_TABLE_FULL = 4, /* the answers of a socket will show the backend */
	SOCKET_EVENT_COUNT = 16,
};

/* The settings of a running node that change without a new load. */
struct node_state {
	__u32 epoch;
	__u32 host_ifindex;
	__u32 net_ifindex;
	__u32 overlay_ifindex;
	__u8 host_mac[6];
	__u16 uplinks; /* how many there are */
	__u64 netns_cookie;
};
_Static_assert(sizeof(struct node_state) == 32, "no hidden padding in a value");

/* A pass over the flow table: what is asked and what was found. */
enum pass_mode {
	PASS_COUNT = 1,
	PASS_CONDEMN = 2, /* take the verdict of idle flows away */
	PASS_REAP = 3,    /* delete those that nobody used since */
};

struct pass {
	__u32 mode; /* enum pass_mode */
	/* in jiffies */
	__u32 tcp_new;
	__u32 tcp_established;
	__u32 tcp_closing;
	__u32 udp_new;
	__u32 udp_confirmed;
	__u32 icmp;
	__u32 other_new;
	__u32 other_confirmed;
	__u32 shortest; /* of these: nothing younger is looked at closely */
	__u32 now;      /* out */
	__u32 reserved;
	__u64 entries;     /* out */
	__u64 confirmed;   /* out */
	__u64 unconfirmed; /* out */
	__u64 condemned;   /* out: flows */
	__u64 deleted;     /* out: entries */
};
_Static_assert(sizeof(struct pass) == 88, "no hidden padding in a context");
