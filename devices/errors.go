// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrForeign says that a device, a name or a route which is wanted belongs to
// somebody else. Nothing was done to it.
var ErrForeign = errors.New("it is not ours")

// InputError says which argument can not be used and why. It is found before
// the kernel is asked for anything. errors.Is(err, os.ErrInvalid) holds.
type InputError struct {
	Field  string // the argument, such as "gateway" or "host MTU"
	Value  string // as given
	Reason string // what is wrong with it
}

// Error returns "FIELD "VALUE" REASON".
func (e *InputError) Error() string {
	return fmt.Sprintf("%s %q %s", e.Field, e.Value, e.Reason)
}

// Unwrap returns [os.ErrInvalid].
func (e *InputError) Unwrap() error { return os.ErrInvalid }

// PortInUseError says who holds the UDP port that an overlay device needs.
// errors.Is(err, unix.EADDRINUSE) holds.
type PortInUseError struct {
	Port  uint16 // host byte order
	Owner string // a device or a process, in words
}

// Error names the port, its owner and the way out.
func (e *PortInUseError) Error() string {
	return fmt.Sprintf("UDP port %d is held by %s; stop it or choose another port", e.Port, e.Owner)
}

// Unwrap returns EADDRINUSE.
func (e *PortInUseError) Unwrap() error { return unix.EADDRINUSE }
