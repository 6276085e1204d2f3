// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/examples/internal/cluster"
)

// asNobody makes the test binary the program itself, without root.
const asNobody = "DPCTL_TEST_AS_NOBODY"

func TestMain(m *testing.M) {
	if os.Getenv(asNobody) == "" {
		os.Exit(netnstest.Main(m))
	}
	if err := syscall.Setuid(65534); err != nil {
		panic(err)
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func nobody(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), asNobody+"=1")
	return cmd
}

var clusters atomic.Int32

// start makes a cluster that ends with the test, and returns the folder of its
// nodes' pins too.
func start(t *testing.T, cfg cluster.Config) (*cluster.Cluster, string) {
	t.Helper()
	cfg.Name = fmt.Sprintf("dc%d-%d", os.Getpid(), clusters.Add(1))
	c, err := cluster.Start(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c, cluster.DefaultDir + "/" + cfg.Name + "/bpf"
}

// dpctl runs a command that must succeed and returns what it prints.
func dpctl(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	code := run(args, &out, &errs)
	require.Empty(t, errs.String())
	require.Zero(t, code)
	return out.String()
}

// decode runs a command with -json into value, strictly.
func decode(t *testing.T, value any, args ...string) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(dpctl(t, append([]string{"-json"}, args...)...)))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(value))
	require.False(t, dec.More(), "one document")
}

// fails runs a command that must fail with one line.
func fails(t *testing.T, code int, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	require.Equal(t, code, run(args, &out, &errs), "%s", &out)
	require.Equal(t, 1, strings.Count(errs.String(), "\n"), "one line: %s", &errs)
	line, ok := strings.CutPrefix(errs.String(), "dpctl: ")
	require.True(t, ok)
	return strings.TrimSuffix(line, "\n")
}
