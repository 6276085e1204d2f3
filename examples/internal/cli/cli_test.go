// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/unprivileged"
)

// as calls fn on a thread of a user with nothing but some rights. The thread
// ends with it.
func as(t *testing.T, uid int, rights []Right, fn func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		for _, r := range rights {
			caps[r/32].Effective |= 1 << (r % 32)
			caps[r/32].Permitted |= 1 << (r % 32)
		}
		err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
		if err == nil {
			// Not that of the library, which changes the user of all threads.
			if _, _, errno := unix.RawSyscall(unix.SYS_SETUID, uintptr(uid), 0, 0); errno != 0 {
				err = errno
			}
		}
		if err == nil {
			err = unix.Capset(&head, &caps[0])
		}
		if err != nil {
			done <- fmt.Errorf("become user %d: %w", uid, err)
			return
		}
		done <- fn()
	}()
	return <-done
}

func TestNeed(t *testing.T) {
	t.Parallel()
	all := []Right{NetAdmin, SysAdmin, NetRaw}
	need := func() error { return Need("to do things", all...) }
	require.NoError(t, need())
	require.NoError(t, as(t, 0, all, need))
	require.NoError(t, as(t, 65534, append(all[:3:3], dacOverride), need))
	for want, who := range map[string]struct {
		uid    int
		rights []Right
	}{
		"this needs root, to do things: run it with sudo":                                                                      {65534, nil},
		"without root this needs CAP_DAC_OVERRIDE (for files of root) too: add it, or run it with sudo":                        {65534, all},
		"without root this needs CAP_NET_RAW (to ping), CAP_DAC_OVERRIDE (for files of root) too: add it, or run it with sudo": {65534, all[:2]},
		"root is without CAP_NET_RAW (to ping) here, as in some containers":                                                    {0, all[:2]},
		"root is without CAP_NET_ADMIN (for devices), CAP_SYS_ADMIN (for namespaces and BPF) here, as in some containers":      {0, all[2:]},
	} {
		err := as(t, who.uid, who.rights, need)
		require.EqualError(t, err, want)
		require.ErrorIs(t, err, os.ErrPermission)
	}
	require.EqualError(t, unprivileged.Do(func() error { return Need("", NetBindService) }),
		"root is without CAP_NET_BIND_SERVICE (for port 53) here, as in some containers")
}

// An interruption is not all there is to say if something could not be taken away.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	require.True(t, Interrupted(fmt.Errorf("start: %w", context.Canceled)))
	require.False(t, Interrupted(errors.Join(context.Canceled, errors.New("it stays"))))
	require.False(t, Interrupted(errors.New("other")))
	require.False(t, Interrupted(nil))
	require.True(t, Interrupted(fmt.Errorf("start: %w", errors.Join(context.Canceled, nil))))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:9")
	require.True(t, Interrupted(err), "%v", err)
}

func TestIsTerminal(t *testing.T) {
	t.Parallel()
	require.False(t, IsTerminal(new(bytes.Buffer)))
	null, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
	require.NoError(t, err)
	defer null.Close()
	require.False(t, IsTerminal(null))
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	require.NoError(t, err)
	defer terminal.Close()
	require.True(t, IsTerminal(terminal))
}
