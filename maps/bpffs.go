// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpffs"
)

// IsBPFFS tells whether dir is on a bpf filesystem, so that tables can be
// pinned there. An absent dir answers errors.Is(err, os.ErrNotExist).
func IsBPFFS(dir string) (bool, error) {
	is, err := bpffs.Is(dir)
	return is, explainPermission(err)
}

// MountBPFFS makes the folder dir, if it is absent, and mounts a bpf filesystem
// on it that only root can enter. Nil if dir is on a bpf filesystem already.
// Mounts below dir do not spread to other mount namespaces. The filesystem is
// new and empty: it shares no pins with /sys/fs/bpf. It stays until
// [UnmountBPFFS], also when the process ends.
func MountBPFFS(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make folder %s for a bpf filesystem: %w", dir, explainPermission(err))
	}
	switch is, err := IsBPFFS(dir); {
	case err != nil:
		return err
	case is:
		return nil
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RELATIME)
	if err := unix.Mount("bpffs", dir, "bpf", flags, "mode=0700"); err != nil {
		return fmt.Errorf("mount a bpf filesystem on %s: %w", dir, explainPermission(err))
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return errors.Join(
			fmt.Errorf("make the mount %s private: %w", dir, explainPermission(err)),
			unix.Unmount(dir, unix.UMOUNT_NOFOLLOW))
	}
	return nil
}

// UnmountBPFFS takes the bpf filesystem that is mounted on dir away, with all
// pins in it; the folder stays. Nil if dir is absent or not on a bpf
// filesystem. A folder inside of one is an error.
func UnmountBPFFS(dir string) error {
	switch is, err := IsBPFFS(dir); {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !is:
		return nil
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return fmt.Errorf("unmount %s: it is a folder inside a bpf filesystem, not one: %w", dir, unix.EINVAL)
	}
	if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount the bpf filesystem on %s: %w", dir, explainPermission(err))
	}
	return nil
}

// lockFolder keeps other processes, and other goroutines, from changing our
// pins in dir. The lock ends with the process. Readers need none: every change
// of a pin is one step.
func lockFolder(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock the folder for pins: %w", explainPermission(err))
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock the folder for pins %s: %w", dir, err)
		}
		return func() { f.Close() }, nil
	}
}
