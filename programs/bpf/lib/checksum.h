/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Internet checksums (RFC 1071) and how they follow a change (RFC 1624). All
 * sums are over words as they lie in memory: the order of bytes does not matter
 * to a sum that wraps around.
 */
#pragma once

#include "bpf.h"
#include "net.h"
#include "types.h"

/* What the kernel says of a packet's transport checksum, skb->ip_summed. */
enum checksum_kind {
	CHECKSUM_NONE = 0,        /* it stands in the packet */
	CHECKSUM_UNNECESSARY = 1, /* it does, and has been verified */
	CHECKSUM_COMPLETE = 2,    /* it does, and skb->csum is the sum over the packet */
	CHECKSUM_PARTIAL = 3,     /* only that of the pseudo-header does: a device, or nobody, adds the rest */
};

#ifdef DATAPATH_XDP
/* Off the wire: all of it stands in the packet, and nobody has looked yet. */
static __always_inline __u32 checksum_kind(__unused struct __sk_buff *ctx)
{
	return CHECKSUM_NONE;
}

static __always_inline void checksum_update(__unused struct __sk_buff *ctx, __unused __u32 diff)
{
}
#else
/* Fields of the kernel's packet that the context does not show. */
struct sk_buff {
	unsigned char *head;
	unsigned char *data;
	__u16 csum_start;  /* from head: where the sum begins that the device is to make */
	__u16 csum_offset; /* from there: where it is to be written */
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

/* Kernel 6.2. Becomes one instruction. */
extern void *bpf_cast_to_kern_ctx(void *ctx) SEC_KSYMS;

/* What __builtin_preserve_field_info() is asked for. */
enum {
	FIELD_BYTE_OFFSET = 0,
	FIELD_LSHIFT_U64 = 4,
	FIELD_RSHIFT_U64 = 5,
};

static __always_inline __u32 checksum_kind(struct __sk_buff *ctx)
{
	struct sk_buff *skb = bpf_cast_to_kern_ctx(ctx);
	const __u8 *at = (const __u8 *)skb + __builtin_preserve_field_info(skb->ip_summed, FIELD_BYTE_OFFSET);
	__u64 v;

	/* Else the compiler moves the offset behind the load, where it can not be filled in. */
	asm volatile("" : "+r"(at));
	v = *at;
	v <<= __builtin_preserve_field_info(skb->ip_summed, FIELD_LSHIFT_U64);
	v >>= __builtin_preserve_field_info(skb->ip_summed, FIELD_RSHIFT_U64);
	return (__u32)v;
}

/*
 * A workload with a packet socket says itself where a device is to write the
 * checksum. What leaves the node would be another packet than the one that was
 * judged, unless it is the place of the transport's. l4: offset of its header.
 */
static __always_inline int checksum_is_honest(struct __sk_buff *ctx, __u32 l4, __u8 protocol)
{
	struct sk_buff *skb = bpf_cast_to_kern_ctx(ctx);

	if (checksum_kind(ctx) != CHECKSUM_PARTIAL)
		return 1;
	if ((__u32)skb->csum_start != (__u32)(skb->data - skb->head) + l4)
		return 0;
	switch (protocol) {
	case IPPROTO_TCP:
		return skb->csum_offset == __builtin_offsetof(struct tcphdr, check);
	case IPPROTO_UDP:
		return skb->csum_offset == __builtin_offsetof(struct udphdr, check);
	case IPPROTO_SCTP:
		return skb->csum_offset == __builtin_offsetof(struct sctphdr, check);
	default:
		return skb->csum_offset == __builtin_offsetof(struct icmphdr, check);
	}
}

/* The kernel's sum over the packet follows a change, if it has one. */
static __always_inline void checksum_update(struct __sk_buff *ctx, __u32 diff)
{
	bpf_csum_update(ctx, diff);
}
#endif

static __always_inline __u16 checksum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)(sum + (sum >> 16));
}

/* The checksum of a header that adds up to sum. */
static __always_inline __be16 checksum_of(__u32 sum)
{
	return (__be16)~checksum_fold(sum);
}

/* A checksum whose words have changed by delta. */
static __always_inline __be16 checksum_adjust(__be16 check, __u32 delta)
{
	return (__be16)~checksum_fold((__u64)(__u16)~check + delta);
}
