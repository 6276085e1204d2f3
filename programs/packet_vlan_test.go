// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
)

// The kernel takes the tag out of a frame before a program sees it, which a test
// run does not do: so the frames go over real devices.
func TestVLANTag(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	node := lab.Node("node")
	blue, green := node.Endpoint("blue", blue4, blue6), node.Endpoint("green", green4, green6)
	endpoints, err := maps.NewEndpoints(maps.EndpointsConfig{})
	require.NoError(t, err)
	defer endpoints.Close()
	metrics, err := maps.NewMetrics(maps.Config{})
	require.NoError(t, err)
	defer metrics.Close()
	flows, err := conntrack.New(conntrack.Config{})
	require.NoError(t, err)
	defer flows.Close()
	dp, err := programs.Load(programs.Config{Namespace: node.Namespace(), Gateways: []netip.Addr{gate4, gate6}}, endpoints, metrics, flows)
	require.NoError(t, err)
	defer dp.Close()
	for id, e := range []*netnstest.Host{blue, green} {
		l := e.Link()
		require.NoError(t, endpoints.Set(maps.Endpoint{
			ID: uint32(id + 1), Identity: maps.Identity(300 + id), Ifindex: l.Index, Addrs: []netip.Addr{e.Addr4(), e.Addr6()}, MAC: l.PeerMAC, NodeMAC: l.MAC,
		}))
		require.NoError(t, dp.AttachEndpoint(l))
	}
	counted := func(what string) uint64 {
		for m, err := range metrics.All() {
			require.NoError(t, err)
			if m.Outcome == what {
				return m.Packets
			}
		}
		return 0
	}

	l := blue.Link()
	eth := ether(packet.MAC(l.MAC), packet.MAC(l.PeerMAC))
	at := green.Capture("")
	for _, f := range families {
		body := []packet.Layer{ip(f.blue, f.green, 64), packet.UDP{SrcPort: 1000, DstPort: 9}}
		plain := packet.Build(append([]packet.Layer{eth}, body...)...)
		require.NoError(t, blue.SendRaw("", plain))
		_, err = at.Wait(func(fr netnstest.Frame) bool { return fr.Summary().Dst == netip.AddrPortFrom(f.green, 9) }, time.Second)
		require.NoError(t, err, "without a tag it arrives")
		for _, typ := range []uint16{packet.TypeVLAN, packet.TypeQinQ} {
			tagged := eth
			tagged.Type = typ
			before := counted("vlan")
			require.NoError(t, blue.SendRaw("", packet.Build(append([]packet.Layer{tagged, packet.VLAN{TCI: 5}}, body...)...)))
			require.Eventually(t, func() bool { return counted("vlan") == before+1 }, time.Second, 5*time.Millisecond)
		}
		require.Equal(t, 1, at.Count(func(fr netnstest.Frame) bool { return fr.Summary().Dst == netip.AddrPortFrom(f.green, 9) }), "with one it does not")
	}
}
