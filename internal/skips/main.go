// SPDX-License-Identifier: Apache-2.0

// Command skips reads what "go test -json" writes and says whether the tests
// have passed, where a skip is a pass only if the kernel can not do what the
// test needs: that is the only reason which is accepted.
//
//	go test -json ./... | go run ./internal/skips
//
// It prints the closing line of each package, the results of benchmarks, what
// failed with its whole output, and every test, benchmark and fuzz target that
// was skipped, with its reason.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

// kernel is how the reason of netnstest.SkipUnsupported begins.
const kernel = "this kernel does not support it: "

func main() {
	accepted := flag.String("accept", kernel, "how the reason of a skip that is a pass begins")
	flag.Parse()
	if err := judge(os.Stdin, os.Stdout, *accepted); err != nil {
		fmt.Fprintln(os.Stderr, "skips:", err)
		os.Exit(1)
	}
}

// event is a line of "go test -json", see go doc test2json.
type event struct {
	Action, Package, Test, Output string
}

// name is a test of a package, or with no test the package itself.
type name struct{ pkg, test string }

// closing is what go test prints about a package in the end.
var closing = regexp.MustCompile(`^(ok|FAIL|\?|---) *\t`)

// result is what a benchmark has measured: a line, or first its name and then the
// rest of it.
var result = regexp.MustCompile(`^(Benchmark\S+ +\t$|(Benchmark\S+ +\t)? +\d+\t)`)

// entry is the beginning of what a test has logged: its reason, if it is the last.
// What a test prints without a newline stands before it.
var entry = regexp.MustCompile(` {4}\S+\.go:\d+: (.*)`)

// judge copies what people want to see, and tells what is wrong.
func judge(in io.Reader, out io.Writer, accepted string) error {
	said := map[name][]string{}
	var passed, failed, refused int
	r := bufio.NewReader(in)
	for {
		line, err := r.ReadString('\n')
		if errors.Is(err, io.EOF) && line == "" {
			break
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return fmt.Errorf("want what go test -json writes, and not %q", strings.TrimSpace(line))
		}
		of := name{e.Package, e.Test}
		switch e.Action {
		case "output":
			if e.Test == "" && closing.MatchString(e.Output) || result.MatchString(e.Output) {
				fmt.Fprint(out, e.Output)
			} else {
				said[of] = append(said[of], e.Output)
			}
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "build-fail":
			failed++
		case "fail":
			failed++
			fmt.Fprint(out, strings.Join(said[of], ""))
			delete(said, of)
		case "pass":
			if e.Test == "" {
				passed++
			}
			delete(said, of)
		case "skip":
			if e.Test == "" {
				break // a package without tests
			}
			why := reason(said[of])
			verdict := "skipped"
			if !strings.HasPrefix(why, accepted) {
				verdict = "skipped without a good reason"
				refused++
			}
			fmt.Fprintf(out, "%s: %s %s: %s\n", verdict, e.Package, e.Test, why)
			delete(said, of)
		}
	}
	switch {
	case failed > 0:
		return errors.New("there are failures")
	case refused > 0:
		return fmt.Errorf("%d skipped, and not because %q", refused, strings.TrimSuffix(accepted, ": "))
	case passed == 0:
		return errors.New("no package has passed")
	}
	return nil
}

// reason is the last that a test has logged, in one line; "" if it was silent.
func reason(said []string) string {
	var lines []string
	for _, s := range said {
		if m := entry.FindStringSubmatch(s); m != nil {
			lines = m[1:]
		} else if lines != nil && !strings.HasPrefix(strings.TrimSpace(s), "--- SKIP: ") {
			lines = append(lines, strings.TrimSpace(s))
		}
	}
	return strings.Join(lines, " ")
}
