// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	oneService  = `[{"name": "a", "frontends": [{"address": "203.0.113.1:80"}], "backends": []}]`
	sameLength  = `[{"name": "b", "frontends": [{"address": "203.0.113.1:80"}], "backends": []}]`
	halfService = `[{"name": "a", "frontends": [{"addr`
)

func TestWatch(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "services.json")
	write := func(text string) { require.NoError(t, os.WriteFile(path, []byte(text), 0o600)) }
	w := &watched{path: path}
	_, err := w.first()
	require.ErrorIs(t, err, os.ErrNotExist)
	write(oneService)
	all, err := w.first()
	require.NoError(t, err)
	require.Equal(t, "a", all[0].Name)

	nothing := func(why string) {
		t.Helper()
		_, isNew, err := w.look()
		require.NoError(t, err, why)
		require.False(t, isNew, why)
	}
	name := func(want, why string) {
		t.Helper()
		all, isNew, err := w.look()
		require.NoError(t, err, why)
		require.True(t, isNew, why)
		require.Equal(t, want, all[0].Name, why)
		nothing(why)
	}
	wrong := func(want, why string) {
		t.Helper()
		nothing("it may be about to be written: " + why)
		_, isNew, err := w.look()
		require.True(t, isNew, why)
		require.ErrorContains(t, err, want, why)
		nothing(why)
	}
	nothing("it has been read")
	write(oneService)
	nothing("the same was written")

	// The same size at the same time, in the same place.
	st, err := os.Stat(path)
	require.NoError(t, err)
	write(sameLength)
	require.NoError(t, os.Chtimes(path, time.Time{}, st.ModTime()))
	name("b", "in place")

	require.NoError(t, os.WriteFile(path+"~", []byte(oneService), 0o600))
	require.NoError(t, os.Rename(path+"~", path))
	name("a", "by renaming another")

	// An editor takes it away, and then writes another one, bit by bit.
	require.NoError(t, os.Remove(path))
	nothing("it is away for a moment")
	write("")
	nothing("it is empty for a moment")
	write(halfService)
	nothing("it is half there")
	write(sameLength)
	name("b", "it is there")

	write(halfService)
	wrong("line 1: it is no JSON", "it stays as it is")
	write(sameLength)
	name("b", "as it was before")
	require.NoError(t, os.Remove(path))
	wrong("no such file", "it stays away")
	require.NoError(t, os.Mkdir(path, 0o700))
	wrong("is no file", "a folder")
}

// A pipe that nobody writes to must not hold us up.
func TestWatchAPipe(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pipe")
	require.NoError(t, unix.Mkfifo(path, 0o600))
	_, err := (&watched{path: path}).first()
	require.ErrorContains(t, err, "is no file")
}
