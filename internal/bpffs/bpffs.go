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

// Check returns an error that is ErrNone unless dir, or the nearest folder
// above it that exists, is on a bpf filesystem.
func Check(dir string) error {
	at, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("folder for pins %s: %w", dir, err)
	}
	for {
		is, err := Is(at)
		if errors.Is(err, os.ErrNotExist) && at != filepath.Dir(at) {
			at = filepath.Dir(at)
			continue
		}
		if err != nil {
			return err
		}
		if !is {
			return fmt.Errorf("folder for pins %s: %s is %w: mount one there or choose a folder below /sys/fs/bpf", dir, at, ErrNone)
		}
		return nil
	}
}
