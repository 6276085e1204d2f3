// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/programs"
)

// passer is somebody else's program: it lets everything pass.
func passer(t *testing.T, name string, kind ebpf.ProgramType, verdict int32) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: kind, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

func TestStatusShowsWhoElseIsThere(t *testing.T) {
	t.Parallel()
	c, pins := start(t, cluster.Config{Nodes: 2, Endpoints: 1})
	node := c.Nodes[0]
	e := node.Endpoints[0]

	// One before us, one behind, an XDP program and two classic filters.
	for _, a := range []struct {
		name  string
		order link.Anchor
	}{{"theirs_first", link.Head()}, {"theirs_last", link.Tail()}} {
		l, err := programs.AttachProgram(programs.Attach{
			Program: passer(t, a.name, ebpf.SchedCLS, -1), Namespace: node.Namespace, Ifindex: e.Link.Index, Direction: programs.Ingress, Order: a.order,
		})
		require.NoError(t, err)
		defer func() { require.NoError(t, l.Remove()) }()
	}
	xdp, classic := passer(t, "theirs_xdp", ebpf.XDP, 2), passer(t, "theirs_classic", ebpf.SchedCLS, -1)
	var xdpLink link.Link
	err := withNetlink(node.Namespace, func(nl *netlink.Handle) error {
		dev, err := nl.LinkByIndex(e.Link.Index)
		if err != nil {
			return err
		}
		if xdpLink, err = link.AttachXDP(link.XDPOptions{Program: xdp, Interface: dev.Attrs().Index}); err != nil {
			return err
		}
		if err := nl.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: dev.Attrs().Index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}}); err != nil {
			return err
		}
		attrs := netlink.FilterAttrs{LinkIndex: dev.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Priority: 7, Protocol: unix.ETH_P_ALL, Handle: 1}
		if err := nl.FilterAdd(&netlink.BpfFilter{FilterAttrs: attrs, Fd: classic.FD(), Name: "theirs_classic", DirectAction: true}); err != nil {
			return err
		}
		attrs.Priority = 9
		attrs.Handle = 0
		return nl.FilterAdd(&netlink.U32{FilterAttrs: attrs, ClassId: netlink.MakeHandle(1, 1)})
	})
	require.NoError(t, err)
	defer func() { require.NoError(t, xdpLink.Close()) }()

	out := dpctl(t, "-pins", node.Pins, "status")
	require.Regexp(t, fmt.Sprintf(`(?m)^  %s +10\.244\.1\.10 +ingress +1\. +xdp +\S.* +not ours +id=\d+.*
 +2\. +tcx +theirs_first +not ours +id=\d+ +tag=[0-9a-f]{16}
 +3\. +tcx +from_endpoint +ours +id=\d+ +tag=[0-9a-f]{16}
 +4\. +tcx +theirs_last +not ours +id=\d+ +tag=[0-9a-f]{16}
 +5\. +tc bpf +theirs_classic +not ours +id=\d+ +tag=[0-9a-f]{16}
 +6\. +tc u32 +pref 9 +not ours$`, e.Link.Name), out)
	require.Regexp(t, `(?m)^  dp_net +ingress +1\. +tcx +from_host +ours `, out)
	require.Regexp(t, `(?m)^  dp_vxlan +ingress +1\. +tcx +from_overlay +ours `, out)
	require.Contains(t, out, "namespace  "+filepath.Join(devices.NamespaceDir, node.Netns)+" (cookie ")
	require.Regexp(t, `(?m)^endpoints +1$`, out)
	require.Regexp(t, `(?m)^tunnel +3 prefixes of other nodes$`, out)
	require.Regexp(t, `(?m)^flows +\d+: \d+ new, \d+ established, \d+ closing$`, out)
	require.Regexp(t, `(?m)^ +\d+ of 131072 entries in use, \d\.\d\d%$`, out)
	require.Regexp(t, `(?m)^ +created \d+, confirmed \d+, evicted 0, reused \d+,`, out)
	require.Regexp(t, `(?m)^ +insert errors 0$`, out)

	var all map[string]status
	decode(t, &all, "-pins", pins, "status")
	require.Len(t, all, 2)
	s := all["node1"]
	want, err := programs.ReadNode(node.Pins)
	require.NoError(t, err)
	require.Equal(t, want.Epoch, s.Epoch)
	require.Equal(t, want.NetnsCookie, s.NetnsCookie)
	require.Equal(t, 1, *s.Endpoints)
	require.Equal(t, 3, *s.Prefixes)
	require.Equal(t, 131072, s.Flows.Capacity)
	require.NotNil(t, s.Drops)
	require.Len(t, all["node2"].Hooks, len(s.Hooks), "what is alien is on hooks of ours")
	for _, h := range s.Hooks {
		if h.Ifindex != e.Link.Index {
			continue
		}
		require.Equal(t, "10.244.1.10", h.Endpoint)
		var ours []bool
		for _, p := range h.Programs {
			ours = append(ours, p.Ours)
			require.Equal(t, p.Ours, p.Pin != "")
		}
		require.Equal(t, []bool{false, false, true, false, false, false}, ours)
		info, err := node.Datapath.Program("from_endpoint").Info()
		require.NoError(t, err)
		id, ok := info.ID()
		require.True(t, ok)
		require.Equal(t, uint32(id), h.Programs[2].ID)
		require.Equal(t, info.Tag, h.Programs[2].Tag)
	}
}

func TestStatusOfANamespaceWithoutAName(t *testing.T) {
	t.Parallel()
	c, _ := start(t, cluster.Config{Nodes: 1, Endpoints: -1})
	node := c.Nodes[0]
	path := filepath.Join(devices.NamespaceDir, node.Netns)
	// It lives on by our descriptor, and nothing has its name.
	require.NoError(t, devices.RemoveNamed(node.Netns))
	var s status
	require.Contains(t, fails(t, 1, "-json", "-pins", node.Pins, "status"), "name it with -netns PATH")

	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", descriptorOf(t, node.Namespace)), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	byHand := fmt.Sprintf("/proc/self/fd/%d", fd)
	decode(t, &s, "-pins", node.Pins, "-netns", byHand, "status")
	require.Equal(t, byHand, s.Netns)
	require.Len(t, s.Hooks, 3)
	require.NoFileExists(t, path)

	for wrong, want := range map[string]string{
		"/proc/self/ns/net": "/proc/self/ns/net is not the node's namespace", "/nowhere": "open namespace /nowhere",
	} {
		var out, errs bytes.Buffer
		require.Equal(t, 1, run([]string{"-pins", node.Pins, "-netns", wrong, "status"}, &out, &errs))
		require.Contains(t, errs.String(), want)
		require.Empty(t, out.String(), "a wrong place shows nothing")
	}
}

// descriptorOf finds the descriptor that holds a namespace.
func descriptorOf(t *testing.T, ns devices.Namespace) int {
	t.Helper()
	var inode uint64
	require.NoError(t, ns.Do(func() error {
		var st unix.Stat_t
		err := unix.Stat("/proc/thread-self/ns/net", &st)
		inode = st.Ino
		return err
	}))
	for fd := range 1024 {
		if target, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); target == fmt.Sprintf("net:[%d]", inode) {
			return fd
		}
	}
	// A named one is opened by its path: its descriptor says so.
	for fd := range 1024 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil && st.Ino == inode {
			return fd
		}
	}
	t.Fatal("no descriptor holds the namespace")
	return -1
}
