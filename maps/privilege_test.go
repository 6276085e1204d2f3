// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/unprivileged"
)

// Who has no right is told what is needed, and nothing is left.
func TestNoPrivilege(t *testing.T) {
	t.Parallel()
	unprivileged.Run(t, func() {
		dir, empty := mountedFS(t), mountedFS(t)
		newEndpoints(t, EndpointsConfig{Config: Config{Pins: dir}})
		newMetrics(t, Config{Pins: dir})
		was := pinsIn(t, dir)
		tries := map[string]func() error{
			"new":            func() error { _, err := New(trieSpec("t", 4), Config{}); return err },
			"new pinned":     func() error { _, err := New(trieSpec("t", 4), Config{Pins: empty + "/a/b"}); return err },
			"open endpoints": func() error { _, err := OpenEndpoints(dir); return err },
			"open metrics":   func() error { _, err := OpenMetrics(dir); return err },
			"mount":          func() error { return MountBPFFS(t.TempDir()) },
			"unmount":        func() error { return UnmountBPFFS(empty) },
		}
		// Some kernels let everybody make hashes and arrays.
		if everybody, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled"); err != nil || strings.TrimSpace(string(everybody)) != "0" {
			tries["endpoints"] = func() error { _, err := NewEndpoints(EndpointsConfig{}); return err }
			tries["endpoints pinned"] = func() error { _, err := NewEndpoints(EndpointsConfig{Config: Config{Pins: empty}}); return err }
			tries["endpoints adopted"] = func() error { _, err := NewEndpoints(EndpointsConfig{Config: Config{Pins: dir}}); return err }
			tries["metrics"] = func() error { _, err := NewMetrics(Config{}); return err }
			tries["metrics pinned"] = func() error { _, err := NewMetrics(Config{Pins: empty}); return err }
		}
		for name, try := range tries {
			err := unprivileged.Do(try)
			require.ErrorIs(t, err, os.ErrPermission, name)
			assert.ErrorContains(t, err, "root or CAP_BPF and CAP_SYS_ADMIN are needed", name)
		}
		assert.Empty(t, pinsIn(t, empty))
		assert.Equal(t, was, pinsIn(t, dir))
	})
}
