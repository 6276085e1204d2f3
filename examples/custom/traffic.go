// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/godatapath/datapath/examples/internal/cluster"
)

const (
	dnsPort = 53
	// patience is how long a question waits for its answer.
	patience = 2 * time.Second
)

// askAround has endpoint number i, from 1, ask the next one i questions over
// UDP and one over TCP, of each family. It returns when all are answered.
func askAround(ctx context.Context, endpoints []*cluster.Endpoint) (err error) {
	var servers []io.Closer
	var answering sync.WaitGroup
	defer func() {
		err = errors.Join(err, closeAll(servers))
		answering.Wait()
	}()
	for _, e := range endpoints {
		opened, err := serve(e, &answering)
		servers = append(servers, opened...)
		if err != nil {
			return fmt.Errorf("%s: answer questions: %w", e.Name, err)
		}
	}
	for i, e := range endpoints {
		next := endpoints[(i+1)%len(endpoints)]
		for _, addr := range next.Addrs {
			for range i + 1 {
				if err := ask(ctx, e, "udp", addr); err != nil {
					return err
				}
			}
			if err := ask(ctx, e, "tcp", addr); err != nil {
				return err
			}
		}
	}
	return nil
}

// ask sends a question and waits for the answer to it.
func ask(ctx context.Context, from *cluster.Endpoint, network string, to netip.Addr) error {
	var conn net.Conn
	err := from.Namespace.Do(func() (err error) {
		dialer := net.Dialer{Timeout: patience}
		conn, err = dialer.DialContext(ctx, network, netip.AddrPortFrom(to, dnsPort).String())
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", from.Name, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	q := question()
	if network == "tcp" {
		q = append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...) // RFC 1035, 4.2.2
	}
	if _, err := conn.Write(q); err != nil {
		return fmt.Errorf("%s: ask %s: %w", from.Name, to, err)
	}
	if _, err := io.ReadFull(conn, make([]byte, len(q))); err != nil {
		return fmt.Errorf("%s: wait for an answer of %s: %w", from.Name, to, err)
	}
	return nil
}

// question is "datapath.test. IN A" (RFC 1035, 4.1).
func question() []byte {
	q := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0} // recursion desired, one question
	for _, label := range []string{"datapath", "test"} {
		q = append(append(q, byte(len(label))), label...)
	}
	return append(q, 0, 0, 1, 0, 1)
}

// serve opens the sockets of a name server that repeats every question. It
// answers in the background until they are closed.
func serve(e *cluster.Endpoint, wg *sync.WaitGroup) (opened []io.Closer, err error) {
	for _, addr := range e.Addrs {
		at := netip.AddrPortFrom(addr, dnsPort)
		var packets *net.UDPConn
		var stream *net.TCPListener
		err := e.Namespace.Do(func() (err error) {
			if packets, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err != nil {
				return err
			}
			opened = append(opened, packets)
			if stream, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); err != nil {
				return err
			}
			opened = append(opened, stream)
			return nil
		})
		if err != nil {
			return opened, err
		}
		wg.Go(func() { answerDatagrams(packets) })
		wg.Go(func() { answerConnections(stream) })
	}
	return opened, nil
}

func answerDatagrams(conn *net.UDPConn) {
	buf := make([]byte, 512)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = conn.WriteToUDPAddrPort(buf[:n], from) // who misses the answer says so
		}
	}
}

func answerConnections(l *net.TCPListener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}
}
