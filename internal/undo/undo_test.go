// SPDX-License-Identifier: Apache-2.0

package undo_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/undo"
)

func TestFailureRunsTheStepsBackwards(t *testing.T) {
	t.Parallel()
	broken, stuck := errors.New("broken"), errors.New("stuck")
	var ran []int
	work := func() (err error) {
		var u undo.Stack
		defer u.Run(&err)
		u.Push(func() error { ran = append(ran, 1); return nil })
		u.Push(func() error { ran = append(ran, 2); return stuck })
		u.Push(func() error { ran = append(ran, 3); return nil })
		return broken
	}
	err := work()
	assert.Equal(t, []int{3, 2, 1}, ran, "a step that fails must not stop the others")
	require.ErrorIs(t, err, broken)
	require.ErrorIs(t, err, stuck)
}

func TestFailureWithoutTroubleKeepsTheErrorAsItIs(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	var u undo.Stack
	u.Push(func() error { return nil })
	err := broken
	u.Run(&err)
	assert.True(t, err == broken, "nothing to join, so the error is the same value")
}

func TestSuccessForgetsTheSteps(t *testing.T) {
	t.Parallel()
	ran := false
	var u undo.Stack
	u.Push(func() error { ran = true; return nil })
	var err error
	u.Run(&err)
	assert.NoError(t, err)
	err = errors.New("later")
	u.Run(&err)
	assert.False(t, ran)
}
