// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/maps"
)

func TestFolders(t *testing.T) {
	t.Parallel()
	_, pins := start(t, cluster.Config{Nodes: 1, Endpoints: -1})
	require.Equal(t, "there is no folder /run/nowhere: is a datapath running, and are its tables pinned there?",
		fails(t, 1, "-pins", "/run/nowhere", "endpoint", "list"))
	plain := t.TempDir()
	require.Equal(t, plain+" is not on a bpf filesystem: nothing can be pinned there", fails(t, 1, "-pins", plain, "endpoint", "list"))
	above := filepath.Dir(pins)
	require.Equal(t, above+" is not on a bpf filesystem, but "+pins+" is: try -pins "+pins, fails(t, 1, "-pins", above, "endpoint", "list"))

	bare := filepath.Join(pins, "bare")
	require.NoError(t, os.MkdirAll(filepath.Join(bare, "below"), 0o700))
	require.Equal(t, "no table is pinned in "+bare+", nor in a folder of it", fails(t, 1, "-pins", bare, "endpoint", "list"))

	// A folder of nodes may have others in it.
	require.Equal(t, "node1\n  (none)\n", dpctl(t, "-pins", pins, "endpoint", "list"))

	// A node with one table answers for that.
	counters, err := maps.NewMetrics(maps.Config{Pins: filepath.Join(bare, "below")})
	require.NoError(t, err)
	only := filepath.Join(bare, "below")
	require.Equal(t, "(none)\n", dpctl(t, "-pins", only, "metrics", "list"))
	for command, want := range map[string]string{
		"endpoint list": "no endpoint table is pinned in ", "tunnel list": "no tunnel is pinned in ",
		"ct list": "no flow table is pinned in ", "status": "no running datapath is pinned in ",
		"nat list": "no flow table is pinned in ", "nat ports": "no flow table is pinned in ",
	} {
		require.Equal(t, want+only, fails(t, 1, append([]string{"-pins", only}, strings.Fields(command)...)...))
	}
	// Of several nodes, the others are shown.
	moved := filepath.Join(pins, "zz")
	require.NoError(t, os.Rename(only, moved))
	var out, errs bytes.Buffer
	require.Equal(t, 1, run([]string{"-pins", pins, "endpoint", "list"}, &out, &errs))
	require.Equal(t, "node1\n  (none)\n", out.String())
	require.Equal(t, "dpctl: zz: no endpoint table is pinned in "+moved+"\n", errs.String())

	require.NoError(t, os.Rename(moved, only))
	require.NoError(t, counters.Remove())
	require.NoError(t, os.RemoveAll(bare))
	require.Contains(t, fails(t, 1, "-pins", pins, "-netns", "/x", "status"), "open namespace /x")

	file := filepath.Join(plain, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	pin := filepath.Join(pins, "node1", "flows")
	for _, path := range []string{file, pin} {
		require.Equal(t, path+" is a file and not a folder of pins", fails(t, 1, "-pins", path, "endpoint", "list"))
	}
}

func TestSeveralNodesHaveSeveralNamespaces(t *testing.T) {
	t.Parallel()
	_, pins := start(t, cluster.Config{Nodes: 2, Endpoints: -1})
	require.Contains(t, fails(t, 1, "-pins", pins, "-netns", "/proc/self/ns/net", "status"), "has 2 nodes: choose one with -pins")
}

func TestBadCommandLines(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"-json":                         `no command (see -h)`,
		"endpoint":                      `"endpoint" is not a command: do you mean endpoint list? (see -h)`,
		"endpoints list":                `"endpoints list" is not a command: do you mean endpoint list? (see -h)`,
		"endpoint list now":             `"endpoint list now" is not a command: do you mean endpoint list? (see -h)`,
		"ct":                            `"ct" is not a command: do you mean ct list? (see -h)`,
		"-proto tcp ct":                 `"ct" is not a command: do you mean ct list? (see -h)`,
		"m":                             `"m" is not a command: do you mean metrics list? (see -h)`,
		"policy":                        `"policy" is not a command (see -h)`,
		"-pins= status":                 `-pins: want a folder (see -h)`,
		"-netns= status":                `-netns: want the path of a namespace (see -h)`,
		"status -src 10.0.0.1":          `-src is for ct list and nat list (see -h)`,
		"metrics list -port 3":          `-port is for ct list and nat list (see -h)`,
		"tunnel list -netns /x":         `-netns is for status (see -h)`,
		"ct list -src ten":              `-src: "ten" is neither an address nor a prefix (see -h)`,
		"ct list -dst 10.0.0.0/99":      `-dst: "10.0.0.0/99" is neither an address nor a prefix (see -h)`,
		"ct list -proto ipx":            `-proto: protocol "ipx": want TCP, UDP, ICMP, ICMPv6 or SCTP (see -h)`,
		"ct list -port 65536":           `-port: want 1 to 65535 and not 65536 (see -h)`,
		"ct list -port 0":               `-port: want 1 to 65535 and not 0 (see -h)`,
		"ct list -src 10.244.1.10/24":   `-src: 10.244.1.10/24 has bits behind the prefix: want 10.244.1.0/24, or the address alone (see -h)`,
		"ct list -dst fd00::1/64":       `-dst: fd00::1/64 has bits behind the prefix: want fd00::/64, or the address alone (see -h)`,
		"ct list -src=":                 `-src: "" is neither an address nor a prefix (see -h)`,
		"ct list -src fe80::1%eth0":     `-src: "fe80::1%eth0" is neither an address nor a prefix (see -h)`,
		"ct list -state open":           `-state: "open": want new, established or closing (see -h)`,
		"status -state new":             `-state is for ct list and nat list (see -h)`,
		"nat":                           `"nat" is not a command: do you mean nat list or nat ports? (see -h)`,
		"nat ports -dst 10.0.0.1":       `-dst is for ct list and nat list (see -h)`,
		"nat list -proto ipx":           `-proto: protocol "ipx": want TCP, UDP, ICMP, ICMPv6 or SCTP (see -h)`,
		"nat list -netns /x":            `-netns is for status (see -h)`,
		"ct list -what":                 `flag provided but not defined: -what (see -h)`,
		"-pins /run/nowhere ct lists":   `"ct lists" is not a command: do you mean ct list? (see -h)`,
		"ct list -proto tcp -src 1.2.3": `-src: "1.2.3" is neither an address nor a prefix (see -h)`,
	} {
		require.Equal(t, want, fails(t, 2, strings.Fields(args)...), args)
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-h"}, {}, {"ct", "list", "-h"}} {
		out := dpctl(t, args...)
		for _, c := range commands {
			require.Contains(t, out, "\n  "+c.name+" ")
		}
		for _, flag := range []string{"-pins", "-json", "-src, -dst", "-port", "-proto", "-state", "-netns"} {
			require.Contains(t, out, "\n  "+flag+" ")
		}
		require.NotContains(t, out, "%!")
	}
}

func TestNotRoot(t *testing.T) {
	t.Parallel()
	c, pins := start(t, cluster.Config{Nodes: 1, Endpoints: -1})
	for _, dir := range []string{pins, c.Nodes[0].Pins, "/run/nowhere"} {
		for _, command := range commands {
			words := append([]string{"-pins", dir}, strings.Fields(command.name)...)
			if command.name == "service maglev" {
				words = append(words, "1")
			}
			cmd := nobody(t, words...)
			var errs bytes.Buffer
			cmd.Stderr = &errs
			require.Error(t, cmd.Run())
			require.Equal(t, 1, cmd.ProcessState.ExitCode())
			require.Equal(t, "dpctl: this needs root, to read pinned tables: run it with sudo\n", errs.String())
		}
	}
}
