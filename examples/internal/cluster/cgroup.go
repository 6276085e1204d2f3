// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/cgroup2"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/programs"
)

// cgroups is the hierarchy of cgroups where the cluster sees it, and the cluster's
// own group in it, which has one for each node.
func (c *Cluster) cgroups() (mount, own string) {
	mount = filepath.Join(c.dir, "cgroup")
	return mount, filepath.Join(mount, "datapath-"+c.Name)
}

// mountCgroups makes the cluster's cgroup. Where that can not be had the sockets
// are not translated, and NoSockets tells why.
func (c *Cluster) mountCgroups() error {
	mount, own := c.cgroups()
	if err := os.MkdirAll(mount, 0o755); err != nil {
		return err
	}
	c.push(func() error { return os.Remove(mount) })
	err := cgroup2.Mount(mount)
	if err != nil {
		c.NoSockets = fmt.Errorf("no cgroup2 filesystem can be had: %w", err)
		return nil
	}
	c.push(func() error { return unix.Unmount(mount, unix.UMOUNT_NOFOLLOW) })
	if err := removeCgroup(mount, own); err != nil { // left where its mount has ended by itself
		return err
	}
	if err := os.Mkdir(own, 0o755); err != nil {
		c.NoSockets = fmt.Errorf("no cgroup can be made: %w", err)
		return nil
	}
	c.push(func() error { return removeCgroup(mount, own) })
	return nil
}

// clearCgroups takes away what a killed cluster has left.
func (c *Cluster) clearCgroups() error {
	mount, own := c.cgroups()
	var st unix.Statfs_t
	err := unix.Statfs(mount, &st)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		if err := errors.Join(removeCgroup(mount, own), unix.Unmount(mount, unix.UMOUNT_NOFOLLOW)); err != nil {
			return err
		}
	}
	return os.Remove(mount)
}

// removeCgroup removes a cgroup with those in it. Processes that somebody has put
// there go on in root.
func removeCgroup(root, dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(root, filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	// One that has ended a moment ago may still be counted.
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		inside, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return fmt.Errorf("list the processes of cgroup %s: %w", dir, err)
		}
		for _, pid := range strings.Fields(string(inside)) {
			_ = os.WriteFile(filepath.Join(root, "cgroup.procs"), []byte(pid), 0) // it may have ended
		}
	}
}

// translateSockets makes the sockets of the node's cgroup talk to backends.
func (n *Node) translateSockets(c *Cluster) error {
	if c.NoSockets != nil {
		return nil
	}
	_, own := c.cgroups()
	path := filepath.Join(own, n.Name)
	if err := os.Mkdir(path, 0o755); err != nil {
		return fmt.Errorf("make a cgroup: %w", err)
	}
	sockets, err := n.Services.AttachSockets(lb.SocketConfig{Cgroup: path, Namespace: n.Namespace, Namespaces: n.namespaces})
	if errors.Is(err, ebpf.ErrNotSupported) {
		c.NoSockets = err
		return nil
	}
	if err != nil {
		return err
	}
	n.Cgroup, n.Sockets = path, sockets
	return nil
}

// namespaces are the node's and those of its endpoints.
func (n *Node) namespaces() []programs.Namespace {
	all := []programs.Namespace{n.Namespace}
	for _, e := range n.Endpoints {
		all = append(all, e.Namespace)
	}
	return all
}
