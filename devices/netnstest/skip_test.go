// SPDX-License-Identifier: Apache-2.0

package netnstest_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

func TestSkipUnsupported(t *testing.T) {
	t.Parallel()
	sentinel := errors.New("not supported")
	for name, c := range map[string]struct {
		err   error
		skips bool
	}{
		"nil":            {nil, false},
		"unsupported":    {fmt.Errorf("attach: %w", errors.ErrUnsupported), true},
		"EOPNOTSUPP":     {fmt.Errorf("add link: %w", unix.EOPNOTSUPP), true},
		"ENOSYS":         {unix.ENOSYS, true},
		"sentinel":       {fmt.Errorf("load: %w", sentinel), true},
		"same text":      {errors.New("not supported"), false},
		"no permission":  {unix.EPERM, false},
		"does not exist": {unix.ENOENT, false},
	} {
		returned := false
		tb := fatal(func(tb *fakeTB) {
			netnstest.SkipUnsupported(tb, c.err, sentinel, nil)
			returned = true
		})
		assert.Equal(t, c.skips, tb.skipped, name)
		assert.Equal(t, !c.skips, returned, name)
		assert.Empty(t, tb.errors, name)
	}
}
