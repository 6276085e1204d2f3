// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// Signals end a program in order. A closed terminal or pipe must not leave
// namespaces behind either.
var Signals = []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE}

// Context ends with the first of [Signals]. stop lets them be as they were.
func Context() (ctx context.Context, stop context.CancelFunc) {
	return signal.NotifyContext(context.Background(), Signals...)
}

// Interrupted tells whether an error is an interruption and nothing else: errors
// of taking things away may be joined to it, and are to be told.
func Interrupted(err error) bool {
	for {
		switch e := err.(type) {
		case interface{ Unwrap() []error }:
			all := e.Unwrap()
			if len(all) != 1 {
				return false
			}
			err = all[0]
		case interface{ Unwrap() error }:
			err = e.Unwrap()
		default:
			return errors.Is(err, context.Canceled)
		}
	}
}

// IsTerminal tells whether what is written to w is watched as it comes.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
