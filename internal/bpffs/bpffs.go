// SPDX-License-Identifier: Apache-2.0

// Package bpffs knows whether a folder can hold pins.
package bpffs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrNone is the error for a folder that is on another filesystem.
var ErrNone = errors.New("not on a bpf filesystem")

// Is tells whether dir is on a bpf filesystem. An absent dir answers
// os.ErrNotExist.
func Is(dir string) (bool, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("ask for the filesystem of %s: %w", dir, err)
		}
		return uint32(st.Type) == unix.BPF_FS_MAGIC, nil
	}
}

// IsFree reports whether there is nothing yet at the pin name of the folder
// pins, so that a constructor that fails may take it away. True if pins is "".
func IsFree(pins, name string) bool {
	if pins == "" {
		return true
	}
	_, err := os.Lstat(filepath.Join(pins, name))
	return errors.Is(err, os.ErrNotExist)
}

// Check returns an error that is ErrNone unless dir, or the nearest folder
// above it that exists, is on a bpf filesystem.
func Check(dir string) error {
	_, err := Missing(dir)
	return err
}

// Missing is Check that also tells which folders are to be made for dir to
// exist, dir itself first.
func Missing(dir string) ([]string, error) {
	at, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("folder for pins %s: %w", dir, err)
	}
	var missing []string
	for {
		is, err := Is(at)
		if errors.Is(err, os.ErrNotExist) && at != filepath.Dir(at) {
			missing = append(missing, at)
			at = filepath.Dir(at)
			continue
		}
		if err != nil {
			return nil, err
		}
		if !is {
			return nil, fmt.Errorf("folder for pins %s: %s is %w: mount one there (maps.MountBPFFS) or choose a folder below /sys/fs/bpf", dir, at, ErrNone)
		}
		return missing, nil
	}
}

// Ensure makes dir on an existing bpf filesystem. The returned function takes
// away the folders it has made, as far as they are empty.
func Ensure(dir string) (takeBack func() error, err error) {
	missing, err := Missing(dir)
	if err != nil {
		return nil, err
	}
	var made []string
	takeBack = func() error {
		for i := len(made) - 1; i >= 0; i-- {
			err := os.Remove(made[i])
			if errors.Is(err, unix.ENOTEMPTY) {
				return nil // others have moved in
			}
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("take back folder %s: %w", made[i], err)
			}
		}
		return nil
	}
	for i := len(missing) - 1; i >= 0; i-- {
		err := os.Mkdir(missing[i], 0o700)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make folder for pins %s (a bpf filesystem allows no dot in a name): %w", missing[i], err), takeBack())
		}
		made = append(made, missing[i])
	}
	return takeBack, nil
}
