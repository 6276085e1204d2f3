// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/packet"
)

func answered(frame []byte, ifindex uint32) want {
	return want{verdict: rediret, frame: frame, counted: "answered", sent: hop{ifindex: ifindex, peer: true}}
}

func TestARP(t *testing.T) {
	t.Parallel()
	r := newPacketRig(t, rigConfig{})
	ask := func(mac packet.MAC, sender, target netip.Addr) []byte {
		return packet.Build(ether(packet.Broadcast(), mac), packet.ARP{Op: packet.ARPRequest, SenderMAC: mac, SenderIP: sender, TargetIP: target})
	}
	reply := func(dst, src packet.MAC, to netip.Addr) []byte {
		return packet.Build(ether(dst, src), packet.ARP{Op: packet.ARPReply, SenderMAC: src, SenderIP: gate4, TargetMAC: dst, TargetIP: to})
	}
	fromBlueAsk := ask(blueMAC, blue4, gate4)
	for _, row := range []struct {
		name  string
		from  port
		frame []byte
		want  want
	}{
		{"the gateway, asked by blue", fromBlue, fromBlueAsk, answered(reply(blueMAC, nodeMAC, blue4), blueIfindex)},
		{"the gateway, asked by green", fromGreen, ask(greenMAC, green4, gate4), answered(reply(greenMAC, greenHost, green4), greenIfindex)},
		{"a padded question keeps its padding", fromBlue, append(ask(blueMAC, blue4, gate4), make([]byte, 18)...),
			answered(append(reply(blueMAC, nodeMAC, blue4), make([]byte, 18)...), blueIfindex)},
		{"a probe: the gateway's address is taken", fromBlue, ask(blueMAC, netip.IPv4Unspecified(), gate4), answered(reply(blueMAC, nodeMAC, netip.IPv4Unspecified()), blueIfindex)},
		{"a neighbour", fromBlue, ask(blueMAC, blue4, green4), dropped("not for gateway")},
		{"itself", fromBlue, ask(blueMAC, blue4, blue4), dropped("not for gateway")},
		{"somebody on another node", fromBlue, ask(blueMAC, blue4, red4), dropped("not for gateway")},
		{"an answer that nobody asked for", fromBlue, packet.Build(ether(nodeMAC, blueMAC),
			packet.ARP{Op: packet.ARPReply, SenderMAC: blueMAC, SenderIP: gate4, TargetMAC: nodeMAC, TargetIP: gate4}), dropped("not for gateway")},
		{"another hardware", fromBlue, edit(fromBlueAsk, func(b []byte) { b[15] = 6 }), dropped("bad length")},
		{"another protocol", fromBlue, edit(fromBlueAsk, func(b []byte) { b[16] = 0x86 }), dropped("bad length")},
		{"longer hardware addresses", fromBlue, edit(fromBlueAsk, func(b []byte) { b[18] = 8 }), dropped("bad length")},
		{"longer protocol addresses", fromBlue, edit(fromBlueAsk, func(b []byte) { b[19] = 16 }), dropped("bad length")},
		{"cut off", fromBlue, fromBlueAsk[:41], dropped("truncated")},
		{"from the host", fromHost, fromBlueAsk, dropped("unknown l3")},
		{"from another node", fromRed, fromBlueAsk, dropped("unknown l3")},
		{"the node asks an endpoint on its device", toGreen, ask(greenHost, gate4, green4), want{verdict: verdictNext, counted: "pass"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r.as(t)
			got := r.expect(row.from, row.frame, row.want)
			if row.want.counted == "answered" {
				require.NoError(t, packet.Check(got.frame))
			}
		})
	}
}

func TestNDP(t *testing.T) {
	t.Parallel()
	r := newPacketRig(t, rigConfig{})
	group := netip.MustParseAddr("ff02::1:ff00:1") // solicited-node of ::1
	local := netip.MustParseAddr("fe80::10")
	ask := func(src, dst netip.Addr, s packet.NeighborSolicit) []byte {
		return packet.Build(ether(packet.MAC{0x33, 0x33, 0xff, 0, 0, 1}, blueMAC), packet.IPv6{Src: src, Dst: dst, HopLimit: 255}, s)
	}
	reply := func(to netip.Addr) []byte {
		return packet.Build(ether(blueMAC, nodeMAC), packet.IPv6{Src: gate6, Dst: to, HopLimit: 255},
			packet.NeighborAdvert{Router: true, Solicited: true, Override: true, Target: gate6, TargetMAC: nodeMAC})
	}
	plain := ask(blue6, group, packet.NeighborSolicit{Target: gate6})
	advert := packet.Build(ether(nodeMAC, blueMAC), packet.IPv6{Src: blue6, Dst: gate6, HopLimit: 255},
		packet.NeighborAdvert{Solicited: true, Target: gate6, TargetMAC: blueMAC})
	for _, row := range []struct {
		name  string
		from  port
		frame []byte
		want  want
	}{
		{"the gateway, with a source option", fromBlue, ask(blue6, group, packet.NeighborSolicit{Target: gate6, SourceMAC: blueMAC}), answered(reply(blue6), blueIfindex)},
		{"the gateway, without", fromBlue, plain, answered(reply(blue6), blueIfindex)},
		{"with a nonce behind the option (RFC 3971)", fromBlue, ask(blue6, group, packet.NeighborSolicit{Target: gate6, SourceMAC: blueMAC, Options: []byte{14, 1, 1, 2, 3, 4, 5, 6}}), answered(reply(blue6), blueIfindex)},
		{"from a link-local address", fromBlue, ask(local, group, packet.NeighborSolicit{Target: gate6, SourceMAC: blueMAC}), answered(reply(local), blueIfindex)},
		{"the gateway is still there (unicast)", fromBlue, ask(blue6, gate6, packet.NeighborSolicit{Target: gate6}), answered(reply(blue6), blueIfindex)},
		{"has anybody the gateway's address (DAD)", fromBlue, ask(netip.IPv6Unspecified(), group, packet.NeighborSolicit{Target: gate6}), dropped("not for gateway")},
		{"has anybody my address (DAD)", fromBlue, ask(netip.IPv6Unspecified(), netip.MustParseAddr("ff02::1:ff00:10"), packet.NeighborSolicit{Target: blue6}), dropped("not for gateway")},
		{"a neighbour", fromBlue, ask(blue6, group, packet.NeighborSolicit{Target: green6}), dropped("not for gateway")},
		{"an advertisement", fromBlue, advert, dropped("not for gateway")},
		{"from behind a router", fromBlue, withTTL(plain, 254), dropped("bad length")},
		{"another code", fromBlue, edit(plain, func(b []byte) { b[55] = 1 }), dropped("bad length")},
		{"behind an extension header", fromBlue, packet.Build(ether(blueHost, blueMAC), packet.IPv6{Src: blue6, Dst: group, HopLimit: 255},
			packet.Extension{}, packet.NeighborSolicit{Target: gate6}), dropped("bad length")},
		{"in fragments (RFC 6980)", fromBlue, packet.Build(ether(blueHost, blueMAC), packet.IPv6{Src: blue6, Dst: group, HopLimit: 255},
			packet.Fragment6{MoreFragments: true, ID: 1}, packet.NeighborSolicit{Target: gate6}), dropped("bad length")},
		{"no room for the target", fromBlue, edit(plain, func(b []byte) { b[19] = 16 }), dropped("bad length")},
		{"cut off", fromBlue, edit(plain, func(b []byte) { b[19] = 16 })[:70], dropped("truncated")},
		{"the host asks", fromHost, plain, dropped("not for gateway")},
		{"another node asks", fromRed, plain, dropped("not for gateway")},
		{"the node asks an endpoint on its device", toGreen, ask(gate6, green6, packet.NeighborSolicit{Target: green6}), want{verdict: verdictNext, counted: "pass"}},
		{"a router solicitation", fromBlue, packet.Build(ether(blueHost, blueMAC), packet.IPv6{Src: local, Dst: netip.MustParseAddr("ff02::2"), HopLimit: 255},
			packet.ICMPv6{Type: packet.ICMPv6RouterSolicit}), dropped("multicast")},
		{"a router solicitation to the gateway", fromBlue, build(blue6, gate6, packet.ICMPv6{Type: packet.ICMPv6RouterSolicit}), dropped("icmp unsupported")},
	} {
		t.Run(row.name, func(t *testing.T) {
			r.as(t)
			got := r.expect(row.from, row.frame, row.want)
			if row.want.counted == "answered" {
				require.NoError(t, packet.Check(got.frame))
			}
		})
	}
}

// An interface whose endpoint has gone is asked nothing and told nothing.
func TestNeighbourOfNobody(t *testing.T) {
	t.Parallel()
	r := newPacketRig(t, rigConfig{})
	require.NoError(t, r.endpoints.Delete(greenIfindex))
	arp := packet.Build(ether(packet.Broadcast(), greenMAC), packet.ARP{Op: packet.ARPRequest, SenderMAC: greenMAC, SenderIP: green4, TargetIP: gate4})
	r.expect(fromGreen, arp, dropped("unknown endpoint"))
	ndp := packet.Build(ether(blueHost, greenMAC), packet.IPv6{Src: green6, Dst: gate6, HopLimit: 255}, packet.NeighborSolicit{Target: gate6})
	r.expect(fromGreen, ndp, dropped("unknown endpoint"))
}
