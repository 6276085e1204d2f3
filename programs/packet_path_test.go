// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
)

// The first and the second packet of a flow, on every way through the node.
func TestPaths(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		for i, row := range []struct {
			name     string
			from     port
			src, dst netip.Addr
			want     func(frame []byte, flows ...string) want
			verdict  conntrack.Verdict
			back     conntrack.Verdict // what is known of the answers; empty: they are judged where they arrive
		}{
			{"endpoint to endpoint", fromBlue, f.blue, f.green, intoGreen,
				conntrack.Verdict{Action: "to endpoint", ArrivesOn: blueIfindex, SendsTo: greenIfindex},
				conntrack.Verdict{Action: "to endpoint", ArrivesOn: greenIfindex, SendsTo: blueIfindex}},
			{"and the other way", fromGreen, f.green, f.blue, intoBlue,
				conntrack.Verdict{Action: "to endpoint", ArrivesOn: greenIfindex, SendsTo: blueIfindex},
				conntrack.Verdict{Action: "to endpoint", ArrivesOn: blueIfindex, SendsTo: greenIfindex}},
			{"endpoint to another node's endpoint", fromBlue, f.blue, f.red,
				func(b []byte, flows ...string) want { return intoOverlay(b, blueIdentity, flows...) },
				conntrack.Verdict{Action: "to overlay", ArrivesOn: blueIfindex, SendsTo: overlayIfindex, VNI: blueIdentity, Node: redNode}, conntrack.Verdict{}},
			{"endpoint to another node's gateway", fromGreen, f.green, f.redGate,
				func(b []byte, flows ...string) want { return intoOverlay(b, greenIdentity, flows...) },
				conntrack.Verdict{Action: "to overlay", ArrivesOn: greenIfindex, SendsTo: overlayIfindex, VNI: greenIdentity, Node: redNode}, conntrack.Verdict{}},
			{"endpoint to its gateway", fromBlue, f.blue, f.gate, intoHost,
				conntrack.Verdict{Action: "to host", ArrivesOn: blueIfindex, SendsTo: hostIfindex},
				conntrack.Verdict{Action: "to endpoint", ArrivesOn: netIfindex, SendsTo: blueIfindex}},
			{"endpoint to the world", fromBlue, f.blue, f.world, intoHost,
				conntrack.Verdict{Action: "to host", ArrivesOn: blueIfindex, SendsTo: hostIfindex},
				conntrack.Verdict{Action: "to endpoint", ArrivesOn: netIfindex, SendsTo: blueIfindex}},
			{"endpoint to an address of its node that nobody has", fromBlue, f.blue, f.nobodyHere, intoHost,
				conntrack.Verdict{Action: "to host", ArrivesOn: blueIfindex, SendsTo: hostIfindex},
				conntrack.Verdict{Action: "to endpoint", ArrivesOn: netIfindex, SendsTo: blueIfindex}},
			{"host to endpoint", fromHost, f.gate, f.blue,
				func(b []byte, flows ...string) want { return intoBlue(b, flows...).unhopped(b) },
				conntrack.Verdict{Action: "to endpoint", ArrivesOn: netIfindex, SendsTo: blueIfindex}, conntrack.Verdict{}},
			{"world to endpoint, through the host", fromHost, f.world, f.green,
				func(b []byte, flows ...string) want { return intoGreen(b, flows...).unhopped(b) },
				conntrack.Verdict{Action: "to endpoint", ArrivesOn: netIfindex, SendsTo: greenIfindex}, conntrack.Verdict{}},
			{"host to another node", fromHost, f.gate, f.red,
				func(b []byte, flows ...string) want { return intoOverlay(b, 1, flows...).unhopped(b) },
				conntrack.Verdict{Action: "to overlay", ArrivesOn: netIfindex, SendsTo: overlayIfindex, VNI: 1, Node: redNode}, conntrack.Verdict{}},
			{"another node's endpoint to endpoint", fromRed, f.red, f.blue, intoBlue,
				conntrack.Verdict{Action: "to endpoint", ArrivesOn: overlayIfindex, SendsTo: blueIfindex, VNI: redIdentity, Node: redNode},
				conntrack.Verdict{Action: "to overlay", ArrivesOn: blueIfindex, SendsTo: overlayIfindex, VNI: blueIdentity, Node: redNode}},
			{"another node to endpoint", fromNode(redNode, 1), f.redGate, f.green, intoGreen,
				conntrack.Verdict{Action: "to endpoint", ArrivesOn: overlayIfindex, SendsTo: greenIfindex, VNI: 1, Node: redNode},
				conntrack.Verdict{Action: "to overlay", ArrivesOn: greenIfindex, SendsTo: overlayIfindex, VNI: greenIdentity, Node: redNode}},
			{"another node's endpoint to the gateway", fromRed, f.red, f.gate, intoHost,
				conntrack.Verdict{Action: "to host", ArrivesOn: overlayIfindex, SendsTo: hostIfindex, VNI: redIdentity, Node: redNode}, conntrack.Verdict{}},
		} {
			t.Run(row.name, func(t *testing.T) {
				r.as(t)
				for _, p := range []struct {
					proto        conntrack.Protocol
					frame        []byte
					sport, dport uint16
				}{
					{conntrack.TCP, tcp(row.src, row.dst, uint16(1000+i), 80, packet.SYN), uint16(1000 + i), 80},
					{conntrack.UDP, udp(row.src, row.dst, uint16(1000+i), 53, 'x'), uint16(1000 + i), 53},
					{f.icmp, echo(row.src, row.dst, uint16(1000+i)), uint16(1000 + i), 0},
					{conntrack.SCTP, sctp(row.src, row.dst, uint16(1000+i), 9, packet.ChunkInit), uint16(1000 + i), 9},
				} {
					flow := tupleOf(p.proto, row.src, p.sport, row.dst, p.dport)
					got := r.expect(row.from, p.frame, row.want(p.frame, "+"+flow))
					require.NoError(t, packet.Check(got.frame))
					r.expect(row.from, p.frame, row.want(p.frame, "~"+flow), "from the flow table")
					have, ok := r.flow(p.proto, row.src, p.sport, row.dst, p.dport)
					require.True(t, ok)
					require.Equal(t, row.verdict, have.Forward)
					require.Equal(t, row.back, have.Back)
					require.Equal(t, conntrack.Counters{Packets: 2, Bytes: uint64(2 * len(p.frame))}, have.Sent)
					require.Equal(t, conntrack.Counters{}, have.Received)
					require.Equal(t, conntrack.StateNew, have.State)
				}
			})
		}
	})
}

// What must not go anywhere.
func TestRefused(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		type row struct {
			name     string
			from     port
			src, dst netip.Addr
			reason   string
		}
		rows := []row{
			{"a neighbour's address", fromBlue, f.green, f.red, "spoofed source"},
			{"a neighbour's address, to it", fromBlue, f.green, f.green, "bad address"},
			{"its own address, to itself", fromBlue, f.blue, f.blue, "bad address"},
			{"the gateway's address", fromBlue, f.gate, f.green, "spoofed source"},
			{"another node's endpoint", fromBlue, f.red, f.green, "spoofed source"},
			{"an address of the world", fromBlue, f.world, f.green, "spoofed source"},
			{"nobody's address", fromBlue, f.nobodyHere, f.green, "spoofed source"},
			{"the host, to nobody", fromHost, f.gate, f.nobodyHere, "no route"},
			{"the host, to the world", fromHost, f.gate, f.world, "no route"},
			{"the host, to itself", fromHost, f.gate, f.gate, "bad address"},
			{"another node, to nobody", fromRed, f.red, f.nobodyHere, "no endpoint"},
			{"another node, to the world", fromRed, f.red, f.world, "no endpoint"},
			{"another node, to a third one", fromRed, f.red, f.far, "no endpoint"},
			{"another node, to itself", fromRed, f.red, f.redGate, "no endpoint"},
			{"another node as our endpoint", fromRed, f.green, f.blue, "spoofed source"},
			{"another node as our gateway", fromRed, f.gate, f.blue, "spoofed source"},
			{"another node as the world", fromRed, f.world, f.blue, "foreign overlay"},
			{"another node as a third one", fromRed, f.far, f.blue, "foreign overlay"},
			{"a stranger", fromNode(strangerNode, redIdentity), f.red, f.blue, "foreign overlay"},
		}
		addrs := map[string]map[string]string{
			"IPv4": {
				"224.0.0.1": "multicast", "239.255.255.250": "multicast", "255.255.255.255": "multicast", "169.254.169.254": "multicast",
				"127.0.0.1": "bad address", "127.255.0.1": "bad address", "0.0.0.0": "bad address", "0.1.2.3": "bad address",
			},
			"IPv6": {
				"ff02::1": "multicast", "ff0e::1": "multicast", "fe80::1": "multicast", "febf::1": "multicast",
				"::1": "bad address", "::": "bad address", "::ffff:10.244.1.11": "bad address",
			},
		}[f.name]
		for a, reason := range addrs {
			dst := netip.MustParseAddr(a)
			for name, p := range map[string]port{"blue": fromBlue, "host": fromHost, "red": fromRed, "device": toGreen} {
				src := map[string]netip.Addr{"blue": f.blue, "host": f.gate, "red": f.red, "device": f.world}[name]
				rows = append(rows, row{name + " to " + a, p, src, dst, reason})
			}
		}
		sources := map[string][]string{
			"IPv4": {"224.0.0.1", "255.255.255.255", "127.0.0.1", "0.0.0.0"},
			"IPv6": {"ff02::1", "::1", "::", "::ffff:10.244.1.10", "::ffff:10.244.1.11"},
		}[f.name]
		for _, a := range sources {
			src := netip.MustParseAddr(a)
			rows = append(rows, row{"blue as " + a, fromBlue, src, f.green, "bad address"}, row{"host as " + a, fromHost, src, f.green, "bad address"},
				row{"device as " + a, toGreen, src, f.green, "bad address"})
			reason := "foreign overlay"
			if src.Is4In6() {
				reason = "bad address"
			}
			rows = append(rows, row{"red as " + a, fromRed, src, f.green, reason})
		}
		for _, row := range rows {
			t.Run(row.name, func(t *testing.T) {
				r.as(t)
				for _, frame := range [][]byte{
					tcp(row.src, row.dst, 1000, 80, packet.SYN), tcp(row.src, row.dst, 1000, 80, packet.ACK),
					udp(row.src, row.dst, 1000, 53), sctp(row.src, row.dst, 1, 2, packet.ChunkInit),
				} {
					r.expect(row.from, frame, dropped(row.reason))
				}
				if row.src.Is4In6() || row.dst.Is4In6() {
					return
				}
				r.expect(row.from, echo(row.src, row.dst, 7), dropped(row.reason))
			})
		}
	})
}

// A neighbour's established flow is no way in.
func TestSpoofedInTheMiddle(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		flow := tupleOf(conntrack.TCP, f.green, 1000, f.red, 80)
		r.expect(fromGreen, tcp(f.green, f.red, 1000, 80, packet.SYN), intoOverlay(tcp(f.green, f.red, 1000, 80, packet.SYN), greenIdentity, "+"+flow))
		back := tcp(f.red, f.green, 80, 1000, packet.SYN|packet.ACK)
		r.expect(fromRed, back, intoGreen(back, "~"+flow))
		for _, flags := range []uint8{packet.SYN, packet.ACK, packet.FIN | packet.ACK, packet.RST} {
			r.expect(fromBlue, tcp(f.green, f.red, 1000, 80, flags), dropped("spoofed source"))
			r.expect(fromBlue, tcp(f.red, f.green, 80, 1000, flags), dropped("spoofed source"), "the reply's direction")
			r.expect(fromNode(strangerNode, redIdentity), tcp(f.red, f.green, 80, 1000, flags), dropped("foreign overlay"))
			r.expect(fromRed, tcp(f.green, f.red, 1000, 80, flags), dropped("spoofed source"))
		}
		// Nor when the flow is over: a forged opening must not take it away.
		rst := tcp(f.green, f.red, 1000, 80, packet.RST)
		r.expect(fromGreen, rst, intoOverlay(rst, greenIdentity, "~"+flow))
		r.expect(fromBlue, tcp(f.green, f.red, 1000, 80, packet.SYN), dropped("spoofed source"))
		r.expect(fromNode(strangerNode, redIdentity), tcp(f.red, f.green, 80, 1000, packet.SYN), dropped("foreign overlay"))
	})
}

func TestVNI(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		for i, row := range []struct {
			vni uint32
			ok  bool
		}{
			{0, false}, {1, true}, {2, true}, {8, true}, {9, false}, {100, false}, {255, false}, {256, true}, {1 << 16, true}, {1<<24 - 1, true}, {1 << 24, false}, {1<<32 - 1, false},
		} {
			frame := udp(f.red, f.blue, uint16(1000+i), 53)
			w := dropped("bad vni")
			if row.ok {
				w = intoBlue(frame, "+"+tupleOf(conntrack.UDP, f.red, uint16(1000+i), f.blue, 53))
			}
			r.expect(fromNode(redNode, row.vni), frame, w, "VNI %d", row.vni)
		}
	})
}

// A flow's verdict holds for the node and the identity that it was found for.
func TestSenderOfAFlow(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		frame := udp(f.red, f.blue, 1000, 53)
		flow := tupleOf(conntrack.UDP, f.red, 1000, f.blue, 53)
		vni := func() uint32 {
			have, ok := r.flow(conntrack.UDP, f.red, 1000, f.blue, 53)
			require.True(t, ok)
			return have.Forward.VNI
		}
		r.expect(fromRed, frame, intoBlue(frame, "+"+flow))
		r.expect(fromNode(redNode, 0), frame, dropped("bad vni"))
		r.expect(fromNode(redNode, 255), frame, dropped("bad vni"))
		r.expect(fromNode(strangerNode, redIdentity), frame, dropped("foreign overlay"))
		require.EqualValues(t, redIdentity, vni())
		r.expect(fromNode(redNode, 3000), frame, intoBlue(frame, "~"+flow), "judged anew")
		require.EqualValues(t, 3000, vni())
		r.expect(fromNode(redNode, 3000), frame, intoBlue(frame, "~"+flow))
		r.expect(fromRed, frame, intoBlue(frame, "~"+flow))
		require.EqualValues(t, redIdentity, vni())
	})
}

// What goes to the overlay port of the node would be unpacked there as if a
// node had sent it.
func TestOverlayPort(t *testing.T) {
	t.Parallel()
	const port8472 = 8472
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		for _, dst := range []netip.Addr{f.gate, f.world, f.nobodyHere} {
			r.expect(fromBlue, udp(f.blue, dst, 1000, port8472), dropped("overlay port"), dst)
			first := build(f.blue, dst, packet.UDP{SrcPort: 1000, DstPort: port8472}, packet.Sized(2000))
			pieces, err := packet.Fragment(first, 1400, 7)
			require.NoError(t, err)
			r.expect(fromBlue, pieces[0], dropped("overlay port"), "in fragments")
			r.expect(fromBlue, pieces[1], dropped("fragment unknown"), "in fragments")
		}
		r.expect(fromRed, udp(f.red, f.gate, 1000, port8472), dropped("overlay port"), "from another node's endpoint")
		frame := udp(f.blue, f.green, 1000, port8472)
		r.expect(fromBlue, frame, intoGreen(frame, "+"+tupleOf(conntrack.UDP, f.blue, 1000, f.green, port8472)), "an endpoint's own business")
		frame = tcp(f.blue, f.gate, 1000, port8472, packet.SYN)
		r.expect(fromBlue, frame, intoHost(frame, "+"+tupleOf(conntrack.TCP, f.blue, 1000, f.gate, port8472)), "TCP")
		frame = udp(f.blue, f.gate, port8472, 1000)
		r.expect(fromBlue, frame, dropped("overlay port"), "the source port: the answers would be frames of other nodes where the node masquerades")
		frame = udp(f.gate, f.blue, 1001, port8472)
		r.expect(fromHost, frame, intoBlue(frame, "+"+tupleOf(conntrack.UDP, f.gate, 1001, f.blue, port8472)).unhopped(frame), "from the host")
	})
}

func TestNotReady(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{notReady: true}, func(t *testing.T, r *rig, f family) {
		r.expect(fromBlue, udp(f.blue, f.green, 1, 2), dropped("endpoint not ready"))
		r.expect(fromHost, udp(f.gate, f.green, 1, 2), dropped("endpoint not ready"))
		r.expect(fromRed, udp(f.red, f.green, 1, 2), dropped("endpoint not ready"))
		r.expect(fromBlue, udp(f.blue, f.red, 1, 2), dropped("overlay not ready"))
		r.expect(fromHost, udp(f.gate, f.red, 1, 2), dropped("overlay not ready"))
		r.expect(fromBlue, udp(f.blue, f.world, 1, 2), dropped("host not ready"))
		r.expect(fromRed, udp(f.red, f.gate, 1, 2), dropped("host not ready"))
	})
}

// An endpoint of an interface that another one has got since is not ready.
func TestAttachedForAnother(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		require.NoError(t, r.attached().Put(uint32(greenIfindex), uint32(greenID+1)))
		r.expect(fromBlue, udp(f.blue, f.green, 1, 2), dropped("endpoint not ready"))
	})
}

// A packet without an outer header can not have come from a node.
func TestNoTunnelKey(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		r.expect(port{program: "from_overlay", ifindex: overlayIfindex}, udp(f.red, f.blue, 1, 2), dropped("no tunnel key"))
	})
}

func TestNotIP(t *testing.T) {
	t.Parallel()
	r := newPacketRig(t, rigConfig{})
	for _, p := range []port{fromBlue, fromHost, fromRed, toGreen} {
		for _, typ := range []uint16{0, 64, 0x0805, packet.TypeQinQ, packet.TypeVLAN, 0x8847, 0xffff} {
			r.expect(p, packet.Build(packet.Ethernet{Dst: blueHost, Src: blueMAC, Type: typ}, packet.Sized(60)), dropped("unknown l3"), "type %#x", typ)
		}
	}
	// The type does not fit the version.
	four, six := udp(blue4, green4, 1, 2, packet.Sized(40)...), udp(blue6, green6, 1, 2, packet.Sized(40)...)
	r.expect(fromBlue, edit(four, func(b []byte) { b[12], b[13] = 0x86, 0xdd }), dropped("bad length"))
	copy(six[12:], []byte{8, 0})
	r.expect(fromBlue, six, dropped("bad length"))
}

func TestUnknownTransport(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		for _, proto := range []uint8{packet.ProtoIPv4, packet.ProtoIPv6, 47, packet.ProtoESP, packet.ProtoNone, 89, 112, packet.ProtoMobility, 255} {
			var h packet.Layer = packet.IPv4{Src: f.blue, Dst: f.green, Protocol: proto}
			if f.blue.Is6() {
				h = packet.IPv6{Src: f.blue, Dst: f.green, NextHeader: proto}
			}
			r.expect(fromBlue, packet.Build(ether(blueHost, blueMAC), h, packet.Sized(64)), dropped("unknown l4"), "protocol %d", proto)
		}
		// Each family has its own ICMP.
		var other packet.Layer = packet.IPv4{Src: f.blue, Dst: f.green, Protocol: packet.ProtoICMPv6}
		if f.blue.Is6() {
			other = packet.IPv6{Src: f.blue, Dst: f.green, NextHeader: packet.ProtoICMP}
		}
		for _, typ := range []byte{packet.ICMPv4EchoRequest, packet.ICMPv6EchoRequest} {
			r.expect(fromBlue, packet.Build(ether(blueHost, blueMAC), other, packet.Payload{typ, 0, 0, 0, 0, 1, 0, 1}), dropped("unknown l4"))
		}
	})
}

// What the sender has left on a packet for its own rules and queues does not
// come along into another namespace.
func TestNothingComesAlong(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		frame := tcp(f.blue, f.green, 1000, 80, packet.ACK)
		for _, what := range []string{"a new flow", "a settled one"} {
			in := skbContext{Mark: 7, Tstamp: 123456789}
			var out skbContext
			require.NoError(t, r.ns.Do(func() error {
				ret, err := r.recorded["from_endpoint"].Run(&ebpf.RunOptions{Data: frame, Context: in, ContextOut: &out})
				require.EqualValues(t, rediret, ret)
				return err
			}))
			require.Zero(t, out.Mark, what)
			require.Zero(t, out.Tstamp, what)
		}
	})
}
