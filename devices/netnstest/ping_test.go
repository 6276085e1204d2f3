// SPDX-License-Identifier: Apache-2.0

package netnstest_test

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestPing(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	for _, to := range []netip.Addr{b.Addr4(), b.Addr6(), netip.AddrFrom16(b.Addr4().As16())} {
		reply, err := a.Ping(to, netnstest.PingOptions{})
		require.NoError(t, err)
		assert.Equal(t, to.Unmap(), reply.From)
		assert.Equal(t, 56, reply.Size)
		assert.Equal(t, 64, reply.TTL)
		assert.Positive(t, reply.RTT)
		assert.Less(t, reply.RTT, time.Second)

		_, err = a.Ping(to, netnstest.PingOptions{Size: 1, Count: 20})
		require.NoError(t, err)
		_, err = a.Ping(to, netnstest.PingOptions{Size: 60000})
		require.NoError(t, err, "in fragments")
	}
}

func TestPingCountsItsRequests(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	trace := b.Capture("")
	_, err := a.Ping(b.Addr4(), netnstest.PingOptions{Count: 5, TTL: 7, From: a.Addr4()})
	require.NoError(t, err)
	requests := trace.Count(func(f netnstest.Frame) bool {
		s := f.Summary()
		return s.Protocol == 1 && s.Type == 8 && s.TTL == 7 && !f.Outgoing && s.Src.Addr() == a.Addr4()
	})
	assert.Equal(t, 5, requests)
}

func TestPingTimeExceeded(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	node, client := lab.Node("node"), lab.Outside("client")
	for _, c := range []struct{ to, router netip.Addr }{
		{client.Addr4(), addr("172.16.16.1")}, {client.Addr6(), addr("fd00:16::1")},
	} {
		for range 10 { // the kernel must not limit their rate
			_, err := node.Ping(c.to, netnstest.PingOptions{TTL: 1})
			var icmp *netnstest.ICMPError
			require.ErrorAs(t, err, &icmp)
			assert.True(t, icmp.IsTimeExceeded())
			assert.False(t, icmp.IsTooBig() || icmp.IsUnreachable())
			assert.Equal(t, c.router, icmp.From)
			assert.Zero(t, icmp.MTU)
			assert.ErrorContains(t, err, "icmp time exceeded from "+c.router.String())
		}
		_, err := node.Ping(c.to, netnstest.PingOptions{TTL: 2})
		require.NoError(t, err)
	}
}

func TestPingTooBig(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	node, client := lab.Node("node"), lab.Outside("client")
	// The way narrows behind the router.
	require.NoError(t, lab.Router().SetMTU("outside", 1300))
	for _, c := range []struct {
		to, router netip.Addr
		headers    int
	}{
		{client.Addr4(), addr("172.16.16.1"), 28}, {client.Addr6(), addr("fd00:16::1"), 48},
	} {
		for range 3 { // what the kernel learns does not hide the error
			_, err := node.Ping(c.to, netnstest.PingOptions{Size: 1301 - c.headers, DontFragment: true})
			var icmp *netnstest.ICMPError
			require.ErrorAs(t, err, &icmp)
			assert.True(t, icmp.IsTooBig())
			assert.False(t, icmp.IsTimeExceeded() || icmp.IsUnreachable())
			assert.Equal(t, 1300, icmp.MTU)
			assert.Equal(t, c.router, icmp.From)
			assert.ErrorIs(t, err, unix.EMSGSIZE)
		}
		_, err := node.Ping(c.to, netnstest.PingOptions{Size: 1300 - c.headers, DontFragment: true})
		require.NoError(t, err)
		_, err = node.Ping(c.to, netnstest.PingOptions{Size: 1501 - c.headers, DontFragment: true})
		require.ErrorIs(t, err, unix.EMSGSIZE)
		require.ErrorContains(t, err, "MTU of 1500 bytes here")
	}
	_, err := node.Ping(client.Addr4(), netnstest.PingOptions{Size: 1400})
	require.NoError(t, err, "the router may fragment it")
}

func TestPingUnreachable(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	node := lab.Node("node")
	for _, to := range []netip.Addr{addr("198.51.100.1"), addr("2001:db8:51::1")} {
		_, err := node.Ping(to, netnstest.PingOptions{})
		var icmp *netnstest.ICMPError
		require.ErrorAs(t, err, &icmp)
		assert.True(t, icmp.IsUnreachable())
		assert.False(t, icmp.IsTooBig() || icmp.IsTimeExceeded())
		assert.ErrorContains(t, err, "icmp unreachable")
	}
}

func TestPingSilence(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	require.NoError(t, b.Sysctl(map[string]string{"net/ipv4/icmp_echo_ignore_all": "1"}))
	start := time.Now()
	_, err := a.Ping(b.Addr4(), netnstest.PingOptions{Timeout: 100 * time.Millisecond})
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.Less(t, time.Since(start), time.Second)
	assert.ErrorContains(t, err, "ping 192.0.2.2 from a: no answer in 100ms")
}

func TestPingBadInput(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	for want, opts := range map[string]netnstest.PingOptions{
		"PingOptions.Size: 65508":         {Size: 65508},
		"PingOptions.Size: -1":            {Size: -1},
		"PingOptions.TTL: 256":            {TTL: 256},
		"PingOptions.Count: -1":           {Count: -1},
		"PingOptions.Timeout: -1ns":       {Timeout: -1},
		"PingOptions.From: 2001:db8::1":   {From: a.Addr6()},
		"bind to 192.0.2.2: cannot assig": {From: b.Addr4()},
	} {
		_, err := a.Ping(b.Addr4(), opts)
		assert.ErrorContains(t, err, want)
	}
	_, err := a.Ping(netip.Addr{}, netnstest.PingOptions{})
	assert.ErrorContains(t, err, "not valid")
}
