// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	datagramLen = 64       // bytes of payload
	receiveRoom = 16 << 20 // the sender may be a time slice ahead
	streamChunk = 128 << 10
)

// The first byte of a datagram.
const (
	dgramWarmUp byte = iota
	dgramCounts
	dgramEnd
)

// sendUDP sends as fast as it can. What counts is what arrives.
func sendUDP(j job) (out outcome, err error) {
	to := newWireAddr(j.Addr)
	s, err := dial(&to, unix.SOCK_DGRAM)
	if err != nil {
		return out, err
	}
	defer s.close()
	b := make([]byte, datagramLen)
	send := func() error {
		_, err := s.write(b)
		if errors.Is(err, unix.ENOBUFS) {
			return nil // it is lost, as others are on the way
		}
		return err
	}
	flood := func(kind byte, d time.Duration) error {
		b[0] = kind
		until := time.Now().Add(d)
		for n := 0; n < fewest || time.Now().Before(until); n++ {
			if err := send(); err != nil {
				return err
			}
		}
		return nil
	}
	if err := flood(dgramWarmUp, j.WarmUp); err != nil {
		return out, err
	}
	if err := flood(dgramCounts, j.Time); err != nil {
		return out, err
	}
	b[0] = dgramEnd
	for range 5 {
		time.Sleep(5 * time.Millisecond) // the receiver makes room
		if err := send(); err != nil {
			if errors.Is(err, unix.ECONNREFUSED) {
				return out, nil // it has heard, and is gone
			}
			return out, err
		}
	}
	return out, nil
}

func receiveUDP(j job) (out outcome, err error) {
	s, err := listen(j.Addr, unix.SOCK_DGRAM)
	if err != nil {
		return out, err
	}
	if err := unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveRoom); err != nil {
		return out, fmt.Errorf("set the receive buffer: %w", err)
	}
	if err := ready(); err != nil {
		return out, err
	}
	b := make([]byte, 2*datagramLen)
	var first, last time.Time
	for {
		n, err := s.read(b)
		if err != nil {
			return out, err
		}
		switch {
		case n != datagramLen:
			return out, fmt.Errorf("a datagram of %d bytes, want %d", n, datagramLen)
		case b[0] == dgramEnd:
			if out.Count < 2 {
				return out, errors.New("next to nothing arrived")
			}
			out.Rate = float64(out.Count-1) / last.Sub(first).Seconds()
			return out, nil
		case b[0] == dgramCounts:
			last = time.Now()
			if out.Count == 0 {
				first = last
			}
			out.Count++
		}
	}
}

// sendStream fills one connection.
func sendStream(j job) (out outcome, err error) {
	to := newWireAddr(j.Addr)
	c, err := dialPatiently(&to, unix.SOCK_STREAM)
	if err != nil {
		return out, err
	}
	defer c.close()
	b := make([]byte, streamChunk)
	until := time.Now().Add(j.WarmUp + j.Time)
	for n := 0; n < fewest || time.Now().Before(until); n++ {
		if _, err := c.write(b); err != nil {
			return out, err
		}
	}
	return out, nil
}

func receiveStream(j job) (out outcome, err error) {
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
	b := make([]byte, 2*streamChunk)
	start := time.Now()
	from := start.Add(j.WarmUp)
	var first, last time.Time
	all := 0
	for {
		n, err := c.read(b)
		if err != nil {
			return out, err
		}
		if n == 0 {
			break
		}
		all += n
		last = time.Now()
		switch {
		case last.Before(from):
		case first.IsZero():
			first = last
		default:
			out.Count += n
		}
	}
	if out.Count == 0 { // the machine stood still: the warm-up is all there is
		out.Count, first = all, start
	}
	if out.Count == 0 {
		return out, errEarlyEnd
	}
	out.Rate = float64(out.Count) * 8 / last.Sub(first).Seconds()
	return out, nil
}
