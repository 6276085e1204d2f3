// SPDX-License-Identifier: Apache-2.0

// Package cgroup2 shows the hierarchy of control groups, version 2, where the
// caller wants it.
package cgroup2

import (
	"bufio"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount shows the hierarchy in the folder, which must be there. One that is
// mounted below /sys is bound: a new mount would set the options of all, such as
// nsdelegate (kernel/cgroup/cgroup.c, cgroup_get_tree). The caller unmounts.
func Mount(dir string) error {
	var err error
	if there := find(); there != "" {
		err = unix.Mount(there, dir, "", unix.MS_BIND, "")
	} else {
		err = unix.Mount("cgroup2", dir, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
	if err != nil {
		return err
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return errors.Join(err, unix.Unmount(dir, unix.UMOUNT_NOFOLLOW))
	}
	return nil
}

// find returns where the whole hierarchy is mounted, or "".
func find() string {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// proc_pid_mountinfo(5): id, parent, device, root, place, options, ... - type
		mount, kind, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(mount)
		if len(fields) < 6 || fields[3] != "/" || !strings.HasPrefix(kind, "cgroup2 ") || strings.Contains(fields[4], `\`) {
			continue
		}
		if strings.HasPrefix(fields[4], "/sys/") { // those of clusters and tests come and go
			return fields[4]
		}
	}
	return ""
}
