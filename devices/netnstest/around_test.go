// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestBPFMounts(t *testing.T) {
	t.Parallel()
	assert.Equal(t, []string{"/sys/fs/bpf", "/tmp/a b\\c/bpf", "/run/x"}, bpfMounts(
		`24 27 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw
33 24 0:27 / /sys/fs/bpf rw,nosuid shared:11 - bpf bpf rw,mode=700
34 24 0:28 / /tmp/a\040b\134c/bpf rw - bpf bpffs rw
35 24 0:29 / /run/y rw - bpfilter none rw
36 24 0:29 /folder /run/x rw shared:1 master:2 - bpf - rw
37 24
`))
	assert.Empty(t, bpfMounts(""))
}

func TestHasNumber(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]bool{
		"/run/netns/lab-42-node": true, "/run/netns/ct42": true, "/tmp/42/bpf": true, "42": true,
		"/run/netns/lab-421-node": false, "/run/netns/lab-142": false, "/run/netns/node": false, "": false,
	} {
		assert.Equal(t, want, hasNumber(path, 42), path)
	}
}

// A made-up /proc: 10 is ours, 11 its child and 12 the child of that.
func TestTestBeside(t *testing.T) {
	t.Parallel()
	const test = "/tmp/go-build/b001/devices.test\x00-test.timeout=10m0s\x00"
	for what, row := range map[string]struct {
		more map[int]process
		want bool
	}{
		"nobody":                    {nil, false},
		"a program":                 {map[int]process{20: {1, "/usr/bin/go\x00test\x00./...\x00"}}, false},
		"a kernel thread":           {map[int]process{20: {2, ""}}, false},
		"a test":                    {map[int]process{20: {1, test}}, true},
		"a test without flags":      {map[int]process{20: {1, "./maps.test\x00"}}, true},
		"a test that we started":    {map[int]process{20: {12, test}}, false},
		"the test that started us":  {map[int]process{9: {1, test}}, true},
		"the child of another test": {map[int]process{20: {19, test}, 19: {1, "/bin/sh\x00"}}, true},
		"an orphan":                 {map[int]process{20: {18, test}}, true},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			proc := t.TempDir()
			all := map[int]process{1: {0, "/sbin/init\x00"}, 9: {1, "/usr/bin/go\x00"}, 10: {9, test}, 11: {10, "/bin/sh\x00"}, 12: {11, test}}
			for pid, p := range row.more {
				all[pid] = p
			}
			for pid, p := range all {
				p.write(t, proc, pid)
			}
			require.NoError(t, os.WriteFile(filepath.Join(proc, "1self"), nil, 0o600))
			assert.Equal(t, row.want, testBeside(proc, 10))
		})
	}
}

// process is one of a made-up /proc.
type process struct {
	parent  int
	cmdline string
}

func (p process) write(t *testing.T, proc string, pid int) {
	t.Helper()
	dir := filepath.Join(proc, fmt.Sprint(pid))
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cmdline"), []byte(p.cmdline), 0o600))
	stat := fmt.Sprintf("%d (a (b) c 7) S %d 1 1 0 -1", pid, p.parent)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "stat"), []byte(stat), 0o600))
}

// The real /proc: this process is a test, and its own descent ends at init.
func TestThisProcessIsATest(t *testing.T) {
	t.Parallel()
	self := fmt.Sprint(os.Getpid())
	require.True(t, isTest(filepath.Join("/proc", self)))
	require.True(t, descends("/proc", os.Getpid(), os.Getppid()))
	require.False(t, descends("/proc", os.Getppid(), os.Getpid()))
}
