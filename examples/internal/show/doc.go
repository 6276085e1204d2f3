// SPDX-License-Identifier: Apache-2.0

// Package show turns the tables of a node into what an operator reads: rows for
// people, aligned and in the order of the addresses, and the same as values
// with names for JSON. The examples share it.
//
// In rows a MAC is in capitals, as operators know it from other datapaths; in
// JSON it is as Go and iproute2 write it.
package show
