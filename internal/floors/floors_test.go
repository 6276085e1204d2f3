// SPDX-License-Identifier: Apache-2.0

// Package floors keeps the packages of the module on their floors: imports go
// downward only, and those of one floor do not know one another.
package floors

import (
	"encoding/json"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/godatapath/datapath"

// floor numbers the packages from below. The first path element decides; the
// packages of internal, and those of the examples, may use one another.
func floor(pkg string) int {
	switch first, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(pkg, module), "/"), "/"); first {
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

type listed struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"/...").Output()
	require.NoError(t, err)
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := dec.Decode(&p)
		if err == io.EOF {
			return all
		}
		require.NoError(t, err)
		all = append(all, p)
	}
}

func TestImportsGoDownward(t *testing.T) {
	seen := 0
	for _, p := range packages(t) {
		from := floor(p.ImportPath)
		require.NotEqual(t, -1, from, "%s is on no floor: give it one here", p.ImportPath)
		for _, imported := range p.Imports {
			if !strings.HasPrefix(imported, module) {
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

func first(pkg string) string {
	f, _, _ := strings.Cut(strings.TrimPrefix(pkg, module+"/"), "/")
	return f
}

func TestForbiddenImports(t *testing.T) {
	for _, p := range packages(t) {
		for _, imported := range p.Imports {
			switch f := first(p.ImportPath); {
			case f == "devices" && strings.HasPrefix(imported, "github.com/cilium/ebpf"):
				t.Errorf("%s imports %s: devices knows nothing about BPF", p.ImportPath, imported)
			case (f == "maps" || f == "programs") && strings.HasPrefix(imported, "github.com/vishvananda"):
				t.Errorf("%s imports %s: netlink lives in devices and nowhere else", p.ImportPath, imported)
			}
		}
	}
}
