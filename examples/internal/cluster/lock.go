// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/examples/internal/pidfile"
)

// heldError says that a cluster of that name is up. It is os.ErrExist.
type heldError struct {
	name string
	pid  int // of its process; 0: it has not said yet
}

func (e *heldError) Error() string {
	by := ""
	if e.pid != 0 {
		by = fmt.Sprintf(" (process %d)", e.pid)
	}
	return fmt.Sprintf("a cluster named %s is up%s: end it or choose another name", e.name, by)
}

func (e *heldError) Is(target error) bool { return target == os.ErrExist }

// lock makes the folder dir and holds a file in it for the life of the process,
// so that a cluster that was killed can be told from one that is up. The file
// has the number of the process. A taken one is a [*heldError]. release removes
// the folder, and [DefaultDir] with the last cluster in it.
func lock(dir string) (release func() error, err error) {
	path := filepath.Join(dir, "lock")
	for {
		if err := os.MkdirAll(dir, 0o755); errors.Is(err, os.ErrNotExist) {
			continue // another cluster has just removed the folder above
		} else if err != nil {
			return nil, err
		}
		if err := own(filepath.Dir(dir)); err != nil {
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
			defer f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, &heldError{pid: pidfile.Read(f)}
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !pidfile.IsAt(f, path) {
			f.Close() // its owner has removed it between our two steps
			continue
		}
		if err := pidfile.Write(f); err != nil {
			return nil, errors.Join(err, os.Remove(path), f.Close())
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

// own gives the folder of all clusters back to root, if one who is not root has
// made it: whoever owns it can put another folder into the place of one of ours.
func own(dir string) error {
	var st unix.Stat_t
	if dir != DefaultDir || os.Geteuid() != 0 || unix.Stat(dir, &st) != nil || st.Uid == 0 {
		return nil
	}
	if err := os.Chown(dir, 0, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s belongs to user %d, and not to root: %w", dir, st.Uid, err)
	}
	return nil
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
