// SPDX-License-Identifier: Apache-2.0

// Package cluster composes the library's blocks into a cluster of network
// namespaces on one machine: nodes on a common underlay, endpoints on nodes,
// each node with a datapath of its own. The examples and the journey tests
// share it. It is also the longest example of how the blocks go together:
// read [Node.start].
package cluster
