// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/examples/internal/probe"
	"github.com/godatapath/datapath/examples/internal/show"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/tunnel"
)

func TestEndpointList(t *testing.T) {
	t.Parallel()
	c, pins := start(t, cluster.Config{Nodes: 2, Endpoints: 2})
	node := c.Nodes[1]
	var want []string
	for _, family := range []int{4, 6} {
		for _, e := range node.Endpoints {
			want = append(want, fmt.Sprintf("%-14s  id=%d identity=%d ifindex=%d mac=%s nodemac=%s", e.Addr(family), e.ID, e.Identity,
				e.Link.Index, strings.ToUpper(e.Link.PeerMAC.String()), strings.ToUpper(e.Link.MAC.String())))
		}
	}
	require.Equal(t, strings.Join(want, "\n")+"\n", dpctl(t, "-pins", node.Pins, "endpoint", "list"))

	var all map[string][]show.Endpoint
	decode(t, &all, "-pins", pins, "endpoint", "list")
	require.Len(t, all, 2)
	require.Len(t, all["node1"], 2)
	e := node.Endpoints[1]
	require.Equal(t, show.Endpoint{
		Addresses: e.Addrs, ID: e.ID, Identity: uint32(e.Identity), Ifindex: e.Link.Index, MAC: e.Link.PeerMAC.String(), NodeMAC: e.Link.MAC.String(),
	}, all["node2"][1])
}

// 9 comes before 10, and IPv4 before IPv6.
func TestOrder(t *testing.T) {
	t.Parallel()
	c, _ := start(t, cluster.Config{Nodes: 1, Endpoints: -1})
	node := c.Nodes[0]
	for i, a := range []string{"10.244.1.100", "fd00:244:1::9", "10.244.1.9", "10.244.1.20"} {
		require.NoError(t, node.Table.Set(maps.Endpoint{
			ID: uint32(i + 1), Identity: 300, Ifindex: 1000 + i, Addrs: []netip.Addr{netip.MustParseAddr(a)},
			MAC: []byte{2, 0, 0, 0, 0, 1}, NodeMAC: []byte{2, 0, 0, 0, 0, 2},
		}))
	}
	var got []string
	for line := range strings.Lines(dpctl(t, "endpoint", "list", "-pins", node.Pins)) {
		got = append(got, strings.Fields(line)[0])
	}
	require.Equal(t, []string{"10.244.1.9", "10.244.1.20", "10.244.1.100", "fd00:244:1::9"}, got)
}

func TestTunnelList(t *testing.T) {
	t.Parallel()
	c, pins := start(t, cluster.Config{Nodes: 2, Endpoints: -1})
	require.NoError(t, c.Nodes[0].Peers.Set(tunnel.Peer{
		Prefix: netip.MustParsePrefix("10.42.1.0/24"), Node: netip.MustParseAddr("172.16.16.121"), VNI: 300,
	}))
	require.Equal(t, `node1
  10.42.1.0/24     172.16.16.121  vni=300
  10.244.2.0/24    172.16.16.12   vni=identity
  172.16.16.12/32  172.16.16.12   vni=identity
  fd00:244:2::/64  172.16.16.12   vni=identity

node2
  10.244.1.0/24    172.16.16.11  vni=identity
  172.16.16.11/32  172.16.16.11  vni=identity
  fd00:244:1::/64  172.16.16.11  vni=identity
`, dpctl(t, "-pins", pins, "tunnel", "list"))
	var peers []show.Peer
	decode(t, &peers, "-pins", c.Nodes[0].Pins, "tunnel", "list")
	require.Len(t, peers, 4)
	require.Equal(t, uint32(300), peers[0].VNI)
	require.Zero(t, peers[1].VNI)
}

func TestFlowAndMetricLists(t *testing.T) {
	t.Parallel()
	c, _ := start(t, cluster.Config{Nodes: 2, Endpoints: 1})
	from, to := c.Nodes[0].Endpoints[0], c.Nodes[1].Endpoints[0]
	pins := c.Nodes[0].Pins
	require.Equal(t, "(none)\n", dpctl(t, "-pins", pins, "ct", "list"))
	var none []show.Flow
	decode(t, &none, "-pins", pins, "ct", "list")
	require.NotNil(t, none, "[] and not null")

	for _, family := range []int{4, 6} {
		server, err := probe.NewEcho(to.Namespace, to.Addr(family))
		require.NoError(t, err)
		defer func() { require.NoError(t, server.Close()) }()
		_, err = probe.TCP(t.Context(), from.Namespace, server.Addr(), 100)
		require.NoError(t, err)
		_, err = probe.UDP(t.Context(), from.Namespace, server.Addr(), 100)
		require.NoError(t, err)
		_, err = probe.Ping(t.Context(), from.Namespace, to.Addr(family), 0)
		require.NoError(t, err)

		list := func(filter ...string) []string {
			out := dpctl(t, append([]string{"-pins", pins, "ct", "list"}, filter...)...)
			return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		}
		dst := fmt.Sprint(to.Addr(family))
		udp := list("-proto", "udp", "-dst", dst)
		require.Len(t, udp, 1)
		client := strings.TrimSuffix(netip.AddrPortFrom(from.Addr(family), 0).String(), "0")
		bytes := 100 + 8 + 20 + 14
		if family == 6 {
			bytes += 20
		}
		require.Regexp(t, fmt.Sprintf(`^UDP  %s\d+ -> %s  new  idle=0s age=\d+s sent=1/%[3]d received=1/%[3]d  to overlay 172\.16\.16\.12 vni=1000, replies to endpoint ifindex=%d$`,
			quote(client), quote(server.Addr().String()), bytes, from.Link.Index), udp[0])

		tcp := list("-proto", "TCP", "-src", from.Addr(family).String(), "-port", fmt.Sprint(server.Addr().Port()))
		require.Len(t, tcp, 1)
		require.Regexp(t, `^TCP  .*  (established|closing)  idle=\d+s age=\d+s sent=\d+/\d+ received=\d+/\d+  to overlay`, tcp[0])

		icmp := list("-proto", map[int]string{4: "icmp", 6: "icmpv6"}[family])
		require.Len(t, icmp, 1)
		require.Regexp(t, fmt.Sprintf(`^ICMP(v6)?  %s -> %s echo \d+  `, quote(from.Addr(family).String()), quote(dst)), icmp[0])

		// Each filter takes away.
		require.Equal(t, []string{"(none)"}, list("-dst", from.Addr(family).String()))
		require.Equal(t, []string{"(none)"}, list("-src", dst))
		require.Equal(t, []string{"(none)"}, list("-port", "1"))
		require.Equal(t, []string{"(none)"}, list("-proto", "sctp"))

		// Each flow is in one state, and only those of TCP get further here.
		require.Equal(t, list("-proto", "udp"), list("-proto", "udp", "-state", "new"))
		require.Equal(t, []string{"(none)"}, list("-proto", "tcp", "-state", "new"))
		require.Equal(t, []string{"(none)"}, list("-proto", "udp", "-state", "Established"))
	}
	closing := 0
	require.Eventually(t, func() bool {
		stats, err := c.Nodes[0].Flows.Stats()
		require.NoError(t, err)
		closing = 2 - int(stats.Ended) // one may have taken the place of the other
		return strings.Count(dpctl(t, "-pins", pins, "ct", "list", "-state", "closing"), "TCP  ") == closing
	}, 5*time.Second, 20*time.Millisecond, "both ends have closed them")
	require.Regexp(t, fmt.Sprintf(`(?m)^flows +%d: 4 new, 0 established, %d closing$`, 4+closing, closing), dpctl(t, "-pins", pins, "status"))
	both := strings.Split(dpctl(t, "-pins", pins, "ct", "list", "-src", "10.244.1.0/24"), "\n")
	require.GreaterOrEqual(t, len(both), 1+closing+1)
	require.LessOrEqual(t, len(both), 3+1)

	var flows []show.Flow
	decode(t, &flows, "ct", "list", "-proto", "udp", "-pins", pins)
	require.Len(t, flows, 2)
	f := flows[0]
	require.Equal(t, show.Tuple{Protocol: "UDP", Src: f.Dst, SrcPort: f.DstPort, Dst: f.Src, DstPort: f.SrcPort}, f.Reply)
	uplink, err := devices.FindLink(c.Nodes[0].Namespace, "eth0")
	require.NoError(t, err)
	require.Contains(t, []int{c.Nodes[0].VXLAN.Index, uplink.Index}, f.Forward.SendsTo, "by the overlay device until the other node's neighbour is known")
	require.Equal(t, show.Verdict{Action: "to overlay", ArrivesOn: from.Link.Index, SendsTo: f.Forward.SendsTo, VNI: 1000, Node: "172.16.16.12"}, f.Forward)
	require.Equal(t, show.Counters{Packets: 1, Bytes: 142}, f.Sent)

	// The other node sees the same from its side.
	require.Regexp(t, fmt.Sprintf(`to endpoint ifindex=%d, replies to overlay 172\.16\.16\.11 vni=1200\n$`, to.Link.Index),
		dpctl(t, "-pins", c.Nodes[1].Pins, "ct", "list", "-proto", "udp", "-src", "10.0.0.0/8"))

	out := dpctl(t, "-pins", pins, "metrics", "list")
	require.Regexp(t, `^OUTCOME +PROGRAM +PACKETS +BYTES\n`, out)
	require.Regexp(t, `(?m)^to overlay +from endpoint +[1-9]\d* +\d+$`, out)
	var metrics []show.Metric
	decode(t, &metrics, "-pins", pins, "metrics", "list")
	require.Equal(t, strings.Count(out, "\n"), len(metrics)+1)
	for _, m := range metrics {
		require.Equal(t, m.Program == "from endpoint", m.Direction == "egress")
	}
}

func quote(s string) string {
	return strings.NewReplacer(".", `\.`, "[", `\[`, "]", `\]`).Replace(s)
}
