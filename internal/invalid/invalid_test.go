// SPDX-License-Identifier: Apache-2.0

package invalid_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/invalid"
)

func TestErrorf(t *testing.T) {
	t.Parallel()
	err := invalid.Errorf("Flows is %d, want 16 to %d", 3, 64)
	require.ErrorIs(t, err, os.ErrInvalid)
	assert.Equal(t, "Flows is 3, want 16 to 64", err.Error(), "the text is as given")
	outer := fmt.Errorf("make the flow table: %w", err)
	require.ErrorIs(t, outer, os.ErrInvalid)
	assert.Equal(t, "make the flow table: Flows is 3, want 16 to 64", outer.Error())

	cause := errors.New("cause")
	err = invalid.Errorf("Pins: %w", cause)
	require.ErrorIs(t, err, os.ErrInvalid)
	require.ErrorIs(t, err, cause)
	assert.Equal(t, "Pins: cause", err.Error())
}

// What the kernel refuses is told apart from what never gets there.
func TestTheKernelsErrorsAreNotInput(t *testing.T) {
	t.Parallel()
	for _, errno := range []unix.Errno{unix.EINVAL, unix.EPERM, unix.E2BIG, unix.ENOENT} {
		assert.NotErrorIs(t, errno, os.ErrInvalid)
		assert.NotErrorIs(t, invalid.Errorf("x"), errno)
	}
}
