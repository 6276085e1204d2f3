// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
)

// Echo starts servers on one TCP and one UDP port that send back what they
// get, for any number of clients, and returns their address. They stop with
// the test. Port 0 lets the kernel choose a port, the same for both.
//
// A UDP server on an unspecified address answers from the address that the
// route back prefers, which is not always the one that was asked.
func (h *Host) Echo(at netip.AddrPort) netip.AddrPort {
	h.lab.t.Helper()
	tcp, udp, err := h.listenBoth(at)
	if err != nil {
		h.lab.t.Fatalf("netnstest: echo: %v", err)
	}
	s := &echoServer{tcp: tcp, udp: udp, conns: make(map[net.Conn]bool)}
	h.lab.atEnd(s.stop)
	s.running.Add(2)
	h.lab.start(s.serveTCP)
	h.lab.start(s.serveUDP)
	return tcp.Addr().(*net.TCPAddr).AddrPort()
}

func (h *Host) listenBoth(at netip.AddrPort) (*net.TCPListener, *net.UDPConn, error) {
	for tries := 0; ; tries++ {
		tcp, err := h.ListenTCP(at)
		if err != nil {
			return nil, nil, err
		}
		port := tcp.Addr().(*net.TCPAddr).AddrPort().Port()
		udp, err := h.ListenUDP(netip.AddrPortFrom(at.Addr(), port))
		if err == nil {
			return tcp, udp, nil
		}
		tcp.Close()
		// The port that TCP chose can be taken for UDP.
		if at.Port() != 0 || tries == 10 || !errors.Is(err, syscall.EADDRINUSE) {
			return nil, nil, err
		}
	}
}

type echoServer struct {
	tcp     *net.TCPListener
	udp     *net.UDPConn
	running sync.WaitGroup

	mu      sync.Mutex
	conns   map[net.Conn]bool
	stopped bool
}

func (s *echoServer) stop() {
	s.tcp.Close()
	s.udp.Close()
	s.mu.Lock()
	s.stopped = true
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
}

func (s *echoServer) serveTCP() {
	defer s.running.Done()
	for {
		conn, err := s.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client went away between its SYN and now
		}
		s.mu.Lock()
		if s.stopped {
			s.mu.Unlock()
			conn.Close()
			return
		}
		s.conns[conn] = true
		s.running.Add(1)
		s.mu.Unlock()
		go s.serveConn(conn)
	}
}

func (s *echoServer) serveConn(conn *net.TCPConn) {
	defer s.running.Done()
	defer func() {
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
		conn.Close()
	}()
	// Not io.Copy: it splices through pipes that it keeps for later, which
	// would look like leaked descriptors.
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if _, werr := conn.Write(buf[:n]); werr != nil {
			return
		}
		if err != nil {
			return
		}
	}
}

func (s *echoServer) serveUDP() {
	defer s.running.Done()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		// A client that cannot be reached is for the client to notice.
		_, _ = s.udp.WriteToUDPAddrPort(buf[:n], from)
	}
}
