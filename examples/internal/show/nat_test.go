// SPDX-License-Identifier: Apache-2.0

package show

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
)

var (
	pod, node, world = netip.MustParseAddr("10.244.1.10"), netip.MustParseAddr("172.16.16.11"), netip.MustParseAddr("198.51.100.10")
	pod6             = netip.MustParseAddr("fd00:244:2::10")
)

func TestNATFlowRows(t *testing.T) {
	t.Parallel()
	require.Equal(t, ""+
		"PROTOCOL  FROM                 AS                    TO                                              STATE        IDLE\n"+
		"TCP       10.244.1.10:40312    172.16.16.11:1024     198.51.100.10:443                               established  1m2s\n"+
		"ICMP      10.244.1.10 echo 77  172.16.16.11 echo 78  198.51.100.10                                   new          0s\n"+
		"UDP       198.51.100.10:2000   172.16.16.11:2000     [fd00:244:2::10]:8000 through [fd00::11]:30001  new          3s\n",
		written(t, "", append([]Row{NATFlowsHeading}, NATFlowRows([]NATFlow{
			{Protocol: "TCP", Src: pod, SrcPort: 40312, As: node, AsPort: 1024, Dst: world, DstPort: 443, State: "established", Idle: 62.9},
			{Protocol: "ICMP", Src: pod, SrcPort: 77, As: node, AsPort: 78, Dst: world, State: "new"},
			{Protocol: "UDP", Src: world, SrcPort: 2000, As: node, AsPort: 2000, Dst: pod6, DstPort: 8000, Through: "[fd00::11]:30001", State: "new", Idle: 3},
		})...)))
}

func TestInNodesName(t *testing.T) {
	t.Parallel()
	at := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	hairpin, vip := netip.MustParseAddr("169.254.42.1"), netip.MustParseAddr("10.96.0.1")
	for _, test := range []struct {
		name            string
		original, reply conntrack.Tuple
		want            bool
	}{
		{"as it is", conntrack.Tuple{Src: at(pod, 40000), Dst: at(world, 80)}, conntrack.Tuple{Src: at(world, 80), Dst: at(pod, 40000)}, false},
		{"masqueraded", conntrack.Tuple{Src: at(pod, 40000), Dst: at(world, 80)}, conntrack.Tuple{Src: at(world, 80), Dst: at(node, 2000)}, true},
		{"its port stays", conntrack.Tuple{Src: at(pod, 2000), Dst: at(world, 80)}, conntrack.Tuple{Src: at(world, 80), Dst: at(node, 2000)}, true},
		{"service", conntrack.Tuple{Src: at(pod, 2000), Dst: at(vip, 80)}, conntrack.Tuple{Src: at(world, 80), Dst: at(pod, 2000)}, false},
		{"hairpin", conntrack.Tuple{Src: at(pod, 2000), Dst: at(vip, 80)}, conntrack.Tuple{Src: at(pod, 80), Dst: at(hairpin, 2000)}, false},
		{"NodePort", conntrack.Tuple{Src: at(world, 2000), Dst: at(node, 30001)}, conntrack.Tuple{Src: at(pod, 80), Dst: at(node, 2000)}, true},
	} {
		require.Equal(t, test.want, inNodesName(conntrack.Flow{Original: test.original, Reply: test.reply}), test.name)
	}
}

func TestPortUseRows(t *testing.T) {
	t.Parallel()
	require.Equal(t, ""+
		"AS            TO                 PROTOCOL  PORTS     OF  SHARE\n"+
		"172.16.16.11  198.51.100.10:443  TCP       14488  28976  50.00%\n"+
		"172.16.16.11  198.51.100.10      ICMP          3  65536  0.00%\n",
		written(t, "", append([]Row{PortUsesHeading}, PortUseRows([]PortUse{
			{As: node, Dst: world, DstPort: 443, Protocol: "TCP", Ports: 14488, Of: 28976},
			{As: node, Dst: world, Protocol: "ICMP", Ports: 3, Of: 65536},
		})...)))
	require.Equal(t, []Row{{"172.16.16.11", "198.51.100.10:443", "TCP", "2", "?", "?"}},
		PortUseRows([]PortUse{{As: node, Dst: world, DstPort: 443, Protocol: "TCP", Ports: 2}}), "nobody knows of how many")
}

func TestTriesRows(t *testing.T) {
	t.Parallel()
	s := NATStats{Kept: 7, Found: 12, Exhausted: 1, Tries: []Tries{{1, 1, 9}, {2, 3, 0}, {4, 7, 3}, {8, 15, 0}}}
	require.Equal(t, "kept=7 found=12 exhausted=1\n", written(t, "", []Row{s.Row()}))
	require.Equal(t, "TRIES  FLOWS\n1          9\n2-3        0\n4-7        3\n", written(t, "", append([]Row{TriesHeading}, s.TriesRows()...)))
	require.Empty(t, NATStats{Tries: []Tries{{1, 1, 0}}}.TriesRows(), "nobody had to look")
	require.Empty(t, NATStats{}.TriesRows())
}
