// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"os"
	"sync"
)

// Epoch is what a table holds to announce a change that can alter a decision.
// Until programs are loaded with the table nobody caches anything, unless they
// run on from an earlier process: then their state is pinned beside the table.
type Epoch struct {
	mu    sync.Mutex
	bumps []func() error
	pins  string
	due   bool // a change was made that may not have been announced
}

// NewEpoch returns the epoch of a table that is pinned in the folder pins; ""
// if it is not. A process that wrote to the pinned table before us may have
// been killed before it could tell, so there one announcement is due.
func NewEpoch(pins string) *Epoch { return &Epoch{pins: pins, due: pins != ""} }

// Bind ties the table to a running node. The caller ends the node's epoch
// afterwards, so nothing is due from then on. A table may belong to several
// nodes, or to the old and the new programs of one.
func (e *Epoch) Bind(bump func() error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bumps = append(e.bumps, bump)
	e.due = false
}

// Changed announces a change. It is called after the change. One that fails is
// due until it succeeds.
func (e *Epoch) Changed() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.due = true
	return e.announce()
}

// Unchanged is called in place of Changed if nothing had to be changed. It
// announces what is still due.
func (e *Epoch) Unchanged() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.due {
		return nil
	}
	return e.announce()
}

func (e *Epoch) announce() error {
	var errs []error
	var alive []func() error
	for _, bump := range e.bumps {
		err := bump()
		if errors.Is(err, os.ErrClosed) {
			continue // its programs have ended, or run on from their pins
		}
		alive = append(alive, bump)
		errs = append(errs, err)
	}
	e.bumps = alive
	if len(alive) == 0 && e.pins != "" {
		errs = append(errs, bumpPinned(e.pins))
	}
	err := errors.Join(errs...)
	e.due = err != nil
	return err
}

func bumpPinned(pins string) error {
	s, err := Open(pins)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(s.Bump(), s.Close())
}
