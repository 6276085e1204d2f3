// SPDX-License-Identifier: Apache-2.0

// Package invalid makes the errors for input that can not be used: a setting,
// an argument or a Go type. They are found before the kernel is asked for
// anything, and all of the library's are os.ErrInvalid, which none of the
// kernel's is: not even EINVAL.
package invalid

import (
	"fmt"
	"os"
)

// Errorf is fmt.Errorf for input that can not be used: errors.Is(err,
// os.ErrInvalid) holds, and the text is as given. It says which input is wrong,
// how, and what is wanted. What it wraps with %w stays in the chain.
func Errorf(format string, args ...any) error {
	return &inputError{fmt.Errorf(format, args...)}
}

type inputError struct{ err error }

func (e *inputError) Error() string { return e.err.Error() }

func (e *inputError) Unwrap() []error { return []error{os.ErrInvalid, e.err} }
