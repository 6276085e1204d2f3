// SPDX-License-Identifier: Apache-2.0

// Package unprivileged is for tests of what happens to those who have no right
// to what they ask for.
//
//	func TestNoPrivilege(t *testing.T) {
//		unprivileged.Run(t, func() {
//			err := unprivileged.Do(func() error { _, err := New(Config{}); return err })
//			require.ErrorIs(t, err, os.ErrPermission)
//		})
//	}
package unprivileged

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// started marks the process that Run starts, in its environment.
const started = "DATAPATH_TEST_UNPRIVILEGED"

// T is a *testing.T of a test that is not a subtest.
type T interface {
	Helper()
	Name() string
	Fatalf(format string, args ...any)
}

// Run calls fn in a process of its own: the test binary is started again for
// this test alone. Libraries find out once what the kernel can do and remember
// it; what they find without rights must not be remembered for other tests.
func Run(t T, fn func()) {
	t.Helper()
	if os.Getenv(started) != "" {
		fn()
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=1m")
	cmd.Env = append(os.Environ(), started+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("the process without rights: %v\n%s", err, out)
	}
}

// Do calls fn on a thread of its own that has no capability at all, and returns
// its error. The user stays root, who owns files and folders like anybody else.
func Do(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&head, &none[0]); err != nil {
			done <- fmt.Errorf("give up all capabilities: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}
