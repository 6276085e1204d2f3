// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/internal/unprivileged"
)

var probeLine = regexp.MustCompile(`(?m)^    (\S.*?\S) +[\d.]+ (?:µs|ms|s) ok +[\d.]+ (?:µs|ms|s) ok$`)

func TestDemonstration(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"-name", newName(t)}, &out, &errs), "%s%s", &out, &errs)
	require.Empty(t, errs.String())
	text := out.String()
	var rows []string
	for _, m := range probeLine.FindAllStringSubmatch(text, -1) {
		rows = append(rows, m[1])
	}
	require.Equal(t, []string{
		"TCP, each answers", "UDP, each answers", "HTTP, each tells its name and has seen the balancer",
		"ping, answered by the balancer", "a port without a service, refused at once", "a connection to backend1, which is held",
		"the connection goes on", "40 new TCP connections, to the others", "40 new UDP flows, to the others",
		"the connection is reset", "40 new TCP connections, to the others", "40 new UDP flows, to the others",
		"TCP, each answers", "UDP, each answers",
	}, rows, text)
	require.Contains(t, text, "  28 probes in ")
	require.Contains(t, text, ": all ok\n")
	require.Contains(t, text, "\n  backend1 is terminating\n")
	require.Regexp(t, `(?m)^  1   203\.0\.113\.10:7/TCP +ExternalIP  192\.0\.2\.11:7007 \(active\)$`, text)
	require.Regexp(t, `(?m)^  flows=\d+ new=\d+ .* insert-errors=0$`, text)
	require.Regexp(t, `(?m)^  kept=\d+ found=\d+ exhausted=0$`, text)
	require.Regexp(t, `(?m)^  to device +from device +\d+ +\d+$`, text)
}

// A probe that fails is told with its reason, and is the exit code.
func TestFailedProbe(t *testing.T) {
	t.Parallel()
	name := newName(t)
	var errs bytes.Buffer
	out := &saboteur{t: t, name: name}
	require.Equal(t, 1, run(t.Context(), []string{"-name", name}, out, &errs))
	require.Equal(t, "loadbalancer: 14 probes failed\n", errs.String())
	require.Regexp(t, `(?m)^    ping, answered by the balancer +[\d.]+ (µs|ms) ok +FAILED  IPv6: ping 2001:db8:3::10: network is unreachable$`, out.String())
	require.Contains(t, out.String(), ": 14 FAILED\n")
}

// saboteur takes the client's way to the services of IPv6 away as soon as all is up.
type saboteur struct {
	bytes.Buffer
	t    *testing.T
	name string
}

func (s *saboteur) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "done in") {
		ns, err := devices.OpenNamed(s.name + "-client")
		require.NoError(s.t, err)
		defer ns.Close()
		require.NoError(s.t, devices.RemoveRoute(ns, devices.Route{Prefix: serviceAddrs[1].Masked(), Dev: front}))
	}
	return s.Buffer.Write(b)
}

// A signal at any moment: while it builds, while it probes, while it holds.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	for i, after := range []time.Duration{0, 20, 60, 110, 160, 250, 700, 1100, 2500} {
		t.Run((after * time.Millisecond).String(), func(t *testing.T) {
			t.Parallel()
			cmd := program(t, "root", "-hold", "-name", newName(t))
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
			require.Equal(t, "loadbalancer: interrupted; everything is taken away again\n", errs.String())
		})
	}
}

func TestCancelledBefore(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var errs bytes.Buffer
	require.Equal(t, 1, run(ctx, []string{"-name", newName(t)}, io.Discard, &errs))
	require.Equal(t, "loadbalancer: interrupted; everything is taken away again\n", errs.String())
}

// Whoever reads the rows goes away.
func TestBrokenPipe(t *testing.T) {
	t.Parallel()
	cmd := program(t, "root", "-hold", "-name", newName(t))
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

// holding starts a demonstration that holds, and returns what it has said until
// then, and the rest.
func holding(t *testing.T, name string) (*exec.Cmd, string, *bufio.Scanner) {
	t.Helper()
	cmd := program(t, "root", "-hold", "-name", name)
	cmd.Stderr = &bytes.Buffer{}
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewScanner(out)
	text := ""
	for lines.Scan() {
		text += lines.Text() + "\n"
		if strings.HasSuffix(lines.Text(), "services.json") {
			break
		}
	}
	require.NoError(t, lines.Err())
	return cmd, text, lines
}

func TestHold(t *testing.T) {
	t.Parallel()
	name := newName(t)
	cmd, text, lines := holding(t, name)
	require.Contains(t, text, "  sudo ip netns exec "+name+"-client curl -s http://203.0.113.10/\n")
	require.Contains(t, text, "  sudo go run ./examples/dpctl -pins "+cluster.DefaultDir+"/"+name+"/bpf service list\n")
	require.Contains(t, text, fmt.Sprintf("  sudo kill -USR1 %d\n", cmd.Process.Pid))
	file := filepath.Join(cluster.DefaultDir, name, "services.json")
	require.Contains(t, text, "\n  "+file+"\n")

	client, err := devices.OpenNamed(name + "-client")
	require.NoError(t, err)
	defer client.Close()
	answer, err := ask(t.Context(), client, at(6, webPort))
	require.NoError(t, err)
	require.Regexp(t, `^backend[123], asked by 2001:db8:2::1$`, answer)

	require.NoError(t, writeFile(file, withState(planServices(), "maintenance")[:1]))
	require.True(t, lines.Scan())
	require.Equal(t, "services.json: echo-ipv4 (192.0.2.11:7007 is maintenance), echo-ipv6 is gone, web-ipv4 is gone, web-ipv6 is gone", lines.Text())
	require.NoError(t, os.WriteFile(file, []byte("what"), 0o600))
	require.True(t, lines.Scan())
	require.Equal(t, "services.json: line 1: it is no JSON: invalid character 'w' looking for beginning of value; what runs goes on", lines.Text())
	require.NoError(t, cmd.Process.Signal(unix.SIGUSR1))
	require.True(t, lines.Scan())
	require.Empty(t, lines.Text())
	require.True(t, lines.Scan())
	require.Equal(t, "Services", lines.Text())

	require.NoError(t, cmd.Process.Signal(unix.SIGINT))
	for lines.Scan() && lines.Text() != "Taking everything away." {
	}
	require.Equal(t, "Taking everything away.", lines.Text())
	require.NoError(t, cmd.Wait(), "ending one that was held is no failure; it has said:\n%s%s", text, cmd.Stderr)
}

// What a killed one leaves, the next one clears away.
func TestKilled(t *testing.T) {
	t.Parallel()
	name := newName(t)
	cmd, _, _ := holding(t, name)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.True(t, isThere(name+"-backend3"))
	require.FileExists(t, filepath.Join(cluster.DefaultDir, name, "services.json"))
	var errs bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"-name", name}, io.Discard, &errs), "%s", &errs)
}

func TestSecondOfAName(t *testing.T) {
	t.Parallel()
	name := newName(t)
	cmd, _, _ := holding(t, name)
	var errs bytes.Buffer
	require.Equal(t, 1, run(t.Context(), []string{"-name", name}, io.Discard, &errs))
	require.Equal(t, fmt.Sprintf("loadbalancer: another one has %s/%s/lock (process %d): end it, or choose another -name or -pins\n",
		cluster.DefaultDir, name, cmd.Process.Pid), errs.String())
	require.True(t, isThere(name+"-client"), "the first one does not mind")
	require.NoError(t, cmd.Process.Signal(unix.SIGTERM))
	require.NoError(t, cmd.Wait())
}

func TestBadCommandLines(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"what":                          `"what" is not a flag`,
		"-what":                         `flag provided but not defined: -what`,
		"-name ../x":                    `-name "../x": want letters`,
		"-name=":                        `-name "": want letters`,
		"-config= -device eth0":         `-config: want a file`,
		"-config f":                     `-config needs a -device`,
		"-config f -device a/b":         `invalid value "a/b" for flag -device: `,
		"-device eth0":                  `-device is for -config`,
		"-netns x":                      `-netns is for -config`,
		"-pins /x":                      `-pins is for -config`,
		"-flows 100":                    `-flows is for -config`,
		"-xdp":                          `-xdp is for -config`,
		"-flows 15":                     `-flows 15: want 16 to 16777216`,
		"-config f -device a -hold":     `-hold is for the demonstration, and not for -config`,
		"-config f -device a -device a": `invalid value "a" for flag -device: it comes twice`,
		"-config f -device a -pins=":    `-pins: want a folder`,
		"-config f -device a -netns=":   `-netns: want a namespace`,
	} {
		var out, errs bytes.Buffer
		require.Equal(t, 2, run(t.Context(), strings.Fields(args), &out, &errs), args)
		require.Empty(t, out.String())
		require.True(t, strings.HasPrefix(errs.String(), "loadbalancer: "+want), "%s: %s", args, &errs)
		require.Equal(t, 1, strings.Count(errs.String(), "\n"), "one line: %s", &errs)
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"-h"}, &out, &errs))
	require.Empty(t, errs.String())
	for _, flag := range []string{"-config", "-device", "-netns", "-pins", "-flows", "-xdp", "-hold", "-name"} {
		require.Contains(t, out.String(), "\n  "+flag+" ")
	}
	require.NotContains(t, out.String(), "%!")
	for line := range strings.Lines(out.String()) {
		require.LessOrEqual(t, len(line), 88, line)
	}
}

func TestNotRoot(t *testing.T) {
	t.Parallel()
	cmd := program(t, "nobody")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	require.Error(t, cmd.Run())
	require.Equal(t, 1, cmd.ProcessState.ExitCode())
	require.Equal(t, "loadbalancer: this needs root, to load programs: run it with sudo\n", errs.String())

	errs.Reset()
	require.NoError(t, unprivileged.Do(func() error {
		require.Equal(t, 1, run(t.Context(), []string{"-config", "services.json", "-device", "lo"}, io.Discard, &errs))
		return nil
	}))
	require.Equal(t, "loadbalancer: root is without CAP_NET_ADMIN (for devices), CAP_SYS_ADMIN (for namespaces and BPF) here, as in some containers\n", errs.String())
}
