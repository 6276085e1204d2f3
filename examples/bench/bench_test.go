// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/internal/unprivileged"
)

// asProgram makes the test binary the program itself.
const asProgram = "BENCH_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	// A measurement starts this very program again.
	if len(os.Args) == 3 && os.Args[1] == childFlag {
		os.Exit(childMain(os.Args[2]))
	}
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(netnstest.Main(m))
}

// testName is that of our clusters. Another run of these tests, or of the program,
// may be going on beside this one.
var testName = fmt.Sprintf("bt%d", os.Getpid())

// leavesNothing is checked when the test is over.
func leavesNothing(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		names, err := filepath.Glob(filepath.Join(devices.NamespaceDir, testName+"-*"))
		assert.NoError(t, err)
		assert.Empty(t, names, "namespaces are left")
		assert.NoDirExists(t, filepath.Join("/run/datapath", testName))
		assert.Empty(t, children(t), "processes are left")
	})
}

// children lists the processes that this one has started and not ended.
func children(t *testing.T) (found []string) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it is gone
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			found = append(found, string(b))
		}
	}
	return found
}

func TestAllContestantsGivePlausibleNumbers(t *testing.T) {
	for name, args := range map[string][]string{
		"IPv4, wire":   {"-underlay", "wire"},
		"IPv6, bridge": {"-underlay", "bridge", "-6"},
	} {
		t.Run(name, func(t *testing.T) {
			leavesNothing(t)
			t.Setenv("GORACE", "atexit_sleep_ms=0") // else each child ends a second late
			want := expected()
			svg := filepath.Join(t.TempDir(), "chart.svg")
			var stdout, stderr bytes.Buffer
			args := append([]string{"-name", testName, "-services", "50", "-rounds", "1", "-time", "100ms", "-json", "-svg", svg}, args...)
			require.Equal(t, exitOK, run(t.Context(), args, &stdout, &stderr), stderr.String())

			var rep report
			doc := json.NewDecoder(&stdout)
			require.NoError(t, doc.Decode(&rep))
			_, err := doc.Token()
			require.ErrorIs(t, err, io.EOF, "more than one document")
			assert.True(t, strings.HasPrefix(name, rep.Family), rep.Family)
			assert.True(t, strings.HasSuffix(name, rep.Underlay), rep.Underlay)
			require.Len(t, rep.Measures, len(measures))
			// Far outside of what any machine and the race detector do.
			bounds := map[string][2]float64{"rr": {2, 5e3}, "crr": {10, 5e4}, "udp": {1, 1e4}, "stream": {0.01, 1e3}}
			for _, m := range rep.Measures {
				require.Len(t, m.Contestants, len(want))
				for _, c := range m.Contestants {
					assert.Contains(t, want, c.Name)
					require.Len(t, c.Rounds, 1)
					assert.Equal(t, c.Rounds[0], c.Median)
					assert.Greater(t, c.Median, bounds[m.Name][0], "%s of %s", m.Name, c.Name)
					assert.Less(t, c.Median, bounds[m.Name][1], "%s of %s", m.Name, c.Name)
					assert.InDelta(t, c.Median/m.of(nameVeth).Median, c.ToVeth, 1e-9)
				}
			}
			for _, g := range targets {
				both := slices.Contains(want, g.Contestant) && slices.Contains(want, g.Against)
				assert.Equal(t, both, slices.ContainsFunc(rep.Targets, func(have target) bool {
					return have.Measure == g.Measure && have.Contestant == g.Contestant && have.Against == g.Against
				}), "%s of %s", g.Measure, g.Contestant)
			}
			assert.Contains(t, stderr.String(), "ours, over vxlan", "with -json the table goes to stderr")
			assert.Equal(t, 1, strings.Count(stderr.String(), "round 1 of 1, "), stderr.String())

			b, err := os.ReadFile(svg)
			require.NoError(t, err)
			requireXML(t, b)
		})
	}
}

// expected are the names of who can be measured here.
func expected() []string {
	names := []string{
		nameVeth, nameForwarding, nameKernelVXLAN, nameSameNode, nameOverlay, nameService, nameServices, nameSocket, nameNodePort, nameNodePorts,
	}
	for tool, both := range map[string][]string{"iptables-restore": {nameIPTables, nameIPTablesNodePort}, "nft": {nameNFTables, nameNFTablesNodePort}} {
		if _, err := exec.LookPath(tool); err == nil {
			names = append(names, both...)
		}
	}
	return names
}

// Where a tool is not there, the others are measured and it is said who is not.
func TestToolsThatAreNotThere(t *testing.T) {
	leavesNothing(t)
	t.Setenv("PATH", t.TempDir())
	var stdout, stderr bytes.Buffer
	require.Equal(t, exitOK, run(t.Context(), []string{"-name", testName, "-services", "50", "-rounds", "1", "-time", "20ms", "-measures", "rr", "-json"}, &stdout, &stderr), stderr.String())
	assert.Contains(t, stderr.String(), "left out: exec: \"nft\": executable file not found")
	var rep report
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &rep))
	assert.Len(t, rep.Measures[0].Contestants, 10)
	assert.NotEmpty(t, rep.Targets)
	for _, g := range rep.Targets {
		assert.Positive(t, g.Ratio, "%s of %s", g.Measure, g.Contestant)
	}
}

// Who wants to know of one contestant need not wait for all.
func TestOnlySome(t *testing.T) {
	leavesNothing(t)
	var stdout, stderr bytes.Buffer
	args := []string{"-name", testName, "-only", nameOverlay, "-rounds", "1", "-time", "20ms", "-measures", "rr", "-json"}
	require.Equal(t, exitOK, run(t.Context(), args, &stdout, &stderr), stderr.String())
	var rep report
	require.NoError(t, json.Unmarshal(stdout.Bytes(), &rep))
	require.Len(t, rep.Measures[0].Contestants, 2)
	assert.Equal(t, nameVeth, rep.Measures[0].Contestants[0].Name, "the others are compared with it")
	assert.Equal(t, nameOverlay, rep.Measures[0].Contestants[1].Name)
	assert.NotContains(t, stderr.String(), "iptables")
}

// requireXML reads a chart to its end.
func requireXML(t *testing.T, b []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(b))
	elements := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if _, ok := token.(xml.StartElement); ok {
			elements++
		}
	}
	assert.Greater(t, elements, 10)
	assert.NotContains(t, string(b), "NaN")
	assert.NotContains(t, string(b), "Inf")
}

// cancelAt ends a context when a text is written.
type cancelAt struct {
	bytes.Buffer
	text   string
	cancel context.CancelFunc
}

func (c *cancelAt) Write(b []byte) (int, error) {
	if strings.Contains(string(b), c.text) {
		c.cancel()
	}
	return c.Buffer.Write(b)
}

func TestInterruptTakesEverythingAway(t *testing.T) {
	for _, at := range []string{"building kernel vxlan", "building the datapath", "round 1 of 5, "} {
		t.Run(at, func(t *testing.T) {
			leavesNothing(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stderr := &cancelAt{text: at, cancel: cancel}
			begin := time.Now()
			var stdout bytes.Buffer
			code := run(ctx, []string{"-name", testName, "-services", "50", "-time", "1m"}, &stdout, stderr)
			assert.Equal(t, exitFailed, code, stderr.String())
			assert.True(t, strings.HasSuffix(stderr.String(), "bench: interrupted; everything is taken away again\n"), stderr.String())
			assert.Empty(t, stdout.String())
			assert.Less(t, time.Since(begin), 30*time.Second)
		})
	}
}

func TestChildErrorReachesTheParent(t *testing.T) {
	ns, err := devices.NewNamespace()
	require.NoError(t, err)
	defer ns.Close()
	cpu, err := chooseCPU(-1)
	require.NoError(t, err)
	s := settings{time: 50 * time.Millisecond, cpu: cpu}
	c := contestant{client: ns, server: ns, addr: netip.MustParseAddr("192.0.2.1")}
	for _, m := range measures {
		_, err := s.measure(t.Context(), m, c)
		assert.ErrorContains(t, err, "server: listen on 192.0.2.1:30000: cannot assign requested address", m.Name)
	}
	c.addr = netip.MustParseAddr("127.0.0.1")
	_, err = s.measure(t.Context(), measure{Name: "nonsense"}, c)
	assert.ErrorContains(t, err, `no such measure: "nonsense"`)
	require.NoError(t, ns.Close())
	_, err = s.measure(t.Context(), measures[0], c)
	assert.ErrorIs(t, err, os.ErrClosed)
}

func TestBadArguments(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"-rounds 0":          "-rounds 0: want at least 1",
		"-time 1ms":          "-time 1ms: want 10ms to 10m",
		"-time 1h":           "want 10ms to 10m",
		"-measures rr,ping":  `"ping" is none of rr, crr, udp, stream`,
		"-measures rr,crr,":  `"" is none of`,
		"-only veth,horse":   `-only: "horse" is none of veth, kernel-forwarding`,
		"-services 1":        "-services 1: want 2 to 10000",
		"-services 10001":    "want 2 to 10000",
		"-cpu 100000":        "may not run on CPU 100000",
		"-cpu -2":            "may not run on CPU -2",
		"-underlay dragon":   `-underlay "dragon": want wire or bridge`,
		"now":                `unexpected argument "now"`,
		"-colour":            "not defined: -colour",
		"-measures rr -cpu=": "invalid value",
		"-measures rr,rr":    `-measures: "rr" comes twice`,
		"-name a/b":          `name "a/b": want letters`,
		"-name=":             "-name: want a name",
		"-svg /nowhere/x":    "-svg: write into folder /nowhere: no such file or directory",
		"-svg /":             "-svg: / is a folder",
	} {
		var stdout, stderr bytes.Buffer
		assert.Equal(t, exitUsage, run(t.Context(), strings.Fields(args), &stdout, &stderr), args)
		assert.Contains(t, stderr.String(), want, args)
		assert.Equal(t, 1, strings.Count(stderr.String(), "\n"), "one line: %s", stderr.String())
		assert.Empty(t, stdout.String(), args)
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	assert.Equal(t, exitOK, run(t.Context(), []string{"-h"}, &stdout, &stderr))
	assert.Empty(t, stderr.String())
	assert.NotContains(t, stdout.String(), "%!")
	for _, flag := range []string{"-rounds", "-time", "-measures", "-only", "-cpu", "-6", "-services", "-underlay", "-svg", "-json", "-check", "-name"} {
		assert.Contains(t, stdout.String(), "\n  "+flag+" ")
	}
	for _, m := range measures {
		assert.Contains(t, stdout.String(), " "+m.Name+" ")
	}
}

// Not even a file for pins is made by who has no right.
func TestWithoutRights(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	code := exitOK
	require.NoError(t, unprivileged.Do(func() error {
		code = run(t.Context(), nil, io.Discard, &stderr)
		return nil
	}))
	assert.Equal(t, exitFailed, code)
	assert.Equal(t, "bench: root is without CAP_NET_ADMIN (for devices), CAP_SYS_ADMIN (for namespaces and BPF) here, as in some containers\n", stderr.String())
}

// A terminal that closes leaves nothing behind.
func TestHangUp(t *testing.T) {
	leavesNothing(t)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "-name", testName, "-services", "50", "-time", "1m")
	cmd.Env = append(os.Environ(), asProgram+"=1")
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(stderr)
	last := ""
	for lines.Scan() {
		if last = lines.Text(); strings.HasPrefix(last, "round 1") {
			require.NoError(t, cmd.Process.Signal(unix.SIGHUP))
		}
	}
	require.NoError(t, lines.Err())
	require.Error(t, cmd.Wait())
	assert.Equal(t, exitFailed, cmd.ProcessState.ExitCode())
	assert.Equal(t, "bench: interrupted; everything is taken away again", last)
}
