// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/unprivileged"
	dpmaps "github.com/godatapath/datapath/maps"
)

// pinned lists the pins in dir.
func pinned(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".debug" { // the kernel's own
			names = append(names, e.Name())
		}
	}
	return names
}

func TestMigrateToAnotherSize(t *testing.T) {
	t.Parallel()
	dir := pins(t)
	with := func(size int, how dpmaps.Mismatch) Config {
		return Config{Config: dpmaps.Config{Pins: dir, OnMismatch: how}, Max: size}
	}
	first := newRig(t, with(16, dpmaps.Fail))
	all := []Peer{peer("0.0.0.0/0", "172.16.0.1"), peer("10.0.0.0/8", "172.16.0.2"), peer("10.1.2.3/32", "172.16.0.3"), peer("fd00::/16", "172.16.0.4")}
	for i := range 12 {
		all = append(all, Peer{
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), 24), Node: netip.AddrFrom4([4]byte{172, 16, 1, byte(i)}), VNI: 300,
		})
	}
	for _, p := range all {
		require.NoError(t, first.Set(p))
	}
	larger := newRig(t, with(32, dpmaps.Migrate))
	larger.check(all...)
	more := peer("10.2.0.0/16", "172.16.0.9")
	require.NoError(t, larger.Set(more), "there is room now")
	first.check(all...) // who holds the old table keeps it

	_, err := New(with(16, dpmaps.Migrate))
	require.ErrorIs(t, err, unix.E2BIG)
	require.ErrorContains(t, err, "make table peers: migrate the entries of "+filepath.Join(dir, peersTable))
	again := newRig(t, with(32, dpmaps.Fail)) // all is as it was
	again.check(append(all, more)...)
	require.NoError(t, again.Delete(more.Prefix))
	smaller := newRig(t, with(16, dpmaps.Migrate))
	smaller.check(all...)
	assert.Equal(t, []string{peersTable}, pinned(t, dir))
	require.NoError(t, smaller.Remove())
	assert.Empty(t, pinned(t, dir))
}

// Tools and New alike refuse a table of another version, and write nothing.
func TestAnotherSchema(t *testing.T) {
	t.Parallel()
	dir := pins(t)
	require.NoError(t, newRig(t, Config{Config: dpmaps.Config{Pins: dir}, Max: 8}).Remove())
	spec, err := tableSpec()
	require.NoError(t, err)
	spec.Map.MaxEntries, spec.Schema = 8, peersSchema+1
	other, err := dpmaps.New(spec, dpmaps.Config{Pins: dir})
	require.NoError(t, err)
	defer func() { require.NoError(t, other.Remove()) }()
	want := &dpmaps.IncompatibleError{Table: peersTable, Path: filepath.Join(dir, peersTable), Differences: []dpmaps.Difference{
		{Field: "schema", Have: fmt.Sprint(peersSchema + 1), Want: fmt.Sprint(peersSchema)},
	}}
	var typed *dpmaps.IncompatibleError
	_, err = Open(dir)
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, want, typed)
	for _, how := range []dpmaps.Mismatch{dpmaps.Fail, dpmaps.Migrate} {
		_, err = New(Config{Config: dpmaps.Config{Pins: dir, OnMismatch: how}, Max: 8})
		require.ErrorAs(t, err, &typed)
		assert.Equal(t, want, typed)
	}
}

// Who has no right is told what is needed, and nothing is left.
func TestNoPrivilege(t *testing.T) {
	t.Parallel()
	unprivileged.Run(t, func() {
		dir, empty := pins(t), pins(t)
		newRig(t, Config{Config: dpmaps.Config{Pins: dir}})
		for name, try := range map[string]func() error{
			"new":     func() error { _, err := New(Config{}); return err },
			"pinned":  func() error { _, err := New(Config{Config: dpmaps.Config{Pins: empty}}); return err },
			"adopted": func() error { _, err := New(Config{Config: dpmaps.Config{Pins: dir}}); return err },
			"open":    func() error { _, err := Open(dir); return err },
		} {
			err := unprivileged.Do(try)
			require.ErrorIs(t, err, os.ErrPermission, name)
			assert.ErrorContains(t, err, "root or CAP_BPF", name)
		}
		assert.Empty(t, pinned(t, empty))
		assert.Equal(t, []string{peersTable}, pinned(t, dir))
	})
}
