// SPDX-License-Identifier: Apache-2.0

package cgroup2

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The options of the hierarchy are the machine's, and stay as they are.
func TestMount(t *testing.T) {
	options := func() string {
		b, err := os.ReadFile("/proc/self/mountinfo")
		require.NoError(t, err)
		for line := range strings.Lines(string(b)) {
			mount, kind, _ := strings.Cut(line, " - ")
			if strings.HasPrefix(kind, "cgroup2 ") && strings.Contains(mount, " /sys/") {
				return kind
			}
		}
		return ""
	}
	before := options()
	dir := t.TempDir()
	require.NoError(t, Mount(dir))
	defer func() { require.NoError(t, unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)) }()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	require.Equal(t, int64(unix.CGROUP2_SUPER_MAGIC), int64(st.Type))
	require.FileExists(t, filepath.Join(dir, "cgroup.procs"))
	require.Equal(t, before, options())
	require.Error(t, Mount(filepath.Join(dir, "absent")))
}
