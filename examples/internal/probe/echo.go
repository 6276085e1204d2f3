// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
)

// Echo is a TCP and a UDP server on one port that send back what they get.
type Echo struct {
	addr    netip.AddrPort
	tcp     net.Listener
	udp     net.PacketConn
	running sync.WaitGroup

	mu      sync.Mutex
	conns   map[net.Conn]bool
	stopped bool
	asked   int
	last    netip.Addr
}

// Asked tells how often the server was asked, by connections and datagrams, and
// who was the last to do it, as the server sees him.
func (e *Echo) Asked() (n int, last netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked, e.last
}

func (e *Echo) note(from net.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked++
	e.last = unmapped(addrPortOf(from)).Addr()
}

// NewEcho starts an echo server on an address of the namespace, on a port that
// is free there. The caller closes it.
func NewEcho(ns devices.Namespace, addr netip.Addr) (*Echo, error) {
	return NewEchoAt(ns, netip.AddrPortFrom(addr, 0))
}

// NewEchoAt starts one on a port of the caller's choice.
func NewEchoAt(ns devices.Namespace, at netip.AddrPort) (*Echo, error) {
	e := &Echo{conns: map[net.Conn]bool{}}
	if err := ns.Do(func() error { return e.listen(at) }); err != nil {
		return nil, fmt.Errorf("start an echo server on %s in %s: %w", at, ns, err)
	}
	e.running.Go(e.serveTCP)
	e.running.Go(e.serveUDP)
	return e, nil
}

func (e *Echo) listen(want netip.AddrPort) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	for try := 0; ; try++ {
		tcp, err := lc.Listen(context.Background(), "tcp", want.String())
		if err != nil {
			return err
		}
		at := tcp.Addr().(*net.TCPAddr).AddrPort()
		udp, err := lc.ListenPacket(context.Background(), "udp", at.String())
		if err == nil {
			e.addr, e.tcp, e.udp = netip.AddrPortFrom(want.Addr(), at.Port()), tcp, udp
			return nil
		}
		tcp.Close()
		// The port that TCP was given may be taken for UDP.
		if !errors.Is(err, unix.EADDRINUSE) || want.Port() != 0 || try == 10 {
			return err
		}
	}
}

// Addr is where the server listens.
func (e *Echo) Addr() netip.AddrPort { return e.addr }

// Close ends the server and its connections, and waits for them.
func (e *Echo) Close() error {
	err := errors.Join(e.tcp.Close(), e.udp.Close())
	e.mu.Lock()
	e.stopped = true
	for c := range e.conns {
		c.Close()
	}
	e.mu.Unlock()
	e.running.Wait()
	return err
}

func (e *Echo) serveTCP() {
	for {
		conn, err := e.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client went away before we came
		}
		e.mu.Lock()
		if e.stopped {
			e.mu.Unlock()
			conn.Close()
			return
		}
		e.conns[conn] = true
		e.asked++
		e.last = peerOf(conn).Addr()
		e.running.Go(func() { e.serveConn(conn) })
		e.mu.Unlock()
	}
}

func (e *Echo) serveConn(conn net.Conn) {
	defer func() {
		e.mu.Lock()
		delete(e.conns, conn)
		e.mu.Unlock()
		conn.Close()
	}()
	buf := make([]byte, 1<<16)
	for {
		n, err := conn.Read(buf)
		if _, werr := conn.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (e *Echo) serveUDP() {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := e.udp.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			e.note(from)
			_, _ = e.udp.WriteTo(buf[:n], from) // who gets no answer notices
		}
	}
}
