// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

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
	require.NoError(t, c.underlay.Do(func() error {
		dev, err := net.InterfaceByName(n.Name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: dev.Index})
	}))
	time.Sleep(200 * time.Millisecond)
	for _, p := range inside.packets(t) {
		require.NotEqual(t, netip.AddrPortFrom(c.Outside.Addr(4), 4711), p.Src)
	}
}
