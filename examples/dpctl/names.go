// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"strings"
)

// compareNames puts node2 before node10.
func compareNames(a, b string) int {
	stemA, stemB := strings.TrimRight(a, "0123456789"), strings.TrimRight(b, "0123456789")
	return cmp.Or(strings.Compare(stemA, stemB), cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}
