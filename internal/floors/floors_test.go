// SPDX-License-Identifier: Apache-2.0

// Package floors keeps the packages of the module on their floors: imports go
// downward only, and those of one floor do not know one another.
package floors

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	module  = "github.com/godatapath/datapath"
	fixture = module + "/devices/netnstest"
	ebpf    = "github.com/cilium/ebpf"
	netlink = "github.com/vishvananda" // netlink and netns
	testify = "github.com/stretchr/testify"
)

// floor numbers the packages from below. The first path element decides; the
// packages of internal, and those of the examples, may use one another.
func floor(pkg string) int {
	switch first(pkg) {
	case "internal":
		return 0
	case "devices", "maps", "programs":
		return 1
	case "conntrack", "tunnel", "lb":
		return 2
	case "examples":
		return 3
	case "":
		return 4 // the front page
	default:
		return -1
	}
}

// first is the first path element of a package of ours, "" for the front page.
func first(pkg string) string {
	f, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(pkg, module), "/"), "/")
	return f
}

// within tells whether a package is the tree's root or below it.
func within(pkg, tree string) bool { return pkg == tree || strings.HasPrefix(pkg, tree+"/") }

func ours(pkg string) bool { return within(pkg, module) }

type listed struct {
	ImportPath string
	Imports    []string // direct
	Deps       []string // all, through others too
	// Direct imports of the tests, in the package and beside it.
	TestImports, XTestImports []string
}

// packages lists ours and all that they and their tests are made of. It looks at
// their folders itself, so that go test notices a change and runs this again.
func packages(t *testing.T) map[string]listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", "-test", "-json=ImportPath,Imports,Deps,TestImports,XTestImports,Dir,ForTest",
		module+"/...").Output()
	require.NoError(t, err)
	all := map[string]listed{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			listed
			Dir, ForTest string
		}
		err := dec.Decode(&p)
		if err == io.EOF {
			return all
		}
		require.NoError(t, err)
		if ours(p.ImportPath) && p.Dir != "" {
			_, err := os.ReadDir(p.Dir)
			require.NoError(t, err)
		}
		if p.ForTest == "" && !strings.HasSuffix(p.ImportPath, ".test") { // the tests are read from their packages
			all[p.ImportPath] = p.listed
		}
	}
}

func TestImportsGoDownward(t *testing.T) {
	t.Parallel()
	seen := 0
	for _, p := range packages(t) {
		if !ours(p.ImportPath) {
			continue
		}
		from := floor(p.ImportPath)
		require.NotEqual(t, -1, from, "%s is on no floor: give it one here", p.ImportPath)
		for _, imported := range p.Imports {
			if !ours(imported) {
				continue
			}
			seen++
			to := floor(imported)
			sameHouse := from == to && first(p.ImportPath) == first(imported)
			if to >= from && !sameHouse {
				t.Errorf("%s imports %s, which is not below it", p.ImportPath, imported)
			}
		}
	}
	require.Greater(t, seen, 20, "the list of imports is empty")
}

// What a package must not be made of, directly or through another. Examples may
// use all.
func TestForbiddenDependencies(t *testing.T) {
	t.Parallel()
	seen := 0
	for _, p := range packages(t) {
		if !ours(p.ImportPath) || first(p.ImportPath) == "examples" {
			continue
		}
		seen += len(p.Deps)
		devices := first(p.ImportPath) == "devices"
		forbid := func(tree, why string) {
			if i := slices.IndexFunc(p.Deps, func(d string) bool { return within(d, tree) }); i >= 0 {
				t.Errorf("%s depends on %s: %s", p.ImportPath, p.Deps[i], why)
			}
		}
		if devices {
			forbid(ebpf, "devices knows nothing about BPF")
		} else {
			forbid(netlink, "netlink lives in devices and nowhere else")
		}
		if p.ImportPath != fixture {
			forbid("testing", "that is for tests")
		}
		forbid(testify, "that is for tests")
	}
	require.Greater(t, seen, 1000, "the list of dependencies is empty")
}

// Tests may know more than what they test. Those of internal, devices and maps
// hold to what is alone in those packages, but for the fixture, which the tests
// of devices and maps may use. The tests of programs and above may use all
// blocks, because a packet goes through all of them, and no example.
func TestImportsOfTests(t *testing.T) {
	t.Parallel()
	all := packages(t)
	seen := 0
	for _, p := range all {
		if !ours(p.ImportPath) {
			continue
		}
		from := first(p.ImportPath)
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			seen++
			switch from {
			case "internal", "devices", "maps":
				if ours(imported) && first(imported) != from && first(imported) != "internal" &&
					(imported != fixture || from == "internal") {
					t.Errorf("the tests of %s import %s", p.ImportPath, imported)
				}
			case "examples":
			default:
				if first(imported) == "examples" && ours(imported) {
					t.Errorf("the tests of %s import %s: an example is no part of the library", p.ImportPath, imported)
				}
			}
			if from == "devices" && slices.ContainsFunc(append([]string{imported}, all[imported].Deps...), func(d string) bool { return within(d, ebpf) }) {
				t.Errorf("the tests of %s import %s, which is or needs cilium/ebpf", p.ImportPath, imported)
			}
		}
	}
	require.Greater(t, seen, 100, "the list of the tests' imports is empty")
}
