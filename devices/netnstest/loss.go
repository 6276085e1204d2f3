// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// settle is how long Stop waits for late datagrams after the last one.
const settle = 250 * time.Millisecond

// LossConfig describes a stream of a [LossMeter].
type LossConfig struct {
	// Client sends and Server receives. Both are required.
	Client, Server *Host
	// To is where the client sends to. Required.
	To netip.AddrPort
	// Listen is where the server receives, if it is not To: a backend behind a
	// service address.
	Listen netip.AddrPort
	// Rate is datagrams per second, up to 100,000. Default: 1,000.
	Rate int
	// Size is the payload in bytes, 16 to 65,507. Default: 16.
	Size int
}

// LossReport is what became of a stream.
type LossReport struct {
	// Sent counts the datagrams that the client tried to send, Received those
	// that arrived at least once, Missing the difference.
	Sent, Received, Missing int
	// Duplicated counts arrivals of a datagram that had arrived before.
	Duplicated int
	// Reordered counts first arrivals after one that was sent later.
	Reordered int
	// SendErrors counts the sends that the kernel refused. They are missing.
	SendErrors int
	// LongestGap is the longest time without an arrival, from the start of the
	// stream to its end.
	LongestGap time.Duration
}

// String describes the report in one line.
func (r LossReport) String() string {
	return fmt.Sprintf("%d sent, %d received, %d missing (%d refused), %d duplicated, %d reordered, longest gap %v",
		r.Sent, r.Received, r.Missing, r.SendErrors, r.Duplicated, r.Reordered, r.LongestGap.Round(time.Microsecond))
}

// LossMeter is a steady stream of numbered UDP datagrams that counts what does
// not arrive. All datagrams are of one flow. What a kernel on the way keeps and
// delivers late, as it does while ARP has no answer, is not lost: it shows as
// [LossReport].LongestGap.
type LossMeter struct {
	cfg    LossConfig
	client *net.UDPConn
	server *net.UDPConn
	magic  uint64
	start  time.Time
	quit   chan struct{} // tells the sender to end
	sent   chan struct{} // closed when it has
	done   chan struct{} // closed when the receiver has ended
	once   sync.Once

	mu      sync.Mutex
	report  LossReport
	seen    []uint64 // a bit per sequence number
	highest int
	last    time.Time
	arrived chan struct{} // closed and replaced on each arrival
	result  LossReport
}

// LossMeter starts a stream of rate datagrams a second (0: 1,000) from client
// to server, until [LossMeter.Stop] or the end of the test.
func (l *Lab) LossMeter(client, server *Host, to netip.AddrPort, rate int) *LossMeter {
	l.t.Helper()
	return l.LossMeterWith(LossConfig{Client: client, Server: server, To: to, Rate: rate})
}

// LossMeterWith is [Lab.LossMeter] with all its details.
func (l *Lab) LossMeterWith(cfg LossConfig) *LossMeter {
	l.t.Helper()
	m, err := newLossMeter(cfg)
	if err != nil {
		l.t.Fatalf("netnstest: start a loss meter: %v", err)
	}
	l.atEnd(func() { m.Stop() })
	l.start(m.send)
	l.start(m.receive)
	return m
}

func newLossMeter(cfg LossConfig) (*LossMeter, error) {
	cfg.Rate, cfg.Size = max1(cfg.Rate, 1000), max1(cfg.Size, 16)
	if !cfg.Listen.IsValid() {
		cfg.Listen = cfg.To
	}
	switch {
	case cfg.Client == nil || cfg.Server == nil:
		return nil, errors.New("LossConfig.Client and Server are required")
	case !cfg.To.IsValid():
		return nil, errors.New("LossConfig.To is required")
	case cfg.Rate < 1 || cfg.Rate > 100_000:
		return nil, fmt.Errorf("LossConfig.Rate: %d is not between 1 and 100000", cfg.Rate)
	case cfg.Size < 16 || cfg.Size > 65507:
		return nil, fmt.Errorf("LossConfig.Size: %d is not between 16 and 65507", cfg.Size)
	}
	server, err := cfg.Server.ListenUDP(cfg.Listen)
	if err != nil {
		return nil, err
	}
	// Not connected: an ICMP error about one datagram must not stop the next.
	client, err := cfg.Client.ListenUDP(netip.AddrPortFrom(unspecified(cfg.To.Addr().Unmap()), 0))
	if err == nil {
		err = server.SetReadBuffer(4 << 20)
	}
	if err != nil {
		server.Close()
		if client != nil {
			client.Close()
		}
		return nil, err
	}
	now := time.Now()
	return &LossMeter{
		cfg: cfg, client: client, server: server,
		magic: uint64(now.UnixNano()), start: now, last: now, highest: -1,
		quit: make(chan struct{}), sent: make(chan struct{}), done: make(chan struct{}),
		arrived: make(chan struct{}),
	}, nil
}

// send keeps the number of datagrams on the line that the rate draws, and
// catches up after it was kept waiting.
func (m *LossMeter) send() {
	defer close(m.sent)
	datagram := make([]byte, m.cfg.Size)
	binary.BigEndian.PutUint64(datagram, m.magic)
	ticker := time.NewTicker(max(time.Second/time.Duration(m.cfg.Rate), time.Millisecond))
	defer ticker.Stop()
	for n := 0; ; {
		due := int(time.Since(m.start).Seconds()*float64(m.cfg.Rate)) + 1
		for ; n < due; n++ {
			select {
			case <-m.quit:
				return
			default:
			}
			binary.BigEndian.PutUint64(datagram[8:], uint64(n))
			// Counted first, so that it is never received before it was sent.
			m.mu.Lock()
			m.report.Sent++
			m.mu.Unlock()
			if _, err := m.client.WriteToUDPAddrPort(datagram, m.cfg.To); err != nil {
				m.mu.Lock()
				m.report.SendErrors++
				m.mu.Unlock()
			}
		}
		select {
		case <-m.quit:
			return
		case <-ticker.C:
		}
	}
}

func (m *LossMeter) receive() {
	defer close(m.done)
	buf := make([]byte, 64<<10)
	for {
		n, _, err := m.server.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 16 || binary.BigEndian.Uint64(buf) != m.magic {
			continue
		}
		m.note(binary.BigEndian.Uint64(buf[8:]), time.Now())
	}
}

// note counts one arrival.
func (m *LossMeter) note(number uint64, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if number >= uint64(m.report.Sent) {
		return // damaged on the way: not one of ours
	}
	seq := int(number)
	m.report.LongestGap = max(m.report.LongestGap, now.Sub(m.last))
	m.last = now
	for len(m.seen) <= seq/64 {
		m.seen = append(m.seen, 0)
	}
	switch bit := uint64(1) << (seq % 64); {
	case m.seen[seq/64]&bit != 0:
		m.report.Duplicated++
	default:
		m.seen[seq/64] |= bit
		m.report.Received++
		if seq < m.highest {
			m.report.Reordered++
		}
	}
	m.highest = max(m.highest, seq)
	close(m.arrived)
	m.arrived = make(chan struct{})
}

// Report returns the counts so far. Datagrams that are on their way count as
// missing.
func (m *LossMeter) Report() LossReport {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.report
	r.Missing = r.Sent - r.Received
	return r
}

// WaitReceived waits until count more datagrams have arrived, up to timeout,
// which answers errors.Is(err, os.ErrDeadlineExceeded). It is for "the stream
// flows" before and after a change.
func (m *LossMeter) WaitReceived(count int, timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	goal := m.Report().Received + count
	for {
		m.mu.Lock()
		received, more := m.report.Received, m.arrived
		m.mu.Unlock()
		if received >= goal {
			return nil
		}
		select {
		case <-more:
		case <-m.done:
			return fmt.Errorf("wait for %d datagrams: %w", count, os.ErrClosed)
		case <-timer.C:
			return fmt.Errorf("wait for %d datagrams: %w after %v (%v)", count, os.ErrDeadlineExceeded, timeout, m.Report())
		}
	}
}

// Stop ends the stream, gives what is on its way a moment to arrive, and
// returns the counts. It is idempotent.
func (m *LossMeter) Stop() LossReport {
	m.once.Do(func() {
		close(m.quit)
		<-m.sent
		end := time.Now()
		m.client.Close()
		m.awaitRest()
		m.server.Close()
		<-m.done
		m.mu.Lock()
		m.result = m.report
		m.result.Missing = m.result.Sent - m.result.Received
		m.result.LongestGap = max(m.result.LongestGap, end.Sub(m.last))
		m.mu.Unlock()
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.result
}

// awaitRest returns when all has arrived or nothing more comes.
func (m *LossMeter) awaitRest() {
	for {
		m.mu.Lock()
		complete, more := m.report.Received == m.report.Sent, m.arrived
		m.mu.Unlock()
		if complete {
			return
		}
		select {
		case <-more:
		case <-time.After(settle):
			return
		}
	}
}
