// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/internal/unprivileged"
	"github.com/godatapath/datapath/programs"
)

// asProgram makes the test binary the program itself.
const asProgram = "CUSTOM_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(netnstest.Main(m))
}

// needClang skips the test on a machine without a compiler. It returns its name.
func needClang(t *testing.T) string {
	t.Helper()
	_, err := programs.Compile(t.Context(), programs.CompileConfig{Text: "int x;"})
	skipWithoutClang(t, err)
	require.NoError(t, err)
	if _, err := exec.LookPath("clang-19"); err != nil {
		return "clang"
	}
	return "clang-19"
}

// skipWithoutClang skips the test if err says that this machine has no compiler.
func skipWithoutClang(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, ebpf.ErrNotSupported) {
		t.Skipf("this machine has no clang: %v", err)
	}
}

// Not parallel: PATH is the process's.
func TestWithoutClang(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	var out strings.Builder
	err := run(t.Context(), nil, &out, io.Discard)
	require.ErrorIs(t, err, ebpf.ErrNotSupported)
	require.ErrorContains(t, err, "install the Debian package clang-19")
	require.Empty(t, out.String())
}

func TestOwnClusterCountsExactly(t *testing.T) {
	t.Parallel()
	needClang(t)
	var out strings.Builder
	name := fmt.Sprintf("custown%d", os.Getpid())
	require.NoError(t, run(t.Context(), []string{"-name", name}, &out, io.Discard))
	require.Equal(t, [][]string{
		{"NODE", "ENDPOINT", "ADDRESSES", "DNS/UDP", "DNS/TCP"},
		{"node1", "1", "10.244.1.10", "fd00:244:1::10", "2", "2"},
		{"node1", "2", "10.244.1.11", "fd00:244:1::11", "4", "2"},
		{"node2", "1", "10.244.2.10", "fd00:244:2::10", "6", "2"},
		{"node2", "2", "10.244.2.11", "fd00:244:2::11", "8", "2"},
	}, rows(out.String()))

	nothingIsLeft(t, name)
}

// nothingIsLeft is of a cluster of that name.
func nothingIsLeft(t *testing.T, name string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(devices.NamespaceDir, name+"-*"))
	require.NoError(t, err)
	assert.Empty(t, left, "namespaces")
	assert.NoDirExists(t, filepath.Join(cluster.DefaultDir, name))
}

func TestCommand(t *testing.T) {
	t.Parallel()
	var out, messages strings.Builder
	require.Zero(t, command(t.Context(), []string{"-h"}, &out, &messages))
	require.Empty(t, messages.String())
	require.NotContains(t, out.String(), "%!")
	for _, flag := range []string{"-cluster", "-for", "-name"} {
		require.Contains(t, out.String(), "\n  "+flag+" ")
	}

	out.Reset()
	require.Equal(t, 2, command(t.Context(), []string{"-nodes", "2"}, &out, &messages))
	require.Equal(t, "custom: flag provided but not defined: -nodes (see -h)\n", messages.String())
	require.Empty(t, out.String())

	messages.Reset()
	require.NoError(t, unprivileged.Do(func() error {
		require.Equal(t, 1, command(t.Context(), []string{"-cluster", "absent"}, &out, &messages))
		return nil
	}))
	require.Equal(t, "custom: root is without CAP_SYS_ADMIN (for namespaces and BPF) here, as in some containers\n", messages.String())
}

// Whatever ends it while it builds or asks, nothing is left.
func TestSignals(t *testing.T) {
	t.Parallel()
	needClang(t)
	exe, err := os.Executable()
	require.NoError(t, err)
	for i, at := range []string{"building underlay", "building node 2", "asking"} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			name := fmt.Sprintf("custsig%d-%d", os.Getpid(), i)
			cmd := exec.Command(exe, "-name", name)
			cmd.Env = append(os.Environ(), asProgram+"=1")
			messages, err := cmd.StderrPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			lines := bufio.NewScanner(messages)
			last := ""
			for lines.Scan() {
				if last = lines.Text(); strings.HasPrefix(last, at) {
					require.NoError(t, cmd.Process.Signal([]os.Signal{unix.SIGHUP, unix.SIGTERM, unix.SIGPIPE}[i]))
				}
			}
			require.NoError(t, lines.Err())
			if err := cmd.Wait(); err != nil || at != "asking" { // which is soon over
				require.Equal(t, 1, cmd.ProcessState.ExitCode(), "%v", err)
				require.Equal(t, "custom: interrupted; everything is taken away again", last)
			}
			nothingIsLeft(t, name)
		})
	}
}

// rows splits the output, without the interface numbers, which the kernel chooses.
func rows(out string) [][]string {
	var all [][]string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		all = append(all, append(f[:2:2], f[3:]...))
	}
	return all
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	dir := fmt.Sprintf("/run/datapath/custom-empty-%d", os.Getpid())
	require.NoError(t, os.MkdirAll(dir+"/bpf/node1", 0o755))
	t.Cleanup(func() {
		assert.NoError(t, os.RemoveAll(dir))
		_ = os.Remove(filepath.Dir(dir)) // if it is ours alone
	})
	for name, test := range map[string]struct {
		args []string
		is   error
		text string
	}{
		"no such flag":          {[]string{"-nodes", "2"}, errUsage, "flag provided but not defined"},
		"help":                  {[]string{"-h"}, flag.ErrHelp, ""},
		"an argument":           {[]string{"dp"}, errUsage, `argument "dp"`},
		"a path":                {[]string{"-cluster", "a/b"}, errUsage, "one path element"},
		"no path":               {[]string{"-cluster="}, errUsage, "one path element"},
		"a time that is over":   {[]string{"-cluster", "dp", "-for", "-1s"}, errUsage, "-for -1s: want more than 0"},
		"no time":               {[]string{"-cluster", "dp", "-for", "0"}, errUsage, "-for 0s: want more than 0"},
		"a time for nothing":    {[]string{"-for", "1s"}, errUsage, "name it with -cluster"},
		"a name for nothing":    {[]string{"-cluster", "dp", "-name", "x"}, errUsage, "-name is for a cluster that is built"},
		"a bad name":            {[]string{"-name", "a/b"}, errUsage, `name "a/b": want letters`},
		"no name":               {[]string{"-name="}, errUsage, "-name: want a name"},
		"no such cluster":       {[]string{"-cluster", "custom-absent"}, os.ErrNotExist, "is it up?"},
		"a namespace that left": {[]string{"-cluster", filepath.Base(dir)}, os.ErrNotExist, filepath.Base(dir) + "-node1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			err := run(t.Context(), test.args, &out, io.Discard)
			skipWithoutClang(t, err)
			require.Error(t, err)
			require.ErrorIs(t, err, test.is)
			require.ErrorContains(t, err, test.text)
			require.Empty(t, out.String())
		})
	}
}

func TestCancelledBeforeItBegins(t *testing.T) {
	t.Parallel()
	needClang(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, run(ctx, nil, io.Discard, io.Discard), context.Canceled)
}
