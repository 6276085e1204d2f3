// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/lb"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

func start(t *testing.T, name string) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), Config{Name: fmt.Sprintf("%s%d", name, os.Getpid()), Nodes: 1, Endpoints: -1})
	require.NoError(t, err)
	return c
}

func isBroken(c *Cluster) bool {
	select {
	case <-c.Broken():
		return true
	default:
		return false
	}
}

func TestFailedExpiryIsTold(t *testing.T) {
	t.Parallel()
	c := start(t, "exp")
	node := c.Nodes[0]
	flows, expired := node.Flows, node.expired
	opened, err := conntrack.Open(node.Pins) // as a tool does, and so it can not expire
	require.NoError(t, err)
	defer opened.Close()
	node.Flows = opened
	node.expire(t.Context(), func() { close(c.broken) })
	select {
	case <-c.Broken():
	case <-time.After(10 * time.Second):
		t.Fatal("nobody is told")
	}
	second := node.expired
	node.Flows, node.expired = flows, func() error { return errors.Join(expired(), second()) }
	require.ErrorContains(t, c.Close(), "node1: idle flows are no longer expired: expire the flow table: it was opened as a tool does")
}

func TestEndOfExpiryIsNoFailure(t *testing.T) {
	t.Parallel()
	c := start(t, "expend")
	require.NoError(t, c.Close())
	require.False(t, isBroken(c))

	c = start(t, "expctx")
	ctx, cancel := context.WithCancel(t.Context())
	n := &Node{Name: "node7", Flows: c.Nodes[0].Flows}
	n.expire(ctx, func() { close(c.broken) })
	cancel()
	require.NoError(t, n.expired())
	require.NoError(t, c.Close())
	require.False(t, isBroken(c))
}

func TestServices(t *testing.T) {
	t.Parallel()
	name := fmt.Sprintf("svc%d", os.Getpid())
	c, err := Start(t.Context(), Config{Name: name, Nodes: 2, Endpoints: 2, Services: 5})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	require.Len(t, c.Services, 2*5)
	servers := map[netip.AddrPort]bool{}
	for i, s := range c.Services {
		require.Len(t, s.Backends, 3)
		nodes := map[netip.Addr]bool{}
		for _, b := range s.Backends {
			require.False(t, servers[b.Addr], "%s serves twice", b.Addr)
			servers[b.Addr], nodes[b.Node] = true, true
			require.Equal(t, i%2 == 0, b.Addr.Addr().Is4())
		}
		require.Len(t, nodes, 2, "spread over the nodes")
	}
	require.Equal(t, netip.MustParseAddrPort("10.96.0.5:80"), c.ServiceAt(5, 4).Frontends[0].Addr)
	require.Equal(t, netip.MustParseAddrPort("[fd00:96::5]:80"), c.ServiceAt(5, 6).Frontends[1].Addr)
	for _, n := range c.Nodes {
		tool, err := lb.Open(n.Pins)
		require.NoError(t, err)
		defer tool.Close()
		have, err := tool.Services()
		require.NoError(t, err)
		require.Len(t, have, len(c.Services))
		require.NoError(t, c.NoSockets)
		require.DirExists(t, n.Cgroup)
	}

	// Somebody who is in a cgroup does not stand in the way, and lives on.
	guest := exec.Command("sleep", "60")
	require.NoError(t, guest.Start())
	defer func() { _ = guest.Process.Kill(); _ = guest.Wait() }()
	require.NoError(t, os.WriteFile(filepath.Join(c.Nodes[0].Cgroup, "cgroup.procs"), fmt.Append(nil, guest.Process.Pid), 0))
	require.NoError(t, c.Close())
	require.NoError(t, guest.Process.Signal(syscall.Signal(0)))
	require.NoDirExists(t, filepath.Join(DefaultDir, name))
}

func TestServicesThatCanNotBe(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]Config{
		"-1 services: want up to 10000":                                                       {Services: -1},
		"10001 services: want up to 10000":                                                    {Services: 10001},
		"-1 backends of each service: want 1 to 100":                                          {Services: 1, Backends: -1},
		"10000 services of 6 backends: want up to 50000 backends in all":                      {Services: 10000, Backends: 6},
		"501 services that choose by Maglev: want up to 500, each takes 250 KB on every node": {Services: 501, Maglev: true},
		"services without endpoints: nobody could serve":                                      {Services: 1, Endpoints: -1},
	} {
		require.EqualError(t, cfg.Check(), want)
	}
	require.NoError(t, Config{Endpoints: -1}.Check())
}
