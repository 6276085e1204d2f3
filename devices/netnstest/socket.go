// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"
)

const (
	// DialTimeout is when a dial of a [Host] gives up.
	DialTimeout = time.Second
	// ConnTimeout is how long after the dial the reads and writes of a dialled
	// connection fail, so that a lost packet fails a test and does not hang it.
	// SetDeadline of the connection replaces it.
	ConnTimeout = 10 * time.Second
)

// DialTCP connects to an address from inside the namespace. It gives up after
// [DialTimeout], which is before TCP would repeat a lost SYN: one that is lost
// fails the dial. The connection has a deadline [ConnTimeout] from now. The
// caller closes it.
func (h *Host) DialTCP(to netip.AddrPort) (*net.TCPConn, error) {
	return h.DialTCPFrom(netip.AddrPort{}, to)
}

// DialTCPFrom is [Host.DialTCP] from a local address; its port may be 0.
func (h *Host) DialTCPFrom(from, to netip.AddrPort) (*net.TCPConn, error) {
	return dial(h, "tcp", to, func(ctx context.Context, d *net.Dialer, to netip.AddrPort) (*net.TCPConn, error) {
		return d.DialTCP(ctx, "tcp", from, to)
	})
}

// DialUDP makes a connected UDP socket inside the namespace. Its deadline is
// [ConnTimeout] from now. The caller closes it.
func (h *Host) DialUDP(to netip.AddrPort) (*net.UDPConn, error) {
	return h.DialUDPFrom(netip.AddrPort{}, to)
}

// DialUDPFrom is [Host.DialUDP] from a local address; its port may be 0.
func (h *Host) DialUDPFrom(from, to netip.AddrPort) (*net.UDPConn, error) {
	return dial(h, "udp", to, func(ctx context.Context, d *net.Dialer, to netip.AddrPort) (*net.UDPConn, error) {
		return d.DialUDP(ctx, "udp", from, to)
	})
}

func dial[C net.Conn](h *Host, network string, to netip.AddrPort, connect func(context.Context, *net.Dialer, netip.AddrPort) (C, error)) (C, error) {
	var conn C
	err := h.ns.Do(func() error {
		target, err := scoped(to)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), DialTimeout)
		defer cancel()
		var d net.Dialer
		d.SetMultipathTCP(false)
		if conn, err = connect(ctx, &d, target); err != nil {
			return err
		}
		return conn.SetDeadline(time.Now().Add(ConnTimeout))
	})
	if err != nil {
		return conn, fmt.Errorf("dial %s %v from %s: %w", network, to, h.name, err)
	}
	return conn, nil
}

// ListenTCP listens inside the namespace. Port 0 lets the kernel choose. The
// caller closes the listener and what it accepts.
func (h *Host) ListenTCP(at netip.AddrPort) (*net.TCPListener, error) {
	var listener *net.TCPListener
	err := h.ns.Do(func() error {
		local, err := scoped(at)
		if err != nil {
			return err
		}
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		ln, err := lc.Listen(context.Background(), "tcp", local.String())
		if err != nil {
			return err
		}
		listener = ln.(*net.TCPListener)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listen tcp %v on %s: %w", at, h.name, err)
	}
	return listener, nil
}

// ListenUDP opens an unconnected UDP socket inside the namespace. Port 0 lets
// the kernel choose. The caller closes it.
func (h *Host) ListenUDP(at netip.AddrPort) (*net.UDPConn, error) {
	var conn *net.UDPConn
	err := h.ns.Do(func() error {
		local, err := scoped(at)
		if err != nil {
			return err
		}
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(local))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen udp %v on %s: %w", at, h.name, err)
	}
	return conn, nil
}

// ListenPacket is net.ListenPacket inside the namespace, for the networks that
// have no method of their own, such as "ip4:132" for raw SCTP. The address is
// a literal. The caller closes the socket.
func (h *Host) ListenPacket(network, address string) (net.PacketConn, error) {
	var conn net.PacketConn
	err := h.ns.Do(func() error {
		var err error
		conn, err = net.ListenPacket(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen %s %s on %s: %w", network, address, h.name, err)
	}
	return conn, nil
}

// ProbeTCP connects to an echo server, sends size bytes, expects the same back
// and returns how long all of that took.
func (h *Host) ProbeTCP(to netip.AddrPort, size int) (time.Duration, error) {
	start := time.Now()
	conn, err := h.DialTCP(to)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	sent := pattern(size)
	// A large message fills the buffers of both directions unless both are
	// served at once.
	written := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		written <- err
	}()
	got := make([]byte, size)
	_, err = io.ReadFull(conn, got)
	if err != nil {
		conn.Close() // ends a blocked write
	}
	if werr := <-written; err == nil {
		err = werr
	}
	if err == nil && !bytes.Equal(got, sent) {
		err = fmt.Errorf("the answer differs at byte %d", firstDifference(got, sent))
	}
	if err != nil {
		return 0, fmt.Errorf("probe tcp %v from %s: %w", to, h.name, err)
	}
	return time.Since(start), nil
}

// ProbeUDP sends one datagram of size bytes to an echo server, expects the same
// back within [DialTimeout] and returns how long that took.
func (h *Host) ProbeUDP(to netip.AddrPort, size int) (time.Duration, error) {
	conn, err := h.DialUDP(to)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	sent, got := pattern(size), make([]byte, 65536)
	start := time.Now()
	n, err := 0, conn.SetDeadline(start.Add(DialTimeout))
	if err == nil {
		_, err = conn.Write(sent)
	}
	if err == nil {
		n, err = conn.Read(got)
	}
	took := time.Since(start)
	if err == nil && !bytes.Equal(got[:n], sent) {
		err = fmt.Errorf("the answer of %d bytes differs at byte %d", n, firstDifference(got[:n], sent))
	}
	if err != nil {
		return 0, fmt.Errorf("probe udp %v from %s: %w", to, h.name, err)
	}
	return took, nil
}

// scoped replaces the name of a zone by its number. Package net keeps a table
// of names that knows nothing of namespaces.
func scoped(a netip.AddrPort) (netip.AddrPort, error) {
	index, err := zoneIndex(a.Addr())
	if err != nil || index == 0 {
		return a, err
	}
	return netip.AddrPortFrom(a.Addr().WithZone(strconv.Itoa(index)), a.Port()), nil
}

// zoneIndex returns the ifindex of the zone of an address, in the namespace of
// the calling thread, or 0.
func zoneIndex(a netip.Addr) (int, error) {
	if a.Zone() == "" {
		return 0, nil
	}
	if index, err := strconv.Atoi(a.Zone()); err == nil {
		return index, nil
	}
	ifi, err := net.InterfaceByName(a.Zone())
	if err != nil {
		return 0, fmt.Errorf("find the zone of %v: %w", a, err)
	}
	return ifi.Index, nil
}

// pattern returns bytes in which a shifted or repeated part shows.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
