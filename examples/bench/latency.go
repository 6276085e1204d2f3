// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Requests of one byte.
const (
	goOn byte = iota
	end       // the server is to go after it
)

// samples collects the length of turns, without asking for memory on the way.
type samples struct {
	all   []uint32 // ns
	start time.Time
	from  time.Time // what was before is the warm-up
	until time.Time
	last  time.Time
}

func newSamples(j job) *samples {
	s := &samples{all: make([]uint32, 0, 200_000*int(1+j.Time/time.Second))}
	clear(s.all[:cap(s.all)]) // touched now and not in the middle
	s.start = time.Now()
	s.from = s.start.Add(j.WarmUp)
	s.until = s.from.Add(j.Time)
	s.last = s.start
	return s
}

// fewest turns make a median. On a machine that stands still for a moment they
// take longer than the time that was asked for.
const fewest = 10

// next ends a turn and starts another one. False: the time is over.
func (s *samples) next() bool {
	now := time.Now()
	if s.last.After(s.from) && len(s.all) < cap(s.all) {
		s.all = append(s.all, uint32(min(now.Sub(s.last), time.Second)))
	}
	s.last = now
	return now.Before(s.until) || len(s.all) < fewest
}

func (s *samples) outcome() outcome {
	slices.Sort(s.all)
	return outcome{P50: float64(s.all[len(s.all)/2]) / 1000, Count: len(s.all)}
}

// callRR sends a byte, waits for the byte that comes back, and so on, over one
// connection.
func callRR(j job) (outcome, error) {
	to := newWireAddr(j.Addr)
	c, err := dialPatiently(&to, unix.SOCK_STREAM)
	if err != nil {
		return outcome{}, err
	}
	defer c.close()
	if err := c.noDelay(); err != nil {
		return outcome{}, err
	}
	b := make([]byte, 1)
	s := newSamples(j)
	for more := true; more; more = s.next() {
		if _, err := c.write(b); err != nil {
			return outcome{}, err
		}
		n, err := c.read(b)
		if err != nil {
			return outcome{}, err
		}
		if n == 0 {
			return outcome{}, errEarlyEnd
		}
	}
	return s.outcome(), nil
}

func serveRR(j job) (out outcome, err error) {
	l, err := listen(j.Addr, unix.SOCK_STREAM)
	if err != nil {
		return out, err
	}
	if err := ready(); err != nil {
		return out, err
	}
	c, err := l.accept()
	if err != nil {
		return out, err
	}
	if err := c.noDelay(); err != nil {
		return out, err
	}
	b := make([]byte, 1)
	for ; ; out.Count++ {
		n, err := c.read(b)
		if err != nil || n == 0 {
			return out, err
		}
		if _, err := c.write(b); err != nil {
			return out, err
		}
	}
}

// callCRR opens a connection, sends a byte, gets one back, sees the server
// close and closes too. The server always closes first, so that the same end
// has the connection in TIME_WAIT with every contestant.
func callCRR(j job) (outcome, error) {
	to := newWireAddr(j.Addr)
	b := make([]byte, 1)
	turn := func(what byte) error {
		c, err := dial(&to, unix.SOCK_STREAM)
		if err != nil {
			return err
		}
		defer c.close()
		b[0] = what
		if _, err := c.write(b); err != nil {
			return err
		}
		for got := 0; ; got++ {
			n, err := c.read(b)
			if err != nil {
				return err
			}
			if n == 0 && got != 1 {
				return errEarlyEnd
			}
			if n == 0 {
				return nil
			}
		}
	}
	first, err := dialPatiently(&to, unix.SOCK_STREAM) // the path is there
	if err != nil {
		return outcome{}, err
	}
	first.close()
	s := newSamples(j)
	for more := true; more; more = s.next() {
		if err := turn(goOn); err != nil {
			return outcome{}, err
		}
	}
	if err := turn(end); err != nil {
		return outcome{}, err
	}
	return s.outcome(), nil
}

func serveCRR(j job) (out outcome, err error) {
	l, err := listen(j.Addr, unix.SOCK_STREAM)
	if err != nil {
		return out, err
	}
	if err := ready(); err != nil {
		return out, err
	}
	b := make([]byte, 1)
	for ; ; out.Count++ {
		c, err := l.accept()
		if err != nil {
			return out, err
		}
		n, err := c.read(b)
		if err != nil {
			return out, err
		}
		if n == 1 {
			if _, err := c.write(b); err != nil {
				return out, err
			}
		}
		c.close()
		if n == 1 && b[0] == end {
			return out, nil
		}
	}
}
