// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"errors"
	"testing"
)

// SkipUnsupported skips the test if err says that this kernel does not have
// what was asked for: it wraps [errors.ErrUnsupported] (as EOPNOTSUPP and
// ENOSYS do) or one of the sentinels. Any other error, and nil, returns.
//
// Libraries with a word of their own for it are named by the caller:
//
//	netnstest.SkipUnsupported(t, err, ebpf.ErrNotSupported)
func SkipUnsupported(t testing.TB, err error, sentinels ...error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, sentinel := range append([]error{errors.ErrUnsupported}, sentinels...) {
		if sentinel != nil && errors.Is(err, sentinel) {
			t.Skipf("this kernel does not support it: %v", err)
		}
	}
}
