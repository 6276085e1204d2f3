/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The tables. Their sizes are set in Go before they are made. */
#pragma once

#include "bpf.h"
#include "types.h"

/* maps */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct address);
	__type(value, struct endpoint);
	__uint(max_entries, 1);
} endpoint_by_addr SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct endpoint);
	__uint(max_entries, 1);
} endpoint_by_ifindex SEC(".maps");

/* programs: the endpoints whose programs are attached, by interface; value: endpoint id */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} endpoint_attached SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counters);
	__uint(max_entries, PROGRAM_COUNT * DROP_COUNT);
} metrics SEC(".maps");

/* programs: the ways out of the node, by interface */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct uplink);
	__uint(max_entries, 64);
} uplinks SEC(".maps");

/* programs: the node's own addresses; the value says nothing */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct address);
	__type(value, __u32);
	__uint(max_entries, 1024);
} node_addresses SEC(".maps");

/* programs: the ways to the other nodes */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct address);
	__type(value, struct way);
	__uint(max_entries, 8192);
} ways SEC(".maps");

/* tunnel */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix_key);
	__type(value, struct peer);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} peers SEC(".maps");

/* conntrack */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct tuple);
	__type(value, struct flow);
	__uint(max_entries, 1);
} flows SEC(".maps");

/* ring of the unconfirmed: the newest takes the place of the oldest */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct tuple);
	__uint(max_entries, 1);
} flow_ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, FLOW_EVENT_COUNT);
} flow_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct fragment_key);
	__type(value, struct fragments);
	__uint(max_entries, 1);
} fragments_seen SEC(".maps");

/* where endpoints are seen by their own addresses; the value says nothing */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct prefix_key);
	__type(value, __u32);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} unmasqueraded SEC(".maps");

/* by a hash of the destination */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct nat_ports);
	__uint(max_entries, 1);
} nat_hints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, NAT_EVENT_COUNT);
} nat_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct nat_range);
	__uint(max_entries, 1);
} nat_range SEC(".maps");

/* lb */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} frontends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct slot_key);
	__type(value, struct slot);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} service_slots SEC(".maps");

/* set to table: backend ids by slot, as many as maglev_size */
struct maglev_table {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__type(key, __u32);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__array(values, struct maglev_table);
} maglev SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct backend);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct member_key);
	__type(value, struct member);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} service_members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct service_info);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} service_infos SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
	__uint(max_entries, 1);
} affinities SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__type(key, struct source_range_key);
	__type(value, __u32);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} source_ranges SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u64);
	__type(value, struct socket_peer);
	__uint(max_entries, 1);
} socket_peers SEC(".maps");

/* A socket may send to many, and nobody says which of them are over. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct socket_key);
	__type(value, struct socket_target);
	__uint(max_entries, 1);
} socket_targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, SOCKET_EVENT_COUNT);
} socket_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct socket_request);
	__uint(max_entries, 1);
} socket_requests SEC(".maps");

/*
 * Read and written in place by all programs of a node and, through a shared
 * memory map, by Go.
 */
volatile struct node_state node SEC(".data.node");
/* next free slot of flow_ring, counted without end */
volatile __u32 flow_ring_head SEC(".data.ring");
/* a slot that its flow has left, and one; 0: none is known */
volatile __u32 flow_ring_spare SEC(".data.spare");
