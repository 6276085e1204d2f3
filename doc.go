// SPDX-License-Identifier: Apache-2.0

// Package datapath is the front page of a library of building blocks for a
// Linux network datapath with BPF. It has no code of its own: the blocks are
// the packages below it.
//
//   - devices: links, addresses, routes, sysctls, network namespaces
//   - devices/netnstest: networks of namespaces for your integration tests
//   - maps: typed BPF tables; the endpoint table and the counters
//   - programs: compile, load, attach, order and look at BPF programs
//   - tunnel: the overlay and its peers
//   - conntrack: the flow table
//   - lb: services, for packets and for sockets
//
// Each is useful alone. Together they are a node of a cluster whose endpoints
// reach one another over VXLAN, see the example.
package datapath
