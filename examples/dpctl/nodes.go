// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/godatapath/datapath/maps"
)

// node is a folder with the pinned tables of a node.
type node struct{ name, pins string }

// findNodes returns the node whose pins are in dir, or those whose pins are in
// the folders of dir: then several is set, even if it is only one.
func findNodes(dir string) (nodes []node, several bool, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, false, err
	}
	if st, err := os.Stat(dir); err == nil && !st.IsDir() {
		return nil, false, fmt.Errorf("%s is a file and not a folder of pins", dir)
	}
	is, err := maps.IsBPFFS(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, false, fmt.Errorf("there is no folder %s: is a datapath running, and are its tables pinned there?", dir)
	case err != nil:
		return nil, false, err
	case !is:
		if below, _ := maps.IsBPFFS(filepath.Join(dir, "bpf")); below {
			return nil, false, fmt.Errorf("%s is not on a bpf filesystem, but %s is: try -pins %[2]s", dir, filepath.Join(dir, "bpf"))
		}
		return nil, false, fmt.Errorf("%s is not on a bpf filesystem: nothing can be pinned there", dir)
	}
	pinned, folders, err := list(dir)
	if err != nil {
		return nil, false, err
	}
	if pinned {
		return []node{{filepath.Base(dir), dir}}, false, nil
	}
	for _, f := range folders {
		path := filepath.Join(dir, f)
		pinned, _, err := list(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, false, err
		}
		if pinned {
			nodes = append(nodes, node{f, path})
		}
	}
	if len(nodes) == 0 {
		return nil, false, fmt.Errorf("no table is pinned in %s, nor in a folder of it", dir)
	}
	slices.SortFunc(nodes, func(a, b node) int { return compareNames(a.name, b.name) })
	return nodes, true, nil
}

func list(dir string) (pinned bool, folders []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, nil, fmt.Errorf("look into %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.IsDir() {
			folders = append(folders, e.Name())
		} else if e.Name() != "maps.debug" && e.Name() != "progs.debug" { // the kernel's own
			pinned = true
		}
	}
	return pinned, folders, nil
}
