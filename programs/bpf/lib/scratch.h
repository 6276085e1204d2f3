/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Room for what is too large for the stack, of 512 bytes for a program and all
 * that it calls. Each CPU has a few pieces: a program that is run by hand, and
 * any on a real-time kernel, can be put aside for another one.
 */
#pragma once

#include "bpf.h"

#define SCRATCH_PIECES 8
#define SCRATCH_SIZE 336

struct scratch {
	__u32 taken;
	__u32 reserved;
	__u8 bytes[SCRATCH_SIZE];
} __attribute__((aligned(8)));

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct scratch);
	__uint(max_entries, SCRATCH_PIECES);
} scratch_pieces SEC(".maps");

/* Takes a piece and says which, or SCRATCH_PIECES if all are in use. */
__global __u32 scratch_find(void)
{
	__loop
	for (__u32 i = 0; i < SCRATCH_PIECES; i++) {
		__u32 key = i;
		struct scratch *s = bpf_map_lookup_elem(&scratch_pieces, &key);

		if (s && !__sync_val_compare_and_swap(&s->taken, 0, 1))
			return i;
	}
	return SCRATCH_PIECES;
}

/* A piece with anything in it, or NULL if all are in use. It is to be given back. */
static __always_inline struct scratch *scratch_take(void)
{
	__u32 key = scratch_find();

	return bpf_map_lookup_elem(&scratch_pieces, &key);
}

/* The same with size bytes of zeros in it. */
static __always_inline struct scratch *scratch_take_empty(__u32 size)
{
	struct scratch *s = scratch_take();

	if (s)
		__builtin_memset(s->bytes, 0, size);
	return s;
}

static __always_inline void scratch_give_back(struct scratch *s)
{
	__sync_lock_test_and_set(&s->taken, 0);
}
