// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

var (
	router4, router6 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	server4, server6 = netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8:1::2")
)

// path is a client and a server with a router between them, whose far link
// takes packets of 1,300 bytes.
func path(t *testing.T) (client, router, server *netnstest.Host) {
	t.Helper()
	lab := netnstest.NewLab(t)
	client = lab.Host("client", "192.0.2.2/24", "2001:db8::2/64")
	router = lab.Host("router", "192.0.2.1/24", "2001:db8::1/64")
	server = lab.Host("server", "198.51.100.2/24", "2001:db8:1::2/64")
	lab.Wire(client, router)
	far, end := lab.Wire(router, server)
	router.AddAddr(far, "198.51.100.1/24")
	router.AddAddr(far, "2001:db8:1::1/64")
	require.NoError(t, router.SetMTU(far, 1300))
	require.NoError(t, server.SetMTU(end, 1300))
	require.NoError(t, router.Sysctl(map[string]string{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}))
	client.RouteVia("198.51.100.0/24", router4)
	client.RouteVia("2001:db8:1::/64", router6)
	server.RouteVia("192.0.2.0/24", netip.MustParseAddr("198.51.100.1"))
	server.RouteVia("2001:db8::/64", netip.MustParseAddr("2001:db8:1::1"))
	return client, router, server
}

func TestProbes(t *testing.T) {
	t.Parallel()
	client, _, server := path(t)
	for _, family := range []struct{ server, router netip.Addr }{{server4, router4}, {server6, router6}} {
		echo, err := NewEcho(server.Namespace(), family.server)
		require.NoError(t, err)
		t.Cleanup(func() { echo.Close() }) // if the test does not come so far
		require.Equal(t, family.server, echo.Addr().Addr())
		ctx, from := t.Context(), client.Namespace()
		for _, probe := range []func() (time.Duration, error){
			func() (time.Duration, error) { return Ping(ctx, from, family.server, 0) },
			func() (time.Duration, error) { return Ping(ctx, from, family.server, 1300) },
			func() (time.Duration, error) { return TCP(ctx, from, echo.Addr(), 1) },
			func() (time.Duration, error) { return TCP(ctx, from, echo.Addr(), 8<<20) },
			func() (time.Duration, error) { return UDP(ctx, from, echo.Addr(), 1) },
			func() (time.Duration, error) { return TooBig(ctx, from, family.server, 1500, 1300, family.router) },
			func() (time.Duration, error) { return UDP(ctx, from, echo.Addr(), 20000) },
		} {
			took, err := probe()
			require.NoError(t, err)
			require.Positive(t, took)
			require.Less(t, took, Timeout)
		}

		// Each way of not being as it should be.
		var icmp *Error
		_, err = Ping(ctx, from, family.server, 1500)
		require.ErrorAs(t, err, &icmp)
		require.True(t, icmp.TooBig())
		require.Equal(t, 1300, icmp.MTU)
		require.Equal(t, family.router, icmp.From)
		require.EqualError(t, err, "too big, MTU is 1300, says "+family.router.String())
		_, err = TooBig(ctx, from, family.server, 1500, 1400, family.router)
		require.ErrorContains(t, err, "MTU is 1300, says "+family.router.String()+"; want MTU 1400")
		_, err = TooBig(ctx, from, family.server, 1500, 1300, family.server)
		require.ErrorContains(t, err, "want it from "+family.server.String())
		_, err = TooBig(ctx, from, family.server, 1300, 1300, family.router)
		require.ErrorContains(t, err, "1300 bytes got through")
		_, err = Ping(ctx, from, family.server, 1501)
		require.ErrorIs(t, err, unix.EMSGSIZE)
		_, err = Ping(ctx, from, family.server, 27)
		require.ErrorContains(t, err, "a packet of 27 bytes")

		require.NoError(t, echo.Close())
		_, err = TCP(ctx, from, echo.Addr(), 1)
		require.ErrorIs(t, err, unix.ECONNREFUSED)
		_, err = UDP(ctx, from, echo.Addr(), 1)
		require.ErrorIs(t, err, unix.ECONNREFUSED)
	}
	_, err := Ping(t.Context(), client.Namespace(), netip.MustParseAddr("203.0.113.1"), 0)
	require.ErrorIs(t, err, unix.ENETUNREACH)
}

func TestErrorsOnTheWay(t *testing.T) {
	t.Parallel()
	client, _, _ := path(t)
	// The router knows the way here and not further.
	client.RouteVia("203.0.113.0/24", router4)
	client.RouteVia("2001:db8:9::/64", router6)
	for _, to := range []struct{ there, router netip.Addr }{
		{netip.MustParseAddr("203.0.113.1"), router4}, {netip.MustParseAddr("2001:db8:9::1"), router6},
	} {
		var icmp *Error
		_, err := Ping(t.Context(), client.Namespace(), to.there, 0)
		require.ErrorAs(t, err, &icmp)
		require.False(t, icmp.TooBig())
		require.Equal(t, to.router, icmp.From)
		require.Regexp(t, `^unreachable \(code \d\), says `+to.router.String()+`$`, err.Error())
	}
}

func TestDatagrams(t *testing.T) {
	t.Parallel()
	client, router, server := path(t)
	require.NoError(t, router.Sysctl(map[string]string{"net/ipv4/icmp_ratelimit": "0", "net/ipv6/icmp/ratelimit": "0"}))
	for _, family := range []struct{ client, server, router netip.Addr }{
		{netip.MustParseAddr("192.0.2.2"), server4, router4}, {netip.MustParseAddr("2001:db8::2"), server6, router6},
	} {
		echo, err := NewEcho(server.Namespace(), family.server)
		require.NoError(t, err)
		t.Cleanup(func() { echo.Close() }) // if the test does not come so far
		_, err = OpenDatagrams(client.Namespace(), family.server, echo.Addr())
		require.ErrorIs(t, err, unix.EADDRNOTAVAIL)
		d, err := OpenDatagrams(client.Namespace(), family.client, echo.Addr())
		require.NoError(t, err)
		defer d.Close()
		for range 2 {
			var icmp *Error
			took, err := d.Ask(t.Context(), 1300, 64)
			require.NoError(t, err)
			require.Positive(t, took)
			require.Less(t, took, Timeout)
			_, err = d.Ask(t.Context(), 1301, 64)
			require.ErrorAs(t, err, &icmp)
			require.EqualError(t, err, "too big, MTU is 1300, says "+family.router.String())
			hops, err := d.Trace(t.Context(), 1)
			require.NoError(t, err)
			require.Equal(t, []netip.Addr{family.router}, hops)
		}
		_, err = d.Trace(t.Context(), 0)
		require.ErrorContains(t, err, "the way is longer than ["+family.router.String()+"]")
		_, err = d.Ask(t.Context(), 20, 64)
		require.ErrorContains(t, err, "a packet of 20 bytes")
		require.NoError(t, echo.Close())
		_, err = d.Trace(t.Context(), 1)
		require.ErrorContains(t, err, "hop 2: unreachable")
	}
}

func TestTrace(t *testing.T) {
	t.Parallel()
	client, router, server := path(t)
	ctx, from := t.Context(), client.Namespace()
	// It is asked more often than Linux says the same to one.
	require.NoError(t, router.Sysctl(map[string]string{"net/ipv4/icmp_ratelimit": "0", "net/ipv6/icmp/ratelimit": "0"}))
	// The router knows the way here and not further.
	client.RouteVia("203.0.113.0/24", router4)
	client.RouteVia("2001:db8:9::/64", router6)
	for _, family := range []struct{ server, router, beyond netip.Addr }{
		{server4, router4, netip.MustParseAddr("203.0.113.1")}, {server6, router6, netip.MustParseAddr("2001:db8:9::1")},
	} {
		// A hop that says something else than that it was one. It comes first, as that
		// has another limit, with the same account.
		var icmp *Error
		_, err := Trace(ctx, from, family.beyond, []netip.Addr{family.router, family.beyond})
		require.ErrorAs(t, err, &icmp)
		require.False(t, icmp.Expired())
		require.ErrorContains(t, err, "hop 1: unreachable")

		took, err := Trace(ctx, from, family.server, []netip.Addr{family.router, family.server})
		require.NoError(t, err)
		require.Positive(t, took)
		_, err = Trace(ctx, from, family.router, []netip.Addr{family.router})
		require.NoError(t, err, "one hop")
		_, err = Trace(ctx, server.Namespace(), family.server, []netip.Addr{family.server})
		require.NoError(t, err, "no hop at all")

		found := "the way is [" + family.router.String() + " " + family.server.String() + "], want ["
		for _, want := range [][]netip.Addr{
			{family.server}, {family.server, family.router}, {family.router, family.router, family.server},
		} {
			_, err = Trace(ctx, from, family.server, want)
			require.ErrorContains(t, err, found)
		}
		_, err = Trace(ctx, from, family.server, nil)
		require.ErrorContains(t, err, "the way is ["+family.router.String()+"], want []", "it does not go on for ever")

		_, err = ping(ctx, from, family.server, 0, 1)
		require.ErrorAs(t, err, &icmp)
		require.True(t, icmp.Expired())
		require.False(t, icmp.TooBig())
		require.Equal(t, family.router, icmp.From)
		require.EqualError(t, err, "time exceeded, says "+family.router.String())
	}
}

func TestExpired(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		teller     netip.Addr
		kind, code uint8
		want       bool
	}{
		{router4, 11, 0, true}, {router4, 11, 1, false}, {router4, 3, 0, false}, {router4, 3, 4, false},
		{router6, 3, 0, true}, {router6, 3, 1, false}, {router6, 1, 0, false}, {router6, 11, 0, false},
	} {
		e := &Error{From: test.teller, Type: test.kind, Code: test.code}
		require.Equal(t, test.want, e.Expired(), "%+v", e)
	}
}

// A server tells how often it was asked, and by whom.
func TestAsked(t *testing.T) {
	t.Parallel()
	client, router, server := path(t)
	for _, family := range []struct{ server, client, router netip.Addr }{
		{server4, netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("198.51.100.1")},
		{server6, netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8:1::1")},
	} {
		echo, err := NewEcho(server.Namespace(), family.server)
		require.NoError(t, err)
		t.Cleanup(func() { echo.Close() }) // if the test does not come so far
		n, last := echo.Asked()
		require.Zero(t, n)
		require.False(t, last.IsValid(), "nobody")
		for i, asker := range []struct {
			host *netnstest.Host
			ask  func(context.Context, devices.Namespace, netip.AddrPort, int) (time.Duration, error)
			as   netip.Addr
		}{
			{client, TCP, family.client}, {router, UDP, family.router}, {client, Datagram, family.client}, {router, TCP, family.router},
		} {
			_, err := asker.ask(t.Context(), asker.host.Namespace(), echo.Addr(), 100)
			require.NoError(t, err)
			n, last = echo.Asked()
			require.Equal(t, i+1, n)
			require.Equal(t, asker.as, last)
		}
		// An echo that is no business of the server's does not count.
		_, err = Ping(t.Context(), client.Namespace(), family.server, 0)
		require.NoError(t, err)
		n, _ = echo.Asked()
		require.Equal(t, 4, n)
		require.NoError(t, echo.Close())
		n, last = echo.Asked()
		require.Equal(t, 4, n, "it is still told")
		require.Equal(t, family.router, last)
	}
}

func TestNoAnswer(t *testing.T) {
	t.Parallel()
	client, router, _ := path(t)
	// What arrives is sent nowhere.
	require.NoError(t, router.Sysctl(map[string]string{"net/ipv4/ip_forward": "0"}))
	for _, probe := range []func(context.Context) (time.Duration, error){
		func(ctx context.Context) (time.Duration, error) { return Ping(ctx, client.Namespace(), server4, 0) },
		func(ctx context.Context) (time.Duration, error) {
			return TCP(ctx, client.Namespace(), netip.AddrPortFrom(server4, 9), 1)
		},
		func(ctx context.Context) (time.Duration, error) {
			return UDP(ctx, client.Namespace(), netip.AddrPortFrom(server4, 9), 1)
		},
	} {
		start := time.Now()
		_, err := probe(t.Context())
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.ErrorContains(t, err, "no answer in 2s")
		require.GreaterOrEqual(t, time.Since(start), Timeout)

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		start = time.Now()
		_, err = probe(ctx)
		require.ErrorIs(t, err, context.Canceled)
		require.Less(t, time.Since(start), Timeout/2)
	}
}

func TestEchoNeedsTheAddress(t *testing.T) {
	t.Parallel()
	client, _, _ := path(t)
	_, err := NewEcho(client.Namespace(), server4)
	require.ErrorIs(t, err, unix.EADDRNOTAVAIL)
}

func TestChecksum(t *testing.T) {
	t.Parallel()
	// The example of RFC 1071 section 3.
	require.Equal(t, ^uint16(0xddf2), checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}))
	require.Equal(t, ^uint16(0x0100), checksum([]byte{1}))
}
