// SPDX-License-Identifier: Apache-2.0

package main

import (
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

	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/programs"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

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
	require.NoError(t, run(t.Context(), nil, &out, io.Discard))
	require.Equal(t, [][]string{
		{"NODE", "ENDPOINT", "ADDRESSES", "UDP", "TCP"},
		{"node1", "1", "10.244.1.10", "fd00:244:1::10", "2", "2"},
		{"node1", "2", "10.244.1.11", "fd00:244:1::11", "4", "2"},
		{"node2", "1", "10.244.2.10", "fd00:244:2::10", "6", "2"},
		{"node2", "2", "10.244.2.11", "fd00:244:2::11", "8", "2"},
	}, rows(out.String()))

	left, err := filepath.Glob("/run/netns/custom-*")
	require.NoError(t, err)
	assert.Empty(t, left, "namespaces")
	assert.NoDirExists(t, "/run/datapath/custom")
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
		"no such flag":          {[]string{"-nodes", "2"}, nil, "flag provided but not defined"},
		"help":                  {[]string{"-h"}, flag.ErrHelp, ""},
		"an argument":           {[]string{"dp"}, nil, `argument "dp"`},
		"a path":                {[]string{"-cluster", "a/b"}, nil, "one path element"},
		"no such cluster":       {[]string{"-cluster", "custom-absent"}, os.ErrNotExist, "is it up?"},
		"a namespace that left": {[]string{"-cluster", filepath.Base(dir)}, os.ErrNotExist, filepath.Base(dir) + "-node1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			err := run(t.Context(), test.args, &out, io.Discard)
			skipWithoutClang(t, err)
			require.Error(t, err)
			if test.is != nil {
				require.ErrorIs(t, err, test.is)
			}
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
