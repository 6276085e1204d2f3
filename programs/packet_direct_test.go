// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/lb"
)

// directBudget is how many flows whose answers go past the node have a place.
const directBudget = 1024

// TestDirect is what is asked of a node whose services answer past it.
func TestDirect(t *testing.T) {
	t.Parallel()
	cfg := func(t *testing.T) rigConfig {
		c := native(t)
		c.flows.Flows, c.flows.Unconfirmed = 4096, directBudget
		return c
	}
	eachUplinkTest(t, cfg, []uplinkTest{
		{"what can not be told", testDirectNotTold},
		{"half-closed", testDirectHalfClosed},
		{"errors of the backend", testDirectErrors},
		{"frontends that nobody has", testDirectToldLies},
	})
}

// openDirect has the node's ports lead to a backend that answers by itself.
func (r *rig) openDirect(o outside, backend netip.Addr) {
	r.t.Helper()
	at := netip.AddrPortFrom(zeroOf(o.node), nodePort)
	require.NoError(r.t, r.services().SetService(lb.Service{
		Name: "web", Direct: true, Algorithm: lb.Maglev, Backends: []lb.Backend{{Addr: netip.AddrPortFrom(backend, backendPort)}},
		Frontends: []lb.Frontend{{Addr: at, Type: lb.NodePort}, {Addr: at, Type: lb.NodePort, Protocol: lb.UDP}},
	}))
}

// told is a datagram, or a segment, of which another node says what it was sent to.
func told(src, dst netip.Addr, sport, dport uint16, frontend netip.AddrPort, l4 packet.Layer) []byte {
	option := binary.BigEndian.AppendUint16(nil, frontend.Port())
	option = append(option, frontend.Addr().AsSlice()...)
	if src.Is4() {
		return packet.Build(ether(blueHost, blueMAC), packet.IPv4{Src: src, Dst: dst, Options: append([]byte{158, 8}, option...)}, l4, packet.Payload("hello"))
	}
	return build(src, dst, packet.Extension{Type: packet.ProtoDestOptions, Data: append([]byte{1, 0, 0x1e, 18}, option...)}, l4, packet.Payload("hello"))
}

// The first packet of a flow tells the backend's node of the frontend. One that has
// no room for that, or whose sender is the backend, is asked for in the node's name.
func testDirectNotTold(t *testing.T, r *rig, f family, o outside) {
	r.openDirect(o, o.other)
	as := mapped(t, r.inject(fromUp, udp(f.world, o.node, 4000, nodePort)))
	require.Equal(t, netip.AddrPortFrom(f.world, 4000), as, "it is told")
	d := datagram{src: f.world, dst: o.node, sport: 4001, dport: nodePort, id: 5, size: 792}
	for _, cut := range [][2]int{{0, 400}, {400, 800}} {
		got := r.inject(fromUp, d.piece(cut[0], cut[1], cut[1] < 800))
		require.Equal(t, rediret, got.verdict, "%v", got.counted)
		seen, err := packet.Decode(got.frame)
		require.NoError(t, err)
		require.Equal(t, o.node, seen.Src(), "from %d on", cut[0])
		require.Equal(t, o.other, seen.Dst())
		require.Len(t, got.frame, len(d.piece(cut[0], cut[1], cut[1] < 800)))
	}
	as = mapped(t, r.inject(fromUp, tcp(o.other, o.node, 4002, nodePort, packet.SYN)))
	require.Equal(t, o.node, as.Addr(), "a backend that asks itself")
}

// A client that has said all may be told a lot yet, past us: what acknowledges that
// goes on to the same backend; also when so many have come since that its place is
// another's.
func testDirectHalfClosed(t *testing.T, r *rig, f family, o outside) {
	r.openDirect(o, o.other)
	flow := tupleOf(conntrack.TCP, f.world, 4000, o.node, nodePort)
	for _, flags := range []uint8{packet.SYN, packet.ACK, packet.FIN | packet.ACK} {
		require.Equal(t, rediret, r.inject(fromUp, tcp(f.world, o.node, 4000, nodePort, flags)).verdict)
	}
	others := func(from, to int) {
		for i := from; i < to; i++ {
			for _, flags := range []uint8{packet.SYN, packet.ACK, packet.RST} {
				r.inject(fromUp, tcp(f.world, o.node, 10000+uint16(i), nodePort, flags))
			}
		}
	}
	others(0, 400) // end meanwhile
	require.Contains(t, r.flowList(), flow)
	got := r.send(fromUp, tcp(f.world, o.node, 4000, nodePort, packet.ACK))
	require.Equal(t, rediret, got.verdict)
	require.Equal(t, []string{"~" + flow}, got.flows)
	others(400, 400+directBudget)
	require.NotContains(t, r.flowList(), flow)
	again := r.inject(fromUp, tcp(f.world, o.node, 4000, nodePort, packet.ACK))
	require.Equal(t, rediret, again.verdict, "%v", again.counted)
	require.Contains(t, r.flowList(), flow)
	require.Equal(t, mapped(t, got), mapped(t, again))
}

// What the backend's node, or the backend, says of a packet is in the words of who
// has asked at the other node.
func testDirectErrors(t *testing.T, r *rig, f family, o outside) {
	r.openDirect(o, f.blue)
	frontend := netip.AddrPortFrom(o.other, nodePort) // another node's
	got := r.inject(fromUp, told(f.world, f.blue, 4000, backendPort, frontend, packet.UDP{SrcPort: 4000, DstPort: backendPort}))
	require.Equal(t, rediret, got.verdict, "%v", got.counted)
	asked := udp(f.world, f.blue, 4000, backendPort, []byte("hello")...)
	require.Equal(t, hopped(asked)[12:], got.frame[12:])
	answer := udp(f.blue, f.world, backendPort, 4000, []byte("hi")...)
	r.expect(fromBlue, answer, outBy(udp(o.other, f.world, nodePort, 4000, []byte("hi")...), upIfindex, o.router,
		"~"+tupleOf(conntrack.UDP, f.world, 4000, f.blue, backendPort)))
	kind := faults(f)[0]
	n := headers(asked)
	w := outBy(kind.make(o.other, f.world, quoteOf(hopped(udp(f.world, o.other, 4000, nodePort, []byte("hello")...)), n)), upIfindex, o.router)
	r.expectFault(fromBlue, kind.make(f.blue, f.world, quoteOf(hopped(asked), n)), w)
}

// An address that the other node can not have is none of a frontend.
func testDirectToldLies(t *testing.T, r *rig, f family, o outside) {
	r.openDirect(o, f.blue)
	require.NoError(t, r.dp.SetNodeAddrs(o.node, o.node2, o.extra))
	martian, multicast := addr("127.0.0.1"), addr("224.0.0.1")
	if f.name == "IPv6" {
		martian, multicast = addr("::1"), addr("ff02::1")
	}
	for i, a := range []netip.Addr{martian, multicast, f.green, f.blue, o.extra} {
		port := 4000 + uint16(i)
		r.expect(fromUp, told(f.world, f.blue, port, backendPort, netip.AddrPortFrom(a, nodePort), packet.UDP{SrcPort: port, DstPort: backendPort}),
			dropped("bad frontend"), a)
	}
}

// Whoever is outside has no address of those who are inside, also in packets that
// are not looked into: the node's own stack would take them.
func testForgedInPieces(t *testing.T, r *rig, f family, o outside) {
	require.NoError(t, r.dp.SetNodeAddrs(o.node, o.node2))
	for who, honest := range map[netip.Addr]bool{f.world: true, f.green: false, o.node2: false, f.gate: false} {
		whole := tcp(who, o.node, 4000, 22, packet.SYN)
		d := datagram{src: who, dst: o.node, sport: 4000, dport: 53, id: 9, size: 792}
		frames := map[string][]byte{"a later part": d.piece(400, 800, false), "an error": portUnreachable(who, o.node, udp(o.node, who, 1, 2), headers(whole))}
		if f.name == "IPv4" {
			frames["a tiny first part"] = packet.Build(ether(blueHost, blueMAC), packet.IPv4{Src: who, Dst: o.node, ID: 7, Protocol: packet.ProtoTCP, MoreFragments: true}, packet.Payload(whole[34:50]))
			frames["GRE"] = packet.Build(ether(blueHost, blueMAC), packet.IPv4{Src: who, Dst: o.node, Protocol: 47}, packet.Payload("0123456789abcdef"))
		} else {
			var layers []packet.Layer
			for range 10 {
				layers = append(layers, packet.Extension{Type: packet.ProtoDestOptions, Data: []byte{1, 4, 0, 0, 0, 0}})
			}
			frames["many headers"] = build(who, o.node, append(layers, packet.UDP{SrcPort: 4000, DstPort: 53}, packet.Payload("hello"))...)
		}
		for what, frame := range frames {
			if honest {
				r.left(fromUp, frame, what)
			} else {
				r.expect(fromUp, frame, dropped("spoofed source"), "%s of %s", what, who)
			}
		}
	}
}
