// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/examples/internal/probe"
	"github.com/godatapath/datapath/examples/internal/show"
	"github.com/godatapath/datapath/lb"
)

func TestServiceLists(t *testing.T) {
	t.Parallel()
	c, pins := start(t, cluster.Config{Nodes: 2, Endpoints: 1, Services: 1, Backends: 2})
	node := c.Nodes[0]
	front := netip.MustParseAddrPort("10.96.7.7:443")
	require.NoError(t, node.Services.SetService(lb.Service{
		Name: "web", Frontends: []lb.Frontend{{Addr: front, Type: lb.LoadBalancer}},
		Backends: []lb.Backend{
			{Addr: netip.MustParseAddrPort("10.244.1.10:8000"), State: lb.Terminating},
			{Addr: netip.MustParseAddrPort("10.244.2.10:8000"), Weight: 3},
		},
	}))
	require.NoError(t, node.Services.SetService(lb.Service{Name: "empty", Frontends: []lb.Frontend{{Addr: netip.MustParseAddrPort("10.96.7.8:53"), Protocol: lb.UDP}}}))
	require.Equal(t, `ID  Frontend             Type          Backend
1   0.0.0.0:30001/TCP    NodePort      10.244.1.10:8000 (active)
                                       10.244.2.10:8000 (active)
1   0.0.0.0:30001/UDP    NodePort      10.244.1.10:8000 (active)
                                       10.244.2.10:8000 (active)
1   10.96.0.1:80/TCP     ClusterIP     10.244.1.10:8000 (active)
                                       10.244.2.10:8000 (active)
1   10.96.0.1:80/UDP     ClusterIP     10.244.1.10:8000 (active)
                                       10.244.2.10:8000 (active)
2   [::]:30001/TCP       NodePort      [fd00:244:1::10]:8000 (active)
                                       [fd00:244:2::10]:8000 (active)
2   [::]:30001/UDP       NodePort      [fd00:244:1::10]:8000 (active)
                                       [fd00:244:2::10]:8000 (active)
2   [fd00:96::1]:80/TCP  ClusterIP     [fd00:244:1::10]:8000 (active)
                                       [fd00:244:2::10]:8000 (active)
2   [fd00:96::1]:80/UDP  ClusterIP     [fd00:244:1::10]:8000 (active)
                                       [fd00:244:2::10]:8000 (active)
3   10.96.7.7:443/TCP    LoadBalancer  10.244.1.10:8000 (terminating)
                                       10.244.2.10:8000 (active, weight 3)
4   10.96.7.8:53/UDP     ClusterIP     (none)
`, dpctl(t, "-pins", node.Pins, "service", "list"))
	require.Equal(t, `Backend                State        Uses  Services
10.244.1.10:8000       active          1  service1-ipv4
10.244.1.10:8000       terminating     1  web
10.244.2.10:8000       active          2  service1-ipv4 web
[fd00:244:1::10]:8000  active          1  service1-ipv6
[fd00:244:2::10]:8000  active          1  service1-ipv6
`, dpctl(t, "-pins", node.Pins, "service", "backends"))

	var services []show.Service
	decode(t, &services, "-pins", node.Pins, "service", "list")
	require.Len(t, services, 4)
	require.Equal(t, show.Service{
		ID: 3, Name: "web", Algorithm: "random", Frontends: []show.Frontend{{Address: front, Type: "LoadBalancer", Protocol: "TCP"}},
		Backends: []show.ServiceBackend{
			{Address: netip.MustParseAddrPort("10.244.1.10:8000"), State: "terminating", Weight: 1},
			{Address: netip.MustParseAddrPort("10.244.2.10:8000"), State: "active", Weight: 3},
		},
	}, services[2])
	require.NotNil(t, services[3].Backends, "[] and not null")
	var backends map[string][]show.Backend
	decode(t, &backends, "-pins", pins, "service", "backends")
	require.Equal(t, show.Backend{
		Address: netip.MustParseAddrPort("10.244.2.10:8000"), State: "active", Uses: 2, Services: []string{"service1-ipv4", "web"},
	}, backends["node1"][2])
	require.Len(t, backends["node2"], 4)

	var all map[string]status
	decode(t, &all, "-pins", pins, "status")
	require.Equal(t, 4, *all["node1"].Services)
	require.Regexp(t, `(?m)^services +4$`, dpctl(t, "-pins", node.Pins, "status"))

	_, err := node.Services.Sync(nil)
	require.NoError(t, err)
	for _, what := range []string{"list", "backends"} {
		require.Equal(t, "(none)\n", dpctl(t, "-pins", node.Pins, "service", what))
		require.Equal(t, "[]\n", dpctl(t, "-pins", node.Pins, "-json", "service", what))
	}
}

func TestWithoutServices(t *testing.T) {
	t.Parallel()
	c, _ := start(t, cluster.Config{Nodes: 1, Endpoints: -1})
	pins := c.Nodes[0].Pins
	require.Equal(t, "no service table is pinned in "+pins, fails(t, 1, "-pins", pins, "service", "list"))
	require.NotContains(t, dpctl(t, "-pins", pins, "status"), "services")
	require.NotContains(t, dpctl(t, "-pins", pins, "-json", "status"), "services")
}

// A flow to a service is shown with the tuple of both sides.
func TestTranslatedFlows(t *testing.T) {
	t.Parallel()
	c, _ := start(t, cluster.Config{Nodes: 1, Endpoints: 2, Services: 2, Backends: 1})
	node := c.Nodes[0]
	from := node.Endpoints[0]
	for _, family := range []int{4, 6} {
		for number, as := range []string{"itself", "its neighbour"} {
			s := c.ServiceAt(number+1, family)
			server, err := probe.NewEchoAt(node.Endpoints[number].Namespace, s.Backends[0].Addr)
			require.NoError(t, err)
			defer func() { require.NoError(t, server.Close()) }()
			_, err = probe.UDP(t.Context(), from.Namespace, s.Frontends[0].Addr, 100)
			require.NoError(t, err, as)

			seen := map[int]string{4: "169.254.42.1:", 6: "[fd00:42:42::1]:"}[family]
			client := netip.AddrPortFrom(from.Addr(family), 0).String()
			client = client[:len(client)-1]
			if number == 1 {
				seen = client
			}
			vip := s.Frontends[0].Addr
			require.Regexp(t, fmt.Sprintf(`^UDP  %s(\d+) -> %s  new  idle=0s age=\d+s sent=1/\d+ received=1/\d+  to endpoint ifindex=%d as %s\d+ -> %s, replies to endpoint ifindex=%d\n$`,
				quote(client), quote(vip.String()), node.Endpoints[number].Link.Index, quote(seen), quote(s.Backends[0].Addr.String()), from.Link.Index),
				dpctl(t, "-pins", node.Pins, "ct", "list", "-dst", vip.Addr().String()))
			var flows []show.Flow
			decode(t, &flows, "-pins", node.Pins, "ct", "list", "-dst", vip.Addr().String())
			require.Len(t, flows, 1)
			require.Equal(t, vip, netip.AddrPortFrom(flows[0].Dst, flows[0].DstPort))
			require.Equal(t, s.Backends[0].Addr, netip.AddrPortFrom(flows[0].Reply.Src, flows[0].Reply.SrcPort))
		}
	}
}

func TestMaglev(t *testing.T) {
	t.Parallel()
	c, _ := start(t, cluster.Config{Nodes: 1, Endpoints: 1, Services: 1, Backends: 1})
	node := c.Nodes[0]
	front := netip.MustParseAddrPort("10.96.7.7:443")
	some := []netip.AddrPort{netip.MustParseAddrPort("10.244.1.10:8000"), netip.MustParseAddrPort("10.244.2.10:8000")}
	require.NoError(t, node.Services.SetService(lb.Service{
		Name: "web", Algorithm: lb.Maglev, Frontends: []lb.Frontend{{Addr: front}, {Addr: front, Protocol: lb.UDP}},
		Backends: []lb.Backend{{Addr: some[0]}, {Addr: some[1], Weight: 3}},
	}))
	require.Regexp(t, `^Frontend           Backend           Slots  Share
10.96.7.7:443/TCP  10.244.1.10:8000   40\d\d  2\d.\d\d%
10.96.7.7:443/UDP  10.244.2.10:8000  12\d\d\d  7\d.\d\d%
$`, dpctl(t, "-pins", node.Pins, "service", "maglev", "3"))
	var all []show.Maglev
	decode(t, &all, "-pins", node.Pins, "service", "maglev", "3")
	require.Len(t, all, 1)
	require.Equal(t, lb.DefaultMaglevSize, all[0].Slots)
	require.Len(t, all[0].Frontends, 2)
	require.Len(t, all[0].Backends, 2)
	require.Equal(t, some[0], all[0].Backends[0].Address)
	require.Equal(t, all[0].Slots, all[0].Backends[0].Slots+all[0].Backends[1].Slots)
	require.InDelta(t, all[0].Slots/4, all[0].Backends[0].Slots, 200)

	for id, why := range map[string]string{"1": "service 1 has no Maglev table, it chooses at random", "99": "no service has the id 99"} {
		require.Contains(t, fails(t, 1, "-pins", node.Pins, "service", "maglev", id), why)
	}
	for _, words := range [][]string{{}, {"0"}, {"x"}, {"-1"}, {"4294967296"}} {
		fails(t, 2, append([]string{"-pins", node.Pins, "service", "maglev"}, words...)...)
	}
}
