// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The sockets here block, and the calls on the way of a measurement go to the
// kernel without the Go runtime knowing: its poller and its scheduler would be
// a part of what is measured. A child has one goroutine and no collector, so
// nobody waits for it.

// socket is a descriptor.
type socket int

func (s socket) read(b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(s), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return 0, fmt.Errorf("read: %w", errno)
		}
	}
}

func (s socket) write(b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(s), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return 0, fmt.Errorf("write: %w", errno)
		}
	}
}

func (s socket) accept() (socket, error) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(s), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
		if errno == 0 {
			return socket(n), nil
		}
		if errno != unix.EINTR && errno != unix.ECONNABORTED {
			return -1, fmt.Errorf("accept: %w", errno)
		}
	}
}

func (s socket) close() {
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(s), 0, 0)
}

// wireAddr is a sockaddr_in or a sockaddr_in6.
type wireAddr struct {
	bytes  [unix.SizeofSockaddrInet6]byte
	len    uintptr
	family int
}

func newWireAddr(a netip.AddrPort) (w wireAddr) {
	w.family, w.len = unix.AF_INET6, unix.SizeofSockaddrInet6
	at := 8 // behind family, port and flow label
	if a.Addr().Is4() {
		w.family, w.len, at = unix.AF_INET, unix.SizeofSockaddrInet4, 4
	}
	binary.NativeEndian.PutUint16(w.bytes[0:], uint16(w.family))
	binary.BigEndian.PutUint16(w.bytes[2:], a.Port())
	copy(w.bytes[at:], a.Addr().AsSlice())
	return w
}

func newSocket(family, kind int) (socket, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), uintptr(kind|unix.SOCK_CLOEXEC), 0)
	if errno != 0 {
		return -1, fmt.Errorf("socket: %w", errno)
	}
	return socket(n), nil
}

// dial makes a connected socket.
func dial(to *wireAddr, kind int) (socket, error) {
	s, err := newSocket(to.family, kind)
	if err != nil {
		return -1, err
	}
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(s), uintptr(unsafe.Pointer(&to.bytes)), to.len)
	if errno != 0 {
		s.close()
		return -1, fmt.Errorf("connect: %w", errno)
	}
	return s, nil
}

// dialPatiently waits for a path that has just been built.
func dialPatiently(to *wireAddr, kind int) (socket, error) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		s, err := dial(to, kind)
		if err == nil || time.Now().After(deadline) {
			return s, err
		}
	}
}

// listen makes a socket that takes connections, or datagrams.
func listen(at netip.AddrPort, kind int) (socket, error) {
	w := newWireAddr(at)
	s, err := newSocket(w.family, kind)
	if err != nil {
		return -1, err
	}
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	if at.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	// The connections of the turn before are still in TIME_WAIT.
	err = unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(int(s), sa)
	}
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(int(s), 128)
	}
	if err != nil {
		s.close()
		return -1, fmt.Errorf("listen on %s: %w", at, err)
	}
	return s, nil
}

func (s socket) noDelay() error {
	if err := unix.SetsockoptInt(int(s), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	return nil
}

// errEarlyEnd is a connection that ended where an answer was due.
var errEarlyEnd = errors.New("the other end closed the connection early")
