// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices/netnstest"
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
