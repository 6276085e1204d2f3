// SPDX-License-Identifier: Apache-2.0

//go:build 386 || arm || mipsle

package maps

import "unsafe"

// pointer is a pointer inside union bpf_attr, where it always has 64 bits.
type pointer struct {
	p unsafe.Pointer
	_ uint32
}
