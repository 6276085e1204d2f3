/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a BPF program needs of the kernel, and nothing else: fixed-width types,
 * the packet context, the helpers by their numbers, and the map notation.
 * No system header is included, so clang alone compiles a program.
 */
#pragma once

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
/* On the wire: network byte order. */
typedef __u16 __be16;
typedef __u32 __be32;

#define NULL ((void *)0)

#define SEC(name) __attribute__((section(name), used))
/* A function of the kernel, found by its name when the program is loaded. */
#define SEC_KSYMS __attribute__((section(".ksyms")))
#define __always_inline inline __attribute__((always_inline))
/*
 * A function that the verifier checks once, for any arguments, and not again
 * on each way that leads to it. It takes its pointers for possibly NULL and
 * must look. Kernel 5.13.
 */
#define __global __attribute__((noinline))
/*
 * Before a loop: it stays one. Written out, each look-up in it is code that the
 * verifier replaces on its own, at the cost of moving the whole program.
 */
#define __loop _Pragma("clang loop unroll(disable)")
#define __unused __attribute__((unused))
#define __packed __attribute__((packed))
/* What has been read from memory is not kept in registers past it. */
#define barrier() asm volatile("" ::: "memory")
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* The map notation of BTF: a number and a type are members of a struct. */
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define __array(name, value) typeof(value) *name[]

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define htons(x) ((__be16)__builtin_bswap16((__u16)(x)))
#define htonl(x) ((__be32)__builtin_bswap32((__u32)(x)))
#else
#define htons(x) ((__be16)(x))
#define htonl(x) ((__be32)(x))
#endif
#define ntohs(x) ((__u16)htons(x))
#define ntohl(x) ((__u32)htonl(x))

/* Kinds of maps and flags, numbers of the kernel's uapi. */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_HASH_OF_MAPS = 13,
};

enum {
	BPF_F_NO_PREALLOC = 1,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_EXIST = 2,
};

/* Verdicts of a tcx program. NEXT lets the program behind it decide. */
enum tcx_verdict {
	TCX_NEXT = -1,
	TCX_PASS = 0,
	TCX_DROP = 2,
	TCX_REDIRECT = 7,
};

/* skb->pkt_type */
enum {
	PACKET_HOST = 0,
	PACKET_OTHERHOST = 3,
};

enum {
	BPF_F_INGRESS = 1,         /* bpf_redirect */
	BPF_F_TUNINFO_IPV6 = 1,    /* bpf_skb_{get,set}_tunnel_key */
	BPF_F_ZERO_CSUM_TX = 2,    /* bpf_skb_set_tunnel_key */
	BPF_F_PSEUDO_HDR = 1 << 4, /* bpf_l4_csum_replace */
	BPF_ADJ_ROOM_NET = 0,      /* bpf_skb_adjust_room, mode */
	BPF_ADJ_ROOM_MAC = 1,
	BPF_F_ADJ_ROOM_FIXED_GSO = 1 << 0,
	BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 = 1 << 1,
	BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 = 1 << 2,
	BPF_F_ADJ_ROOM_ENCAP_L4_UDP = 1 << 4,
	BPF_F_ADJ_ROOM_ENCAP_L2_ETH = 1 << 6,
	BPF_F_ADJ_ROOM_DECAP_L3_IPV4 = 1 << 7, /* bpf_skb_adjust_room, flags; kernel 6.3 */
	BPF_F_ADJ_ROOM_DECAP_L3_IPV6 = 1 << 8,
};

/* bpf_skb_adjust_room, flags: length of the inner link-layer header */
#define BPF_F_ADJ_ROOM_ENCAP_L2(len) ((__u64)(len) << 56)

enum {
	EEXIST = 17,
	E2BIG = 7,
	ENOMEM = 12,
	EBUSY = 16,
	EINVAL = 22,
	EADDRINUSE = 98,
	ECONNREFUSED = 111,
	EHOSTUNREACH = 113,
};

#ifdef DATAPATH_XDP
/*
 * What is written for the packet of a tc program is compiled for that of an XDP
 * program too: it goes by the same name, and has less.
 */
struct __sk_buff {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ifindex; /* that it came in by */
	__u32 queue;
	__u32 egress_ifindex;
};
#define packet_length(skb) ((skb)->data_end - (skb)->data)

enum xdp_action {
	XDP_ABORTED = 0,
	XDP_DROP = 1,
	XDP_PASS = 2,
	XDP_TX = 3,
};
#else
#define packet_length(skb) ((skb)->len)

/* The packet as a tc program sees it; offsets are the kernel's ABI. */
struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	__u64 sk;
	__u32 gso_size;
	__u8 tstamp_type;
	__u8 reserved[3];
	__u64 hwtstamp;
};
#endif

/* What a program at a socket's system calls sees; offsets are the kernel's ABI. */
struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
};

struct bpf_sock_addr {
	__u32 user_family;
	__be32 user_ip4;
	__be32 user_ip6[4];
	__u32 user_port; /* in its lower half, as on the wire */
	__u32 family;
	__u32 type;
	__u32 protocol;
	__be32 msg_src_ip4;
	__be32 msg_src_ip6[4];
	__u64 sk;
};

/*
 * The outer header of a tunnel device, whole: the kernel takes any prefix of it
 * that was its struct once, but copies that into the whole one first, which
 * costs as much as a look-up in a table. The local address is in it since 6.0.
 */
struct bpf_tunnel_key {
	__u32 tunnel_id;
	union {
		__u32 remote_ipv4; /* host byte order */
		__be32 remote_ipv6[4];
	};
	__u8 tunnel_tos;
	__u8 tunnel_ttl;
	__u16 tunnel_ext;
	__u32 tunnel_label;
	union {
		__u32 local_ipv4; /* host byte order */
		__be32 local_ipv6[4];
	};
};
_Static_assert(sizeof(struct bpf_tunnel_key) == 44, "the kernel's struct since 6.0");

/* bpf_fib_lookup: a question to the node's routes, and the answer in its place. */
struct bpf_fib_lookup {
	__u8 family; /* AF_INET, AF_INET6; out: of the next hop */
	__u8 l4_protocol;
	__be16 sport;
	__be16 dport;
	__u16 mtu; /* in: length to check, 0: none; out: the route's MTU */
	__u32 ifindex; /* in: where it comes from; out: where it goes to */
	__be32 flow; /* IPv4: TOS in the first byte; IPv6: class and label */
	union {
		__be32 ipv4_src;
		__be32 ipv6_src[4];
	};
	union {
		__be32 ipv4_dst; /* out: of the next hop */
		__be32 ipv6_dst[4];
	};
	__be16 vlan[2];
	__u8 smac[6];
	__u8 dmac[6];
};
_Static_assert(sizeof(struct bpf_fib_lookup) == 64, "the kernel's struct");

enum {
	AF_INET = 2,
	AF_INET6 = 10,
};

enum {
	BPF_FIB_LOOKUP_SKIP_NEIGH = 1 << 2, /* kernel 6.3 */
};

enum {
	BPF_FIB_LKUP_RET_SUCCESS = 0,
	BPF_FIB_LKUP_RET_NOT_FWDED = 4, /* of the node itself, or of nobody */
	BPF_FIB_LKUP_RET_UNSUPP_LWT = 6,
	BPF_FIB_LKUP_RET_NO_NEIGH = 7,
};

struct bpf_redir_neigh {
	__u32 nh_family;
	union {
		__be32 ipv4_nh;
		__be32 ipv6_nh[4];
	};
};

struct bpf_sock_tuple {
	union {
		struct {
			__be32 saddr;
			__be32 daddr;
			__be16 sport;
			__be16 dport;
		} ipv4;
		struct {
			__be32 saddr[4];
			__be32 daddr[4];
			__be16 sport;
			__be16 dport;
		} ipv6;
	};
};

#define BPF_F_CURRENT_NETNS (~0ULL)

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static __u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
static __u32 (*const bpf_get_smp_processor_id)(void) = (void *)8;
static long (*const bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from, __u32 len, __u64 flags) = (void *)9;
static long (*const bpf_l4_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to, __u64 flags) = (void *)11;
static long (*const bpf_skb_get_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, __u32 size, __u64 flags) = (void *)20;
static long (*const bpf_skb_set_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key, __u32 size, __u64 flags) = (void *)21;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to, __u32 len) = (void *)26;
static __s64 (*const bpf_csum_diff)(const void *from, __u32 from_size, const void *to, __u32 to_size, __u32 seed) = (void *)28;
static long (*const bpf_skb_change_type)(struct __sk_buff *skb, __u32 type) = (void *)32;
static long (*const bpf_skb_change_tail)(struct __sk_buff *skb, __u32 len, __u64 flags) = (void *)38;
static long (*const bpf_skb_pull_data)(struct __sk_buff *skb, __u32 len) = (void *)39;
static __s64 (*const bpf_csum_update)(struct __sk_buff *skb, __u32 csum) = (void *)40;
static __u64 (*const bpf_get_socket_cookie)(void *ctx) = (void *)46;
static long (*const bpf_skb_adjust_room)(struct __sk_buff *skb, __s32 len_diff, __u32 mode, __u64 flags) = (void *)50;
static int (*const bpf_fib_lookup)(void *ctx, struct bpf_fib_lookup *params, int size, __u32 flags) = (void *)69;
static struct bpf_sock *(*const bpf_sk_lookup_tcp)(void *ctx, struct bpf_sock_tuple *t, __u32 size, __u64 netns, __u64 flags) = (void *)84;
static struct bpf_sock *(*const bpf_sk_lookup_udp)(void *ctx, struct bpf_sock_tuple *t, __u32 size, __u64 netns, __u64 flags) = (void *)85;
static long (*const bpf_sk_release)(void *sock) = (void *)86;
static __u64 (*const bpf_jiffies64)(void) = (void *)118;
static __u64 (*const bpf_get_netns_cookie)(void *ctx) = (void *)122;
static long (*const bpf_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int size, __u64 flags) = (void *)152;
static long (*const bpf_redirect_peer)(__u32 ifindex, __u64 flags) = (void *)155;
static long (*const bpf_for_each_map_elem)(void *map, void *callback, void *callback_ctx, __u64 flags) = (void *)164;
static int (*const bpf_set_retval)(int retval) = (void *)187;
