// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/cluster"
)

// node is where to count: all that is needed of a running datapath.
type node struct {
	name      string
	pins      string
	namespace devices.Namespace
}

// Close drops the namespace's descriptor.
func (n node) Close() error { return n.namespace.Close() }

// findNodes finds the nodes of a cluster of another process by its pins.
func findNodes(name string) (_ []node, err error) {
	dir := filepath.Join(cluster.DefaultDir, name, "bpf")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("find cluster %s: %w (is it up? \"examples/cluster -hold\" keeps one up)", name, err)
	}
	var nodes []node
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(nodes))
		}
	}()
	for _, e := range entries {
		if !e.IsDir() {
			continue // the kernel puts files of its own into a bpf filesystem
		}
		ns, err := devices.OpenNamed(name + "-" + e.Name())
		if err != nil {
			return nil, fmt.Errorf("find cluster %s: %w", name, err)
		}
		nodes = append(nodes, node{name: e.Name(), pins: filepath.Join(dir, e.Name()), namespace: ns})
	}
	if len(nodes) == 0 {
		return nil, fmt.Errorf("find cluster %s: no node has pins in %s", name, dir)
	}
	return nodes, nil
}

// nodesOf tells the same of a cluster of our own. The namespaces stay its.
func nodesOf(c *cluster.Cluster) []node {
	var nodes []node
	for _, n := range c.Nodes {
		nodes = append(nodes, node{name: n.Name, pins: n.Pins, namespace: n.Namespace})
	}
	return nodes
}

// closeAll closes all of them, the last first.
func closeAll[T io.Closer](all []T) error {
	var errs []error
	for i := len(all) - 1; i >= 0; i-- {
		errs = append(errs, all[i].Close())
	}
	return errors.Join(errs...)
}
