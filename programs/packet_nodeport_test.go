// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/tunnel"
)

// TestNodePort is what is asked of a node with services and an overlay.
func TestNodePort(t *testing.T) {
	t.Parallel()
	eachUplinkTest(t, serving, []uplinkTest{
		{"errors and fragments of node port", testErrorsAndFragmentsOfNodePort},
		{"node port to overlay", testNodePortToOverlay},
		{"two ways to one backend", testTwoWaysToOneBackend},
		{"services from outside", testServicesFromOutside},
		{"source ranges outside", testSourceRangesOutside},
		{"spoofed from outside", testSpoofedFromOutside},
		{"spoofed is not remembered", testSpoofedIsNotRemembered},
		{"forged in pieces", testForgedInPieces},
		{"uplink refuses", testUplinkRefuses},
		{"malformed at uplink", testMalformedAtUplink},
		{"port use counts the node", testPortUseCountsTheNode},
		{"service outside masqueraded", testServiceOutsideMasqueraded},
	})
}

// serving is a rig with services, whose endpoints leave in the node's name.
func serving(t *testing.T) rigConfig { return translating(t, masquerading()) }

// native is the same without an overlay.
func native(t *testing.T) rigConfig {
	cfg := serving(t)
	cfg.noPeers = true
	return cfg
}

// The NodePorts of the tests, and the port of SCTP, which is the backend's too.
const (
	nodePort    = 30080
	backendPort = 8080
	sctpPort    = 30090
)

// open has the node's ports lead to a backend.
func (r *rig) open(o outside, backend netip.Addr) {
	r.t.Helper()
	at := netip.AddrPortFrom(zeroOf(o.node), nodePort)
	for name, s := range map[string]lb.Service{
		"web": {
			Frontends: []lb.Frontend{{Addr: at, Type: lb.NodePort}, {Addr: at, Type: lb.NodePort, Protocol: lb.UDP}},
			Backends:  []lb.Backend{{Addr: netip.AddrPortFrom(backend, backendPort)}},
		},
		"sctp": {
			Frontends: []lb.Frontend{{Addr: netip.AddrPortFrom(zeroOf(o.node), sctpPort), Type: lb.NodePort, Protocol: lb.SCTP}},
			Backends:  []lb.Backend{{Addr: netip.AddrPortFrom(backend, sctpPort)}},
		},
	} {
		s.Name = name
		require.NoError(r.t, r.services().SetService(s))
	}
}

// served are the dialogues of what can be a service, with the ports of frontend
// and backend.
func served(f family) (all []servedDialogue) {
	for _, d := range dialogues(f) {
		switch d.name {
		case "TCP", "UDP":
			all = append(all, servedDialogue{d, nodePort, backendPort})
		case "SCTP":
			all = append(all, servedDialogue{d, sctpPort, sctpPort})
		}
	}
	return all
}

type servedDialogue struct {
	dialogue
	port, backend uint16
}

// A NodePort leads into an endpoint of the node, which sees the client as it is.
func TestNodePortToEndpoint(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]func(*testing.T) rigConfig{
		"overlay": serving, "native": native,
		"without NAT": func(t *testing.T) rigConfig { return translating(t, rigConfig{routeAge: time.Hour}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
				r.open(o, f.blue)
				for _, d := range served(f) {
					t.Run(d.name, func(t *testing.T) {
						r.as(t)
						const client = 4000
						flow := tupleOf(d.proto, f.world, client, o.node, d.port)
						for step := range 6 {
							mark := "~"
							if step == 0 {
								mark = "+"
							}
							if step%2 == 1 {
								in := d.frame(step, f.blue, f.world, d.backend, client)
								r.expect(fromBlue, in, outBy(d.frame(step, o.node, f.world, d.port, client), upIfindex, o.router, mark+flow), "step %d", step)
								continue
							}
							w := intoBlue(d.frame(step, f.world, f.blue, client, d.backend), mark+flow)
							if e := d.events[step]; e != "" {
								w = w.with(e)
							}
							got := r.expect(fromUp, d.frame(step, f.world, o.node, client, d.port), w, "step %d", step)
							require.NoError(t, packet.Check(got.frame))
						}
						if name != "without NAT" {
							require.Zero(t, r.hints())
							require.Zero(t, r.nat().Kept)
						}
						// Of the node's other ports nothing is ours.
						r.left(fromUp, d.frame(0, f.world, o.node, client, d.port+1))
						r.left(fromUp, d.frame(0, f.world, o.extra, client, d.port), "nor of an address that has no NodePorts")
					})
				}
			})
		})
	}
}

// Errors and datagrams in parts follow a NodePort both ways.
func testErrorsAndFragmentsOfNodePort(t *testing.T, r *rig, f family, o outside) {
	r.open(o, f.blue)
	const client = 4000
	for _, d := range served(f) {
		ask := d.frame(0, f.world, o.node, client, d.port)
		in := r.inject(fromUp, ask)
		require.Equal(t, rediret, in.verdict)
		answer := d.frame(1, f.blue, f.world, d.backend, client)
		out := r.inject(fromBlue, answer)
		require.Equal(t, rediret, out.verdict)
		n := headers(ask)
		for _, kind := range faults(f) {
			w := outBy(kind.make(o.node, f.world, quoteOf(hopped(ask), n)), upIfindex, o.router)
			r.expectFault(fromBlue, kind.make(f.blue, f.world, quoteOf(in.frame, n)), w, "%s %s by the backend", d.name, kind.name)
			for _, from := range []netip.Addr{o.router, f.world} {
				w = intoBlue(kind.make(from, f.blue, quoteOf(hopped(answer), n)))
				r.expectFault(fromUp, kind.make(from, o.node, quoteOf(out.frame, n)), w, "%s %s from %s", d.name, kind.name, from)
			}
		}
	}
	flow := tupleOf(conntrack.UDP, f.world, 4001, o.node, nodePort)
	asked := datagram{src: f.world, dst: o.node, sport: 4001, dport: nodePort, id: 5, size: 792}
	got := datagram{src: f.world, dst: f.blue, sport: 4001, dport: backendPort, id: 5, size: 792}
	answered := datagram{src: f.blue, dst: f.world, sport: backendPort, dport: 4001, id: 6, size: 792}
	seen := datagram{src: o.node, dst: f.world, sport: nodePort, dport: 4001, id: 6, size: 792}
	r.left(fromUp, asked.piece(400, 800, false), "before the first part")
	for i, cut := range [][2]int{{0, 400}, {400, 800}} {
		mark := []string{"+", "~"}[i]
		r.expect(fromUp, asked.piece(cut[0], cut[1], cut[1] < 800), intoBlue(got.piece(cut[0], cut[1], cut[1] < 800), mark+flow))
	}
	for _, cut := range [][2]int{{0, 400}, {400, 800}} {
		r.expect(fromBlue, answered.piece(cut[0], cut[1], cut[1] < 800), outBy(seen.piece(cut[0], cut[1], cut[1] < 800), upIfindex, o.router, "~"+flow))
	}
}

// A backend on another node behind the overlay is asked as the gateway, so that its
// answers come here.
func testNodePortToOverlay(t *testing.T, r *rig, f family, o outside) {
	r.open(o, f.red)
	const world = 2 // the identity
	for _, client := range []uint16{4000, 500} {
		for _, d := range served(f) {
			if d.name == "SCTP" && client < 1024 {
				continue
			}
			t.Run(fmt.Sprintf("%s from %d", d.name, client), func(t *testing.T) {
				r.as(t)
				flow := tupleOf(d.proto, f.world, client, o.node, d.port)
				got := r.send(fromUp, d.frame(0, f.world, o.node, client, d.port))
				as := mapped(t, got)
				require.Equal(t, f.gate, as.Addr())
				require.Equal(t, client > 1024, as.Port() == client)
				require.Equal(t, []string{"+" + flow}, got.flows)
				require.Equal(t, hopped(d.frame(0, f.gate, f.red, as.Port(), d.backend)), got.frame)
				require.Equal(t, hop{ifindex: overlayIfindex, vni: world, node: redNode}, got.sent)
				require.Equal(t, map[string]uint64{"from device: to overlay": 1}, got.counted)
				for step := 1; step < 6; step++ {
					if step%2 == 1 {
						w := outBy(d.frame(step, o.node, f.world, d.port, client), upIfindex, o.router, "~"+flow)
						if f.name == "IPv6" && step > 1 { // by the next hop's MAC: there is no room for its address
							got := r.send(fromRed, d.frame(step, f.red, f.gate, d.backend, as.Port()))
							require.Equal(t, []any{rediret, hop{ifindex: upIfindex}, w.flows}, []any{got.verdict, got.sent, got.flows})
							require.Equal(t, append([]byte{2, 0, 0, 0, 3, upIfindex}, w.frame[12:]...), append(got.frame[:6:6], got.frame[12:]...))
							continue
						}
						r.expect(fromRed, d.frame(step, f.red, f.gate, d.backend, as.Port()), w, "step %d", step)
						continue
					}
					w := intoOverlay(d.frame(step, f.gate, f.red, as.Port(), d.backend), world, "~"+flow)
					if e := d.events[step]; e != "" {
						w = w.with(e)
					}
					r.expect(fromUp, d.frame(step, f.world, o.node, client, d.port), w, "step %d", step)
				}
				// Another node can not answer for it, nor the same as somebody else.
				answer := d.frame(3, f.red, f.gate, d.backend, as.Port())
				r.expect(fromNode(strangerNode, redIdentity), answer, dropped("foreign overlay"))
				r.expect(fromNode(redNode, 99), answer, dropped("bad vni"))

				// Errors: by the backend, by a router on the way back.
				n := headers(answer)
				kind := faults(f)[0]
				in := r.inject(fromUp, d.frame(4, f.world, o.node, client, d.port))
				w := outBy(kind.make(o.node, f.world, quoteOf(hopped(d.frame(4, f.world, o.node, client, d.port)), n)), upIfindex, o.router)
				r.expectFault(fromRed, kind.make(f.red, f.gate, quoteOf(in.frame, n)), w)
				out := r.inject(fromRed, answer)
				w = intoOverlay(kind.make(o.router, f.red, quoteOf(hopped(answer), n)), world)
				got = r.inject(fromUp, kind.make(o.router, o.node, quoteOf(out.frame, n)))
				require.Equal(t, rediret, got.verdict, "%v", got.counted)
				require.Equal(t, w.sent, got.sent)
				require.NoError(t, packet.Check(got.frame))
				d, err := packet.Decode(got.frame)
				require.NoError(t, err)
				require.Equal(t, f.red, d.Dst())
				require.Equal(t, f.red, d.Inner.Src())
				require.Equal(t, f.gate, d.Inner.Dst())
			})
		}
	}
}

// Without an overlay it is asked as the uplink's address, and the answer goes back
// out by where the client is.
func TestNodePortToNativeBackend(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]func(*testing.T) rigConfig{
		"overlay": serving, "native": native,
		"NAT without masquerade": func(t *testing.T) rigConfig {
			return translating(t, rigConfig{flows: conntrack.Config{NAT: &conntrack.NAT{}}, routeAge: time.Hour})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
				r.attachUplink(up2Ifindex, "up2")
				r.route("", host(o.other), up2Ifindex, o.router2)
				r.open(o, o.other)
				for _, client := range []uint16{4000, 500} {
					for _, d := range served(f) {
						if d.name == "SCTP" && client < 1024 {
							continue
						}
						flow := tupleOf(d.proto, f.world, client, o.node, d.port)
						got := r.send(fromUp, d.frame(0, f.world, o.node, client, d.port))
						as := mapped(t, got)
						require.Equal(t, o.node2, as.Addr(), "of the uplink by which it leaves")
						require.Equal(t, client > 1024, as.Port() == client)
						require.Equal(t, []string{"+" + flow}, got.flows)
						require.Equal(t, hopped(d.frame(0, o.node2, o.other, as.Port(), d.backend)), got.frame)
						require.Equal(t, hop{ifindex: up2Ifindex, neigh: true, via: o.router2}, got.sent)
						for step := 1; step < 6; step++ {
							if step%2 == 1 {
								w := outBy(d.frame(step, o.node, f.world, d.port, client), upIfindex, o.router, "~"+flow)
								r.expect(fromUp2, d.frame(step, o.other, o.node2, d.backend, as.Port()), w, "%s step %d", d.name, step)
								continue
							}
							w := outBy(d.frame(step, o.node2, o.other, as.Port(), d.backend), up2Ifindex, o.router2, "~"+flow)
							if e := d.events[step]; e != "" {
								w = w.with(e)
							}
							r.expect(fromUp, d.frame(step, f.world, o.node, client, d.port), w, "%s step %d", d.name, step)
						}
						// An error by the backend comes from the frontend.
						kind := faults(f)[0]
						ask := d.frame(4, f.world, o.node, client, d.port)
						in := r.inject(fromUp, ask)
						n := headers(ask)
						w := outBy(kind.make(o.node, f.world, quoteOf(hopped(ask), n)), upIfindex, o.router)
						r.expectFault(fromUp2, kind.make(o.other, o.node2, quoteOf(in.frame, n)), w)
					}
				}
			})
		})
	}
}

// Backends that can not be asked, and why.
func TestNodePortToNobody(t *testing.T) {
	t.Parallel()
	refuse := func(t *testing.T, r *rig, f family, o outside, backend netip.Addr, reason string) {
		t.Helper()
		r.open(o, backend)
		for _, d := range served(f) {
			r.expect(fromUp, d.frame(0, f.world, o.node, 4000, d.port), dropped(reason), "%s to %s", d.name, backend)
		}
	}
	t.Run("with NAT", func(t *testing.T) {
		t.Parallel()
		eachUplink(t, serving, func(t *testing.T, r *rig, f family, o outside) {
			require.NoError(t, r.dp.SetNodeAddrs(o.node, o.node2))
			refuse(t, r, f, o, o.side, "no route")
			for _, dst := range o.nowhere {
				refuse(t, r, f, o, dst, "no route")
			}
			refuse(t, r, f, o, o.node2, "no endpoint")
			refuse(t, r, f, o, f.gate, "no endpoint")
			require.NoError(t, r.dp.AttachDevice(link{upIfindex}))
			refuse(t, r, f, o, o.other, "no address")
			require.NoError(t, r.attached().Delete(uint32(blueIfindex)))
			refuse(t, r, f, o, f.blue, "endpoint not ready")
		})
	})
	t.Run("without NAT", func(t *testing.T) {
		t.Parallel()
		cfg := func(t *testing.T) rigConfig { return translating(t, rigConfig{routeAge: time.Hour}) }
		eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
			refuse(t, r, f, o, f.red, "no endpoint")
			refuse(t, r, f, o, o.other, "no endpoint")
		})
	})
}

// One client port through two addresses of the node to one backend: two flows
// that the backend can tell apart.
func testTwoWaysToOneBackend(t *testing.T, r *rig, f family, o outside) {
	for name, row := range map[string]struct {
		backend netip.Addr
		back    port
	}{"endpoint": {f.blue, fromBlue}, "overlay": {f.red, fromRed}, "native": {o.other, fromUp}} {
		t.Run(name, func(t *testing.T) {
			r.as(t)
			r.reset()
			backend, back := row.backend, row.back
			r.open(o, backend)
			for _, d := range served(f) {
				if d.name == "SCTP" {
					r.inject(fromUp, d.frame(0, f.world, o.node, 4000, d.port))
					r.expect(fromUp, d.frame(0, f.world, o.node2, 4000, d.port), dropped("no port"), "its port must stay")
					continue
				}
				as := map[netip.Addr]netip.AddrPort{}
				for step := range 4 {
					for _, node := range []netip.Addr{o.node, o.node2} {
						if step%2 == 0 {
							got := mapped(t, r.inject(fromUp, d.frame(step, f.world, node, 4000, d.port)))
							if step > 0 {
								require.Equal(t, as[node], got)
							}
							as[node] = got
							continue
						}
						got := r.inject(back, d.frame(step, backend, as[node].Addr(), d.backend, as[node].Port()))
						require.Equal(t, rediret, got.verdict, "%s: %v", d.name, got.counted)
						require.Equal(t, hopped(d.frame(step, node, f.world, d.port, 4000))[12:], got.frame[12:], "%s: it comes from where it was asked", d.name)
					}
				}
				require.NotEqual(t, as[o.node], as[o.node2])
			}
		})
	}
}

// What is for the inside only is refused to who comes from outside, as if it were
// not there.
func testServicesFromOutside(t *testing.T, r *rig, f family, o outside) {
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(o.vip, port) }
	both := func(addr netip.AddrPort, typ lb.FrontendType) []lb.Frontend {
		return []lb.Frontend{{Addr: addr, Type: typ}, {Addr: addr, Type: typ, Protocol: lb.UDP}}
	}
	backends := []lb.Backend{{Addr: netip.AddrPortFrom(f.blue, backendPort)}}
	require.NoError(t, r.services().SetService(lb.Service{Name: "inside", Backends: backends, Frontends: both(at(80), lb.ClusterIP)}))
	back := hop{ifindex: upIfindex}
	refused := func(port uint16, reason string) {
		t.Helper()
		got := r.send(fromUp, tcp(f.world, o.vip, 4000, port, packet.SYN))
		require.Equal(t, rediret, got.verdict)
		require.Equal(t, back, got.sent)
		require.Equal(t, map[string]uint64{"from device: drop " + reason: 1}, got.counted)
		require.Empty(t, got.flows)
		require.NoError(t, packet.Check(got.frame))
		d, err := packet.Decode(got.frame)
		require.NoError(t, err)
		require.Equal(t, []netip.Addr{o.vip, f.world}, []netip.Addr{d.Src(), d.Dst()})
		require.NotZero(t, d.TCP.Flags&packet.RST)
		frame := udp(f.world, o.vip, 4000, port)
		r.expect(fromUp, frame, want{
			verdict: rediret, counted: "drop " + reason, sent: back, frame: errorFrom(nodeError(frame,
				packet.ICMPv4{Type: packet.ICMPv4Unreachable, Code: packet.ICMPv4CodePort},
				packet.ICMPv6{Type: packet.ICMPv6Unreachable, Code: packet.ICMPv6CodePort}), o.vip),
		})
	}
	refused(80, "no such port")
	refused(81, "no such port")
	frame := tcp(f.green, o.vip, 4000, 80, packet.SYN)
	r.expect(fromGreen, frame, intoBlue(tcp(f.green, f.blue, 4000, backendPort, packet.SYN), "+"+tupleOf(conntrack.TCP, f.green, 4000, o.vip, 80)), "from inside")

	for i, typ := range []lb.FrontendType{lb.ExternalIP, lb.LoadBalancer} {
		port := uint16(90 + i)
		require.NoError(t, r.services().SetService(lb.Service{Name: typ.String(), Backends: backends, Frontends: both(at(port), typ)}))
		in := tcp(f.world, o.vip, 4000+port, port, packet.SYN)
		flow := tupleOf(conntrack.TCP, f.world, 4000+port, o.vip, port)
		r.expect(fromUp, in, intoBlue(tcp(f.world, f.blue, 4000+port, backendPort, packet.SYN), "+"+flow), typ)
		answer := tcp(f.blue, f.world, backendPort, 4000+port, packet.SYN|packet.ACK)
		r.expect(fromBlue, answer, outBy(tcp(o.vip, f.world, port, 4000+port, packet.SYN|packet.ACK), upIfindex, o.router, "~"+flow), typ)
		refused(81, "no such port")
		refused(80, "no such port")
	}

	// An echo is answered, whoever asks.
	for _, ttl := range []byte{64, 1} {
		ask := withTTL(echo(f.world, o.vip, 7, packet.Sized(30)...), ttl)
		reply := echoReply(o.vip, f.world, 7, packet.Sized(30)...)
		copy(reply[:12], append(slices.Clone(ask[6:12]), ask[:6]...))
		r.expect(fromUp, ask, want{verdict: rediret, frame: reply, counted: "answered", sent: back})
	}
	r.left(fromUp, echo(f.world, o.node, 7), "that to the node is the stack's")
}

func testSourceRangesOutside(t *testing.T, r *rig, f family, o outside) {
	at := netip.AddrPortFrom(o.vip, 80)
	for _, deny := range []bool{false, true} {
		require.NoError(t, r.services().SetService(lb.Service{
			Name: "web", Backends: []lb.Backend{{Addr: netip.AddrPortFrom(f.blue, backendPort)}}, Frontends: []lb.Frontend{{Addr: at, Type: lb.LoadBalancer}},
			SourceRanges: []netip.Prefix{host(f.world)}, DenySources: deny,
		}))
		for _, client := range []netip.Addr{f.world, o.other} {
			frame := tcp(client, o.vip, 4000, 80, packet.SYN)
			if (client == f.world) == deny {
				r.expect(fromUp, frame, dropped("source range"))
				continue
			}
			w := intoBlue(tcp(client, f.blue, 4000, backendPort, packet.SYN), "+"+tupleOf(conntrack.TCP, client, 4000, o.vip, 80))
			r.expect(fromUp, frame, w)
			_, err := r.flows.Flush(conntrack.Filter{})
			require.NoError(t, err)
		}
	}
}

// Nobody outside is who is inside: what comes in under such a name goes nowhere.
func testSpoofedFromOutside(t *testing.T, r *rig, f family, o outside) {
	r.open(o, f.blue)
	require.NoError(t, r.dp.SetNodeAddrs(o.node, o.node2, o.extra))
	require.NoError(t, r.services().SetService(lb.Service{
		Name: "vip", Backends: []lb.Backend{{Addr: netip.AddrPortFrom(f.blue, backendPort)}}, Affinity: time.Hour,
		Frontends: []lb.Frontend{{Addr: netip.AddrPortFrom(o.vip, 80), Type: lb.LoadBalancer}, {Addr: netip.AddrPortFrom(o.vip, 80), Type: lb.LoadBalancer, Protocol: lb.UDP}},
	}))
	hairpin := map[string]netip.Addr{"IPv4": addr("169.254.42.1"), "IPv6": addr("fd00:42:42::1")}[f.name]
	require.NoError(t, r.peers.Set(tunnel.Peer{Prefix: host(redNode), Node: redNode}))
	defer func() { require.NoError(t, r.peers.Delete(host(redNode))) }()
	for who, src := range map[string]netip.Addr{
		"a neighbour": f.green, "the endpoint itself": f.blue, "the gateway": f.gate, "the uplink": o.node, "another uplink": o.node2,
		"another address of the node": o.extra, "a service": o.vip, "the address of hairpins": hairpin, "a pod of another node": f.red, "the gateway of another node": f.redGate,
	} {
		t.Run(who, func(t *testing.T) {
			r.as(t)
			for _, to := range []netip.AddrPort{
				netip.AddrPortFrom(f.blue, 80), netip.AddrPortFrom(o.node, nodePort), netip.AddrPortFrom(o.vip, 80),
			} {
				if src == to.Addr() {
					continue // no sane packet at all
				}
				for _, flags := range []uint8{packet.SYN, packet.ACK, packet.RST} {
					r.expect(fromUp, tcp(src, to.Addr(), 4000, to.Port(), flags), dropped("spoofed source"), "to %s", to)
				}
				r.expect(fromUp, udp(src, to.Addr(), 4000, to.Port()), dropped("spoofed source"), "to %s", to)
			}
			if src != f.blue {
				r.expect(fromUp, echo(src, f.blue, 7), dropped("spoofed source"))
			}
			passing := tcp(src, o.side, 4000, 80, packet.SYN)
			if src == o.vip || src == hairpin {
				r.left(fromUp, passing, "what is not for us")
			} else {
				r.expect(fromUp, passing, dropped("spoofed source"), "nor past us")
			}
		})
	}
	// Within a flow that is there.
	out := udp(f.blue, f.green, 1000, 53)
	require.Equal(t, rediret, r.inject(fromBlue, out).verdict)
	require.Equal(t, rediret, r.inject(fromGreen, udp(f.green, f.blue, 53, 1000)).verdict)
	r.expect(fromUp, out, dropped("spoofed source"))
	r.expect(fromUp, udp(f.green, f.blue, 53, 1000), dropped("spoofed source"))
	in := udp(f.red, f.blue, 1000, 53)
	require.Equal(t, rediret, r.inject(fromRed, in).verdict)
	r.expect(fromUp, in, dropped("spoofed source"))
	fault := portUnreachable(f.green, f.blue, out, headers(out))
	r.expect(fromUp, fault, dropped("spoofed source"), "an error")

	// A node itself may ask beside the overlay.
	if f.blue.Is4() {
		r.expect(fromUp, udp(redNode, f.blue, 1000, 53), intoBlue(udp(redNode, f.blue, 1000, 53), "+"+tupleOf(conntrack.UDP, redNode, 1000, f.blue, 53)))
	}
}

// Services remember who has asked: not somebody in whose name another one did.
func testSpoofedIsNotRemembered(t *testing.T, r *rig, f family, o outside) {
	require.NoError(t, r.services().SetService(lb.Service{
		Name: "vip", Backends: []lb.Backend{{Addr: netip.AddrPortFrom(f.blue, backendPort)}}, Affinity: time.Hour,
		Frontends: []lb.Frontend{{Addr: netip.AddrPortFrom(o.vip, 80), Type: lb.LoadBalancer}},
	}))
	remembered := func() (n int) {
		var k bpf.TableAffinityKey
		var v bpf.TableAffinity
		rows := r.table(bpf.TableMapAffinities).Iterate()
		for rows.Next(&k, &v) {
			n++
		}
		require.NoError(t, rows.Err())
		return n
	}
	before := remembered()
	for _, src := range []netip.Addr{f.green, f.gate, f.red} {
		require.Equal(t, verdictDrop, r.inject(fromUp, tcp(src, o.vip, 4000, 80, packet.SYN)).verdict)
		require.Equal(t, before, remembered(), "%s", src)
	}
	require.Equal(t, rediret, r.inject(fromUp, tcp(f.world, o.vip, 4000, 80, packet.SYN)).verdict)
	require.Equal(t, before+1, remembered())
}

// A node with its NodePorts says itself what it can not forward, from the address
// of the uplink.
func testUplinkRefuses(t *testing.T, r *rig, f family, o outside) {
	r.open(o, f.red)
	mapped(t, r.inject(fromBlue, udp(f.blue, f.world, 5000, 53)))
	for name, frame := range map[string][]byte{
		"to an endpoint":         tcp(f.world, f.blue, 4000, 80, packet.SYN, packet.Sized(30)...),
		"to a service":           udp(f.world, o.node, 4000, nodePort, packet.Sized(30)...),
		"an answer":              udp(f.world, o.node, 53, 5000, packet.Sized(30)...),
		"an echo to an endpoint": echo(f.world, f.blue, 9),
	} {
		for _, ttl := range []byte{1, 0} {
			expired := withTTL(frame, ttl)
			got := r.expect(fromUp, expired, sentBack(errorFrom(timeExceeded(expired), o.node), upIfindex, "drop ttl exceeded"), name)
			require.NoError(t, packet.Check(got.frame))
		}
		require.Equal(t, rediret, r.inject(fromUp, withTTL(frame, 2)).verdict, name)
	}
	stack := withTTL(udp(f.world, o.node, 53, 5001), 1)
	r.left(fromUp, stack, "the stack's own need not go on")

	r.open(o, f.red)
	for _, p := range []struct {
		proto conntrack.Protocol
		make  func(size int) []byte
	}{
		{conntrack.TCP, func(n int) []byte { return tcp(f.world, o.node, 4100, nodePort, packet.ACK, packet.Sized(n)...) }},
		{conntrack.UDP, func(n int) []byte { return udp(f.world, o.node, 4100, nodePort, packet.Sized(n)...) }},
	} {
		whole := func(n int) []byte {
			if f.blue.Is6() {
				return p.make(n)
			}
			return edit(p.make(n), func(b []byte) { b[20] |= 0x40 })
		}
		fits := overlayMTU - (len(whole(0)) - 14)
		require.Equal(t, rediret, r.inject(fromUp, whole(fits)).verdict)
		over := whole(fits + 1)
		w := sentBack(errorFrom(tooBig(over, overlayMTU), o.node), upIfindex, "drop too big")
		require.NoError(t, packet.Check(r.expect(fromUp, over, w).frame))
		_, err := r.flows.Flush(conntrack.Filter{})
		require.NoError(t, err)
		r.expect(fromUp, over, w, "the first of its flow")
		if f.blue.Is4() {
			require.Equal(t, hop{ifindex: overlayIfindex, vni: 2, node: redNode}, r.inject(fromUp, p.make(fits+1)).sent, "without DF")
		}
	}
	// An uplink without an address: the gateway says it.
	require.NoError(t, r.dp.AttachDevice(link{upIfindex}))
	expired := withTTL(udp(f.world, f.blue, 4000, 53), 1)
	r.expect(fromUp, expired, sentBack(timeExceeded(expired), upIfindex, "drop ttl exceeded"))
}

// What is no sound packet for an endpoint, a service or a flow is the stack's, and
// leaves no trace.
func TestNotOurs(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]func(*testing.T) rigConfig{"services": serving, "masquerade": fixed(masquerading), "plain": fixed(func() rigConfig { return rigConfig{} })} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
				if name == "services" {
					r.open(o, f.blue)
				}
				mac := ether(blueHost, blueMAC)
				for what, frame := range map[string][]byte{
					"ARP for the node":        packet.Build(ether(packet.Broadcast(), blueMAC), packet.ARP{Op: packet.ARPRequest, SenderMAC: blueMAC, SenderIP: world4, TargetIP: outsides["IPv4"].node}),
					"ARP for an endpoint":     packet.Build(ether(packet.Broadcast(), blueMAC), packet.ARP{Op: packet.ARPRequest, SenderMAC: blueMAC, SenderIP: world4, TargetIP: blue4}),
					"NDP":                     packet.Build(mac, packet.IPv6{Src: world6, Dst: outsides["IPv6"].node, HopLimit: 255}, packet.NeighborSolicit{Target: outsides["IPv6"].node, SourceMAC: blueMAC}),
					"NDP for an endpoint":     packet.Build(mac, packet.IPv6{Src: world6, Dst: blue6, HopLimit: 255}, packet.NeighborSolicit{Target: blue6, SourceMAC: blueMAC}),
					"a tag":                   packet.Build(mac, packet.VLAN{TCI: 5}, ip(f.world, f.blue, 64), packet.UDP{SrcPort: 1, DstPort: 2}, packet.Sized(20)),
					"another protocol":        packet.Build(packet.Ethernet{Dst: blueHost, Src: blueMAC, Type: 0x8847}, packet.Sized(60)),
					"multicast":               udp(f.world, map[string]netip.Addr{"IPv4": addr("224.0.0.5"), "IPv6": addr("ff02::5")}[f.name], 1, 2),
					"a port of the node":      tcp(f.world, o.node, 4000, 22, packet.SYN),
					"a datagram for the node": udp(f.world, o.node, 4000, 53),
					"an answer to nobody":     tcp(f.world, o.node, 80, 5000, packet.SYN|packet.ACK),
					"an echo to the node":     echo(f.world, o.node, 7),
					"an answer to its echo":   echoReply(f.world, o.node, 7),
					"SCTP for the node":       sctp(f.world, o.node, 4000, 22, packet.ChunkInit),
					"what is routed":          udp(f.world, o.other, 1, 2),
					"the gateway":             udp(f.world, f.gate, 1, 2),
					"a pod of another node":   udp(f.world, f.red, 1, 2),
					"nobody here":             udp(f.world, f.nobodyHere, 1, 2),
					"an overlay packet":       udp(f.world, o.node, 4000, tunnel.DefaultPort, packet.Sized(80)...),
					"an error about nothing":  portUnreachable(o.router, o.node, udp(o.node, f.world, 5000, 53), 48),
					"GRE":                     packet.Build(mac, protocolHeader(f.world, o.node, 47), packet.Sized(64)),
					"GRE for an endpoint":     packet.Build(mac, protocolHeader(f.world, f.blue, 47), packet.Sized(64)),
					"a martian for the node":  udp(loopback(f), o.node, 1, 2),
					"a later part":            datagram{src: f.world, dst: f.blue, sport: 1, dport: 2, id: 4, size: 792}.piece(400, 800, false),
				} {
					r.left(fromUp, frame, what)
					r.left(fromSide, frame, "%s, by a device that is no uplink any more", what)
				}
				for _, frame := range [][]byte{
					tcp(f.world, f.blue, 4000, 80, packet.SYN, packet.Sized(30)...), udp(f.world, f.blue, 4000, 80, packet.Sized(30)...),
					tcp(f.world, o.node, 4000, nodePort, packet.SYN, packet.Sized(30)...), echo(f.world, f.blue, 7, packet.Sized(30)...),
				} {
					for n := 14 + 40; n < len(frame); n++ {
						r.left(fromUp, frame[:n], "%d bytes", n)
					}
				}
				r.expect(fromUp, udp(loopback(f), f.blue, 1, 2), dropped("bad address"))
			})
		})
	}
}

// Every packet of every kind at an uplink, with every byte of its headers changed:
// it is left as it is, dropped as it is for a reason, or goes where it says.
func testMalformedAtUplink(t *testing.T, r *rig, f family, o outside) {
	r.open(o, f.blue)
	for _, to := range []struct {
		dst  netip.Addr
		step int
	}{{f.blue, 2}, {o.node, 2}, {o.vip, 5}} {
		mapped(t, r.inject(fromBlue, udp(f.blue, f.world, 1000, 53)))
		mapped(t, r.inject(fromBlue, echo(f.blue, f.world, 77)))
		names, all := kinds(f.world, to.dst)
		names = append(names, "NodePort", "answer")
		all["NodePort"] = udp(f.world, to.dst, 4000, nodePort, packet.Sized(20)...)
		all["answer"] = udp(f.world, to.dst, 53, 1000, packet.Sized(20)...)
		for _, name := range names {
			frame := all[name]
			var frames [][]byte
			for at := 12; at < min(len(frame), 110); at += to.step {
				for _, v := range []byte{0xff, frame[at] ^ 1, frame[at] ^ 0x80} {
					b := slices.Clone(frame)
					b[at] = v
					frames = append(frames, b)
				}
			}
			for _, got := range r.injectAll(fromUp, frames) {
				if bad := unsafeAtUplink(f, o, got); bad != "" {
					d, err := packet.Decode(got.in)
					require.Fail(t, bad, "%s to %s: % x\n%s (%v)", name, to.dst, got.in[:min(130, len(got.in))], d, err)
				}
			}
		}
	}
}

// unsafeAtUplink says what is wrong with a passage of whatever bytes; "" if nothing
// is.
func unsafeAtUplink(f family, o outside, got passage) string {
	same := slices.Equal(got.in, got.frame)
	switch got.verdict {
	case verdictNext:
		if !same || len(got.counted) > 0 || got.sent != (hop{}) {
			return fmt.Sprintf("left to the stack, but %v, sent to %+v", got.counted, got.sent)
		}
		return ""
	case verdictDrop:
		if !same || got.sent != (hop{}) {
			return "dropped, but changed or sent"
		}
		for what := range got.counted {
			if len(what) < 17 || what[:17] != "from device: drop" {
				return "dropped and counted as " + what
			}
		}
		if len(got.counted) != 1 {
			return fmt.Sprintf("counters %v, want one", got.counted)
		}
		return ""
	case rediret:
	default:
		return fmt.Sprintf("verdict %d", got.verdict)
	}
	if len(got.counted) != 1 {
		return fmt.Sprintf("counters %v, want one", got.counted)
	}
	if sumIsRight(got.in) && !sumIsRight(got.frame) {
		return "the IPv4 header checksum is wrong now"
	}
	_, dst := addresses(got.frame)
	_, was := addresses(got.in)
	for what := range got.counted {
		switch what {
		case "from device: to endpoint":
			want := map[netip.Addr]hop{f.blue: {ifindex: blueIfindex, peer: true}, f.green: {ifindex: greenIfindex, peer: true}}
			if got.sent != want[dst] || (was != dst && was != o.node && was != o.node2) {
				return fmt.Sprintf("from %s into the endpoint %s, sent to %+v", was, dst, got.sent)
			}
		case "from device: answered", "from device: drop ttl exceeded", "from device: drop too big", "from device: drop no such port":
			if got.sent != (hop{ifindex: upIfindex}) {
				return fmt.Sprintf("%s: sent to %+v", what, got.sent)
			}
			if err := packet.Check(got.frame); err != nil {
				return fmt.Sprintf("%s: %s", what, err)
			}
		default:
			return "sent and counted as " + what
		}
	}
	return ""
}

// A flow that gets a port because another has its own is no user of the node's
// ports, nor is one who speaks to himself.
func testPortUseCountsTheNode(t *testing.T, r *rig, f family, o outside) {
	r.open(o, f.blue)
	at := netip.AddrPortFrom(o.vip, 80)
	require.NoError(t, r.services().SetService(lb.Service{
		Name: "vip", Backends: []lb.Backend{{Addr: netip.AddrPortFrom(f.blue, backendPort)}}, Frontends: []lb.Frontend{{Addr: at}},
	}))
	mapped(t, r.inject(fromUp, tcp(f.world, o.node, 4000, nodePort, packet.SYN)))
	mapped(t, r.inject(fromUp, tcp(f.world, o.node2, 4000, nodePort, packet.SYN)))
	mapped(t, r.inject(fromBlue, tcp(f.blue, o.vip, 4000, 80, packet.SYN)))
	use, err := r.flows.PortUse()
	require.NoError(t, err)
	require.Empty(t, use)
	mapped(t, r.inject(fromBlue, tcp(f.blue, f.world, 4000, 80, packet.SYN)))
	mapped(t, r.inject(fromGreen, tcp(f.green, f.world, 4000, 80, packet.SYN)))
	use, err = r.flows.PortUse()
	require.NoError(t, err)
	require.Equal(t, []conntrack.PortUse{{Source: o.node, Destination: netip.AddrPortFrom(f.world, 80), Protocol: conntrack.TCP, Ports: 2}}, use)
}

// From inside to a backend outside: service and masquerade in one.
func testServiceOutsideMasqueraded(t *testing.T, r *rig, f family, o outside) {
	at := netip.AddrPortFrom(o.vip, 80)
	require.NoError(t, r.services().SetService(lb.Service{
		Name: "vip", Backends: []lb.Backend{{Addr: netip.AddrPortFrom(f.world, backendPort)}},
		Frontends: []lb.Frontend{{Addr: at}, {Addr: at, Protocol: lb.UDP}},
	}))
	for _, name := range []string{"TCP", "UDP"} {
		d := dialogueOf(f, name)
		for _, sport := range []uint16{4000, 500} {
			flow := tupleOf(d.proto, f.blue, sport, o.vip, 80)
			var as netip.AddrPort
			for step := range 6 {
				if step%2 == 0 {
					got := r.send(fromBlue, d.frame(step, f.blue, o.vip, sport, 80))
					as = mapped(t, got)
					require.Equal(t, hopped(d.frame(step, o.node, f.world, as.Port(), backendPort)), got.frame)
					require.Equal(t, hop{ifindex: upIfindex, neigh: true, via: o.router}, got.sent)
					continue
				}
				r.expect(fromUp, d.frame(step, f.world, o.node, backendPort, as.Port()), intoBlue(d.frame(step, o.vip, f.blue, 80, sport), "~"+flow))
			}
			require.Equal(t, sport == 4000, as.Port() == sport)
			// Seen as itself: the backend stays, the source changes.
			require.NoError(t, r.flows.SetUnmasqueraded([]netip.Prefix{host(f.world)}))
			r.expect(fromBlue, d.frame(4, f.blue, o.vip, sport, 80), outBy(d.frame(4, f.blue, f.world, sport, backendPort), upIfindex, o.router, "~"+flow).with("created", "reused"))
			r.expect(fromUp, d.frame(5, f.world, f.blue, backendPort, sport), intoBlue(d.frame(5, o.vip, f.blue, 80, sport), "~"+flow))
			require.NoError(t, r.flows.SetUnmasqueraded(nil))
		}
	}
}
