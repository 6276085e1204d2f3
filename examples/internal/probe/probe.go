// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
)

// Timeout is how long a probe waits for its answer. It is longer than one
// repetition of a lost ARP question or a lost SYN.
const Timeout = 2 * time.Second

// TCP connects to an echo server, sends size bytes, expects the same back and
// returns how long all of that took.
func TCP(ctx context.Context, from devices.Namespace, to netip.AddrPort, size int) (time.Duration, error) {
	return exchange(ctx, from, "tcp", to, func(conn net.Conn) error {
		sent := pattern(size)
		// More than the buffers of both directions hold would block unless it
		// is read while it is written.
		written := make(chan error, 1)
		go func() {
			_, err := conn.Write(sent)
			written <- err
		}()
		got := make([]byte, size)
		_, err := io.ReadFull(conn, got)
		if err != nil {
			conn.Close() // ends a blocked write
			<-written
			return err
		}
		if err := <-written; err != nil {
			return err
		}
		return compare(got, sent)
	})
}

// UDP sends one datagram of size bytes to an echo server, expects the same back
// from there and returns how long that took. What does not fit the path's MTU goes in
// fragments.
func UDP(ctx context.Context, from devices.Namespace, to netip.AddrPort, size int) (time.Duration, error) {
	return exchange(ctx, from, "udp", to, func(conn net.Conn) error {
		sent, got := pattern(size), make([]byte, 1<<16)
		if _, err := conn.Write(sent); err != nil {
			return err
		}
		n, from, err := conn.(*net.UDPConn).ReadFromUDPAddrPort(got)
		if err != nil {
			return err
		}
		if from = unmapped(from); from != to {
			return fmt.Errorf("the answer came from %s, want it from %s", from, to)
		}
		return compare(got[:n], sent)
	})
}

// Datagram is UDP with a socket that is not connected.
func Datagram(ctx context.Context, from devices.Namespace, to netip.AddrPort, size int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	network := "udp6"
	if to.Addr().Is4() {
		network = "udp4"
	}
	var conn *net.UDPConn
	err := from.Do(func() (err error) {
		conn, err = net.ListenUDP(network, nil)
		return err
	})
	if err != nil {
		return 0, explain(ctx, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	start, sent, got := time.Now(), pattern(size), make([]byte, 1<<16)
	if _, err := conn.WriteToUDPAddrPort(sent, to); err != nil {
		return 0, explain(ctx, err)
	}
	n, teller, err := conn.ReadFromUDPAddrPort(got)
	if err != nil {
		return 0, explain(ctx, err)
	}
	if teller = unmapped(teller); teller != to {
		return 0, fmt.Errorf("the answer came from %s, want it from %s", teller, to)
	}
	if err := compare(got[:n], sent); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// peerOf is who the kernel says is at the other end.
func peerOf(conn net.Conn) netip.AddrPort {
	return unmapped(addrPortOf(conn.RemoteAddr())) // asked for with getpeername(2) when it was dialed
}

func addrPortOf(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.AddrPort()
	case *net.UDPAddr:
		return a.AddrPort()
	}
	return netip.AddrPort{}
}

// exchange dials and times what fn does with the connection, the dial included. The
// peer must be the one that was asked for.
func exchange(ctx context.Context, from devices.Namespace, network string, to netip.AddrPort, fn func(net.Conn) error) (time.Duration, error) {
	start := time.Now()
	ctx, cancel := context.WithDeadline(ctx, start.Add(Timeout))
	defer cancel()
	var conn net.Conn
	var dialed time.Time
	err := from.Do(func() (err error) {
		var d net.Dialer
		d.SetMultipathTCP(false) // its options would make every SYN a special one
		dialed = time.Now()      // entering the namespace is not the network's time
		conn, err = d.DialContext(ctx, network, to.String())
		return err
	})
	if err != nil {
		return 0, explain(ctx, err)
	}
	defer conn.Close()
	if peer := peerOf(conn); peer != to {
		return 0, fmt.Errorf("the peer is %s, want %s", peer, to)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := fn(conn); err != nil {
		return 0, explain(ctx, err)
	}
	return time.Since(dialed), nil
}

// explain gives an error of the net package the words of an operator.
func explain(ctx context.Context, err error) error {
	var errno unix.Errno
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return errNoAnswer
	case errors.As(err, &errno):
		return errno
	}
	return err
}

var errNoAnswer = fmt.Errorf("no answer in %v: %w", Timeout, os.ErrDeadlineExceeded)

// pattern returns bytes in which a shifted or repeated part shows.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

func compare(got, sent []byte) error {
	if bytes.Equal(got, sent) {
		return nil
	}
	at := 0
	for at < min(len(got), len(sent)) && got[at] == sent[at] {
		at++
	}
	return fmt.Errorf("the answer of %d bytes differs from the question of %d at byte %d", len(got), len(sent), at)
}
