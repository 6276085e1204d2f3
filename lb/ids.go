// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"time"
)

// errNoID is for a table of identifiers that is used up.
var errNoID = errors.New("all 2^32 identifiers are in use or at rest")

// ids gives out identifiers, 32 bits, never 0. It counts up, so that one comes
// again only after 2^32 others, and even then it passes over those that are in
// use and those that were given back less than rest ago: what still holds one
// must not find a stranger behind it.
type ids struct {
	next    uint32 // the next to try
	used    map[uint32]struct{}
	resting map[uint32]time.Time // given back, and when
	rest    time.Duration
	now     func() time.Time
}

func newIDs(rest time.Duration) *ids {
	return &ids{next: 1, used: map[uint32]struct{}{}, resting: map[uint32]time.Time{}, rest: rest, now: time.Now}
}

// adopt marks one as used that a table of an earlier process has. It reports
// whether it is free: two owners of one are a fault in the table.
func (a *ids) adopt(id uint32) bool {
	if _, taken := a.used[id]; taken || id == 0 {
		return false
	}
	a.used[id] = struct{}{}
	if a.next <= id {
		a.next = id + 1
	}
	return true
}

// pass has one not be given out again before all others.
func (a *ids) pass(id uint32) {
	if a.next <= id {
		a.next = id + 1
	}
}

// take gives out a new one.
func (a *ids) take() (uint32, error) {
	for tries := uint64(0); tries <= uint64(len(a.used)+len(a.resting)+1); tries++ {
		id := a.next
		a.next++
		if id == 0 {
			continue
		}
		if _, taken := a.used[id]; taken {
			continue
		}
		if since, ok := a.resting[id]; ok {
			if a.now().Sub(since) < a.rest {
				continue
			}
			delete(a.resting, id)
		}
		a.used[id] = struct{}{}
		return id, nil
	}
	return 0, errNoID
}

// undo ends the use of one that nothing has come to know.
func (a *ids) undo(id uint32) { delete(a.used, id) }

// giveBack ends the use of one.
func (a *ids) giveBack(id uint32) {
	if _, taken := a.used[id]; !taken {
		return
	}
	delete(a.used, id)
	now := a.now()
	a.resting[id] = now
	// What has rested is forgotten, a little each time.
	tries := 4
	for other, since := range a.resting {
		if now.Sub(since) >= a.rest {
			delete(a.resting, other)
		}
		if tries--; tries == 0 {
			break
		}
	}
}
