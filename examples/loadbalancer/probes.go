// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/probe"
)

const (
	echoSize = 64 // bytes
	// mostAsks is how often a service is asked until each of three backends must
	// have answered: chance misses one in 1 of 10^35 runs.
	mostAsks = 200
	// someAsks is how often one is asked that a backend must not get: chance alone
	// leaves it out in 1 of 10^7 runs.
	someAsks = 40
)

// asker makes one probe: see probe.TCP.
type asker func(ctx context.Context, from devices.Namespace, to netip.AddrPort, size int) (time.Duration, error)

// prober asks the services as the client.
type prober struct {
	client   devices.Namespace
	backends []*backend
	held     [2]net.Conn // to the first backend, through the balancer
}

// askEach asks until each of the backends that are to answer has, and returns how
// long one answer took on average. Those that are not to must not.
func (p *prober) askEach(by asker, first int) func(context.Context, int) (time.Duration, error) {
	return func(ctx context.Context, family int) (time.Duration, error) {
		before := p.asked(family)
		var all time.Duration
		for n := 1; n <= mostAsks; n++ {
			took, err := by(ctx, p.client, at(family, echoPort), echoSize)
			if err != nil {
				return 0, fmt.Errorf("question %d: %w", n, err)
			}
			all += took
			now, left := p.asked(family), 0
			for i := range now {
				switch {
				case i < first && now[i] != before[i]:
					return 0, fmt.Errorf("question %d went to %s", n, p.backends[i].name)
				case i >= first && now[i] == before[i]:
					left++
				}
			}
			if left == 0 && n >= min(someAsks, someAsks*first) {
				return all / time.Duration(n), nil
			}
		}
		return 0, fmt.Errorf("one of them was not asked once in %d questions", mostAsks)
	}
}

// asked is how often each backend was asked.
func (p *prober) asked(family int) []int {
	var all []int
	for _, b := range p.backends {
		all = append(all, b.asked(family))
	}
	return all
}

// askNames asks the web service until each backend has told its name, and that it
// was the balancer who has asked.
func (p *prober) askNames(ctx context.Context, family int) (time.Duration, error) {
	seen := map[string]bool{}
	start := time.Now()
	for n := 1; n <= mostAsks; n++ {
		answer, err := ask(ctx, p.client, at(family, webPort))
		if err != nil {
			return 0, fmt.Errorf("question %d: %w", n, err)
		}
		of := slices.IndexFunc(p.backends, func(b *backend) bool {
			return answer == fmt.Sprintf("%s, asked by %s", b.name, backAddrs[family/6].Addr())
		})
		if of < 0 {
			return 0, fmt.Errorf("the answer is %q", answer)
		}
		if seen[answer] = true; len(seen) == len(p.backends) {
			return time.Since(start) / time.Duration(n), nil
		}
	}
	return 0, fmt.Errorf("one of them has not answered once in %d questions", mostAsks)
}

// refused asks where no service is.
func (p *prober) refused(ctx context.Context, family int) (time.Duration, error) {
	start := time.Now()
	_, err := probe.TCP(ctx, p.client, at(family, webPort+1), echoSize)
	took := time.Since(start)
	if err == nil {
		return 0, errors.New("somebody has answered")
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return 0, err
	}
	return took, nil
}

// hold makes a connection to the first backend that stays.
func (p *prober) hold(ctx context.Context, family int) (time.Duration, error) {
	for range mostAsks {
		before := p.backends[0].asked(family)
		start := time.Now()
		ctx, cancel := context.WithTimeout(ctx, probe.Timeout)
		defer cancel()
		var conn net.Conn
		err := p.client.Do(func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, "tcp", at(family, echoPort).String())
			return err
		})
		if err != nil {
			return 0, err
		}
		if err := converse(ctx, conn); err != nil {
			return 0, errors.Join(err, conn.Close())
		}
		if p.backends[0].asked(family) != before {
			p.held[family/6] = conn
			return time.Since(start), nil
		}
		if err := conn.Close(); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("%s was not chosen once in %d connections", p.backends[0].name, mostAsks)
}

// goesOn asks on the connection that is held.
func (p *prober) goesOn(ctx context.Context, family int) (time.Duration, error) {
	conn := p.held[family/6]
	if conn == nil {
		return 0, errors.New("there is none")
	}
	start := time.Now()
	err := converse(ctx, conn)
	return time.Since(start), err
}

// isReset asks on it, and is to be told that it has ended.
func (p *prober) isReset(ctx context.Context, family int) (time.Duration, error) {
	conn := p.held[family/6]
	if conn == nil {
		return 0, errors.New("there is none")
	}
	start := time.Now()
	err := converse(ctx, conn)
	took := time.Since(start)
	if err == nil {
		return 0, errors.New("it goes on")
	}
	if !errors.Is(err, unix.ECONNRESET) {
		return 0, err
	}
	return took, nil
}

func (p *prober) close() {
	for _, conn := range p.held {
		if conn != nil {
			conn.Close() // may have been reset
		}
	}
}

// converse says a word and waits until it is repeated.
func converse(ctx context.Context, conn net.Conn) error {
	const word = "hello"
	if err := conn.SetDeadline(time.Now().Add(probe.Timeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write([]byte(word)); err != nil {
		return err
	}
	got := make([]byte, len(word))
	for n := 0; n < len(got); {
		m, err := conn.Read(got[n:])
		if err != nil {
			return err
		}
		n += m
	}
	if string(got) != word {
		return fmt.Errorf("%q was said, and %q came back", word, got)
	}
	return nil
}
