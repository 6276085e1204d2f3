//go:build ignore
/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* No program: the tables and their types, for Go to read. */
#include "lib/tables.h"

/* An enumeration that no table mentions must be named somewhere to be in BTF. */
enum drop_reason drop_reason_names SEC(".data.names");
enum action action_names SEC(".data.names");
enum program program_names SEC(".data.names");
enum uplink_flag uplink_flag_names SEC(".data.names");
enum nat_event nat_event_names SEC(".data.names");
enum flow_event flow_event_names SEC(".data.names");
enum identity identity_names SEC(".data.names");
enum endpoint_flag endpoint_flag_names SEC(".data.names");
enum peer_flag peer_flag_names SEC(".data.names");
enum verdict_flag verdict_flag_names SEC(".data.names");
enum flow_stage flow_stage_names SEC(".data.names");
enum flow_flag flow_flag_names SEC(".data.names");
enum flow_seen flow_seen_names SEC(".data.names");
enum pass_mode pass_mode_names SEC(".data.names");
enum frontend_scope frontend_scope_names SEC(".data.names");
enum frontend_type frontend_type_names SEC(".data.names");
enum frontend_flag frontend_flag_names SEC(".data.names");
enum member_state member_state_names SEC(".data.names");
enum affinity_kind affinity_kind_names SEC(".data.names");
enum socket_event socket_event_names SEC(".data.names");
struct pass pass_layout SEC(".data.names");

char _license[] SEC("license") = "Dual BSD/GPL";
