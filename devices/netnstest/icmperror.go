// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ICMPError is an ICMP or ICMPv6 error that came back for a packet of ours.
// From tells the family.
type ICMPError struct {
	// From is who sent the error.
	From netip.Addr
	// Type and Code are those of the message (RFC 792, RFC 4443).
	Type, Code uint8
	// MTU is the one that "fragmentation needed" or "packet too big" names, in
	// bytes, else 0.
	MTU int
	// Errno is what the kernel makes of it, such as EHOSTUNREACH.
	Errno unix.Errno

	v6 bool
}

// Error names the message and its sender.
func (e *ICMPError) Error() string {
	what := "icmp error"
	switch {
	case e.IsTimeExceeded():
		what = "icmp time exceeded"
	case e.IsTooBig():
		what = fmt.Sprintf("icmp packet too big (MTU %d)", e.MTU)
	case e.IsUnreachable():
		what = "icmp unreachable"
	}
	return fmt.Sprintf("%s from %v, type %d code %d", what, e.From, e.Type, e.Code)
}

// Unwrap returns Errno.
func (e *ICMPError) Unwrap() error { return e.Errno }

// IsTimeExceeded tells whether the TTL or hop limit ran out on the way, or a
// fragment stayed away.
func (e *ICMPError) IsTimeExceeded() bool {
	return !e.v6 && e.Type == 11 || e.v6 && e.Type == 3
}

// IsTooBig tells whether the packet was larger than the path takes:
// "fragmentation needed" or "packet too big".
func (e *ICMPError) IsTooBig() bool {
	return !e.v6 && e.Type == 3 && e.Code == 4 || e.v6 && e.Type == 2
}

// IsUnreachable tells whether the destination, its protocol or its port could
// not be reached.
func (e *ICMPError) IsUnreachable() bool {
	return !e.v6 && e.Type == 3 && e.Code != 4 || e.v6 && e.Type == 1
}
