// SPDX-License-Identifier: Apache-2.0

package unprivileged_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/unprivileged"
)

func TestRunIsAnotherProcess(t *testing.T) {
	here := fmt.Sprint(os.Getpid())
	t.Setenv("DATAPATH_TEST_CALLER", here+" "+os.Getenv("DATAPATH_TEST_CALLER"))
	called := false
	unprivileged.Run(t, func() {
		called = true
		pids := strings.Fields(os.Getenv("DATAPATH_TEST_CALLER"))
		require.Len(t, pids, 2, "this process and the one that started it")
		assert.NotEqual(t, pids[0], pids[1])
	})
	if len(strings.Fields(os.Getenv("DATAPATH_TEST_CALLER"))) == 1 {
		assert.False(t, called, "not here")
	}
}

// fake is a test that fails without ending the real one.
type fake struct{ name, said string }

func (f *fake) Helper()                           {}
func (f *fake) Name() string                      { return f.name }
func (f *fake) Fatalf(format string, args ...any) { f.said = fmt.Sprintf(format, args...) }

func TestRunFailsWithTheOther(t *testing.T) {
	if os.Getenv("DATAPATH_TEST_FAIL") != "" {
		t.Fatal("it failed there")
	}
	t.Setenv("DATAPATH_TEST_FAIL", "1")
	f := &fake{name: t.Name()}
	unprivileged.Run(f, func() {})
	assert.Contains(t, f.said, "it failed there")
	f = &fake{name: "TestThatIsAbsent"}
	unprivileged.Run(f, func() {})
	assert.Contains(t, f.said, "no tests to run", "what did not run has not passed")
}

func TestDoHasNoRights(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mount := func() error { return unix.Mount("none", dir, "tmpfs", 0, "") }
	require.ErrorIs(t, unprivileged.Do(mount), os.ErrPermission)
	assert.NoError(t, unprivileged.Do(func() error { return os.WriteFile(dir+"/mine", nil, 0o600) }), "root still owns the folder")
	require.NoError(t, mount(), "other threads keep their rights")
	require.NoError(t, unix.Unmount(dir, 0))
}
