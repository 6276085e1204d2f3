// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/internal/wire"
	"github.com/godatapath/datapath/tunnel"
)

// TestMasquerade is what is asked of a node whose endpoints leave in its name. One rig
// does for all: the programs take longer to load than the packets to run.
func TestMasquerade(t *testing.T) {
	t.Parallel()
	eachUplinkTest(t, fixed(masquerading), []uplinkTest{
		{"masquerade", testMasquerade},
		{"masquerade fast path", testMasqueradeFastPath},
		{"answers are not masqueraded", testAnswersAreNotMasqueraded},
		{"inside is not masqueraded", testInsideIsNotMasqueraded},
		{"unmasqueraded", testUnmasqueraded},
		{"address of uplink changes", testAddressOfUplinkChanges},
		{"ways out", testWaysOut},
		{"masqueraded flow goes another way", testMasqueradedFlowGoesAnotherWay},
		{"answers by another uplink", testAnswersByAnotherUplink},
		{"masquerade refuses", testMasqueradeRefuses},
		{"errors about masqueraded", testErrorsAboutMasqueraded},
		{"quote is what was sent", testQuoteIsWhatWasSent},
		{"errors by masqueraded", testErrorsByMasqueraded},
		{"masqueraded fragments", testMasqueradedFragments},
	})
}

// dialogue makes the packets of one protocol, step by step: even steps are the
// asker's.
type dialogue struct {
	name  string
	proto conntrack.Protocol
	dport uint16
	frame func(step int, src, dst netip.Addr, sport, dport uint16) []byte
	// what has happened to the flow by a step, besides its creation
	events map[int]string
}

// dialogues are those of all protocols. An echo has no port at its other end.
func dialogues(f family) []dialogue {
	flags := []uint8{packet.SYN, packet.SYN | packet.ACK, packet.ACK, packet.ACK, packet.ACK, packet.ACK}
	chunks := []uint8{packet.ChunkInit, packet.ChunkInitAck, packet.ChunkData, packet.ChunkData, packet.ChunkData, packet.ChunkData}
	return []dialogue{
		{"TCP", conntrack.TCP, 80, func(i int, src, dst netip.Addr, sport, dport uint16) []byte {
			return tcp(src, dst, sport, dport, flags[i], packet.Sized(i*7)...)
		}, map[int]string{2: "confirmations"}},
		{"UDP", conntrack.UDP, 53, func(i int, src, dst netip.Addr, sport, dport uint16) []byte {
			return udp(src, dst, sport, dport, packet.Sized(i*7)...)
		}, map[int]string{2: "confirmations"}},
		{"echo", f.icmp, 0, func(i int, src, dst netip.Addr, sport, dport uint16) []byte {
			if i%2 == 0 {
				return echo(src, dst, sport, packet.Sized(i*7)...)
			}
			return echoReply(src, dst, dport, packet.Sized(i*7)...)
		}, nil},
		{"SCTP", conntrack.SCTP, 9, func(i int, src, dst netip.Addr, sport, dport uint16) []byte {
			return sctp(src, dst, sport, dport, chunks[i])
		}, map[int]string{2: "confirmations"}},
	}
}

// An endpoint speaks to the world as the node, and gets its answers.
func testMasquerade(t *testing.T, r *rig, f family, o outside) {
	const sport = 5000
	for _, d := range dialogues(f) {
		t.Run(d.name, func(t *testing.T) {
			r.as(t)
			before := r.nat()
			flow := tupleOf(d.proto, f.blue, sport, f.world, d.dport)
			for step := range 6 {
				mark := "~"
				if step == 0 {
					mark = "+"
				}
				var got passage
				if step%2 == 0 {
					w := outBy(d.frame(step, o.node, f.world, sport, d.dport), upIfindex, o.router, mark+flow)
					if e := d.events[step]; e != "" {
						w = w.with(e)
					}
					got = r.expect(fromBlue, d.frame(step, f.blue, f.world, sport, d.dport), w, "step %d", step)
				} else {
					w := intoBlue(d.frame(step, f.world, f.blue, d.dport, sport), mark+flow)
					got = r.expect(fromUp, d.frame(step, f.world, o.node, d.dport, sport), w, "step %d", step)
				}
				require.NoError(t, packet.Check(got.frame))
			}
			have, ok := r.flow(d.proto, f.blue, sport, f.world, d.dport)
			require.True(t, ok)
			require.Equal(t, conntrack.Verdict{Action: "to device", ArrivesOn: blueIfindex, SendsTo: upIfindex, Node: o.router}, have.Forward)
			require.Equal(t, conntrack.Verdict{Action: "to endpoint", ArrivesOn: upIfindex, SendsTo: blueIfindex}, have.Back)
			require.Equal(t, conntrack.Tuple{
				Src: netip.AddrPortFrom(f.world, d.dport), Dst: netip.AddrPortFrom(o.node, sport), Protocol: d.proto,
			}, have.Reply)
			require.EqualValues(t, 3, have.Sent.Packets)
			require.EqualValues(t, 3, have.Received.Packets)
			require.True(t, have.IsSourceTranslated())
			after := r.nat()
			require.Equal(t, before.Kept+1, after.Kept)
			require.Zero(t, after.Found+after.Exhausted)

			// The answers are the flow's only from where it went, and by its port.
			r.left(fromUp, d.frame(3, o.other, o.node, d.dport, sport), "another host")
			r.left(fromUp, d.frame(3, f.world, o.node, d.dport, sport+1), "another port")
		})
	}
}

// Once a flow is settled its packets are not judged again: they go on as before
// although nothing leads there any more, until the epoch ends.
func testMasqueradeFastPath(t *testing.T, r *rig, f family, o outside) {
	const sport = 5000
	for _, d := range dialogues(f) {
		for step := range 6 {
			if step%2 == 0 {
				mapped(t, r.inject(fromBlue, d.frame(step, f.blue, f.world, sport, d.dport)))
			} else {
				mapped(t, r.inject(fromUp, d.frame(step, f.world, o.node, d.dport, sport)))
			}
		}
	}
	rows, at := r.table(bpf.TableMapEndpointByAddr), wire.Addr(f.blue)
	var blue bpf.TableEndpoint
	require.NoError(t, rows.Lookup(at, &blue))
	require.NoError(t, rows.Delete(at))
	defer func() { require.NoError(t, rows.Put(at, blue)) }()
	for _, d := range dialogues(f) {
		flow := tupleOf(d.proto, f.blue, sport, f.world, d.dport)
		r.expect(fromBlue, d.frame(4, f.blue, f.world, sport, d.dport), outBy(d.frame(4, o.node, f.world, sport, d.dport), upIfindex, o.router, "~"+flow), d.name)
		r.expect(fromUp, d.frame(5, f.world, o.node, d.dport, sport), intoBlue(d.frame(5, f.world, f.blue, d.dport, sport), "~"+flow), d.name)
	}
	require.NoError(t, r.dp.Bump())
	for _, d := range dialogues(f) {
		r.expect(fromBlue, d.frame(4, f.blue, f.world, sport, d.dport), dropped("spoofed source"), d.name)
	}
}

// What the world begins with an endpoint's own address is answered as it was asked.
func testAnswersAreNotMasqueraded(t *testing.T, r *rig, f family, o outside) {
	for _, d := range dialogues(f) {
		flow := tupleOf(d.proto, f.world, 5000, f.blue, d.dport)
		for step := range 4 {
			if step%2 == 0 {
				mark := map[int]string{0: "+", 2: "~"}[step]
				w := intoBlue(d.frame(step, f.world, f.blue, 5000, d.dport), mark+flow)
				if e := d.events[step]; e != "" {
					w = w.with(e)
				}
				r.expect(fromUp, d.frame(step, f.world, f.blue, 5000, d.dport), w, "%s %d", d.name, step)
			} else {
				frame := d.frame(step, f.blue, f.world, d.dport, 5000)
				r.expect(fromBlue, frame, outBy(frame, upIfindex, o.router, "~"+flow), "%s %d", d.name, step)
			}
		}
	}
	require.Zero(t, r.nat().Kept)
	require.Zero(t, r.hints())
}

// Endpoints of the overlay, of the node and the node itself see endpoints as they
// are.
func testInsideIsNotMasqueraded(t *testing.T, r *rig, f family, o outside) {
	require.NoError(t, r.dp.SetNodeAddrs(o.node, o.node2, o.extra))
	for _, d := range dialogues(f) {
		flow := func(dst netip.Addr) string { return "+" + tupleOf(d.proto, f.blue, 5000, dst, d.dport) }
		ask := func(dst netip.Addr) []byte { return d.frame(0, f.blue, dst, 5000, d.dport) }
		r.expect(fromBlue, ask(f.green), intoGreen(ask(f.green), flow(f.green)))
		r.expect(fromBlue, ask(f.red), intoOverlay(ask(f.red), blueIdentity, flow(f.red)))
		for _, own := range []netip.Addr{f.gate, o.node, o.node2, o.extra} {
			r.expect(fromBlue, ask(own), intoHost(ask(own), flow(own)), "%s", own)
		}
	}
	require.Zero(t, r.nat().Kept)
}

// Hosts that are told to see the endpoints' own addresses do, and a flow whose
// source has changed by that begins anew.
func testUnmasqueraded(t *testing.T, r *rig, f family, o outside) {
	const sport = 5000
	only := []netip.Prefix{host(f.world)}
	for i, d := range dialogues(f) {
		t.Run(d.name, func(t *testing.T) {
			r.as(t)
			ask := func(src, dst netip.Addr) []byte { return d.frame(2, src, dst, sport, d.dport) }
			answer := func(src, dst netip.Addr) []byte { return d.frame(3, src, dst, d.dport, sport) }
			flow := tupleOf(d.proto, f.blue, sport, f.world, d.dport)
			kept := r.nat().Kept
			r.expect(fromBlue, ask(f.blue, f.world), outBy(ask(o.node, f.world), upIfindex, o.router, "+"+flow))
			require.NoError(t, r.flows.SetUnmasqueraded(only))
			anew := outBy(ask(f.blue, f.world), upIfindex, o.router, "~"+flow).with("created", "reused")
			r.expect(fromBlue, ask(f.blue, f.world), anew, "begins anew as itself")
			r.expect(fromBlue, ask(f.blue, f.world), outBy(ask(f.blue, f.world), upIfindex, o.router, "~"+flow))
			require.Zero(t, r.hints(), "the port has been given back")
			r.left(fromUp, answer(f.world, o.node), "nobody has that port any more")
			r.expect(fromUp, answer(f.world, f.blue), intoBlue(answer(f.world, f.blue), "~"+flow))

			// Another destination is not of the prefix.
			far := tupleOf(d.proto, f.blue, sport, o.other, d.dport)
			r.expect(fromBlue, ask(f.blue, o.other), outBy(ask(o.node, o.other), upIfindex, o.router, "+"+far))

			require.NoError(t, r.flows.SetUnmasqueraded(nil))
			anew = outBy(ask(o.node, f.world), upIfindex, o.router, "~"+flow).with("created", "reused")
			r.expect(fromBlue, ask(f.blue, f.world), anew, "begins anew as the node")
			r.expect(fromUp, answer(f.world, o.node), intoBlue(answer(f.world, f.blue), "~"+flow))
			have, ok := r.flow(d.proto, f.blue, sport, o.other, d.dport)
			require.True(t, ok)
			require.Equal(t, o.node, have.Reply.Dst.Addr())
			require.Equal(t, kept+3, r.nat().Kept)
			if i == 0 {
				only = []netip.Prefix{netip.PrefixFrom(f.world, f.world.BitLen()-1).Masked(), host(f.world)} // nested: the same
			}
			_, err := r.flows.Flush(conntrack.Filter{})
			require.NoError(t, err)
			r.clearHints()
		})
	}
}

// The node has another address, or none: what had the old one begins anew, and
// nobody is spoken for by an address that may be another node's now.
func testAddressOfUplinkChanges(t *testing.T, r *rig, f family, o outside) {
	const sport = 5000
	for _, d := range dialogues(f) {
		t.Run(d.name, func(t *testing.T) {
			r.as(t)
			r.attachUplink(upIfindex, "up")
			flow := tupleOf(d.proto, f.blue, sport, f.world, d.dport)
			ask := func(src netip.Addr) []byte { return d.frame(2, src, f.world, sport, d.dport) }
			r.expect(fromBlue, ask(f.blue), outBy(ask(o.node), upIfindex, o.router, "+"+flow))
			r.expect(fromUp, d.frame(3, f.world, o.node, d.dport, sport), intoBlue(d.frame(3, f.world, f.blue, d.dport, sport), "~"+flow))

			require.NoError(t, r.dp.AttachDevice(link{upIfindex}, o.extra))
			r.expect(fromBlue, ask(f.blue), outBy(ask(o.extra), upIfindex, o.router, "~"+flow).with("created", "reused"))
			r.left(fromUp, d.frame(3, f.world, o.node, d.dport, sport), "the old address")
			r.expect(fromUp, d.frame(3, f.world, o.extra, d.dport, sport), intoBlue(d.frame(3, f.world, f.blue, d.dport, sport), "~"+flow))

			require.NoError(t, r.dp.AttachDevice(link{upIfindex}))
			r.expect(fromBlue, ask(f.blue), dropped("no address"))
			_, err := r.flows.Flush(conntrack.Filter{})
			require.NoError(t, err)
		})
	}
}

// Where a packet goes that no uplink leads to.
func testWaysOut(t *testing.T, r *rig, f family, o outside) {
	for _, d := range dialogues(f) {
		flow := func(dst netip.Addr) string { return "+" + tupleOf(d.proto, f.blue, 5000, dst, d.dport) }
		ask := func(dst netip.Addr) []byte { return d.frame(0, f.blue, dst, 5000, d.dport) }
		for kind, dst := range o.nowhere {
			r.expect(fromBlue, ask(dst), dropped("no route"), kind)
		}
		r.expect(fromBlue, ask(o.side), dropped("no address"), "a device that is no uplink, where it would leave as it is")
		r.expect(fromBlue, ask(o.node2), dropped("no route"), "an address of the node that is not told")
		require.NoError(t, r.flows.SetUnmasqueraded([]netip.Prefix{host(o.side)}))
		r.expect(fromBlue, ask(o.side), intoHost(ask(o.side), flow(o.side)), "and may: the stack's")
		require.NoError(t, r.flows.SetUnmasqueraded(nil))
	}
	require.NoError(t, r.dp.SetNodeAddrs(o.node, o.node2))
	frame := udp(f.blue, o.node2, 5000, 53)
	r.expect(fromBlue, frame, intoHost(frame, "+"+tupleOf(conntrack.UDP, f.blue, 5000, o.node2, 53)))
	r.unroute(netip.PrefixFrom(zeroOf(o.node), 0))
	r.expect(fromBlue, udp(f.blue, f.world, 5000, 53), dropped("no route"), "no route at all")
	// On the uplink's own link there is no router between.
	near := o.router.Next()
	w := outBy(udp(o.node, near, 5000, 53), upIfindex, near, "+"+tupleOf(conntrack.UDP, f.blue, 5000, near, 53))
	r.expect(fromBlue, udp(f.blue, near, 5000, 53), w)
	for _, dst := range []netip.Addr{f.world, near} {
		require.Equal(t, verdictDrop, r.inject(fromBlue, udp(f.blue, dst, 1000, 8472)).verdict, "the overlay port")
		require.Equal(t, verdictDrop, r.inject(fromBlue, udp(f.blue, dst, 8472, 1000)).verdict, "the overlay port")
	}
}

// Without masquerade endpoints leave as themselves, and what has no route is the
// stack's to refuse.
func TestWaysOutWithoutMasquerade(t *testing.T) {
	t.Parallel()
	for name, nat := range map[string]*conntrack.NAT{"no NAT": nil, "NAT for services": {}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := func(*testing.T) rigConfig { return rigConfig{flows: conntrack.Config{NAT: nat}, routeAge: time.Hour} }
			eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
				for _, d := range dialogues(f) {
					flow := func(dst netip.Addr) string { return "+" + tupleOf(d.proto, f.blue, 5000, dst, d.dport) }
					ask := func(dst netip.Addr) []byte { return d.frame(0, f.blue, dst, 5000, d.dport) }
					r.expect(fromBlue, ask(f.world), outBy(ask(f.world), upIfindex, o.router, flow(f.world)))
					answer := d.frame(1, f.world, f.blue, d.dport, 5000)
					r.expect(fromUp, answer, intoBlue(answer, "~"+flow(f.world)[1:]))
					r.expect(fromBlue, ask(o.side), intoHost(ask(o.side), flow(o.side)))
					r.expect(fromBlue, ask(o.node2), intoHost(ask(o.node2), flow(o.node2)), "not told, and the stack knows it")
					for kind, dst := range o.nowhere {
						r.expect(fromBlue, ask(dst), dropped("no route"), kind)
					}
				}
				r.unroute(netip.PrefixFrom(zeroOf(o.node), 0))
				frame := udp(f.blue, o.other, 5000, 53)
				r.expect(fromBlue, frame, intoHost(frame, "+"+tupleOf(conntrack.UDP, f.blue, 5000, o.other, 53)), "no route: the stack says so")
			})
		})
	}
}

// The stack routes: it gets all that leaves, as it came.
func TestStackRouting(t *testing.T) {
	t.Parallel()
	cfg := func(*testing.T) rigConfig { return rigConfig{stackRouting: true} }
	eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
		for _, d := range dialogues(f) {
			for _, dst := range []netip.Addr{f.world, o.side, o.node, o.nowhere["blackhole"]} {
				ask := d.frame(0, f.blue, dst, 5000, d.dport)
				flow := tupleOf(d.proto, f.blue, 5000, dst, d.dport)
				r.expect(fromBlue, ask, intoHost(ask, "+"+flow))
			}
			// The answer comes by the stack too: what counts connections there sees both sides.
			answer := d.frame(1, f.world, f.blue, d.dport, 5000)
			r.left(fromUp, answer)
			r.expect(fromHost, answer, intoBlue(answer, "~"+tupleOf(d.proto, f.blue, 5000, f.world, d.dport)).unhopped(answer))
		}
	})
}

// The way of a masqueraded flow changes to one where the node's address has no
// business: it begins anew as itself.
func testMasqueradedFlowGoesAnotherWay(t *testing.T, r *rig, f family, _ outside) {
	green, err := r.endpoints.Lookup(f.green)
	require.NoError(t, err)
	moved := green
	moved.Addrs = []netip.Addr{f.world}
	for name, way := range map[string]struct {
		there, back func() error
		want        func(frame []byte, flows ...string) want
	}{
		"to the host": {
			func() error {
				r.route("", host(f.world), sideIfindex, netip.Addr{})
				return r.flows.SetUnmasqueraded([]netip.Prefix{host(f.world)})
			},
			func() error { r.unroute(host(f.world)); return r.dp.Bump() },
			intoHost,
		},
		"to a peer": {
			func() error { return r.peers.Set(tunnel.Peer{Prefix: host(f.world), Node: redNode}) },
			func() error { return r.peers.Delete(host(f.world)) },
			func(frame []byte, flows ...string) want { return intoOverlay(frame, blueIdentity, flows...) },
		},
		"to the node": {
			func() error { return r.dp.SetNodeAddrs(f.world) },
			func() error { return r.dp.SetNodeAddrs() },
			intoHost,
		},
		"to an endpoint": {
			func() error { return r.endpoints.Set(moved) },
			func() error { return r.endpoints.Set(green) },
			intoGreen,
		},
		"without an uplink": {
			func() error {
				return errors.Join(r.dp.DetachDevice(link{upIfindex}), r.flows.SetUnmasqueraded([]netip.Prefix{host(f.world)}))
			},
			func() error { return nil },
			intoHost,
		},
	} {
		t.Run(name, func(t *testing.T) {
			r.as(t)
			r.reset()
			all := dialogues(f)
			for _, d := range all {
				mapped(t, r.inject(fromBlue, d.frame(0, f.blue, f.world, 5000, d.dport)))
				mapped(t, r.inject(fromUp, d.frame(1, f.world, outsides[f.name].node, d.dport, 5000)))
			}
			require.NoError(t, way.there())
			defer func() { require.NoError(t, way.back()) }()
			for _, d := range all {
				frame := d.frame(2, f.blue, f.world, 5000, d.dport)
				flow := tupleOf(d.proto, f.blue, 5000, f.world, d.dport)
				r.expect(fromBlue, frame, way.want(frame, "~"+flow).with("created", "reused"), d.name)
			}
			require.Zero(t, r.hints(), "the ports have been given back")
		})
	}
}

// A change of the routes is noticed when the verdict's time is up, and at once if
// it is told.
func TestRouteAge(t *testing.T) {
	t.Parallel()
	const age = 50 * time.Millisecond
	for name, row := range map[string]struct {
		age  time.Duration
		wait func(r *rig)
	}{
		"in time": {age, func(*rig) { time.Sleep(age + 30*time.Millisecond) }},
		"told":    {time.Hour, func(r *rig) { require.NoError(r.t, r.dp.Bump()) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := func(*testing.T) rigConfig { c := masquerading(); c.routeAge = row.age; return c }
			eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
				r.attachUplink(up2Ifindex, "up2")
				all := dialogues(f)
				for _, d := range all {
					for step := range 4 {
						if step%2 == 0 {
							require.Equal(t, o.node, mapped(t, r.inject(fromBlue, d.frame(step, f.blue, f.world, 5000, d.dport))).Addr())
						} else {
							mapped(t, r.inject(fromUp, d.frame(step, f.world, o.node, d.dport, 5000)))
						}
					}
				}
				r.route("", host(f.world), up2Ifindex, o.router2)
				if row.age > time.Minute {
					for _, d := range all {
						frame := d.frame(4, f.blue, f.world, 5000, d.dport)
						w := outBy(d.frame(4, o.node, f.world, 5000, d.dport), upIfindex, o.router, "~"+tupleOf(d.proto, f.blue, 5000, f.world, d.dport))
						r.expect(fromBlue, frame, w, "nobody has said so")
					}
				}
				row.wait(r)
				for _, d := range all {
					frame := d.frame(4, f.blue, f.world, 5000, d.dport)
					w := outBy(d.frame(4, o.node2, f.world, 5000, d.dport), up2Ifindex, o.router2, "~"+tupleOf(d.proto, f.blue, 5000, f.world, d.dport))
					r.expect(fromBlue, frame, w.with("created", "reused"), d.name)
					r.left(fromUp, d.frame(3, f.world, o.node, d.dport, 5000))
				}
				// A route that has gone is noticed likewise.
				r.unroute(host(f.world))
				r.unroute(netip.PrefixFrom(zeroOf(o.node), 0))
				row.wait(r)
				for _, d := range all {
					r.expect(fromBlue, d.frame(4, f.blue, f.world, 5000, d.dport), dropped("no route"), d.name)
				}
			})
		})
	}
}

// An answer may come in by another uplink than its question has left by.
func testAnswersByAnotherUplink(t *testing.T, r *rig, f family, o outside) {
	r.attachUplink(up2Ifindex, "up2")
	for _, d := range dialogues(f) {
		flow := tupleOf(d.proto, f.blue, 5000, f.world, d.dport)
		mapped(t, r.inject(fromBlue, d.frame(0, f.blue, f.world, 5000, d.dport)))
		for _, p := range []port{fromUp2, fromUp, fromUp2} {
			r.expect(p, d.frame(3, f.world, o.node, d.dport, 5000), intoBlue(d.frame(3, f.world, f.blue, d.dport, 5000), "~"+flow), d.name)
		}
	}
}

// The gateway says what does not fit the uplink, and what has come to its end.
func testMasqueradeRefuses(t *testing.T, r *rig, f family, o outside) {
	back := hop{ifindex: blueIfindex, peer: true}
	for name, frame := range ofSize(f.blue, f.world, upMTU) {
		w := want{verdict: rediret, frame: tooBig(frame, upMTU), counted: "drop too big", sent: back}
		require.NoError(t, packet.Check(r.expect(fromBlue, frame, w, name).frame))
		expired := withTTL(frame, 1)
		w = want{verdict: rediret, frame: timeExceeded(expired), counted: "drop ttl exceeded", sent: back}
		r.expect(fromBlue, expired, w, name)
	}
	require.Zero(t, r.hints(), "no flow, no port")
	// Segments are judged one by one.
	gso := fromBlue
	gso.gso = 1000
	big := tcp(f.blue, f.world, 5000, 80, packet.SYN, packet.Sized(3000)...)
	got := r.inject(gso, big)
	require.Equal(t, hop{ifindex: upIfindex, neigh: true, via: o.router}, got.sent)
	require.Len(t, got.frame, len(big))
}

// What has to go in pieces is left to the stack, with the node's address already
// on it. The stack counts the hop.
func TestMasqueradeInPieces(t *testing.T) {
	t.Parallel()
	r := newUplinkRig(t, masquerading())
	o, f := outsides["IPv4"], families[0]
	for _, step := range []string{"+", "~"} {
		ask := udp(f.blue, f.world, 5000, 53, packet.Sized(upMTU)...)
		w := intoHost(udp(o.node, f.world, 5000, 53, packet.Sized(upMTU)...), step+tupleOf(conntrack.UDP, f.blue, 5000, f.world, 53))
		w.counted = "to device"
		require.NoError(t, packet.Check(r.expect(fromBlue, ask, w).frame))
	}
}
