// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const sample = "github.com/godatapath/datapath/internal/skips/testdata/sample"

// run judges a real run of the sample. It returns the lines, without times and
// in order, because tests run at once.
func run(t *testing.T, accepted string, args ...string) ([]string, error) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"test", "-json", "-count=1"}, append(args, "./testdata/sample")...)...)
	events, _ := cmd.Output() // an exit code tells of a failed test
	var out bytes.Buffer
	err := judge(bytes.NewReader(events), &out, accepted)
	text := regexp.MustCompile(`\d+\.\d+s`).ReplaceAllString(out.String(), "N")
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	slices.Sort(lines)
	return lines, err
}

func TestASkipIsTheKernelsOrAFailure(t *testing.T) {
	t.Parallel()
	lines, err := run(t, kernel, "-run", "^TestKernel$")
	require.NoError(t, err)
	require.Equal(t, []string{
		"ok  \t" + sample + "\tN",
		"skipped: " + sample + " TestKernel: this kernel does not support it: attach: unsupported operation",
	}, lines)

	lines, err = run(t, kernel, "-skip", "TestFails")
	require.EqualError(t, err, `4 skipped, and not because "this kernel does not support it"`)
	const bad = "skipped without a good reason: " + sample + " "
	require.Equal(t, []string{
		"ok  \t" + sample + "\tN",
		bad + "FuzzSkipped: no time",
		bad + "TestBesideANoisyOne: it is late and not supported",
		bad + "TestInside/sub: no time",
		bad + "TestSilent: ",
		"skipped: " + sample + " TestKernel: this kernel does not support it: attach: unsupported operation",
	}, lines)
}

func TestSkippedBenchmarksCount(t *testing.T) {
	t.Parallel()
	lines, err := run(t, kernel, "-run", "^$", "-bench", ".", "-benchtime", "1x")
	require.EqualError(t, err, `1 skipped, and not because "this kernel does not support it"`)
	require.Regexp(t, `^BenchmarkRuns\S*\s+1\s+\d+ ns/op$`, lines[0])
	require.Equal(t, []string{
		"ok  \t" + sample + "\tN",
		"skipped without a good reason: " + sample + " BenchmarkInside/sub: no time",
		"skipped: " + sample + " BenchmarkKernel: this kernel does not support it: attach: unsupported operation",
	}, lines[1:])
}

func TestAnotherReason(t *testing.T) {
	t.Parallel()
	_, err := run(t, "no time", "-run", "Inside|Fuzz")
	require.NoError(t, err)
	_, err = run(t, "no time", "-run", "Inside|Kernel")
	require.Error(t, err)
}

func TestAFailureIsShownWhole(t *testing.T) {
	t.Parallel()
	lines, err := run(t, kernel, "-run", "^TestFails$")
	require.EqualError(t, err, "there are failures")
	text := strings.Join(lines, "\n")
	require.Contains(t, text, "--- FAIL: TestFails (N)")
	require.Contains(t, text, "what it said")
	require.Contains(t, text, "FAIL\t"+sample+"\tN")

	_, err = run(t, kernel, "-run", "^TestKernel$", "-tags", "x", "-nosuchflag")
	require.EqualError(t, err, "there are failures")
}

func TestNothingIsNoPass(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "no package has passed",
		`{"Action":"start","Package":"a"}` + "\n" + `{"Action":"skip","Package":"a"}`: "no package has passed",
		"ok  \ta\t1s\n": `want what go test -json writes, and not "ok  \ta\t1s"`,
		`{"ImportPath":"a","Action":"build-output","Output":"# a\n"}` + "\n" + `{"ImportPath":"a","Action":"build-fail"}`: "there are failures",
	} {
		require.EqualError(t, judge(strings.NewReader(in), &bytes.Buffer{}, kernel), want)
	}
}
