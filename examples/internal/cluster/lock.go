// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// lock holds a file for the life of the process, so that a cluster that was
// killed can be told from one that is up. A taken one is os.ErrExist.
func lock(path string) (release func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = os.ErrExist
		}
		return nil, err
	}
	return func() error { return errors.Join(os.Remove(path), f.Close()) }, nil
}
