// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/examples/internal/probe"
)

func TestServicesAreReached(t *testing.T) {
	t.Parallel()
	twoNodes := func(outside int) map[string]int {
		return map[string]int{
			"service": 2 * 2 * 8, "service, hairpin": 2 * 5, "service, same node": 2 * 5, "service, across nodes": 2 * 5, "world to service": 2 * outside,
		}
	}
	for _, test := range []struct {
		name  string
		flags []string
		want  map[string]int // rows of each relation
	}{
		{"two nodes", nil, twoNodes(6)},
		{"IPv6 underlay", []string{"-ipv6-underlay"}, twoNodes(6)},
		{"native", []string{"-mode", "native"}, twoNodes(5)},
		{"alone", []string{"-nodes", "1", "-endpoints", "1", "-backends", "5", "-maglev"}, map[string]int{"service": 2 * 8, "service, hairpin": 5, "world to service": 4}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var out, errs bytes.Buffer
			code := run(t.Context(), append(test.flags, "-name", newName(t), "-services", "4"), &out, &errs)
			require.Zero(t, code, "%s%s", &out, &errs)
			require.Empty(t, errs.String())
			text := out.String()
			rows := map[string]int{}
			for _, m := range probeLine.FindAllStringSubmatch(text, -1) {
				if strings.Contains(m[1], "service") {
					require.NotContains(t, m[4:], "-", "both families")
					rows[m[1]]++
				}
			}
			require.Equal(t, test.want, rows, text)
			require.Regexp(t, `(?m)^  service +node1 -> service4 +UDP echo, unconnected, by socket +\d`, text)
			require.Regexp(t, `(?m)^  world to service +outside -> node1:30001 +TCP echo of each backend +\d`, text)
			require.Contains(t, text, "\nServices, the same on every node\n")
			require.Regexp(t, `(?m)^  1 +0\.0\.0\.0:30001/TCP +NodePort +10\.244\.1\.10:8000 \(active\)$`, text)
			require.Regexp(t, `(?m)^  1 +10\.96\.0\.1:80/TCP +ClusterIP +10\.244\.1\.10:8000 \(active\)$`, text)
			require.Contains(t, text, "\n  * and 2 services more, as dpctl service list shows\n")
			require.NotContains(t, text, "probe1-ipv4", "they are there for the probes only")
		})
	}
}

func TestServicesInTheDocument(t *testing.T) {
	t.Parallel()
	name := newName(t)
	var out, people bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"-json", "-nodes", "1", "-endpoints", "2", "-services", "2", "-backends", "2", "-name", name}, &out, &people), "%s", &people)
	require.NotContains(t, out.String(), "null")
	var doc map[string]any
	require.NoError(t, json.Unmarshal(out.Bytes(), &doc))
	front := func(address, kind, protocol string) any {
		return map[string]any{"address": address, "type": kind, "protocol": protocol}
	}
	fronts := func(address, everywhere string) []any {
		return []any{
			front(address, "ClusterIP", "TCP"), front(address, "ClusterIP", "UDP"),
			front(everywhere, "NodePort", "TCP"), front(everywhere, "NodePort", "UDP"),
		}
	}
	require.Equal(t, []any{
		map[string]any{
			"name": "service1-ipv4", "frontends": fronts("10.96.0.1:80", "0.0.0.0:30001"),
			"backends": []any{"10.244.1.10:8000", "10.244.1.11:8000"},
		},
		map[string]any{
			"name": "service1-ipv6", "frontends": fronts("[fd00:96::1]:80", "[::]:30001"),
			"backends": []any{"[fd00:244:1::10]:8000", "[fd00:244:1::11]:8000"},
		},
		map[string]any{
			"name": "service2-ipv4", "frontends": fronts("10.96.0.2:80", "0.0.0.0:30002"),
			"backends": []any{"10.244.1.11:8001", "10.244.1.10:8001"},
		},
		map[string]any{
			"name": "service2-ipv6", "frontends": fronts("[fd00:96::2]:80", "[::]:30002"),
			"backends": []any{"[fd00:244:1::11]:8001", "[fd00:244:1::10]:8001"},
		},
	}, doc["services"])
	node := doc["nodes"].([]any)[0].(map[string]any)
	require.Equal(t, filepath.Join(cluster.DefaultDir, name, "cgroup", "datapath-"+name, "node1"), node["cgroup"])
}

// Whoever reads the document can go into the cgroup, and out with the cluster.
func TestCgroupInTheDocument(t *testing.T) {
	t.Parallel()
	name := newName(t)
	cmd := program(t, "root", "-hold", "-json", "-services", "1", "-nodes", "1", "-name", name)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var doc Document
	require.NoError(t, json.NewDecoder(out).Decode(&doc))
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(doc.Nodes[0].Cgroup, &st))
	require.EqualValues(t, unix.CGROUP2_SUPER_MAGIC, st.Type)
	inside, err := os.ReadFile(filepath.Join(doc.Nodes[0].Cgroup, "cgroup.procs"))
	require.NoError(t, err)
	require.Empty(t, string(inside), "no child is left")
	require.NoError(t, cmd.Process.Signal(unix.SIGINT))
	require.NoError(t, cmd.Wait())
	require.NoDirExists(t, doc.Nodes[0].Cgroup)
}

func TestWithoutCgroups(t *testing.T) {
	t.Parallel()
	c, err := cluster.Start(t.Context(), cluster.Config{Name: newName(t), Nodes: 1, Services: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	c.NoSockets, c.Nodes[0].Cgroup = errors.New("a reason"), ""
	var out bytes.Buffer
	failed, err := probeAll(t.Context(), c, &out)
	require.NoError(t, err)
	require.Zero(t, failed, "%s", &out)
	require.Contains(t, out.String(), "\n  Services are not there for sockets: a reason\n")
	require.NotContains(t, out.String(), "by socket")
	require.Contains(t, out.String(), "service, hairpin")
	have, err := c.Nodes[0].Services.Services()
	require.NoError(t, err)
	require.Len(t, have, 2, "those of the probes are gone")
}

// What is probed is that the service answers: a backend that shows itself, or
// that is not there, is told.
func TestFailuresInTheCgroup(t *testing.T) {
	t.Parallel()
	c, err := cluster.Start(t.Context(), cluster.Config{Name: newName(t), Nodes: 1, Services: 1, Backends: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	n := c.Nodes[0]
	ask := func(what string) error {
		_, err := askInCgroup(t.Context(), n.Cgroup, n.Endpoints[1].Namespace, job{what, c.ServiceAt(1, 4).Frontends[0].Addr, echoSize})
		return err
	}
	require.EqualError(t, ask(tcpEcho), "connection refused", "nobody serves")
	require.ErrorContains(t, ask("what"), `no such probe: "what"`)
	server, err := probe.NewEchoAt(n.Endpoints[0].Namespace, c.ServiceAt(1, 4).Backends[0].Addr)
	require.NoError(t, err)
	defer func() { require.NoError(t, server.Close()) }()
	require.NoError(t, ask(tcpEcho))
	events, err := n.Services.SocketEvents()
	require.NoError(t, err)
	require.EqualValues(t, 2, events["translated"])
	require.NoError(t, n.Services.DeleteService("service1-ipv4"))
	require.Error(t, ask(udpEcho))

	_, err = askInCgroup(t.Context(), "/nowhere", n.Namespace, job{})
	require.ErrorContains(t, err, "open the cgroup: no such file or directory")
	require.Equal(t, 2, childMain("no JSON", io.Discard, io.Discard))
	var out bytes.Buffer
	require.Zero(t, childMain(`{"Probe":"TCP echo","To":"`+netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 1).String()+`"}`, &out, io.Discard))
	require.Contains(t, out.String(), "connection refused")
}
