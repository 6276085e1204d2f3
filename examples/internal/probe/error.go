// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Error is an ICMP error that came back for a probe.
type Error struct {
	From       netip.Addr // who says it; its family is that of the packet
	Type, Code uint8      // of RFC 792 or RFC 4443
	MTU        int        // in bytes, if it is that the packet was too big, else 0
}

// TooBig tells whether the packet was larger than the path takes.
func (e *Error) TooBig() bool {
	if e.From.Is4() {
		return e.Type == 3 && e.Code == 4
	}
	return e.Type == 2
}

// Expired tells whether the packet had no hop left.
func (e *Error) Expired() bool {
	if e.From.Is4() {
		return e.Type == 11 && e.Code == 0
	}
	return e.Type == 3 && e.Code == 0
}

// Error names the message and who sent it.
func (e *Error) Error() string {
	what := fmt.Sprintf("ICMP type %d code %d", e.Type, e.Code)
	is4 := e.From.Is4()
	switch {
	case e.TooBig():
		what = fmt.Sprintf("too big, MTU is %d", e.MTU)
	case is4 && e.Type == 3, !is4 && e.Type == 1:
		what = fmt.Sprintf("unreachable (code %d)", e.Code)
	case is4 && e.Type == 11, !is4 && e.Type == 3:
		what = "time exceeded"
	}
	return fmt.Sprintf("%s, says %s", what, e.From)
}

// queued returns what the kernel has queued about a socket's packets, or nil.
func queued(fd int) error {
	oob := make([]byte, 512)
	_, n, _, _, err := unix.Recvmsg(fd, nil, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return nil // the queue is empty
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return fmt.Errorf("read an ICMP error: %w", err)
	}
	for _, m := range messages {
		is4 := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR
		is6 := m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if is4 || is6 {
			return extendedError(m.Data)
		}
	}
	return nil
}

// extendedError reads a struct sock_extended_err (linux/errqueue.h) and the
// address that follows it.
func extendedError(b []byte) error {
	if len(b) < 16 {
		return fmt.Errorf("read an ICMP error: %d bytes are too few", len(b))
	}
	errno, info, teller := unix.Errno(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[8:]), b[16:]
	e := &Error{Type: b[5], Code: b[6]}
	switch {
	case b[4] == unix.SO_EE_ORIGIN_ICMP && len(teller) >= 8:
		e.From = netip.AddrFrom4([4]byte(teller[4:]))
	case b[4] == unix.SO_EE_ORIGIN_ICMP6 && len(teller) >= 24:
		e.From = netip.AddrFrom16([16]byte(teller[8:]))
	case errno == unix.EMSGSIZE:
		return fmt.Errorf("does not fit the device, MTU %d: %w", info, errno)
	default:
		return errno
	}
	if e.TooBig() {
		e.MTU = int(info)
	}
	return e
}
