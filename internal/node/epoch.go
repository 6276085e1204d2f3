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
	mu   sync.Mutex
	bump func() error
	pins string
}

// NewEpoch returns the epoch of a table that is pinned in the folder pins.
func NewEpoch(pins string) *Epoch { return &Epoch{pins: pins} }

// Bind ties the table to a running node.
func (e *Epoch) Bind(bump func() error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bump = bump
}

// Changed announces a change. It is called after the change.
func (e *Epoch) Changed() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.bump != nil {
		return e.bump()
	}
	if e.pins == "" {
		return nil
	}
	s, err := Open(e.pins)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(s.Bump(), s.Close())
}
