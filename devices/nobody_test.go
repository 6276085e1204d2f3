// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// asNobody makes the test binary a program that gives up root and then tries
// what needs it. A thread without rights would not do: the work goes to fresh
// threads, which have those of the process.
const asNobody = "DEVICES_TEST_AS_NOBODY"

// nobodysName is a namespace name that a process tries to take.
func nobodysName(pid int) string { return fmt.Sprintf("devices-test-nobody-%d", pid) }

// needPrivilege is what nobody tries. The namespace of the process has the
// devices other0 and other1.
func needPrivilege(workload Namespace) (all []struct {
	what string
	try  func() error
}) {
	add := func(what string, try func() error) {
		all = append(all, struct {
			what string
			try  func() error
		}{what, try})
	}
	other := func(fn func(Namespace, Link) error) func() error {
		return func() error {
			l, err := FindLink(Namespace{}, "other0")
			if err != nil {
				return err
			}
			return fn(Namespace{}, l)
		}
	}
	add("host pair", func() error { _, err := EnsureHostPair(Namespace{}, HostPair{Addrs: both}); return err })
	add("vxlan", func() error { _, err := EnsureVXLAN(Namespace{}, VXLAN{}); return err })
	add("endpoint", func() error { _, err := EnsureEndpoint(Namespace{}, blue(workload)); return err })
	add("route", func() error { return EnsureRoute(Namespace{}, Route{Prefix: prefix("10.0.0.0/8"), Dev: "lo"}) })
	add("up", other(SetLinkUp))
	add("remove", other(RemoveLink))
	add("forwarding", func() error { return EnsureForwarding(Namespace{}, Forwarding{Devices: []string{"other0"}}) })
	add("namespace", func() error { _, err := NewNamespace(); return err })
	add("named namespace", func() error { _, err := NewNamed(nobodysName(os.Getpid())); return err })
	add("enter a namespace", func() error { return workload.Do(func() error { return nil }) })
	return all
}

// tryAsNobody prints what it tried, and what did not fail as it should. The
// workload's namespace is its descriptor 3.
func tryAsNobody() (code int) {
	workload, err := OpenNamespace("/proc/self/fd/3")
	if err == nil {
		err = errors.Join(syscall.Setgroups(nil), syscall.Setgid(65534), syscall.Setuid(65534),
			// A change of the user hides /proc/self from the process, which a program
			// that was started by nobody would not see.
			unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for _, row := range needPrivilege(workload) {
		fmt.Println(row.what)
		err := row.try()
		if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			fmt.Printf("%s: %v\n", row.what, err)
			code = 1
		}
	}
	return code
}

// Who has no right is told what is needed, and nothing is left.
func TestNoPrivilege(t *testing.T) {
	t.Parallel()
	ns, workload := newNS(t), newNS(t)
	addVeth(t, ns, "other0", "other1")
	// One that differs, so that there is something to set.
	require.NoError(t, EnsureSysctls(ns, Sysctl{IPv4, "other0", "rp_filter", 2}))
	before, err := ListLinks(ns)
	require.NoError(t, err)
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), asNobody+"=1")
	var said, more strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &more // coverage has complaints of its own
	require.NoError(t, ns.Do(func() error {
		handle, err := workload.dup()
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(handle), "workload")
		defer f.Close()
		cmd.ExtraFiles = []*os.File{f}
		return cmd.Run() // in the namespace of this thread
	}), "%s%s", &said, &more)

	var tried []string
	for _, row := range needPrivilege(workload) {
		tried = append(tried, row.what)
	}
	require.Equal(t, strings.Join(tried, "\n")+"\n", said.String())
	after, err := ListLinks(ns)
	require.NoError(t, err)
	require.Equal(t, before, after)
	requireNothingLeft(t, ns, "other0", "other1")
	requireNothingLeft(t, workload)
	require.Zero(t, sysctl(t, ns, IPv4, "", "ip_forward"))
	require.Equal(t, 2, sysctl(t, ns, IPv4, "other0", "rp_filter"))
	require.NoFileExists(t, filepath.Join(NamespaceDir, nobodysName(cmd.Process.Pid)))
}
