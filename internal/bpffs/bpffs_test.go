// SPDX-License-Identifier: Apache-2.0

package bpffs_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpffs"
)

func TestBPFFS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mount := filepath.Join(dir, "bpf")
	require.NoError(t, os.Mkdir(mount, 0o700))
	require.NoError(t, unix.Mount("bpffs", mount, "bpf", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(mount, 0)) })

	is, err := bpffs.Is(mount)
	require.NoError(t, err)
	assert.True(t, is)
	is, err = bpffs.Is(dir)
	require.NoError(t, err)
	assert.False(t, is)
	_, err = bpffs.Is(filepath.Join(mount, "absent"))
	require.ErrorIs(t, err, os.ErrNotExist)

	require.NoError(t, bpffs.Check(mount))
	require.NoError(t, bpffs.Check(filepath.Join(mount, "not", "there", "yet")))
	for _, bad := range []string{dir, filepath.Join(dir, "not", "there")} {
		err := bpffs.Check(bad)
		require.ErrorIs(t, err, bpffs.ErrNone)
		require.ErrorContains(t, err, bad)
	}
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.ErrorIs(t, bpffs.Check(filepath.Join(file, "below")), unix.ENOTDIR)

	assert.True(t, bpffs.IsFree("", "x"))
	assert.True(t, bpffs.IsFree(dir, "x"))
	assert.True(t, bpffs.IsFree(filepath.Join(dir, "absent"), "x"))
	assert.False(t, bpffs.IsFree(dir, "file"))
}
