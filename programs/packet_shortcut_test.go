// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/programs"
	"github.com/godatapath/datapath/tunnel"
)

var (
	ownNode = netip.MustParseAddr("172.16.16.11")
	uplink  = port{program: "from_device", ifindex: netIfindex}
)

// outer is a frame of the overlay as it comes in at the uplink.
type outer struct {
	src, dst netip.Addr
	port     uint16
	vni      uint32
	flags    *uint8
	checksum *uint16
	id       uint16
	more     bool
	tos      uint8
}

func (o outer) around(inner []byte) []byte {
	zero := uint16(0)
	if o.checksum == nil {
		o.checksum = &zero
	}
	return packet.Build(ether(blueHost, blueMAC), packet.IPv4{Src: o.src, Dst: o.dst, ID: o.id, MoreFragments: o.more, TOS: o.tos},
		packet.UDP{SrcPort: 50000, DstPort: o.port, Checksum: o.checksum},
		packet.VXLAN{VNI: o.vni, Flags: o.flags}, packet.Payload(inner))
}

// The short cut takes what from_overlay would do the same with, and nothing else.
func TestUnderlayShortCut(t *testing.T) {
	r := newPacketRig(t, rigConfig{tunnel: tunnel.Config{Node: ownNode}})
	good := outer{src: redNode, dst: ownNode, port: tunnel.DefaultPort, vni: redIdentity}
	for _, family := range []struct{ blue, red netip.Addr }{{blue4, red4}, {blue6, red6}} {
		segment := func(flags uint8) []byte { return tcp(family.red, family.blue, 80, 2000, flags, 1, 2, 3) }
		left := func(name string, o outer, inner []byte) {
			t.Helper()
			frame := o.around(inner)
			out := r.send(uplink, frame)
			require.Equal(t, verdictNext, out.verdict, name)
			require.Equal(t, frame, out.frame, "%s: it is left as it came", name)
			require.Empty(t, out.counted, name)
			require.Empty(t, out.flows, name)
		}

		// A flow that is not known, or not judged, is for the long way.
		left("unknown flow", good, segment(packet.ACK))
		r.send(fromBlue, tcp(family.blue, family.red, 2000, 80, packet.SYN))
		left("reply not judged", good, segment(packet.ACK))
		r.send(fromRed, segment(packet.SYN|packet.ACK))
		r.send(fromBlue, tcp(family.blue, family.red, 2000, 80, packet.ACK))

		// What arrives by the short cut is what arrives by the long way.
		long := r.send(fromRed, segment(packet.ACK))
		short := r.send(uplink, good.around(segment(packet.ACK)))
		require.Equal(t, rediret, short.verdict)
		require.Equal(t, long.frame, short.frame)
		require.Equal(t, long.sent, short.sent)
		require.NoError(t, packet.Check(short.frame))
		require.Equal(t, map[string]uint64{"from device: to endpoint": 1}, short.counted)
		require.Len(t, short.flows, 1)
		require.Equal(t, rediret, r.send(uplink, good.around(segment(packet.FIN|packet.ACK))).verdict)

		// So does what a verdict stands for though the connection is not settled: the
		// packet that confirms, and what comes after both have closed.
		opens := func(flags uint8) []byte { return tcp(family.red, family.blue, 3000, 80, flags) }
		answers := func(flags uint8) []byte { return tcp(family.blue, family.red, 80, 3000, flags) }
		left("SYN of a new flow", good, opens(packet.SYN))
		r.send(fromRed, opens(packet.SYN))
		r.send(fromBlue, answers(packet.SYN|packet.ACK))
		left("another node confirms", outer{src: strangerNode, dst: ownNode, port: tunnel.DefaultPort, vni: redIdentity}, opens(packet.ACK))
		require.Equal(t, rediret, r.send(uplink, good.around(opens(packet.ACK))).verdict)
		flow, ok := r.flow(conntrack.TCP, family.red, 3000, family.blue, 80)
		require.True(t, ok)
		require.Equal(t, established, flow.State)
		r.send(fromBlue, answers(packet.FIN|packet.ACK))
		require.Equal(t, rediret, r.send(uplink, good.around(opens(packet.FIN|packet.ACK))).verdict)
		require.Equal(t, rediret, r.send(uplink, good.around(opens(packet.ACK))).verdict)
		flow, ok = r.flow(conntrack.TCP, family.red, 3000, family.blue, 80)
		require.True(t, ok)
		require.Equal(t, closing, flow.State)

		with := func(change func(*outer)) outer { o := good; change(&o); return o }
		vni, bad := uint8(0), uint16(0x1234)
		left("SYN", good, segment(packet.SYN))
		left("another identity", with(func(o *outer) { o.vni++ }), segment(packet.ACK))
		left("another node", with(func(o *outer) { o.src = strangerNode }), segment(packet.ACK))
		left("to another node", with(func(o *outer) { o.dst = strangerNode }), segment(packet.ACK))
		left("another port", with(func(o *outer) { o.port++ }), segment(packet.ACK))
		left("no VNI", with(func(o *outer) { o.flags = &vni }), segment(packet.ACK))
		left("a checksum to verify", with(func(o *outer) { o.checksum = &bad }), segment(packet.ACK))
		left("congestion", with(func(o *outer) { o.tos = 3 }), segment(packet.ACK))
		require.Equal(t, rediret, r.send(uplink, with(func(o *outer) { o.tos = 2 }).around(segment(packet.ACK))).verdict)
		left("a fragment", with(func(o *outer) { o.more = true }), segment(packet.ACK))
		expired := packet.Build(ether(blueHost, blueMAC), ip(family.red, family.blue, 1), packet.TCP{SrcPort: 80, DstPort: 2000, Flags: packet.ACK})
		left("TTL 1", good, expired)
		aggregate := uplink
		aggregate.gso = 40
		out := r.send(aggregate, good.around(segment(packet.ACK)))
		require.Equal(t, verdictNext, out.verdict, "segments are for the kernel")

		// Cut at every length: left alone, or not of this flow.
		whole := good.around(segment(packet.ACK))
		for n := 14 + 40; n < len(whole); n++ {
			require.Equal(t, verdictNext, r.inject(uplink, whole[:n]).verdict, "%d bytes", n)
		}

		// A change of any table: the next packet goes the long way and is judged.
		require.NoError(t, r.dp.Bump())
		left("another epoch", good, segment(packet.ACK))
	}
}

func TestAttachDeviceTwice(t *testing.T) {
	r := newRig(t, rigConfig{})
	require.NoError(t, r.dp.AttachDevice(link{1}))
	require.NoError(t, r.dp.AttachDevice(link{1}))
	hooks, err := programs.Hooks(r.ns, 1)
	require.NoError(t, err)
	require.Len(t, hooks[0].Programs, 1)
	require.Equal(t, "from_device", hooks[0].Programs[0].Name)
	require.NoError(t, r.dp.DetachDevice(link{1}))
	require.NoError(t, r.dp.DetachDevice(link{1}))
}

// The short cut undoes the translation of a service as the long way does, in
// packets that are shorter and longer than the outer headers that it takes off.
func TestUnderlayShortCutTranslates(t *testing.T) {
	t.Parallel()
	services, err := lb.New(lb.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, services.Close()) })
	r := newPacketRig(t, rigConfig{tunnel: tunnel.Config{Node: ownNode}, services: services})
	good := outer{src: redNode, dst: ownNode, port: tunnel.DefaultPort, vni: redIdentity}
	for _, family := range []struct{ blue, red, vip netip.Addr }{{blue4, red4, addr("10.96.0.1")}, {blue6, red6, addr("fd00:96::1")}} {
		require.NoError(t, services.SetService(lb.Service{
			Name:      family.vip.String(),
			Frontends: []lb.Frontend{{Addr: netip.AddrPortFrom(family.vip, 80)}, {Addr: netip.AddrPortFrom(family.vip, 80), Protocol: lb.UDP}},
			Backends:  []lb.Backend{{Addr: netip.AddrPortFrom(family.red, 8080)}},
		}))
		for _, size := range []int{1, 40, 600} {
			payload := make([]byte, size)
			for i := range payload {
				payload[i] = byte(i)
			}
			sport := uint16(2000 + size)
			segment := func(flags uint8) []byte { return tcp(family.red, family.blue, 8080, sport, flags, payload...) }
			for _, p := range []struct {
				from  port
				frame []byte
			}{
				{fromBlue, tcp(family.blue, family.vip, sport, 80, packet.SYN)},
				{fromRed, segment(packet.SYN | packet.ACK)},
				{fromBlue, tcp(family.blue, family.vip, sport, 80, packet.ACK)},
				{fromBlue, udp(family.blue, family.vip, sport, 80, payload...)},
				{fromRed, udp(family.red, family.blue, 8080, sport, payload...)},
				{fromBlue, udp(family.blue, family.vip, sport, 80, payload...)},
			} {
				require.Equal(t, rediret, r.send(p.from, p.frame).verdict)
			}
			for _, frame := range [][]byte{segment(packet.ACK), udp(family.red, family.blue, 8080, sport, payload...)} {
				long := r.send(fromRed, frame)
				short := r.send(uplink, good.around(frame))
				require.Equal(t, rediret, short.verdict, "%v", short.counted)
				require.Equal(t, long.frame, short.frame)
				require.Equal(t, long.sent, short.sent)
				require.NoError(t, packet.Check(short.frame))
				d, err := packet.Decode(short.frame)
				require.NoError(t, err)
				from, to := d.Ports()
				require.Equal(t, netip.AddrPortFrom(family.vip, 80), netip.AddrPortFrom(d.Src(), from))
				require.Equal(t, netip.AddrPortFrom(family.blue, sport), netip.AddrPortFrom(d.Dst(), to))
				require.Equal(t, payload, d.Payload)
			}
		}
	}
}
