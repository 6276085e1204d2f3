// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/examples/internal/probe"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/lb"
)

// A backend on another node answers the client itself: it sees the client's own
// address, and the node that was asked sees no answer.
func TestDirectReturn(t *testing.T) {
	t.Parallel()
	const port = 31001
	c := launch(t, "direct", Config{Services: 4, Maglev: true, Native: true})
	serveAll(t, c)
	first, second := c.Nodes[0], c.Nodes[1]
	for f, family := range families {
		s := lb.Service{Name: fmt.Sprint("port", family), Frontends: atAll(family, port, lb.NodePort), Backends: backends(family, second.Endpoints[0]), Direct: true, Algorithm: lb.Maglev}
		setService(t, c, s)
		client, at := c.Outside.Addr(family), nodePort(first, family, port)
		server, seen := visit(t, c, from(client), at)
		require.Equal(t, s.Backends[0].Addr, server)
		require.Equal(t, client, seen.Addr(), "IPv%d: it sees the client", family)

		// A connection that goes on: by the fast path, with a lot of data, and after the
		// verdicts are made anew.
		conn, err := dialFrom(t.Context(), c.Outside.Namespace, from(client), at)
		require.NoError(t, err)
		for i := range 20 {
			require.NoError(t, conn.ask(fmt.Sprint("question ", i)))
			if i%5 == 4 {
				require.NoError(t, first.Datapath.Bump())
				require.NoError(t, second.Datapath.Bump())
			}
		}
		flows := 0
		for flow, err := range first.Flows.Filter(conntrack.Filter{DstPort: port}) {
			require.NoError(t, err)
			if flow.Original.Dst != at {
				continue // of the other family
			}
			require.Zero(t, flow.Received.Packets, "%s: the answers do not come this way", flow.Original)
			if flow.Sent.Packets > 15 {
				require.Equal(t, conntrack.StateNew, flow.State, "nobody could tell it from a forged one")
				flows++
			}
		}
		require.Equal(t, 1, flows)
		require.NoError(t, conn.Close())
		_, err = probe.UDP(t.Context(), c.Outside.Namespace, at, 64)
		require.NoError(t, err, "IPv%d: datagrams too", family)
		// Each datagram says what was asked: the backend's node may have forgotten it.
		forgetful := openDatagrams(t, c, at)
		for range 2 {
			_, err = forgetful.Ask(t.Context(), 64, 64)
			require.NoError(t, err)
			_, err = second.Flows.Flush(conntrack.Filter{})
			require.NoError(t, err)
		}
		for range 2 { // the second time by a flow that is known
			hops, err := openDatagrams(t, c, at).Trace(t.Context(), 3)
			require.NoError(t, err, "IPv%d: %v", family, hops)
			require.Equal(t, []netip.Addr{OutsideRouter(family), first.Addrs[f].Addr(), second.Addrs[f].Addr()}, hops)
		}
		there := echo(t, second.Endpoints[0].Namespace, second.Endpoints[0].Addr(family))
		setService(t, c, lb.Service{
			Name: fmt.Sprint("bulk", family), Frontends: atAll(family, port+1, lb.NodePort), Direct: true, Algorithm: lb.Maglev,
			Backends: []lb.Backend{second.Endpoints[0].Backend(family, there.Addr().Port())},
		})
		_, err = probe.TCP(t.Context(), c.Outside.Namespace, nodePort(first, family, port+1), 1<<20)
		require.NoError(t, err)

		// The first datagram of a flow carries more than it had: what then does not fit is
		// answered.
		fits := c.cfg.UnderlayMTU - []int{8, 24}[f]
		requireTooBig(t, openDatagrams(t, c, at), c.cfg.UnderlayMTU, fits, first.Addrs[f].Addr())
		_, err = openDatagrams(t, c, at).Ask(t.Context(), fits, 64)
		require.NoError(t, err)
	}
}

// Nobody makes an endpoint speak as whom he likes: what another node says must be a
// frontend of a service that has the endpoint.
func TestDirectReturnForged(t *testing.T) {
	t.Parallel()
	const port = 31001
	c := launch(t, "forgedirect", Config{Services: 1, Native: true, Nodes: 1})
	serveAll(t, c)
	node, victim := c.Nodes[0], c.Nodes[0].Endpoints[0]
	client := c.Outside.TrustedAddr(4)
	forge := func(frontend netip.AddrPort) {
		t.Helper()
		sendOption(t, c, node, netip.AddrPortFrom(client, 7777), netip.AddrPortFrom(victim.Addr(4), serverPort), frontend)
	}
	before := drops(t, node, "bad frontend")
	forge(netip.MustParseAddrPort("192.0.2.1:53"))
	require.Eventually(t, func() bool { return drops(t, node, "bad frontend") == before+1 }, time.Second, time.Millisecond)
	// A service that answers by itself is not direct, whoever says so.
	setService(t, c, lb.Service{Name: "port", Frontends: atAll(4, port, lb.NodePort), Backends: backends(4, victim)})
	forge(nodePort(node, 4, port))
	require.Eventually(t, func() bool { return drops(t, node, "bad frontend") == before+2 }, time.Second, time.Millisecond)
}

// sendOption puts a datagram on the wire of a node that says which frontend it is
// from.
func sendOption(t *testing.T, c *Cluster, n *Node, from, to, frontend netip.AddrPort) {
	t.Helper()
	option := binary.BigEndian.AppendUint16([]byte{158, 8}, frontend.Port())
	putOnWire(t, c, n, packet.Build(packet.Ethernet{Dst: packet.MAC(uplinkMAC(n.index)), Src: packet.MAC{2, 0, 0, 0, 9, 9}},
		packet.IPv4{Src: from.Addr(), Dst: to.Addr(), Options: append(option, frontend.Addr().AsSlice()...)},
		packet.UDP{SrcPort: from.Port(), DstPort: to.Port()}, packet.Payload("hello")))
}
