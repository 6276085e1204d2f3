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
const asProgram = "CLUSTER_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if text := os.Getenv(asChild); text != "" {
		os.Exit(childMain(text, os.Stdout, os.Stderr))
	}
	switch os.Getenv(asProgram) {
	case "":
		// With the race detector each of the many children would rest for a second at its end.
		if err := os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0"); err != nil {
			panic(err)
		}
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

var clusters atomic.Int32

// newName returns the name of a cluster that nobody else has, and checks at the
// end that nothing of that name is left.
func newName(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("ct%d-%d", os.Getpid(), clusters.Add(1))
	t.Cleanup(func() { requireNothing(t, name) })
	return name
}

// requireNothing fails if a cluster of that name has left something.
func requireNothing(t *testing.T, name string) {
	t.Helper()
	namespaces, err := filepath.Glob(filepath.Join(devices.NamespaceDir, name+"-*"))
	require.NoError(t, err)
	require.Empty(t, namespaces, "namespaces")
	require.NoDirExists(t, filepath.Join(cluster.DefaultDir, name))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(mounts)) {
		require.NotContains(t, line, "/"+name+"/", "mounts")
		require.NotContains(t, line, "/"+name+"-", "mounts")
		if fields := strings.Fields(line); strings.Contains(line, " - cgroup2 ") {
			require.NoDirExists(t, filepath.Join(fields[4], "datapath-"+name))
		}
	}
}

// isThere tells whether a namespace exists.
func isThere(netns string) bool {
	return unix.Access(filepath.Join(devices.NamespaceDir, netns), unix.F_OK) == nil
}
