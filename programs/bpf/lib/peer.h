/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The other nodes, by the prefixes that they have. */
#pragma once

#include "bpf.h"
#include "parse.h"
#include "tables.h"
#include "types.h"

static __always_inline struct peer *peer_lookup(const struct address *a)
{
	struct prefix_key key;

	key.prefixlen = 128;
	key.addr = *a;
	return bpf_map_lookup_elem(&peers, &key);
}

/* Is it the address of another node itself? */
static __always_inline int peer_is_node(const struct address *a)
{
	const struct peer *peer = peer_lookup(a);

	return peer && address_is_equal(&peer->node, a);
}
