// SPDX-License-Identifier: Apache-2.0

package netnstest_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// asLeaver makes the test binary one whose tests make things on the machine,
// and "leave" or "remove" them. Its namespaces are its own, but for the one of
// process numbers in "leave beside".
const asLeaver = "NETNSTEST_AS_LEAVER"

type tests func() int

func (t tests) Run() int { return t() }

func leave(what string) int {
	err := errors.Join(
		os.MkdirAll(devices.NamespaceDir, 0o755),
		unix.Mount("tmpfs", devices.NamespaceDir, "tmpfs", 0, ""))
	if !strings.HasSuffix(what, "beside") {
		err = errors.Join(err, unix.Mount("proc", "/proc", "proc", 0, ""))
	}
	if err != nil {
		fmt.Println(err)
		return 2
	}
	return netnstest.Main(tests(func() int {
		if err := makeThings(what == "remove"); err != nil {
			fmt.Println(err)
			return 2
		}
		return 0
	}))
}

// makeThings is two tests that overlap. The second begins when the link of the
// first is there and ends after it, so no lab sees a difference.
func makeThings(remove bool) error {
	one := new(fakeTB)
	netnstest.NewLab(one)
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "stray0"}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	two := new(fakeTB)
	netnstest.NewLab(two)
	var back []func() error
	for _, name := range []string{"forgotten", fmt.Sprintf("forgotten-%d", os.Getpid())} {
		ns, err := devices.NewNamed(name)
		if err != nil {
			return err
		}
		dir := filepath.Join(os.Getenv("TMPDIR"), name)
		err = errors.Join(ns.Close(), os.Mkdir(dir, 0o700), unix.Mount("bpffs", dir, "bpf", 0, ""))
		if err != nil {
			return err
		}
		back = append(back, func() error {
			return errors.Join(devices.RemoveNamed(name), unix.Unmount(dir, 0), os.Remove(dir))
		})
	}
	one.end()
	if remove {
		back = append(back, func() error { return netlink.LinkDel(bridge) })
		for _, fn := range back {
			if err := fn(); err != nil {
				return err
			}
		}
	}
	two.end()
	if said := one.said() + two.said(); said != "" {
		return errors.New(said)
	}
	return nil
}

func TestMainFindsWhatIsLeftOnTheMachine(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	require.NoError(t, err)
	for what, row := range map[string]struct {
		code  int
		clone uintptr
		left  []string // PID is the number of the process, DIR its folder
	}{
		"remove": {0, unix.CLONE_NEWPID, nil},
		"leave": {1, unix.CLONE_NEWPID, []string{
			"link stray0 (index 2) in the namespace of the test process",
			"the name of a namespace /run/netns/forgotten", "the name of a namespace /run/netns/forgotten-PID",
			"a BPF filesystem on DIR/forgotten", "a BPF filesystem on DIR/forgotten-PID",
		}},
		// This process is a test that runs beside the other one, so what does not
		// say whose it is may be of this one.
		"leave beside": {1, 0, []string{
			"link stray0 (index 2) in the namespace of the test process",
			"the name of a namespace /run/netns/forgotten-PID",
			"a BPF filesystem on DIR/forgotten-PID",
		}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), asLeaver+"="+what, "TMPDIR="+dir)
			// Mounts go with the namespace, which Unshareflags makes private.
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | row.clone, Unshareflags: unix.CLONE_NEWNS}
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			err := cmd.Run()
			assert.Equal(t, row.code, cmd.ProcessState.ExitCode(), "%v", err)
			pid := fmt.Sprint(cmd.Process.Pid)
			if row.clone != 0 {
				pid = "1" // in a namespace of process numbers of its own
			}
			var want []string
			for _, left := range row.left {
				want = append(want, "netnstest: left behind by the tests of this package: "+strings.NewReplacer("PID", pid, "DIR", dir).Replace(left))
			}
			assert.ElementsMatch(t, want, lines(out.String()))
		})
	}
}

func lines(text string) (all []string) {
	for line := range strings.Lines(text) {
		all = append(all, strings.TrimSuffix(line, "\n"))
	}
	return all
}
