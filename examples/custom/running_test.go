// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/programs"
)

// startCluster is the running cluster of somebody else.
func startCluster(t *testing.T) *cluster.Cluster {
	c, err := cluster.Start(t.Context(), cluster.Config{Name: fmt.Sprintf("cust%d", os.Getpid())})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, c.Close()) })
	return c
}

func ingress(t require.TestingT, e *cluster.Endpoint) []programs.AttachedProgram {
	hooks, err := programs.Hooks(e.Node.Namespace, e.Link.Index)
	require.NoError(t, err)
	require.Equal(t, programs.Ingress, hooks[0].Direction)
	return hooks[0].Programs
}

func names(all []programs.AttachedProgram) []string {
	var out []string
	for _, p := range all {
		out = append(out, p.Name)
	}
	return out
}

func TestOnARunningCluster(t *testing.T) {
	t.Parallel()
	needClang(t)
	c := startCluster(t)
	endpoints := c.Endpoints()
	before := map[*cluster.Endpoint][]programs.AttachedProgram{}
	for _, e := range endpoints {
		before[e] = ingress(t, e)
		require.Equal(t, []string{"from_endpoint"}, names(before[e]))
	}

	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	var out, messages strings.Builder
	done := make(chan error, 1)
	go func() { done <- run(ctx, []string{"-cluster", c.Name}, &out, &messages) }()

	var custom []ebpf.ProgramID
	for _, e := range endpoints {
		require.EventuallyWithT(t, func(t *assert.CollectT) {
			require.Equal(t, []string{"dns_count", "from_endpoint"}, names(ingress(t, e)), "the order on the hook")
		}, 10*time.Second, 20*time.Millisecond)
		now := ingress(t, e)
		require.Equal(t, before[e], now[1:], "our program is left as it was")
		custom = append(custom, now[0].ID)
	}

	// The first three answer each other; nobody answers on the last.
	require.NoError(t, askAround(t.Context(), endpoints[:3]))
	silent := endpoints[3]
	for _, to := range silent.Addrs {
		require.ErrorIs(t, ask(t.Context(), endpoints[0], "udp", to), unix.ECONNREFUSED, "the ICMP error, which is no question, comes back")
	}
	require.NoError(t, sendTo(endpoints[0], silent, 54))

	select {
	case err := <-done:
		t.Fatalf("it ended by itself: %v", err)
	default:
	}
	interrupt()
	require.NoError(t, <-done)
	require.Regexp(t, `^counting on 4 endpoints of 2 nodes; Ctrl-C ends it\n(?s:.*) +\d+s  14 questions over UDP, 6 connections over TCP\n$`, messages.String())
	require.Equal(t, [][]string{
		{"NODE", "ENDPOINT", "ADDRESSES", "DNS/UDP", "DNS/TCP"},
		{"node1", "1", "10.244.1.10", "fd00:244:1::10", "4", "2"},
		{"node1", "2", "10.244.1.11", "fd00:244:1::11", "4", "2"},
		{"node2", "1", "10.244.2.10", "fd00:244:2::10", "6", "2"},
		{"node2", "2", "10.244.2.11", "fd00:244:2::11", "0", "0"},
	}, rows(out.String()))

	for _, e := range endpoints {
		require.Equal(t, before[e], ingress(t, e), "nothing of it is left on the hook, and ours is as it was")
	}
	for _, id := range custom {
		require.Eventually(t, func() bool {
			p, err := ebpf.NewProgramFromID(id)
			if err == nil {
				p.Close()
			}
			return errors.Is(err, os.ErrNotExist)
		}, 10*time.Second, 20*time.Millisecond, "the kernel has freed the program")
	}
	require.NoError(t, askAround(t.Context(), endpoints), "traffic flows without it")
}

func TestForATime(t *testing.T) {
	t.Parallel()
	needClang(t)
	c, err := cluster.Start(t.Context(), cluster.Config{Name: fmt.Sprintf("custfor%d", os.Getpid()), Nodes: 1, Endpoints: 1})
	require.NoError(t, err)
	defer func() { assert.NoError(t, c.Close()) }()
	var out strings.Builder
	require.NoError(t, run(t.Context(), []string{"-cluster", c.Name, "-for", "10ms"}, &out, io.Discard))
	require.Equal(t, []string{"node1", "1", "10.244.1.10", "fd00:244:1::10", "0", "0"}, rows(out.String())[1])
	require.Equal(t, []string{"from_endpoint"}, names(ingress(t, c.Endpoints()[0])))
}

// What was counted is shown, also when there is no table of endpoints any more.
func TestTheClusterEnds(t *testing.T) {
	t.Parallel()
	needClang(t)
	c, err := cluster.Start(t.Context(), cluster.Config{Name: fmt.Sprintf("custend%d", os.Getpid()), Nodes: 1, Endpoints: 2})
	require.NoError(t, err)
	defer func() { assert.NoError(t, c.Close()) }()
	var out, messages strings.Builder
	done := make(chan error, 1)
	go func() { done <- run(t.Context(), []string{"-cluster", c.Name}, &out, &messages) }()
	for _, e := range c.Endpoints() {
		require.EventuallyWithT(t, func(t *assert.CollectT) {
			require.Equal(t, []string{"dns_count", "from_endpoint"}, names(ingress(t, e)))
		}, 10*time.Second, 20*time.Millisecond)
	}
	require.NoError(t, askAround(t.Context(), c.Endpoints()))
	require.NoError(t, c.Close())
	require.NoError(t, <-done)
	require.Equal(t, [][]string{
		{"NODE", "ENDPOINT", "ADDRESSES", "DNS/UDP", "DNS/TCP"},
		{"node1", "1", "10.244.1.10", "fd00:244:1::10", "2", "2"},
		{"node1", "2", "10.244.1.11", "fd00:244:1::11", "4", "2"},
	}, rows(out.String()))
	require.Contains(t, messages.String(), "the cluster has ended: this is what was counted until then\n")
}

// Another cluster may have the name by the time that somebody looks.
func TestAnotherClusterOfTheName(t *testing.T) {
	t.Parallel()
	cfg := cluster.Config{Name: fmt.Sprintf("custagain%d", os.Getpid()), Nodes: 1, Endpoints: 1}
	c, err := cluster.Start(t.Context(), cfg)
	require.NoError(t, err)
	node := nodesOf(c)[0]
	state, err := programs.ReadNode(node.pins)
	require.NoError(t, err)
	counter := counter{node: node, cookie: state.NetnsCookie}
	require.NoError(t, counter.look())
	require.NoError(t, c.Close())
	require.ErrorIs(t, counter.look(), os.ErrNotExist)
	c, err = cluster.Start(t.Context(), cfg)
	require.NoError(t, err)
	defer func() { assert.NoError(t, c.Close()) }()
	require.ErrorIs(t, counter.look(), os.ErrNotExist)
	require.Len(t, counter.endpoints, 1)
}

// Nothing of ours needs an overlay, and what leaves in the node's name is counted
// before it does.
func TestOnANativeCluster(t *testing.T) {
	t.Parallel()
	needClang(t)
	c, err := cluster.Start(t.Context(), cluster.Config{Name: fmt.Sprintf("custnative%d", os.Getpid()), Endpoints: 1, Native: true})
	require.NoError(t, err)
	defer func() { assert.NoError(t, c.Close()) }()
	spec, err := programs.Compile(t.Context(), programs.CompileConfig{Path: "dns_count.c"})
	require.NoError(t, err)
	counters, err := startAll(nodesOf(c), spec)
	require.NoError(t, err)
	defer func() { assert.NoError(t, closeAll(counters)) }()
	require.NoError(t, askAround(t.Context(), c.Endpoints()))

	outside := &cluster.Endpoint{Name: c.Outside.Name, Namespace: c.Outside.Namespace, Addrs: c.Outside.Addrs}
	var answering sync.WaitGroup
	servers, err := serve(outside, &answering)
	defer func() {
		assert.NoError(t, closeAll(servers))
		answering.Wait()
	}()
	require.NoError(t, err)
	for _, network := range []string{"udp", "tcp"} {
		for _, to := range outside.Addrs {
			require.NoError(t, ask(t.Context(), c.Endpoints()[0], network, to))
		}
	}
	var out strings.Builder
	require.NoError(t, printRows(&out, counters))
	require.Equal(t, [][]string{
		{"NODE", "ENDPOINT", "ADDRESSES", "DNS/UDP", "DNS/TCP"},
		{"node1", "1", "10.244.1.10", "fd00:244:1::10", "4", "4"},
		{"node2", "1", "10.244.2.10", "fd00:244:2::10", "4", "2"},
	}, rows(out.String()))
}

// Two at once, each with a table of its own, are two programs in front of ours.
func TestTwoAtOnceAndAFailureHalfway(t *testing.T) {
	t.Parallel()
	needClang(t)
	c, err := cluster.Start(t.Context(), cluster.Config{Name: fmt.Sprintf("custtwo%d", os.Getpid()), Nodes: 1, Endpoints: 2})
	require.NoError(t, err)
	defer func() { assert.NoError(t, c.Close()) }()
	spec, err := programs.Compile(t.Context(), programs.CompileConfig{Path: "dns_count.c"})
	require.NoError(t, err)

	first, err := startAll(nodesOf(c), spec)
	require.NoError(t, err)
	second, err := startAll(nodesOf(c), spec)
	require.NoError(t, err)
	require.Equal(t, []string{"dns_count", "dns_count", "from_endpoint"}, names(ingress(t, c.Endpoints()[0])))
	require.NoError(t, askAround(t.Context(), c.Endpoints()))
	for _, counter := range []*counter{first[0], second[0]} {
		q, err := counter.table.Lookup(uint32(c.Endpoints()[1].Link.Index))
		require.NoError(t, err)
		require.Equal(t, questions{UDP: 4, TCP: 2}, q)
	}
	require.NoError(t, closeAll(first))
	require.NoError(t, closeAll(second))

	// The second node has no pins: the first is given up again.
	_, err = startAll([]node{nodesOf(c)[0], {name: "absent", pins: c.Nodes[0].Pins + "-absent"}}, spec)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Equal(t, []string{"from_endpoint"}, names(ingress(t, c.Endpoints()[0])))
}

// sendTo sends one datagram to a port of every address of an endpoint.
func sendTo(from, to *cluster.Endpoint, port uint16) error {
	for _, addr := range to.Addrs {
		var conn net.Conn
		err := from.Namespace.Do(func() (err error) {
			conn, err = net.Dial("udp", netip.AddrPortFrom(addr, port).String())
			return err
		})
		if err != nil {
			return err
		}
		if _, err := conn.Write(question()); err != nil {
			return errors.Join(err, conn.Close())
		}
		if err := conn.Close(); err != nil {
			return err
		}
	}
	return nil
}
