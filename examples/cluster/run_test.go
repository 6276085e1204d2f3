// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/examples/internal/show"
	"github.com/godatapath/datapath/internal/unprivileged"
	"github.com/godatapath/datapath/programs"
)

// probeLine is a row of the probes: who to whom, what, and the families.
var probeLine = regexp.MustCompile(`(?m)^  (\S.*\S)  +(\S+(?: \S+)? -> \S+(?: \S+)?)  +(\S.*\S)  +([\d.]+ (?:µs|ms|s) ok|-)  +([\d.]+ (?:µs|ms|s) ok|-)$`)

func TestEveryProbeGetsThrough(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		flags []string
		nodes int
		mtu   int
		peer  string // where node1 says that node2 is; "": by its routes
		host  string // and by what prefix it knows node2 itself
	}{
		{"three nodes", []string{"-nodes", "3", "-endpoints", "2"}, 3, 1450, "172.16.16.12", "172.16.16.12/32"},
		{"IPv6 underlay", []string{"-ipv6-underlay"}, 2, 1430, "fd00:16::12", "fd00:16::12/128"},
		{"port", []string{"-port", "4789", "-mode", "vxlan"}, 2, 1450, "172.16.16.12", "172.16.16.12/32"},
		{"native", []string{"-mode", "native"}, 2, 1500, "", ""},
		{"three native nodes", []string{"-mode=native", "-nodes", "3"}, 3, 1500, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			name := newName(t)
			var out, errs bytes.Buffer
			code := run(t.Context(), append(test.flags, "-name", name), &out, &errs)
			require.Zero(t, code, "%s%s", &out, &errs)
			require.Empty(t, errs.String())

			text := out.String()
			rows := map[string]int{}
			for _, m := range probeLine.FindAllStringSubmatch(text, -1) {
				of := ""
				if m[4] == "-" {
					of = " of IPv6"
				} else if m[5] == "-" {
					of = " of IPv4"
				}
				rows[m[1]+", "+m[3]+of]++
			}
			n, native := test.nodes, test.peer == ""
			want := map[string]int{
				"same node, ICMP echo": n, "same node, TCP echo": n, "same node, UDP echo": n,
				"across nodes, ICMP echo": n, "across nodes, TCP echo": n, "across nodes, UDP echo": n,
				"across nodes, packet of 1400 bytes": n, "across nodes, datagram of 8000 in fragments": n,
				"node to endpoint, ICMP echo": 2 * n, "node to endpoint, TCP echo": 2 * n, "node to endpoint, UDP echo": 2 * n,
				"endpoint to node, ICMP echo": 4 * n, "endpoint to node, TCP echo": 4 * n, "endpoint to node, UDP echo": 4 * n,
				"endpoint to world, ICMP echo": 2 * n, "endpoint to world, traceroute": 2 * n,
				"endpoint to world, TCP echo as the node": n, "endpoint to world, UDP echo as the node": n,
				"endpoint to world, TCP echo as itself": n, "endpoint to world, UDP echo as itself": n,
				"endpoint to world, datagram of 8000 in fragments": 2 * n, "endpoint to world, packet of 1450, told MTU 1400": 2 * n,
			}
			probes := 76
			if !native {
				want[fmt.Sprintf("across nodes, packet of 1500, told MTU %d", test.mtu)] = n
				probes += 2
			}
			require.Equal(t, want, rows, text)
			require.Contains(t, text, fmt.Sprintf("%d probes in", probes*n))
			require.Contains(t, text, ": all ok\n")

			require.Regexp(t, `(?m)^  node1  10\.244\.1\.10 +id=1 identity=1000 ifindex=\d+ +mac=([0-9A-F]{2}:){5}[0-9A-F]{2} nodemac=([0-9A-F]{2}:){5}[0-9A-F]{2}$`, text)
			require.Regexp(t, `(?m)^  endpoint to node +node1-ep1 -> node2 underlay +UDP echo `, text)
			require.Regexp(t, `(?m)^  endpoint to world +node2-ep1 -> outside, trusted +UDP echo as itself `, text)
			require.Regexp(t, `(?m)^  node2  flows=\d+ +new=[1-9]\d* +established=\d+ +closing=[1-9]\d* .* evicted=0 insert-errors=0$`, text)
			require.Regexp(t, `(?m)^  node2  kept=[1-9]\d* +found=\d+ +exhausted=0$`, text)
			require.Regexp(t, `(?m)^  node1  to device +from endpoint +[1-9]\d* +[1-9]\d*$`, text)
			require.Regexp(t, `(?m)^  node1  dropped: ttl exceeded +from endpoint +4 +\d+$`, text)
			legends := [][]string{show.FlowsLegend, show.NATLegend, show.MetricsLegend}
			if native {
				require.NotContains(t, text, "Tunnel")
				require.NotContains(t, text, "overlay")
				require.NotContains(t, text, "dropped: too big")
				require.Regexp(t, `(?m)^  node2  to endpoint +from device +[1-9]\d* +[1-9]\d*$`, text)
			} else {
				legends = append(legends, show.PeersLegend)
				require.Regexp(t, `(?m)^  node1  10\.244\.2\.0/24 +`+test.peer+` +vni=identity$`, text)
				require.Regexp(t, `(?m)^  node1  `+test.host+` +`+test.peer+` +vni=identity$`, text)
				require.Regexp(t, `(?m)^  node2  to endpoint +from overlay +[1-9]\d* +[1-9]\d*$`, text)
				require.Regexp(t, `(?m)^  node1  dropped: too big +from endpoint +2 +\d+$`, text)
			}
			for _, legend := range legends {
				for _, line := range legend {
					require.Contains(t, text, "\n  * "+line+"\n")
				}
			}
		})
	}
}

func TestFailedProbe(t *testing.T) {
	t.Parallel()
	c, err := cluster.Start(t.Context(), cluster.Config{Name: newName(t)})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	// Node 1 forgets the last endpoint of its own, which node 2 probes.
	e := c.Nodes[0].Endpoints[1]
	require.NoError(t, c.Nodes[0].Table.Delete(e.Link.Index))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out bytes.Buffer
	failed, err := probeAll(ctx, c, cancelAfter{&out, "no answer", 1, cancel})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 2, failed)
	require.Regexp(t, `(?m)^  same node +node1-ep1 -> node1-ep2 +ICMP echo +FAILED +FAILED  IPv4: no answer in 2s.*  IPv6: no answer in 2s`, out.String())
}

// cancelAfter ends the wait for probes that need seconds to fail.
type cancelAfter struct {
	w      *bytes.Buffer
	word   string
	lines  int
	cancel func()
}

func (c cancelAfter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	if strings.Count(c.w.String(), c.word) >= 2*c.lines {
		c.cancel()
	}
	return n, err
}

func TestFailureIsTheExitCode(t *testing.T) {
	t.Parallel()
	name := newName(t)
	out := &saboteur{t: t, name: name}
	var errs bytes.Buffer
	code := run(t.Context(), []string{"-name", name, "-nodes", "1", "-endpoints", "1"}, out, &errs)
	require.Equal(t, 1, code, "%s", &out.Buffer)
	require.Equal(t, "cluster: 6 probes failed\n", errs.String())
	require.Regexp(t, `(?m)^  endpoint to node +node1-ep1 -> node1 underlay +TCP echo +FAILED +FAILED  IPv4: no route to host  IPv6: no route to host$`, out.String())
	require.Contains(t, out.String(), "42 probes in")
	require.Contains(t, out.String(), ": 6 FAILED\n")
}

// saboteur takes the way to the node's underlay address away from node1-ep1 as soon as the
// cluster is up.
type saboteur struct {
	bytes.Buffer
	t    *testing.T
	name string
}

func (s *saboteur) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "done in") {
		ns, err := devices.OpenNamed(s.name + "-node1-ep1")
		require.NoError(s.t, err)
		defer ns.Close()
		require.NoError(s.t, ns.Do(func() error {
			nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer nl.Close()
			for _, underlay := range []string{"172.16.16.11/32", "fd00:16::11/128"} {
				dst, err := netlink.ParseIPNet(underlay)
				if err != nil {
					return err
				}
				if err := nl.RouteAdd(&netlink.Route{Dst: dst, Type: unix.RTN_UNREACHABLE}); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return s.Buffer.Write(b)
}

func TestSecondClusterOfAName(t *testing.T) {
	t.Parallel()
	name := newName(t)
	c, err := cluster.Start(t.Context(), cluster.Config{Name: name, Nodes: 1, Endpoints: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()

	var errs bytes.Buffer
	require.Equal(t, 1, run(t.Context(), []string{"-name", name}, io.Discard, &errs))
	require.Equal(t, fmt.Sprintf("cluster: start the cluster: a cluster named %s is up (process %d): end it or choose another name\n", name, os.Getpid()), errs.String())

	// The first one does not mind.
	require.True(t, isThere(name+"-node1-ep1"))
	_, err = programs.ReadNode(c.Nodes[0].Pins)
	require.NoError(t, err)
}

// A name may be the beginning of another one.
func TestNameThatBeginsAnother(t *testing.T) {
	t.Parallel()
	name := newName(t)
	long := name + "-2"
	c, err := cluster.Start(t.Context(), cluster.Config{Name: long, Nodes: 1, Endpoints: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	require.Zero(t, run(t.Context(), []string{"-name", name, "-nodes", "1"}, io.Discard, io.Discard))
	require.True(t, isThere(long+"-node1"))
	require.True(t, isThere(long+"-node1-ep1"))
	require.True(t, isThere(long+"-underlay"))
}

func TestBadCommandLines(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"-mode geneve":  `-mode geneve: want vxlan or native`,
		"-mode Native":  `-mode Native: want vxlan or native`,
		"-mode=":        `-mode : want vxlan or native`,
		"-nodes 0":      `-nodes 0: want 1 to 200`,
		"-endpoints -1": `-endpoints -1: want 0 to 200`,
		"-port 0":       `-port 0: want 1 to 65535`,
		"-port 65536":   `-port 65536: want 1 to 65535`,
		"-nodes x":      `invalid value "x" for flag -nodes`,
		"-what":         `flag provided but not defined: -what`,
		"three":         `"three" is not a flag`,
		"-services -1":  `-services -1: want 0 to 10000`,
		"-backends 0":   `-backends 0: want 1 to 100`,
		"-name=":        `-name: want a name`,

		"-services 10001":              `-services 10001: want 0 to 10000`,
		"-services 1 -endpoints 0":     `services without endpoints`,
		"-services 9999 -backends 100": `9999 services of 100 backends: want up to 50000 backends in all`,

		"-nodes 201":     `-nodes 201: want 1 to 200`,
		"-endpoints 201": `-endpoints 201: want 0 to 200`,
		"-name ..":       `name "..": want letters`,
		"-name a/b":      `name "a/b": want letters`,
		"-name *":        `name "*": want letters`,
	} {
		var out, errs bytes.Buffer
		require.Equal(t, 2, run(t.Context(), strings.Fields(args), &out, &errs), args)
		require.Empty(t, out.String())
		require.True(t, strings.HasPrefix(errs.String(), "cluster: "+want), "%s: %s", args, &errs)
		require.Equal(t, 1, strings.Count(errs.String(), "\n"), "one line: %s", &errs)
	}
}

func TestLongLineIsBroken(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	line := lineOf(&out)
	line("Building:")
	for i := range 30 {
		line(" node %d,", i+1)
	}
	line(" done.")
	var words []string
	for l := range strings.Lines(out.String() + "\n") {
		require.LessOrEqual(t, len(l), 97+1, "with the line feed and the indent")
		words = append(words, strings.Fields(l)...)
	}
	require.Len(t, words, 1+2*30+1)
	require.Equal(t, 2, strings.Count(out.String(), "\n  node"))
}

func TestHelp(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"-h"}, &out, &errs))
	require.Empty(t, errs.String())
	for _, flag := range []string{"-nodes", "-endpoints", "-mode", "-services", "-backends", "-port", "-ipv6-underlay", "-hold", "-json", "-name"} {
		require.Contains(t, out.String(), "\n  "+flag+" ")
	}
}

func TestWithoutEndpoints(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"-name", newName(t), "-endpoints", "0"}, &out, &errs), "%s", &errs)
	require.Contains(t, out.String(), "Without endpoints there is nothing to probe.")
	require.Contains(t, out.String(), "Endpoints\n  (none)\n")
}

func TestNotRoot(t *testing.T) {
	t.Parallel()
	name := newName(t)
	cmd := program(t, "nobody", "-name", name)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	require.Error(t, cmd.Run())
	require.Equal(t, 1, cmd.ProcessState.ExitCode())
	require.Equal(t, "cluster: this needs root, to make namespaces and load programs: run it with sudo\n", errs.String())

	// A root that has lost some of it is told what, before anything is begun.
	var out bytes.Buffer
	errs.Reset()
	require.NoError(t, unprivileged.Do(func() error {
		require.Equal(t, 1, run(t.Context(), []string{"-name", name}, &out, &errs))
		return nil
	}))
	require.Equal(t, "cluster: root is without CAP_NET_ADMIN (for devices), CAP_SYS_ADMIN (for namespaces and BPF), CAP_NET_RAW (to ping) here, as in some containers\n", errs.String())
	require.Empty(t, out.String())
}
