// SPDX-License-Identifier: Apache-2.0

// Package undo takes back the steps of a function that fails halfway.
//
//	func make() (err error) {
//		var u undo.Stack
//		defer u.Run(&err)
//		...
//		u.Push(f.Close)
//		...
//	}
package undo

import "errors"

// Stack holds the ways back of the steps that a function has taken. The zero
// Stack is empty and ready. It is for one goroutine.
type Stack struct {
	steps []func() error
}

// Push adds the way back of the step that has just succeeded.
func (s *Stack) Push(step func() error) {
	s.steps = append(s.steps, step)
}

// Run is deferred. If *err is nil it forgets all steps. Otherwise it runs them,
// the last one first and all of them, and joins their errors to *err. The stack
// is empty afterwards, so a second Run does nothing.
func (s *Stack) Run(err *error) {
	steps := s.steps
	s.steps = nil
	if *err == nil {
		return
	}
	for i := len(steps) - 1; i >= 0; i-- {
		if e := steps[i](); e != nil {
			*err = errors.Join(*err, e)
		}
	}
}
