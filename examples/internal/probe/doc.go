// SPDX-License-Identifier: Apache-2.0

// Package probe asks whether packets get from one network namespace to another,
// and how long that takes, with nothing but sockets: ICMP echo, TCP and UDP
// echo, and packets that are too big for the path.
//
// Each probe is one exchange. It ends with its answer, after [Timeout], or with
// its context. The sockets belong to the namespaces that are passed; the caller
// stays where it is.
package probe
