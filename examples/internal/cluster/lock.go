// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// lock makes the folder dir and holds a file in it for the life of the process,
// so that a cluster that was killed can be told from one that is up. A taken one
// is os.ErrExist. release removes the folder, and [DefaultDir] with the last
// cluster in it.
func lock(dir string) (release func() error, err error) {
	path := filepath.Join(dir, "lock")
	for {
		if err := os.MkdirAll(dir, 0o755); errors.Is(err, os.ErrNotExist) {
			continue // another cluster has just removed the folder above
		} else if err != nil {
			return nil, err
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, os.ErrNotExist) {
			continue // its owner has just removed the folder
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = os.ErrExist
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !isAt(f, path) {
			f.Close() // its owner has removed it between our two steps
			continue
		}
		return func() error {
			err := errors.Join(os.Remove(path), f.Close(), removeEmpty(dir))
			if filepath.Dir(dir) == DefaultDir {
				err = errors.Join(err, removeEmpty(DefaultDir))
			}
			return err
		}, nil
	}
}

func isAt(f *os.File, path string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(held, there)
}

// removeEmpty removes a folder unless something is in it: another cluster may
// have moved in already.
func removeEmpty(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return fmt.Errorf("remove folder %s: %w", dir, err)
}
