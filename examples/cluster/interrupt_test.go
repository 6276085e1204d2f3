// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/probe"
)

// A signal at any moment: while it builds, while it probes, while it holds.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	for i, after := range []time.Duration{0, 30, 70, 120, 180, 250, 330, 420, 600, 900} {
		t.Run((after * time.Millisecond).String(), func(t *testing.T) {
			t.Parallel()
			name := newName(t)
			cmd := program(t, "root", "-hold", "-nodes", "3", "-name", name)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			var errs bytes.Buffer
			cmd.Stderr = &errs
			require.NoError(t, cmd.Start())
			defer func() { _ = cmd.Process.Kill() }()
			_, err = io.ReadFull(out, make([]byte, len("Building")))
			require.NoError(t, err)
			go func() { _, _ = io.Copy(io.Discard, out) }()
			time.Sleep(after * time.Millisecond)
			require.NoError(t, cmd.Process.Signal([]os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP}[i%3]))
			// Impatience does not stop the tidying up.
			_ = cmd.Process.Signal(unix.SIGINT)
			err = cmd.Wait()
			if err == nil {
				require.Empty(t, errs.String(), "it was holding")
				return
			}
			require.Equal(t, 1, cmd.ProcessState.ExitCode(), "%v", err)
			require.Equal(t, "cluster: interrupted; everything is taken away again\n", errs.String())
		})
	}
}

func TestInterruptWhileProbing(t *testing.T) {
	t.Parallel()
	interruptAt(t, "ICMP echo", "-nodes", "8")
}

// A child is in the cgroup.
func TestInterruptWhileAskingBySocket(t *testing.T) {
	t.Parallel()
	interruptAt(t, "by socket", "-services", "1")
}

// interruptAt ends a run behind the first line that has the word.
func interruptAt(t *testing.T, word string, flags ...string) {
	t.Helper()
	name := newName(t)
	cmd := program(t, "root", append(flags, "-name", name)...)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), word) {
	}
	require.NoError(t, cmd.Process.Signal(unix.SIGTERM))
	for lines.Scan() {
		require.NotContains(t, lines.Text(), "probes in", "it goes on")
	}
	require.Error(t, cmd.Wait())
	require.Equal(t, 1, cmd.ProcessState.ExitCode())
	require.Equal(t, "cluster: interrupted; everything is taken away again\n", errs.String())
}

// Whoever reads the rows goes away.
func TestBrokenPipe(t *testing.T) {
	t.Parallel()
	name := newName(t)
	cmd := program(t, "root", "-hold", "-name", name)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "done in")
	require.NoError(t, out.Close())
	require.Error(t, cmd.Wait())
	require.Equal(t, 1, cmd.ProcessState.ExitCode())
}

func TestHoldWithDocument(t *testing.T) {
	t.Parallel()
	name := newName(t)
	cmd := program(t, "root", "-hold", "-json", "-name", name, "-services", "2")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var people bytes.Buffer
	cmd.Stderr = &people
	require.NoError(t, cmd.Start())
	var doc Document
	require.NoError(t, json.NewDecoder(out).Decode(&doc))
	require.Len(t, doc.Nodes, 2)
	require.True(t, isThere(doc.Nodes[1].Endpoints[1].Netns), "it holds")
	ns, err := devices.OpenNamed(doc.Nodes[0].Endpoints[0].Netns)
	require.NoError(t, err)
	defer ns.Close()
	for _, s := range doc.Services {
		at := netip.MustParseAddrPort(s.Frontends[0].Address)
		require.Eventually(t, func() bool {
			_, err := probe.TCP(t.Context(), ns, at, 10)
			return err == nil
		}, 10*time.Second, 10*time.Millisecond, "%s serves", s.Name)
	}
	outside, err := devices.OpenNamed(doc.Outside[0].Netns)
	require.NoError(t, err)
	defer outside.Close()
	for _, a := range doc.Nodes[0].Addresses {
		_, err := probe.TCP(t.Context(), outside, netip.AddrPortFrom(a, 30001), 10)
		require.NoError(t, err, "service 1 serves at a port of the node")
	}
	require.NoError(t, cmd.Process.Signal(unix.SIGINT))
	require.NoError(t, cmd.Wait(), "ending a cluster that was held is no failure")
	require.Contains(t, people.String(), "sudo ip netns exec "+name+"-node1-ep1 ping 10.244.2.11\n")
	require.Contains(t, people.String(), "Services 1 to 2 repeat what they are told")
	require.Contains(t, people.String(), "sudo ip netns exec "+name+"-node1-ep1 nc -w 1 10.96.0.1 80\n")
	require.Contains(t, people.String(), "/node1 nat list\n")
	require.Contains(t, people.String(), "sudo ip netns exec "+name+"-node1-ep1 ping 198.51.100.10\n")
	require.Contains(t, people.String(), "sudo ip netns exec "+name+"-outside nc -w 1 172.16.16.11 30001\n")
	require.Contains(t, people.String(), "\nTaking everything away.\n")
	require.False(t, isThere(doc.Nodes[0].Netns))
}

func TestCancelledBefore(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var errs bytes.Buffer
	require.Equal(t, 1, run(ctx, []string{"-name", newName(t)}, io.Discard, &errs))
	require.Equal(t, "cluster: interrupted; everything is taken away again\n", errs.String())
}

// What a killed one leaves, the next one clears away.
func TestKilled(t *testing.T) {
	t.Parallel()
	name := newName(t)
	cmd := program(t, "root", "-hold", "-name", name, "-nodes", "3", "-services", "2")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "The cluster stays up") {
	}
	require.NoError(t, lines.Err())
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.True(t, isThere(name+"-node3-ep2"))

	var errs bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"-name", name, "-nodes", "2"}, io.Discard, &errs), "%s", &errs)
}
