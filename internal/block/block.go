// SPDX-License-Identifier: Apache-2.0

// Package block is the seam between the packages that own tables and the one
// that loads programs: neither imports the other, both import this.
package block

import "github.com/cilium/ebpf"

// Block is an owner of tables and settings of the datapath. Only packages of
// this module can be one, since only they can name Parts.
type Block interface {
	// DatapathParts tells what the block brings. The maps are borrowed and
	// stay open until the block is closed.
	DatapathParts() Parts
}

// Parts is what a block brings to the programs.
type Parts struct {
	// Name of the block, for errors. No two blocks of a load have the same.
	Name string
	// Maps are the tables under their names in C.
	Maps map[string]*ebpf.Map
	// Settings are the load-time constants under their names in C.
	Settings map[string]any
	// Bind gives the block the epoch of the node that it has become a part
	// of. Nil if the block has nothing that a cached verdict depends on.
	Bind func(bump func() error)
}
