// SPDX-License-Identifier: Apache-2.0

package netnstest_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/stretchr/testify/require"
)

// t stands for the argument of a test function.
var t *testing.T

// Two hosts joined directly.
func ExampleNewLab() {
	forwarding(t)
}

// Two nodes, each with an endpoint, and a client outside. Here the kernel
// forwards; a test of a datapath attaches its programs to Link of the endpoints
// instead.
func ExampleLab_Node() {
	cluster(t)
}

// Code that opens its own sockets runs inside a namespace as a subtest.
func ExampleHost_Run() {
	inside(t)
}

func TestExamples(t *testing.T) {
	t.Parallel()
	t.Run("forwarding", func(t *testing.T) { t.Parallel(); forwarding(t) })
	t.Run("cluster", func(t *testing.T) { t.Parallel(); cluster(t) })
	t.Run("inside", func(t *testing.T) { t.Parallel(); inside(t) })
}

func forwarding(t *testing.T) {
	lab := netnstest.NewLab(t)
	client := lab.Host("client", "192.0.2.1/24", "2001:db8::1/64")
	server := lab.Host("server", "192.0.2.2/24", "2001:db8::2/64")
	lab.Wire(client, server)

	trace := client.Capture("") // a pcap file, if the test fails
	at := server.Echo(netip.MustParseAddrPort("192.0.2.2:8080"))
	_, err := client.ProbeTCP(at, 100)
	require.NoError(t, err)
	_, err = trace.Wait(func(f netnstest.Frame) bool {
		return f.Summary().Dst == at
	}, time.Second)
	require.NoError(t, err)

	reply, err := client.Ping(server.Addr6(), netnstest.PingOptions{})
	require.NoError(t, err)
	require.Equal(t, 64, reply.TTL)

	meter := lab.LossMeter(client, server, netip.MustParseAddrPort("192.0.2.2:9"), 1000)
	require.NoError(t, meter.WaitReceived(100, time.Second))
	// Replace, restart or reload something here.
	require.Zero(t, meter.Stop().Missing)
}

func cluster(t *testing.T) {
	lab := netnstest.NewLab(t)
	left, right := lab.Node("left"), lab.Node("right")
	blue := left.Endpoint("blue", netip.MustParseAddr("10.42.1.10"))
	green := right.Endpoint("green", netip.MustParseAddr("10.42.2.10"))
	client := lab.Outside("client")

	left.ForwardByKernel(blue)
	right.ForwardByKernel(green)
	left.Route("10.42.2.0/24", right)
	right.Route("10.42.1.0/24", left)
	lab.Router().Route("10.42.2.0/24", right)

	reply, err := blue.Ping(green.Addr4(), netnstest.PingOptions{Size: 1400, DontFragment: true})
	require.NoError(t, err)
	require.Equal(t, 62, reply.TTL, "two nodes on the way")

	web := green.Echo(netip.MustParseAddrPort("10.42.2.10:80"))
	_, err = client.ProbeTCP(web, 1000)
	require.NoError(t, err)
}

func inside(t *testing.T) {
	lab := netnstest.NewLab(t)
	node := lab.Node("node")
	node.Run(t, "its cookie", func(t *testing.T) {
		ns, err := devices.CurrentNamespace()
		require.NoError(t, err)
		defer ns.Close()
		here, err := ns.Cookie()
		require.NoError(t, err)
		there, err := node.Namespace().Cookie()
		require.NoError(t, err)
		require.Equal(t, there, here)
	})
}
