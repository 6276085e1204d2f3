// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/tunnel"
)

// A change reaches an established flow with its next packet.
func TestChanges(t *testing.T) {
	t.Parallel()
	green := maps.Endpoint{
		ID: greenID, Identity: greenIdentity, Ifindex: greenIfindex, Addrs: []netip.Addr{green4, green6},
		MAC: net.HardwareAddr(greenMAC[:]), NodeMAC: net.HardwareAddr(greenHost[:]),
	}
	for _, row := range []struct {
		name   string
		change func(t *testing.T, r *rig, f family)
		forth  func(f family, frame []byte, flow string) want // blue to green
		back   func(f family, frame []byte, flow string) want // green to blue
	}{
		{"nothing", func(t *testing.T, r *rig, f family) { require.NoError(t, r.endpoints.Set(green)) },
			func(f family, b []byte, flow string) want { return intoGreen(b, flow) },
			func(f family, b []byte, flow string) want { return intoBlue(b, flow) }},
		{"an epoch", func(t *testing.T, r *rig, f family) { require.NoError(t, r.dp.Bump()) },
			func(f family, b []byte, flow string) want { return intoGreen(b, flow) },
			func(f family, b []byte, flow string) want { return intoBlue(b, flow) }},
		{"deleted", func(t *testing.T, r *rig, f family) { require.NoError(t, r.endpoints.Delete(greenIfindex)) },
			func(f family, b []byte, flow string) want { return intoHost(b, flow) },
			func(f family, b []byte, flow string) want { return dropped("spoofed source") }},
		{"moved to another node", func(t *testing.T, r *rig, f family) {
			require.NoError(t, r.endpoints.Delete(greenIfindex))
			require.NoError(t, r.peers.Set(tunnel.Peer{Prefix: netip.PrefixFrom(f.green, f.green.BitLen()), Node: redNode}))
		},
			func(f family, b []byte, flow string) want { return intoOverlay(b, blueIdentity, flow) },
			func(f family, b []byte, flow string) want { return dropped("spoofed source") }},
		{"moved to another device", func(t *testing.T, r *rig, f family) {
			moved := green
			moved.Ifindex = 90
			require.NoError(t, r.attached().Put(uint32(90), uint32(greenID)))
			require.NoError(t, r.endpoints.Set(moved))
		},
			func(f family, b []byte, flow string) want {
				w := intoGreen(b, flow)
				w.sent.ifindex = 90
				return w
			},
			func(f family, b []byte, flow string) want { return dropped("spoofed source") }},
		{"a new MAC", func(t *testing.T, r *rig, f family) {
			moved := green
			moved.MAC = net.HardwareAddr{2, 9, 9, 9, 9, 9}
			require.NoError(t, r.endpoints.Set(moved))
		},
			func(f family, b []byte, flow string) want {
				w := intoGreen(b, flow)
				copy(w.frame, []byte{2, 9, 9, 9, 9, 9})
				return w
			},
			func(f family, b []byte, flow string) want { return intoBlue(b, flow) }},
		{"delivered through the device", func(t *testing.T, r *rig, f family) {
			moved := green
			moved.NoPeerRedirect = true
			require.NoError(t, r.endpoints.Set(moved))
		},
			func(f family, b []byte, flow string) want {
				w := intoGreen(b, flow)
				w.sent.peer = false
				return w
			},
			func(f family, b []byte, flow string) want { return intoBlue(b, flow) }},
		{"not attached any more", func(t *testing.T, r *rig, f family) {
			require.NoError(t, r.attached().Delete(uint32(greenIfindex)))
			require.NoError(t, r.dp.Bump())
		},
			func(f family, b []byte, flow string) want { return dropped("endpoint not ready") },
			func(f family, b []byte, flow string) want { return intoBlue(b, flow) }},
		{"its address is another endpoint's", func(t *testing.T, r *rig, f family) {
			require.NoError(t, r.endpoints.Delete(greenIfindex))
			other := green
			other.ID, other.Ifindex, other.MAC = 12, 90, net.HardwareAddr{2, 9, 9, 9, 9, 9}
			require.NoError(t, r.endpoints.Set(other))
		},
			func(f family, b []byte, flow string) want { return dropped("endpoint not ready") },
			func(f family, b []byte, flow string) want { return dropped("spoofed source") }},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
				flow := tupleOf(conntrack.TCP, f.blue, 1000, f.green, 80)
				for i, flags := range []uint8{packet.SYN, packet.SYN | packet.ACK, packet.ACK, packet.ACK, packet.ACK} {
					if i%2 == 0 {
						require.Equal(t, rediret, r.inject(fromBlue, tcp(f.blue, f.green, 1000, 80, flags)).verdict)
					} else {
						require.Equal(t, rediret, r.inject(fromGreen, tcp(f.green, f.blue, 80, 1000, flags)).verdict)
					}
				}
				row.change(t, r, f)
				for range 2 {
					frame := tcp(f.blue, f.green, 1000, 80, packet.ACK)
					r.expect(fromBlue, frame, row.forth(f, frame, "~"+flow))
					frame = tcp(f.green, f.blue, 80, 1000, packet.ACK)
					r.expect(fromGreen, frame, row.back(f, frame, "~"+flow))
				}
				have, ok := r.flow(conntrack.TCP, f.blue, 1000, f.green, 80)
				require.True(t, ok)
				require.Equal(t, established, have.State, "what the flow has been through is not forgotten")
			})
		})
	}
}

func TestPeerChanges(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		c := tcpTalk(r, f, 1000).handshake()
		prefix := netip.PrefixFrom(f.red, f.red.BitLen())
		flow := "~" + tupleOf(conntrack.TCP, f.blue, 1000, f.red, 80)
		forth, back := c.frame(true, packet.ACK), c.frame(false, packet.ACK)

		require.NoError(t, r.peers.Set(tunnel.Peer{Prefix: prefix, Node: strangerNode}))
		w := intoOverlay(forth, blueIdentity, flow)
		w.sent.node = strangerNode
		r.expect(fromBlue, forth, w)
		r.expect(fromRed, back, dropped("foreign overlay"))
		r.expect(fromNode(strangerNode, redIdentity), back, intoBlue(back, flow))

		require.NoError(t, r.peers.Set(tunnel.Peer{Prefix: prefix, Node: redNode, VNI: 777}))
		r.expect(fromBlue, forth, intoOverlay(forth, 777, flow))
		r.expect(fromNode(strangerNode, redIdentity), back, dropped("foreign overlay"))
		r.expect(fromRed, back, intoBlue(back, flow))

		require.NoError(t, r.peers.Delete(prefix))
		r.expect(fromBlue, forth, intoOverlay(forth, blueIdentity, flow))

		for _, p := range []string{"10.244.2.0/24", "fd00:244:2::/64"} {
			require.NoError(t, r.peers.Delete(netip.MustParsePrefix(p)))
		}
		r.expect(fromBlue, forth, intoHost(forth, flow))
		r.expect(fromRed, back, dropped("foreign overlay"))
	})
}
