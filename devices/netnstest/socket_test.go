// SPDX-License-Identifier: Apache-2.0

package netnstest_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// pair is two hosts on one wire.
func pair(t *testing.T) (lab *netnstest.Lab, a, b *netnstest.Host) {
	t.Helper()
	lab = netnstest.NewLab(t)
	a = lab.Host("a", "192.0.2.1/24", "2001:db8::1/64")
	b = lab.Host("b", "192.0.2.2/24", "2001:db8::2/64")
	lab.Wire(a, b)
	return lab, a, b
}

func TestDial(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	for _, to := range []netip.Addr{b.Addr4(), b.Addr6()} {
		listener, err := b.ListenTCP(at(to, 80))
		require.NoError(t, err)
		defer listener.Close()
		from := at(map[bool]netip.Addr{true: a.Addr4(), false: a.Addr6()}[to.Is4()], 4000)
		conn, err := a.DialTCPFrom(from, at(to, 80))
		require.NoError(t, err)
		defer conn.Close()
		accepted, err := listener.AcceptTCP()
		require.NoError(t, err)
		defer accepted.Close()
		assert.Equal(t, from.String(), accepted.RemoteAddr().String())
		assert.Equal(t, at(to, 80).String(), conn.RemoteAddr().String())

		packets, err := b.ListenUDP(at(to, 53))
		require.NoError(t, err)
		defer packets.Close()
		udp, err := a.DialUDPFrom(from, at(to, 53))
		require.NoError(t, err)
		defer udp.Close()
		_, err = udp.Write([]byte("hello"))
		require.NoError(t, err)
		buf := make([]byte, 100)
		require.NoError(t, packets.SetReadDeadline(time.Now().Add(time.Second)))
		n, sender, err := packets.ReadFromUDPAddrPort(buf)
		require.NoError(t, err)
		assert.Equal(t, "hello", string(buf[:n]))
		assert.Equal(t, from, netip.AddrPortFrom(sender.Addr().Unmap(), sender.Port()))
	}
	raw, err := b.ListenPacket("ip4:253", "192.0.2.2")
	require.NoError(t, err)
	require.NoError(t, raw.Close())
}

func TestDialGivesUpAfterASecond(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	// A hole: the route ends at a host that drops what is not for it.
	a.RouteVia("198.51.100.0/24", b.Addr4())
	start := time.Now()
	_, err := a.DialTCP(addrPort("198.51.100.1:80"))
	took := time.Since(start)
	require.Error(t, err)
	var timeout net.Error
	require.True(t, errors.As(err, &timeout) && timeout.Timeout(), "%v", err)
	require.ErrorContains(t, err, "dial tcp 198.51.100.1:80 from a")
	assert.InDelta(t, netnstest.DialTimeout.Seconds(), took.Seconds(), 0.5)
}

func TestSocketErrorsNameTheHost(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	_, err := a.DialTCP(at(b.Addr4(), 81))
	require.ErrorIs(t, err, unix.ECONNREFUSED)
	_, err = a.DialUDP(addrPort("203.0.113.1:1"))
	require.ErrorIs(t, err, unix.ENETUNREACH)
	require.ErrorContains(t, err, "from a")
	_, err = a.ListenTCP(at(b.Addr4(), 80))
	require.ErrorIs(t, err, unix.EADDRNOTAVAIL)
	_, err = a.ListenUDP(at(b.Addr6(), 80))
	require.ErrorContains(t, err, "listen udp [2001:db8::2]:80 on a")
	_, err = a.ListenPacket("nix", "")
	require.ErrorContains(t, err, "on a")
	_, err = a.ProbeUDP(at(b.Addr4(), 81), 1)
	require.ErrorIs(t, err, unix.ECONNREFUSED)
	for _, dial := range []func(netip.AddrPort) error{
		func(to netip.AddrPort) error { _, err := a.DialTCP(to); return err },
		func(to netip.AddrPort) error { _, err := a.DialUDP(to); return err },
		func(to netip.AddrPort) error { _, err := a.ListenTCP(to); return err },
		func(to netip.AddrPort) error { _, err := a.ListenUDP(to); return err },
	} {
		require.ErrorContains(t, dial(addrPort("[fe80::1%nix]:80")), "zone")
	}
	require.Error(t, a.SendRaw("nix", nil))
	require.ErrorContains(t, a.SendRaw("", []byte{1}), "send a frame of 1 bytes out of eth0 of a")
}

func TestLinkLocalZoneIsOfTheNamespace(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	mac, err := b.MAC("")
	require.NoError(t, err)
	target := netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	server := b.Echo(at(netip.IPv6Unspecified(), 80))
	_, err = a.ProbeTCP(netip.AddrPortFrom(target.WithZone("eth0"), server.Port()), 10)
	require.NoError(t, err)
	_, err = a.Ping(target.WithZone("eth0"), netnstest.PingOptions{})
	require.NoError(t, err)
	_, err = a.Ping(target.WithZone("nix"), netnstest.PingOptions{})
	require.ErrorContains(t, err, "find the zone")
}

func TestDialledConnectionHasADeadline(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	silent, err := b.ListenTCP(at(b.Addr4(), 80))
	require.NoError(t, err)
	defer silent.Close()
	conn, err := a.DialTCP(at(b.Addr4(), 80))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Millisecond)))
	_, err = conn.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestEchoManyClients(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	server := b.Echo(at(b.Addr4(), 0))
	require.NotZero(t, server.Port())
	// All are connected before the first one speaks.
	var conns []*net.TCPConn
	for range 100 {
		conn, err := a.DialTCP(server)
		require.NoError(t, err)
		defer conn.Close()
		conns = append(conns, conn)
	}
	var clients sync.WaitGroup
	for i, conn := range conns {
		clients.Go(func() {
			sent := bytes.Repeat([]byte{byte(i)}, 1000*(i+1))
			_, err := conn.Write(sent)
			assert.NoError(t, err)
			got := make([]byte, len(sent))
			_, err = io.ReadFull(conn, got)
			assert.NoError(t, err)
			assert.True(t, bytes.Equal(sent, got), "client %d got something else", i)
		})
	}
	clients.Wait()
	for i := range 100 {
		_, err := a.ProbeUDP(server, 10*i)
		require.NoError(t, err)
	}

	conn, err := a.DialTCP(server)
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("last words"))
	require.NoError(t, err)
	require.NoError(t, conn.CloseWrite())
	all, err := io.ReadAll(conn)
	require.NoError(t, err, "a half-closed client gets all of its answer")
	assert.Equal(t, "last words", string(all))
}

func TestProbeNoticesAWrongAnswer(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	liar, err := b.ListenUDP(at(b.Addr4(), 7))
	require.NoError(t, err)
	defer liar.Close()
	listener, err := b.ListenTCP(at(b.Addr4(), 7))
	require.NoError(t, err)
	defer listener.Close()
	var servers sync.WaitGroup
	servers.Go(func() {
		buf := make([]byte, 100)
		n, from, err := liar.ReadFromUDPAddrPort(buf)
		if assert.NoError(t, err) {
			buf[5] ^= 1
			_, err = liar.WriteToUDPAddrPort(buf[:n], from)
			assert.NoError(t, err)
		}
	})
	servers.Go(func() {
		conn, err := listener.Accept()
		if assert.NoError(t, err) {
			defer conn.Close()
			_, err = io.ReadFull(conn, make([]byte, 50))
			assert.NoError(t, err)
			_, err = conn.Write(bytes.Repeat([]byte{9}, 50))
			assert.NoError(t, err)
		}
	})
	_, err = a.ProbeUDP(at(b.Addr4(), 7), 50)
	assert.ErrorContains(t, err, "differs at byte 5")
	_, err = a.ProbeTCP(at(b.Addr4(), 7), 50)
	assert.ErrorContains(t, err, "differs at byte 0")
	servers.Wait()
}
