// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/examples/internal/cli"
	"github.com/godatapath/datapath/examples/internal/cluster"
)

// asProgram makes the test binary the program itself: "root", or "nobody" to
// give up root first.
const asProgram = "LOADBALANCER_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	switch os.Getenv(asProgram) {
	case "":
		os.Exit(netnstest.Main(m))
	case "nobody":
		if err := syscall.Setuid(65534); err != nil {
			panic(err)
		}
	}
	ctx, stop := cli.Context()
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// program is the program in a process of its own.
func program(t *testing.T, as string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), asProgram+"="+as)
	return cmd
}

var names atomic.Int32

// newName returns a name that nobody else has, and checks at the end that nothing
// of it is left.
func newName(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("lbt%d-%d", os.Getpid(), names.Add(1))
	t.Cleanup(func() {
		namespaces, err := filepath.Glob(filepath.Join(devices.NamespaceDir, name+"-*"))
		require.NoError(t, err)
		require.Empty(t, namespaces, "namespaces")
		require.NoDirExists(t, filepath.Join(cluster.DefaultDir, name))
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		require.NoError(t, err)
		for line := range strings.Lines(string(mounts)) {
			require.NotContains(t, line, "/"+name+"/", "mounts")
			require.NotContains(t, line, "/"+name+"-", "mounts")
		}
	})
	return name
}

// isThere tells whether a namespace exists.
func isThere(netns string) bool {
	return unix.Access(filepath.Join(devices.NamespaceDir, netns), unix.F_OK) == nil
}
