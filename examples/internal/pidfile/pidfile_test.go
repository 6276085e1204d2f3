// SPDX-License-Identifier: Apache-2.0

package pidfile

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	require.Zero(t, Read(f))
	_, err = f.WriteString("12345678901234567890 and more")
	require.NoError(t, err)
	require.Zero(t, Read(f), "no number")
	require.NoError(t, Write(f))
	require.Equal(t, os.Getpid(), Read(f))
	require.True(t, IsAt(f, path))
	require.NoError(t, os.Remove(path))
	require.False(t, IsAt(f, path))
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.False(t, IsAt(f, path), "another one")
	require.NoError(t, f.Close())
	require.ErrorContains(t, Write(f), "write the number of this process")
	require.False(t, IsAt(f, path))
}
