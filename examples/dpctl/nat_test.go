// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/examples/internal/probe"
	"github.com/godatapath/datapath/examples/internal/show"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/maps"
)

// askFrom sends a datagram to an echo server from a port of the caller's choice.
func askFrom(t *testing.T, ns devices.Namespace, from, to netip.AddrPort) {
	t.Helper()
	var conn *net.UDPConn
	require.NoError(t, ns.Do(func() (err error) {
		conn, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
		return err
	}))
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(probe.Timeout)))
	_, err := conn.Write([]byte("question"))
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 100))
	require.NoError(t, err)
}

func TestNAT(t *testing.T) {
	t.Parallel()
	for _, native := range []bool{false, true} {
		t.Run(map[bool]string{false: "vxlan", true: "native"}[native], func(t *testing.T) {
			t.Parallel()
			c, pins := start(t, cluster.Config{Nodes: 2, Endpoints: 1, Services: 1, Backends: 1, Native: native})
			node := c.Nodes[0]
			from, far := node.Endpoints[0], c.Nodes[1].Endpoints[0]
			list := func(args ...string) string {
				return dpctl(t, append([]string{"-pins", node.Pins, "nat"}, args...)...)
			}
			require.Equal(t, "(none)\n", list("list"))
			require.Equal(t, "(none)\n\nrange=1024-29999 kept=0 found=0 exhausted=0\n", list("ports"))
			require.Equal(t, "[]\n", list("list", "-json"))

			// Two flows that keep their port, and one that can not: the first has it.
			server, err := probe.NewEcho(c.Outside.Namespace, c.Outside.Addr(4))
			require.NoError(t, err)
			defer func() { require.NoError(t, server.Close()) }()
			other, err := probe.NewEcho(c.Outside.Namespace, c.Outside.Addr(6))
			require.NoError(t, err)
			defer func() { require.NoError(t, other.Close()) }()
			askFrom(t, from.Namespace, netip.AddrPortFrom(from.Addr(4), 2000), server.Addr())
			askFrom(t, from.Namespace, netip.AddrPortFrom(from.Addr(4), 2001), server.Addr())
			askFrom(t, from.Namespace, netip.AddrPortFrom(from.Addr(6), 40000), other.Addr())
			_, err = probe.Ping(t.Context(), from.Namespace, c.Outside.Addr(4), 0)
			require.NoError(t, err)

			// From outside, by this node, to a backend on the other one.
			at := netip.AddrPortFrom(node.Addrs[0].Addr(), 30700)
			backend, err := probe.NewEchoAt(far.Namespace, netip.AddrPortFrom(far.Addr(4), 8700))
			require.NoError(t, err)
			defer func() { require.NoError(t, backend.Close()) }()
			require.NoError(t, node.Services.SetService(lb.Service{
				Name:      "far",
				Frontends: []lb.Frontend{{Addr: netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()), Type: lb.NodePort, Protocol: lb.UDP}},
				Backends:  []lb.Backend{{Addr: backend.Addr(), Node: far.Node.Underlay()}},
			}))
			client := netip.AddrPortFrom(c.Outside.Addr(4), 3000)
			askFrom(t, c.Outside.Namespace, client, at)
			as := node.Addrs[0].Addr() // whom the backend sees
			if !native {
				as = node.Gateway(4)
			}
			_, seen := backend.Asked()
			require.Equal(t, as, seen)

			// What it asks itself does not leave.
			near, err := probe.NewEchoAt(from.Namespace, c.ServiceAt(1, 4).Backends[0].Addr)
			require.NoError(t, err)
			defer func() { require.NoError(t, near.Close()) }()
			_, err = probe.UDP(t.Context(), from.Namespace, c.ServiceAt(1, 4).Frontends[0].Addr, 10)
			require.NoError(t, err)

			out := list("list")
			require.Regexp(t, `^PROTOCOL  FROM +AS +TO +STATE  IDLE\n`, out)
			require.Equal(t, 1+5, strings.Count(out, "\n"), out)
			to := quote(server.Addr().String())
			for _, want := range []string{
				`UDP +10\.244\.1\.10:2000 +172\.16\.16\.11:2000 +` + to + ` +new +\ds`,
				`UDP +10\.244\.1\.10:2001 +172\.16\.16\.11:2001 +` + to + ` +new +\ds`,
				`UDP +\[fd00:244:1::10\]:40000 +\[fd00:16::11\]:\d{4,5} +` + quote(other.Addr().String()) + ` +new +\ds`,
				`ICMP +10\.244\.1\.10 echo \d+ +172\.16\.16\.11 echo \d+ +198\.51\.100\.10 +new +\ds`,
				`UDP +198\.51\.100\.10:3000 +` + quote(as.String()) + `:3000 +10\.244\.2\.10:8700 through 172\.16\.16\.11:30700 +new +\ds`,
			} {
				require.Regexp(t, `(?m)^`+want+`$`, out)
			}
			require.Equal(t, 1+2, strings.Count(list("list", "-proto", "udp", "-src", "10.244.1.10"), "\n"))
			require.Equal(t, "(none)\n", list("list", "-state", "established"))
			require.Equal(t, 1+1, strings.Count(list("list", "-port", "8700"), "\n"), "the backend's")

			var flows []show.NATFlow
			decode(t, &flows, "-pins", node.Pins, "nat", "list", "-port", "3000")
			require.Len(t, flows, 1)
			require.GreaterOrEqual(t, flows[0].Idle, 0.0)
			flows[0].Idle = 0
			require.Equal(t, show.NATFlow{
				Protocol: "UDP", Src: client.Addr(), SrcPort: 3000, As: as, AsPort: 3000, Dst: far.Addr(4), DstPort: 8700,
				Through: at.String(), State: "new",
			}, flows[0])
			decode(t, &flows, "-pins", node.Pins, "nat", "list", "-src", "fd00:244:1::10")
			require.Len(t, flows, 1)
			found := flows[0].AsPort
			require.Equal(t, 1+1, strings.Count(list("list", "-port", fmt.Sprint(found)), "\n"), "by the port that the destination sees")
			require.Contains(t, dpctl(t, "-pins", node.Pins, "ct", "list", "-port", fmt.Sprint(found)), fmt.Sprintf("[fd00:16::11]:%d", found))

			out = list("ports")
			lines := strings.Split(out, "\n")
			require.Regexp(t, `^AS +TO +PROTOCOL +PORTS +OF +SHARE$`, lines[0])
			require.Regexp(t, `^172\.16\.16\.11 +`+to+` +UDP +2 +28976 +0\.01%$`, lines[1], "the most used first")
			require.Regexp(t, `(?m)^172\.16\.16\.11 +198\.51\.100\.10 +ICMP +1 +65536 +0\.00%$`, out)
			require.Regexp(t, `(?m)^`+quote(as.String())+` +10\.244\.2\.10:8700 +UDP +1 +28976 +0\.00%$`, out)
			require.Contains(t, out, "\n\nrange=1024-29999 kept=4 found=1 exhausted=0\n\nTRIES  FLOWS\n", out)

			var all map[string]ports
			decode(t, &all, "-pins", pins, "nat", "ports")
			p := all["node1"]
			require.Equal(t, portRange{1024, 29999}, p.portRange)
			require.Equal(t, show.PortUse{As: node.Addrs[0].Addr(), Dst: server.Addr().Addr(), DstPort: server.Addr().Port(), Protocol: "UDP", Ports: 2, Of: 28976}, p.Use[0])
			require.EqualValues(t, 4, p.Kept)
			require.EqualValues(t, 1, p.Found)
			require.Equal(t, show.Tries{From: 128, To: 128}, p.Tries[len(p.Tries)-1])
			require.Empty(t, all["node2"].Use)
			require.NotNil(t, all["node2"].Use, "[] and not null")
			require.Regexp(t, `(?m)^nat +ports kept 4, found 1, exhausted 0$`, dpctl(t, "-pins", node.Pins, "status"))

			// A flow is shown with both its tuples, and where it leaves.
			uplink, err := devices.FindLink(node.Namespace, "eth0")
			require.NoError(t, err)
			require.Regexp(t, fmt.Sprintf(`^UDP  10\.244\.1\.10:2000 -> %s  new  idle=\ds age=\ds sent=1/50 received=1/50  to device ifindex=%[2]d via 172\.16\.16\.1 as 172\.16\.16\.11:2000 -> %[1]s, replies to endpoint ifindex=%[3]d\n$`,
				to, uplink.Index, from.Link.Index), dpctl(t, "-pins", node.Pins, "ct", "list", "-port", "2000"))
			forward := fmt.Sprintf(`to device ifindex=%d via 172\.16\.16\.12`, uplink.Index)
			if !native {
				forward = `to overlay 172\.16\.16\.12 vni=2`
			}
			require.Regexp(t, fmt.Sprintf(`  %s as %s:3000 -> 10\.244\.2\.10:8700, replies to device ifindex=%d`, forward, quote(as.String()), uplink.Index),
				dpctl(t, "-pins", node.Pins, "ct", "list", "-port", "3000"))
		})
	}
}

// Each command says what it has to of a node that has no overlay.
func TestNativeNodes(t *testing.T) {
	t.Parallel()
	c, pins := start(t, cluster.Config{Nodes: 2, Endpoints: 1, Services: 1, Backends: 1, Native: true})
	for _, command := range commands {
		words := strings.Fields(command.name)
		switch command.name {
		case "tunnel list":
			require.Equal(t, "no tunnel is pinned in "+c.Nodes[0].Pins+": the node reaches the endpoints of others by its routes",
				fails(t, 1, append([]string{"-pins", c.Nodes[0].Pins}, words...)...))
			continue
		case "service maglev":
			continue // of a service that chooses at random
		}
		require.Contains(t, dpctl(t, append([]string{"-pins", pins}, words...)...), "node2\n  ", command.name)
		var all map[string]any
		decode(t, &all, append([]string{"-pins", pins}, words...)...)
		require.Len(t, all, 2)
	}
	out := dpctl(t, "-pins", c.Nodes[0].Pins, "status")
	require.NotContains(t, out, "tunnel")
	require.NotContains(t, out, "overlay")
	require.Regexp(t, `(?m)^  eth0 +ingress +1\. +tcx +from_device +ours `, out)
	var s status
	decode(t, &s, "-pins", c.Nodes[0].Pins, "status")
	require.Nil(t, s.Prefixes)
	require.NotNil(t, s.NAT)
}

// A flow table may be without NAT, as where nothing leaves the nodes.
func TestWithoutNAT(t *testing.T) {
	t.Parallel()
	c, pins := start(t, cluster.Config{Nodes: 2, Endpoints: 1, Wire: true})
	node := c.Nodes[0]
	for _, what := range []string{"list", "ports"} {
		require.Equal(t, "the flow table in "+node.Pins+" is without NAT: no flow leaves in the node's name",
			fails(t, 1, "-pins", node.Pins, "nat", what))
	}
	require.NotContains(t, dpctl(t, "-pins", node.Pins, "status"), "nat ")
	var all map[string]map[string]any
	decode(t, &all, "-pins", pins, "status")
	require.NotContains(t, all["node1"], "nat")
	require.Equal(t, "(none)\n", dpctl(t, "-pins", node.Pins, "ct", "list"))
}

// The range is told by the flow table, and need not be the usual one.
func TestPortRange(t *testing.T) {
	t.Parallel()
	_, pins := start(t, cluster.Config{Nodes: 1, Endpoints: -1})
	own := maps.Config{Pins: filepath.Join(pins, "own")}
	flows, err := conntrack.New(conntrack.Config{Config: own, Flows: 1024, NAT: &conntrack.NAT{FirstPort: 40001, LastPort: 65535}})
	require.NoError(t, err)
	defer func() { require.NoError(t, flows.Remove()) }()
	require.Equal(t, "(none)\n\nrange=40001-65535 kept=0 found=0 exhausted=0\n", dpctl(t, "-pins", own.Pins, "nat", "ports"))
}
