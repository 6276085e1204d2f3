// SPDX-License-Identifier: Apache-2.0

package netnstest_test

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestLossMeterOfAQuietWire(t *testing.T) {
	t.Parallel()
	lab, a, b := pair(t)
	for _, to := range []netip.Addr{b.Addr4(), b.Addr6()} {
		start := time.Now()
		meter := lab.LossMeterWith(netnstest.LossConfig{Client: a, Server: b, To: at(to, 9), Rate: 5000, Size: 1400})
		require.NoError(t, meter.WaitReceived(500, 5*time.Second))
		report := meter.Stop()
		took := time.Since(start)
		assert.Zero(t, report.Missing, "%v", report)
		assert.Zero(t, report.Duplicated+report.Reordered+report.SendErrors, "%v", report)
		assert.Equal(t, report.Sent, report.Received)
		assert.LessOrEqual(t, report.Sent, int(took.Seconds()*5000)+1, "never faster than the rate")
		assert.GreaterOrEqual(t, took, 90*time.Millisecond, "500 at 5,000 a second take a tenth of one")
		assert.Less(t, report.LongestGap, took)
		assert.Equal(t, report, meter.Stop(), "twice is once")
	}
}

func TestLossMeterCountsARealLoss(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	client, node := lab.Outside("client"), lab.Node("node")
	meter := lab.LossMeter(client, node, at(node.Addr4(), 9), 1000)
	require.NoError(t, meter.WaitReceived(20, 5*time.Second))
	// The way is cut behind the router, which then has no route. At the client
	// or the node the kernel would keep datagrams until ARP answers again.
	require.NoError(t, lab.Router().SetLink("nodes", false))
	before := meter.Report()
	require.Eventually(t, func() bool { return meter.Report().Sent > before.Sent+100 }, 5*time.Second, time.Millisecond)
	require.NoError(t, lab.Router().SetLink("nodes", true))
	require.NoError(t, meter.WaitReceived(20, 5*time.Second), "the stream flows again")
	report := meter.Stop()
	assert.GreaterOrEqual(t, report.Missing, 100, "%v", report)
	assert.Equal(t, report.Sent-report.Received, report.Missing)
	assert.GreaterOrEqual(t, report.Received, 40)
	assert.Zero(t, report.SendErrors, "the client had no part in it")
	assert.Positive(t, report.LongestGap)
}

func TestLossMeterCountsDuplicatesAndOrder(t *testing.T) {
	t.Parallel()
	lab, a, b := pair(t)
	trace := a.Capture("")
	meter := lab.LossMeter(a, b, at(b.Addr4(), 9), 100)
	require.NoError(t, meter.WaitReceived(5, 2*time.Second))
	first, err := trace.Wait(func(f netnstest.Frame) bool { return f.Summary().Dst == at(b.Addr4(), 9) }, time.Second)
	require.NoError(t, err)
	// The kernel had left the checksum to the device.
	d, err := packet.Decode(first.Bytes)
	require.NoError(t, err)
	d.UDP.Checksum = nil
	again := packet.Build(*d.Ethernet, *d.IPv4, *d.UDP, packet.Payload(d.Payload))
	for range 3 {
		require.NoError(t, a.SendRaw("", again))
	}
	require.Eventually(t, func() bool { return meter.Report().Duplicated == 3 }, 2*time.Second, time.Millisecond)
	report := meter.Stop()
	assert.Equal(t, 3, report.Duplicated, "%v", report)
	assert.Zero(t, report.Missing)
	assert.Zero(t, report.Reordered, "a duplicate is not out of order")
	assert.Contains(t, report.String(), "0 missing (0 refused), 3 duplicated")
}

func TestLossMeterWithoutAnyArrival(t *testing.T) {
	t.Parallel()
	lab, a, b := pair(t)
	meter := lab.LossMeterWith(netnstest.LossConfig{
		Client: a, Server: b, To: addrPort("198.51.100.1:9"), Listen: at(b.Addr4(), 9),
	})
	err := meter.WaitReceived(1, 50*time.Millisecond)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	report := meter.Stop()
	assert.Positive(t, report.Sent)
	assert.Equal(t, report.Sent, report.Missing)
	assert.Equal(t, report.Sent, report.SendErrors, "there is no route")
	assert.GreaterOrEqual(t, report.LongestGap, 50*time.Millisecond)
	require.ErrorIs(t, meter.WaitReceived(1, time.Second), os.ErrClosed)
}
