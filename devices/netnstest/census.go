// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// census is what the process holds at one moment.
type census struct {
	descriptors []descriptor
	links       map[string]bool // "name (index)" in the namespace of the process
}

// descriptor is one open file descriptor.
type descriptor struct {
	fd     int
	target string // what /proc/self/fd shows
	// id tells an object from another one that has its number later.
	id string
}

func takeCensus() (census, error) {
	descriptors, err := listDescriptors()
	if err != nil {
		return census{}, err
	}
	links, err := listLinks()
	return census{descriptors: descriptors, links: links}, err
}

// listDescriptors leaves out what the Go runtime opens once and keeps: its
// poller, and the pipes that io.Copy splices through.
func listDescriptors() ([]descriptor, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, fmt.Errorf("list the open descriptors: %w", err)
	}
	var all []descriptor
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // the listing itself, or closed meanwhile
		}
		switch {
		case target == "anon_inode:[eventpoll]", target == "anon_inode:[eventfd]", strings.HasPrefix(target, "pipe:"):
			continue
		}
		all = append(all, descriptor{fd: fd, target: target, id: target + objectID(fd, target)})
	}
	return all, nil
}

// isBPF tells whether the descriptor holds a BPF object.
func (d descriptor) isBPF() bool {
	return strings.HasPrefix(d.target, "anon_inode:bpf") || strings.HasPrefix(d.target, "anon_inode:[bpf") || d.target == "anon_inode:btf"
}

// describe says what a leaked descriptor is.
func (d descriptor) describe() string {
	switch {
	case d.isBPF():
		kind := strings.ReplaceAll(strings.Trim(strings.TrimPrefix(d.target, "anon_inode:"), "[]"), "-", " ")
		return fmt.Sprintf("%s%s (descriptor %d)", kind, objectName(d.fd, kind)+strings.TrimPrefix(d.id, d.target), d.fd)
	case strings.HasPrefix(d.target, "socket:"):
		return fmt.Sprintf("%s (descriptor %d)", describeSocket(d.fd), d.fd)
	}
	if namespaceOf(d.fd) != 0 {
		return fmt.Sprintf("a handle of a namespace (descriptor %d)", d.fd)
	}
	return fmt.Sprintf("descriptor %d: %s", d.fd, d.target)
}

// objectID returns the number that the kernel gave a BPF object, as
// " prog_id 7".
func objectID(fd int, target string) string {
	if !strings.HasPrefix(target, "anon_inode:bpf") {
		return ""
	}
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return ""
	}
	// A link names its program too, so its own number goes first.
	for _, key := range []string{"link_id", "map_id", "prog_id"} {
		for line := range strings.Lines(string(info)) {
			if value, found := strings.CutPrefix(line, key+":"); found {
				return " " + key + " " + strings.TrimSpace(value)
			}
		}
	}
	return ""
}

// objectName asks the kernel for the name of a BPF map or program
// (BPF_OBJ_GET_INFO_BY_FD, linux/bpf.h), as " name".
func objectName(fd int, kind string) string {
	offset := map[string]int{"bpf map": 24, "bpf prog": 64}[kind]
	if offset == 0 {
		return ""
	}
	var info [80]byte
	attr := struct {
		fd, size uint32
		info     uint64
	}{fd: uint32(fd), size: uint32(len(info)), info: uint64(uintptr(unsafe.Pointer(&info)))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return ""
	}
	return " " + unix.ByteSliceToString(info[offset:offset+16])
}

// describeSocket names a socket by its kind and its addresses.
func describeSocket(fd int) string {
	kind := "socket"
	if proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err == nil {
		if name := map[int]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "icmpv6"}[proto]; name != "" {
			kind = name + " socket"
		}
	}
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil {
		if name := map[int]string{unix.AF_NETLINK: "netlink socket", unix.AF_PACKET: "packet socket", unix.AF_UNIX: "unix socket"}[domain]; name != "" {
			return name
		}
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return kind
	}
	kind += " " + endpointOf(local)
	if peer, err := unix.Getpeername(fd); err == nil {
		kind += " to " + endpointOf(peer)
	}
	return kind
}

func endpointOf(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return net.JoinHostPort(addrOf(sa).String(), strconv.Itoa(sa.Port))
	case *unix.SockaddrInet6:
		return net.JoinHostPort(addrOf(sa).Unmap().String(), strconv.Itoa(sa.Port))
	}
	return ""
}

func listLinks() (map[string]bool, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list the links: %w", err)
	}
	links := make(map[string]bool, len(interfaces))
	for _, i := range interfaces {
		links[fmt.Sprintf("%s (index %d)", i.Name, i.Index)] = true
	}
	return links, nil
}

// since returns the descriptors that are there now and were not before.
func since(before, now []descriptor) []descriptor {
	had := make(map[string]int, len(before))
	for _, d := range before {
		had[d.id]++
	}
	var fresh []descriptor
	for _, d := range now {
		if had[d.id] > 0 {
			had[d.id]--
			continue
		}
		fresh = append(fresh, d)
	}
	return fresh
}

// linksSince names the links that are there now and were not before.
func linksSince(before, now map[string]bool) []string {
	var found []string
	for link := range now {
		if !before[link] {
			found = append(found, "link "+link+" in the namespace of the test process")
		}
	}
	return found
}

// inodeOf returns the inode of the namespace at a path, or 0.
func inodeOf(path string) uint64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Ino
}

// threadsIn counts the threads of the process that are in a namespace.
func threadsIn(inode uint64) int {
	paths, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		return 0
	}
	n := 0
	for _, p := range paths {
		if inodeOf(p) == inode {
			n++
		}
	}
	return n
}

// strayThreads names the threads of the process that are not in the namespace
// they should be in.
func strayThreads(home uint64) []string {
	paths, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		return nil
	}
	var found []string
	for _, p := range paths {
		if inode := inodeOf(p); inode != 0 && inode != home {
			found = append(found, "thread "+strings.Split(p, "/")[4]+" in another namespace")
		}
	}
	return found
}
