// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/examples/internal/probe"
)

var families = []int{4, 6}

// launch starts a cluster that ends with the test.
func launch(t *testing.T, name string, cfg Config) *Cluster {
	t.Helper()
	cfg.Name = fmt.Sprintf("%s%d", name, os.Getpid())
	c, err := Start(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// inEachMode runs fn in a cluster with an overlay and in one without.
func inEachMode(t *testing.T, name string, cfg Config, fn func(t *testing.T, c *Cluster)) {
	t.Helper()
	for mode, native := range map[string]bool{"vxlan": false, "native": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			cfg.Native = native
			fn(t, launch(t, name+mode, cfg))
		})
	}
}

// echo starts an echo server that ends with the test.
func echo(t *testing.T, ns devices.Namespace, at netip.Addr) *probe.Echo {
	t.Helper()
	e, err := probe.NewEcho(ns, at)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// serveEcho starts one where an endpoint is to serve.
func serveEcho(t *testing.T, c *Cluster, at netip.AddrPort) {
	t.Helper()
	for _, e := range c.Endpoints() {
		if e.Addrs[0] == at.Addr() || e.Addrs[1] == at.Addr() {
			server, err := probe.NewEchoAt(e.Namespace, at)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, server.Close()) })
			return
		}
	}
	t.Fatalf("nobody has %s", at)
}

// requireSeen asks a server by TCP and by UDP, and wants it to see the asker at as.
func requireSeen(t *testing.T, from devices.Namespace, server *probe.Echo, at netip.AddrPort, as netip.Addr) {
	t.Helper()
	_, err := probe.TCP(t.Context(), from, at, 1000)
	require.NoError(t, err, "TCP to %s", at)
	_, seen := server.Asked()
	require.Equal(t, as, seen, "TCP to %s", at)
	_, err = probe.UDP(t.Context(), from, at, 1000)
	require.NoError(t, err, "UDP to %s", at)
	_, seen = server.Asked()
	require.Equal(t, as, seen, "UDP to %s", at)
}

// trace wants the hops between an endpoint and an address to be those.
func trace(t *testing.T, from *Endpoint, to netip.Addr, hops ...netip.Addr) {
	t.Helper()
	_, err := probe.Trace(t.Context(), from.Namespace, to, hops)
	require.NoError(t, err)
}

// nodePort is a port of a node, at its address in the underlay.
func nodePort(n *Node, family int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(n.Addrs[family/6].Addr(), port)
}

// drops counts what a node has dropped for a reason.
func drops(t *testing.T, n *Node, reason string) uint64 {
	t.Helper()
	count, err := n.Metrics.Drops(reason)
	require.NoError(t, err)
	return count
}

// outcomes counts what a program of a node has done with packets.
func outcomes(t *testing.T, n *Node, program, outcome string) (packets uint64) {
	t.Helper()
	for m, err := range n.Metrics.All() {
		require.NoError(t, err)
		if m.Program == program && m.Outcome == outcome {
			packets += m.Packets
		}
	}
	return packets
}

// wiretap keeps what passes any device of a namespace.
type wiretap struct {
	fd int
}

func tap(t *testing.T, ns devices.Namespace) *wiretap {
	t.Helper()
	w := &wiretap{}
	require.NoError(t, ns.Do(func() (err error) {
		const everything = unix.ETH_P_ALL
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, everything<<8&0xff00|everything>>8); err != nil {
			return err
		}
		return unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
	}))
	t.Cleanup(func() { require.NoError(t, unix.Close(w.fd)) })
	return w
}

// packets are those that have come since the last call.
func (w *wiretap) packets(t *testing.T) (out []netnstest.Summary) {
	t.Helper()
	buf := make([]byte, 1<<17)
	for {
		n, _, err := unix.Recvfrom(w.fd, buf, 0)
		if errors.Is(err, unix.ENETDOWN) {
			continue // one of the devices
		}
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		require.NoError(t, err)
		out = append(out, netnstest.Frame{Bytes: append([]byte(nil), buf[:n]...)}.Summary())
	}
	stats, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	require.NoError(t, err)
	require.Zero(t, stats.Drops, "packets have passed unseen")
	return out
}

// requireNoLeak wants that no endpoint's own address has left for somebody who is
// not to see it. It returns how many packets have left for such.
func (w *wiretap) requireNoLeak(t *testing.T, c *Cluster) (left int) {
	t.Helper()
	for _, p := range w.packets(t) {
		to := p.Dst.Addr()
		if !outsideSeen[0].Contains(to) && !outsideSeen[1].Contains(to) {
			continue
		}
		left++
		for _, n := range c.Nodes {
			for _, own := range n.PodCIDRs {
				require.False(t, own.Contains(p.Src.Addr()), "%s to %s", p.Src, p.Dst)
			}
		}
	}
	return left
}
