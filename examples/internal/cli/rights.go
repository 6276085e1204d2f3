// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Right is a capability of the kernel, capabilities(7).
type Right uint

// The rights that some example needs.
const (
	NetAdmin       Right = unix.CAP_NET_ADMIN
	SysAdmin       Right = unix.CAP_SYS_ADMIN // CAP_BPF and CAP_PERFMON are in it
	NetRaw         Right = unix.CAP_NET_RAW
	NetBindService Right = unix.CAP_NET_BIND_SERVICE
	dacOverride    Right = unix.CAP_DAC_OVERRIDE
)

// String is the name of the right, and what it is for.
func (r Right) String() string {
	switch r {
	case NetAdmin:
		return "CAP_NET_ADMIN (for devices)"
	case SysAdmin:
		return "CAP_SYS_ADMIN (for namespaces and BPF)"
	case NetRaw:
		return "CAP_NET_RAW (to ping)"
	case NetBindService:
		return "CAP_NET_BIND_SERVICE (for port 53)"
	case dacOverride:
		return "CAP_DAC_OVERRIDE (for files of root)"
	}
	return fmt.Sprintf("Right(%d)", uint(r))
}

// Need tells in one line what of the rights the calling thread lacks, or nil.
// Who is not root needs that to the files of root beside them, for all is in
// /run. The error is os.ErrPermission; purpose says what a program of root's is
// run for: "to read pinned tables".
func Need(purpose string, rights ...Right) error {
	isRoot := unix.Geteuid() == 0
	if !isRoot {
		rights = append(rights[:len(rights):len(rights)], dacOverride)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&head, &have[0]); err != nil {
		return fmt.Errorf("read the rights of this process: %w", err)
	}
	var missing []string
	for _, r := range rights {
		if have[r/32].Effective>>(r%32)&1 == 0 {
			missing = append(missing, r.String())
		}
	}
	switch {
	case len(missing) == 0:
		return nil
	case isRoot:
		return needError(fmt.Sprintf("root is without %s here, as in some containers", strings.Join(missing, ", ")))
	case len(missing) == len(rights):
		return needError(fmt.Sprintf("this needs root, %s: run it with sudo", purpose))
	}
	return needError(fmt.Sprintf("without root this needs %s too: add it, or run it with sudo", strings.Join(missing, ", ")))
}

type needError string

func (e needError) Error() string { return string(e) }

func (e needError) Is(target error) bool { return target == os.ErrPermission }
