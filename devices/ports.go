// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// checkPort reports who would keep an overlay device from using the port. own
// is our device as it is now, or nil. The answer can be outdated at once, so
// the error of the kernel counts as well, see explainPort.
func (c conn) checkPort(port uint16, own *netlink.Vxlan) error {
	ownIndex, holding := 0, false
	if own != nil {
		ownIndex = own.Index
		holding = own.Port == int(port) && own.RawFlags&unix.IFF_UP != 0
	}
	owner, err := c.portOwner(port, ownIndex, holding)
	if err != nil {
		return fmt.Errorf("look for the owner of UDP port %d: %w", port, err)
	}
	if owner != "" {
		return &PortInUseError{Port: port, Owner: owner}
	}
	return nil
}

// explainPort adds the owner of the port to an error of the kernel that is
// about it. own is the ifindex of our device, which does not hold the port, or 0.
func (c conn) explainPort(err error, port uint16, own int) error {
	// EEXIST is the kernel's answer to a second flow-based device of one port.
	if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	owner, lookErr := c.portOwner(port, own, false)
	switch {
	case lookErr == nil && owner != "":
		return &PortInUseError{Port: port, Owner: owner}
	case errors.Is(err, unix.EADDRINUSE):
		return &PortInUseError{Port: port, Owner: "an unknown socket"}
	}
	return err
}

// portOwner returns in words who has the UDP port, or "". It looks at vxlan
// devices first, because their sockets are the kernel's and belong to no
// process. skip is the ifindex of our own device; if we hold the port already,
// no other socket can.
func (c conn) portOwner(port uint16, skip int, holding bool) (string, error) {
	links, err := retryDump(c.LinkList)
	if err != nil {
		return "", err
	}
	for _, l := range links {
		v, ok := l.(*netlink.Vxlan)
		if !ok || v.Index == skip || v.Port != int(port) {
			continue
		}
		// Two flow-based devices can not have one port even when they are down.
		if v.FlowBased || v.RawFlags&unix.IFF_UP != 0 {
			return fmt.Sprintf("vxlan device %s (ifindex %d)", v.Name, v.Index), nil
		}
	}
	if holding {
		return "", nil
	}
	// Not /proc/net: that is the namespace of the first thread.
	for _, file := range []string{"/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"} {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		for _, s := range parseUDPTable(text) {
			if s.addr.Port() == port {
				return s.owner(), nil
			}
		}
	}
	return "", nil
}

// udpSocket is one line of /proc/net/udp or /proc/net/udp6.
type udpSocket struct {
	addr  netip.AddrPort // local
	inode uint64
}

// parseUDPTable reads the text of /proc/net/udp or /proc/net/udp6 and leaves out
// what it does not understand, such as the head line.
func parseUDPTable(text []byte) []udpSocket {
	var all []udpSocket
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		const inode = 9
		if len(fields) <= inode {
			continue
		}
		local, ok := parseProcAddr(string(fields[1]))
		if !ok {
			continue
		}
		number, err := strconv.ParseUint(string(fields[inode]), 10, 64)
		if err != nil {
			continue
		}
		all = append(all, udpSocket{addr: local, inode: number})
	}
	return all
}

// parseProcAddr reads "0100007F:1F90". The port is a plain number. The address
// is printed as words of 32 bits, each a number in the order of the machine,
// though in memory it is in network order.
func parseProcAddr(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	if !ok || len(port) != 4 || (len(host) != 8 && len(host) != 32) {
		return netip.AddrPort{}, false
	}
	number, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	raw, err := hex.DecodeString(host)
	if err != nil {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr, uint16(number)), ok
}

// owner says in words who has the socket. It walks through the descriptors of
// all processes, so it is only for the text of an error.
func (s udpSocket) owner() string {
	want := fmt.Sprintf("socket:[%d]", s.inode)
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err != nil || target != want {
			continue
		}
		process := filepath.Dir(filepath.Dir(fd))
		name, _ := os.ReadFile(filepath.Join(process, "comm"))
		return fmt.Sprintf("process %s (%s) on %s", filepath.Base(process), bytes.TrimSpace(name), s.addr)
	}
	return fmt.Sprintf("a socket of the kernel or of a hidden process on %s", s.addr)
}
