// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/packet"
)

// A frame that a switch has flooded is for another host, whatever its addresses say.
func TestFloodedFrame(t *testing.T) {
	t.Parallel()
	c := launch(t, "flooded", Config{Services: 1, Nodes: 1, Endpoints: 1})
	n := c.Nodes[0]
	serveAll(t, c)
	inside := tap(t, n.Endpoints[0].Namespace)
	frame := packet.Build(packet.Ethernet{Dst: packet.MAC{2, 0, 0, 0, 7, 7}, Src: packet.MAC{2, 0, 0, 0, 9, 9}},
		packet.IPv4{Src: c.Outside.Addr(4), Dst: n.Addrs[0].Addr()}, packet.UDP{SrcPort: 4711, DstPort: NodePort(1)}, packet.Payload("not for you"))
	putOnWire(t, c, n, frame)
	// One for this node comes after it, and in.
	sendTo(t, c, n, netip.AddrPortFrom(c.Outside.Addr(4), 4712), netip.AddrPortFrom(n.Addrs[0].Addr(), NodePort(1)), "for you")
	var from []uint16
	require.Eventually(t, func() bool {
		for _, p := range inside.packets(t) {
			if p.Src.Addr() == c.Outside.Addr(4) {
				from = append(from, p.Src.Port())
			}
		}
		return slices.Contains(from, 4712)
	}, 5*time.Second, 20*time.Millisecond)
	require.NotContains(t, from, uint16(4711))
}
