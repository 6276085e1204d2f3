// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/tunnel"
)

// dialogueOf is the one of a protocol.
func dialogueOf(f family, name string) dialogue {
	for _, d := range dialogues(f) {
		if d.name == name {
			return d
		}
	}
	panic("no dialogue " + name)
}

// A flow keeps its port if the node may give it and nobody has it; else it gets
// another one of the range, and its packets are translated both ways.
func TestPortOfANewFlow(t *testing.T) {
	t.Parallel()
	const first, last = 2000, 2999
	cfg := func(*testing.T) rigConfig { return withPorts(first, last) }
	eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
		for _, d := range dialogues(f) {
			moves := d.name == "TCP" || d.name == "UDP" // an identifier is nobody's, the port of SCTP can not be changed
			for _, sport := range []uint16{first, first + 1, last, first - 1, last + 1, 1, 22, 65535} {
				t.Run(fmt.Sprintf("%s from %d", d.name, sport), func(t *testing.T) {
					r.as(t)
					before := r.nat()
					flow := tupleOf(d.proto, f.blue, sport, f.world, d.dport)
					var as netip.AddrPort
					for step := range 6 {
						if step%2 == 0 {
							got := r.send(fromBlue, d.frame(step, f.blue, f.world, sport, d.dport))
							now := mapped(t, got)
							if step > 0 {
								require.Equal(t, as, now, "step %d", step)
							}
							as = now
							require.Equal(t, hopped(d.frame(step, o.node, f.world, as.Port(), d.dport)), got.frame)
							require.Equal(t, hop{ifindex: upIfindex, neigh: true, via: o.router}, got.sent)
						} else {
							in := d.frame(step, f.world, o.node, d.dport, as.Port())
							r.expect(fromUp, in, intoBlue(d.frame(step, f.world, f.blue, d.dport, sport), "~"+flow), "step %d", step)
						}
					}
					require.Equal(t, o.node, as.Addr())
					after := r.nat()
					if inside := sport >= first && sport <= last; inside || !moves {
						require.Equal(t, sport, as.Port())
						require.Equal(t, before.Kept+1, after.Kept)
						require.Equal(t, before.Found, after.Found)
					} else {
						require.True(t, as.Port() >= first && as.Port() <= last, "port %d", as.Port())
						require.Equal(t, before.Kept, after.Kept)
						require.Equal(t, before.Found+1, after.Found)
					}
				})
			}
		}
		use, err := r.flows.PortUse()
		require.NoError(t, err)
		require.Len(t, use, 4, "one destination of each protocol")
		for _, u := range use {
			require.Equal(t, o.node, u.Source)
			require.Equal(t, f.world, u.Destination.Addr())
			require.Equal(t, 8, u.Ports)
		}
	})
}

// Two endpoints ask the same from the same port: the second gets another one, but
// of SCTP, whose port must stay.
func TestPortThatAnotherHas(t *testing.T) {
	t.Parallel()
	cfg := func(*testing.T) rigConfig { return withPorts(5000, 5063) }
	eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
		for _, d := range dialogues(f) {
			t.Run(d.name, func(t *testing.T) {
				r.as(t)
				const sport = 5000
				require.Equal(t, netip.AddrPortFrom(o.node, sport), mapped(t, r.inject(fromBlue, d.frame(0, f.blue, f.world, sport, d.dport))))
				ask := d.frame(0, f.green, f.world, sport, d.dport)
				flow := tupleOf(d.proto, f.green, sport, f.world, d.dport)
				if d.name == "SCTP" {
					r.expect(fromGreen, ask, dropped("no port"))
					return
				}
				got := r.send(fromGreen, ask)
				as := mapped(t, got)
				require.Equal(t, []string{"+" + flow}, got.flows)
				require.Equal(t, o.node, as.Addr())
				require.NotEqual(t, uint16(sport), as.Port())
				for range 2 {
					r.expect(fromUp, d.frame(1, f.world, o.node, d.dport, as.Port()), intoGreen(d.frame(1, f.world, f.green, d.dport, sport), "~"+flow))
					r.expect(fromUp, d.frame(1, f.world, o.node, d.dport, sport),
						intoBlue(d.frame(1, f.world, f.blue, d.dport, sport), "~"+tupleOf(d.proto, f.blue, sport, f.world, d.dport)))
				}
				// To another destination the port is free, also of another protocol.
				require.Equal(t, netip.AddrPortFrom(o.node, sport), mapped(t, r.inject(fromGreen, d.frame(0, f.green, o.other, sport, d.dport))))
			})
		}
	})
}

// What the node itself has at a port is not to be taken for an answer.
func TestReservedPorts(t *testing.T) {
	t.Parallel()
	const first, last = 30000, 30063
	cfg := func(t *testing.T) rigConfig { return translating(t, withPorts(first, last)) }
	eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
		require.NoError(t, r.services().SetService(lb.Service{
			Name: "web", Backends: []lb.Backend{{Addr: netip.AddrPortFrom(f.green, 8080)}},
			Frontends: []lb.Frontend{
				{Addr: netip.AddrPortFrom(zeroOf(o.node), 30001), Type: lb.NodePort},
				{Addr: netip.AddrPortFrom(zeroOf(o.node), 30002), Type: lb.NodePort, Protocol: lb.UDP},
			},
		}))
		r.listenTCP(netip.AddrPortFrom(zeroOf(o.node), 30003))
		r.listenTCP(netip.AddrPortFrom(o.node, 30004))
		r.listenTCP(netip.AddrPortFrom(o.node2, 30005)) // of the other uplink
		r.listenUDP(netip.AddrPortFrom(zeroOf(o.node), 30006), netip.AddrPort{})
		r.listenUDP(netip.AddrPortFrom(o.node, 30007), netip.AddrPortFrom(f.world, 53)) // connected
		r.listenUDP(netip.AddrPortFrom(o.node, 30008), netip.AddrPortFrom(o.other, 53))

		taken := map[string][]uint16{"TCP": {30001, 30003, 30004}, "UDP": {30002, 30006, 30007}}
		for _, name := range []string{"TCP", "UDP"} {
			d := dialogueOf(f, name)
			order := append([]uint16{30000, 30001, 30002, 30003, 30004, 30005, 30006, 30007, 30008}, taken[name]...)
			for i, sport := range order {
				if (i < 9) == slices.Contains(taken[name], sport) {
					continue // the free ones first: whoever is moved must not come before them
				}
				as := mapped(t, r.inject(fromBlue, d.frame(0, f.blue, f.world, sport, d.dport)))
				require.Equal(t, slices.Contains(taken[name], sport), as.Port() != sport, "%s %d", name, sport)
				require.NotContains(t, taken[name], as.Port(), "%s %d", name, sport)
			}
			// All others are given away, and none of these.
			seen := map[uint16]bool{}
			for i := range uint16(64 - 9 - 9) {
				as := mapped(t, r.inject(fromBlue, d.frame(0, f.blue, f.world, 40000+i, d.dport)))
				require.NotContains(t, taken[name], as.Port())
				require.False(t, seen[as.Port()], "twice")
				seen[as.Port()] = true
			}
		}
	})
}

// The overlay's port is no flow's, wherever the range is.
func TestOverlayPortIsReserved(t *testing.T) {
	t.Parallel()
	for name, noPeers := range map[string]bool{"overlay": false, "native": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := func(*testing.T) rigConfig {
				c := withPorts(tunnel.DefaultPort, tunnel.DefaultPort)
				c.noPeers = noPeers
				return c
			}
			eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
				ask := udp(f.blue, f.world, 1000, 53)
				if noPeers {
					require.EqualValues(t, tunnel.DefaultPort, mapped(t, r.inject(fromBlue, ask)).Port())
				} else {
					r.expect(fromBlue, ask, dropped("no port"))
				}
				require.EqualValues(t, tunnel.DefaultPort, mapped(t, r.inject(fromBlue, tcp(f.blue, f.world, 1000, 80, packet.SYN))).Port(), "TCP has no overlay")
			})
		})
	}
}

// A range of one port: one flow to a destination, and as many as there are
// destinations. When the flow has gone, however it went, the port is free.
func TestRangeOfOne(t *testing.T) {
	t.Parallel()
	const only = 4444
	cfg := func(*testing.T) rigConfig {
		c := withPorts(only, only)
		c.flows.Flows, c.flows.Unconfirmed = 64, 8
		c.flows.Timeouts = conntrack.Timeouts{TCPNew: time.Millisecond, TCPClosing: time.Millisecond, UDPNew: time.Millisecond, ICMP: time.Millisecond}
		return c
	}
	eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
		expire := func() {
			t.Helper()
			time.Sleep(20 * time.Millisecond)
			_, err := r.flows.Expire()
			require.NoError(t, err)
		}
		for _, name := range []string{"TCP", "UDP"} {
			d := dialogueOf(f, name)
			t.Run(name, func(t *testing.T) {
				r.as(t)
				first, second := d.frame(0, f.blue, f.world, 1000, d.dport), d.frame(0, f.green, f.world, 1000, d.dport)
				flow := tupleOf(d.proto, f.blue, 1000, f.world, d.dport)
				before := r.nat()
				take := func(p port, frame []byte, msg string) {
					t.Helper()
					got := r.inject(p, frame)
					require.Equal(t, netip.AddrPortFrom(o.node, only), mapped(t, got), msg)
					require.Equal(t, 1, r.hints(), msg)
				}
				take(fromBlue, first, "the first")
				for i := range uint64(3) {
					r.expect(fromGreen, second, dropped("no port"))
					require.Equal(t, before.Exhausted+i+1, r.nat().Exhausted)
				}
				as := mapped(t, r.inject(fromGreen, d.frame(0, f.green, o.other, 1000, d.dport)))
				require.EqualValues(t, only, as.Port(), "another destination")
				r.expect(fromBlue, first, outBy(d.frame(0, o.node, f.world, only, d.dport), upIfindex, o.router, "~"+flow), "the first has its port still")
				require.Equal(t, before.Found+2, r.nat().Found)

				expire()
				require.Empty(t, r.flowList())
				require.Zero(t, r.hints(), "expired")
				take(fromGreen, second, "after the first has expired")

				_, err := r.flows.Flush(conntrack.Filter{})
				require.NoError(t, err)
				require.Equal(t, 1, r.hints(), "Go tells nobody")
				take(fromBlue, first, "after a flush")
				r.expect(fromGreen, second, dropped("no port"))

				// Pushed out by others that are unconfirmed.
				for i := range uint16(8) {
					require.Equal(t, rediret, r.inject(fromBlue, udp(f.blue, f.green, 2000+i, 99)).verdict)
				}
				_, ok := r.flow(d.proto, f.blue, 1000, f.world, d.dport)
				require.False(t, ok)
				require.Zero(t, r.hints(), "pushed out")
				take(fromGreen, second, "after that")
				expire()
				require.Zero(t, r.hints())
			})
		}
		t.Run("a connection that ends", func(t *testing.T) {
			r.as(t)
			closed := 0
			open := func(p port, src netip.Addr, sport uint16) {
				t.Helper()
				for _, x := range []struct {
					from  port
					frame []byte
				}{
					{p, tcp(src, f.world, sport, 80, packet.SYN)},
					{fromUp, tcp(f.world, o.node, 80, only, packet.SYN|packet.ACK)},
					{p, tcp(src, f.world, sport, 80, packet.ACK)},
				} {
					got := r.inject(x.from, x.frame)
					require.Equal(t, rediret, got.verdict, "%v", got.counted)
				}
			}
			end := func(p port, src netip.Addr, sport uint16) {
				t.Helper()
				require.Equal(t, rediret, r.inject(p, tcp(src, f.world, sport, 80, packet.FIN|packet.ACK)).verdict)
				require.Equal(t, rediret, r.inject(fromUp, tcp(f.world, o.node, 80, only, packet.FIN|packet.ACK)).verdict)
				closed++
			}
			open(fromBlue, f.blue, 1000)
			require.Equal(t, verdictDrop, r.inject(fromGreen, tcp(f.green, f.world, 1000, 80, packet.SYN)).verdict)
			end(fromBlue, f.blue, 1000)
			require.Equal(t, 1, r.hints(), "its last packets may still come")
			expire()
			require.Zero(t, r.hints())
			open(fromGreen, f.green, 1001)
			// The same connection again, from the same port.
			end(fromGreen, f.green, 1001)
			open(fromGreen, f.green, 1001)
			require.Equal(t, 1, r.hints())
			require.Equal(t, 2, closed)
		})
	})
}

// One for whom there is no port changes nothing of those who have one.
func TestNoPortTouchesNobody(t *testing.T) {
	t.Parallel()
	const first, last = 4444, 4447
	cfg := func(*testing.T) rigConfig { return withPorts(first, last) }
	eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
		for _, name := range []string{"TCP", "UDP"} {
			d := dialogueOf(f, name)
			for sport := uint16(first); sport <= last; sport++ {
				for step := range 3 {
					if step%2 == 0 {
						mapped(t, r.inject(fromBlue, d.frame(step, f.blue, f.world, sport, d.dport)))
					} else {
						mapped(t, r.inject(fromUp, d.frame(step, f.world, o.node, d.dport, sport)))
					}
				}
			}
			for i := range uint16(8) {
				r.expect(fromGreen, d.frame(0, f.green, f.world, 1000+i, d.dport), dropped("no port"), name)
			}
		}
	})
}

// Hints that nobody has told of the flows that have gone: a port is found all the
// same.
func TestStaleHintsHeal(t *testing.T) {
	t.Parallel()
	const first, count = 8192, 256
	cfg := func(*testing.T) rigConfig {
		c := withPorts(first, first+count-1)
		c.flows.Flows, c.flows.Unconfirmed = 1024, 512
		return c
	}
	eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
		var frames [][]byte
		for i := range uint16(count) {
			frames = append(frames, udp(f.blue, f.world, first+i, 53))
		}
		for round := range 3 {
			for _, got := range r.injectAll(fromBlue, frames) {
				mapped(t, got)
			}
			require.Equal(t, count, r.hints(), "round %d", round)
			require.Equal(t, verdictDrop, r.inject(fromGreen, udp(f.green, f.world, 1, 53)).verdict)
			// All have gone and none of the hints.
			n, err := r.flows.Flush(conntrack.Filter{})
			require.NoError(t, err)
			require.Equal(t, count, n)
			before := r.nat()
			var others [][]byte
			for i := range uint16(count / 2) {
				others = append(others, udp(f.green, f.world, 1+i, 53))
			}
			seen := map[uint16]bool{}
			for _, got := range r.injectAll(fromGreen, others) {
				as := mapped(t, got)
				require.False(t, seen[as.Port()])
				seen[as.Port()] = true
			}
			require.Equal(t, before.Exhausted, r.nat().Exhausted)
			_, err = r.flows.Flush(conntrack.Filter{})
			require.NoError(t, err)
		}
	})
}

// 95% of the ports to a destination are taken, at random places: the median search
// tries fewer than ten, and none more than 128.
func TestSearchIsShort(t *testing.T) {
	t.Parallel()
	const first, count, filled = 16384, 2048, count95
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	cfg := func(*testing.T) rigConfig {
		c := withPorts(first, first+count-1)
		c.flows.Flows, c.flows.Unconfirmed = 8192, 4096
		return c
	}
	eachUplink(t, cfg, func(t *testing.T, r *rig, f family, _ outside) {
		for name, reuse := range map[string]bool{"fresh": false, "with gaps": true} {
			t.Run(name, func(t *testing.T) {
				r.as(t)
				r.reset()
				rnd := rand.New(rand.NewPCG(seed, 1))
				ports := rnd.Perm(count)
				var frames [][]byte
				for _, p := range ports[:filled] {
					frames = append(frames, udp(f.blue, f.world, uint16(first+p), 53))
				}
				taken := map[uint16]bool{}
				for _, got := range r.injectAll(fromBlue, frames) {
					taken[mapped(t, got).Port()] = true
				}
				require.Len(t, taken, filled)
				require.EqualValues(t, filled, r.nat().Kept)
				if reuse {
					// The hints know nothing of what Go takes away, and take what is left for all.
					for _, p := range ports[filled:] {
						frame := udp(f.blue, f.world, uint16(first+p), 53)
						mapped(t, r.inject(fromBlue, frame))
					}
					require.Equal(t, count, r.hints())
					for _, p := range ports[filled:] {
						_, err := r.flows.Flush(conntrack.Filter{
							Src: host(f.blue), SrcPort: uint16(first + p),
						})
						require.NoError(t, err)
					}
				}
				const more = (count - filled) * 3 / 4
				frames = nil
				for i := range uint16(more) {
					frames = append(frames, udp(f.green, f.world, 1+i, 53))
				}
				lost := 0
				for _, got := range r.injectAll(fromGreen, frames) {
					if got.verdict == verdictDrop {
						lost++
						continue
					}
					p := mapped(t, got).Port()
					require.False(t, taken[p])
					taken[p] = true
				}
				s := r.nat()
				t.Logf("tries %v, exhausted %d", s.Tries, s.Exhausted)
				require.EqualValues(t, lost, s.Exhausted)
				if reuse {
					// The first searches clean up for those that follow.
					require.Less(t, lost, more/7)
					return
				}
				require.Zero(t, lost)
				require.EqualValues(t, more, s.Found)
				require.Len(t, s.Tries, 8, "1 to 128")
				var all uint64
				for _, n := range s.Tries {
					all += n
				}
				require.Equal(t, s.Found, all, "none took more than 128")
				require.Greater(t, 2*(s.Tries[0]+s.Tries[1]+s.Tries[2]), s.Found, "the median is below 8")
			})
		}
	})
}

const count95 = 2048 * 95 / 100

// listenTCP has a socket of the node listen until the test ends.
func (r *rig) listenTCP(at netip.AddrPort) {
	r.t.Helper()
	require.NoError(r.t, r.ns.Do(func() error {
		var c net.ListenConfig
		l, err := c.Listen(context.Background(), networkOf("tcp", at), at.String())
		if err == nil {
			r.owner.Cleanup(func() { l.Close() })
		}
		return err
	}))
}

// listenUDP is the same for datagrams; to is valid if they are from there only.
func (r *rig) listenUDP(at, to netip.AddrPort) {
	r.t.Helper()
	require.NoError(r.t, r.ns.Do(func() error {
		local := net.UDPAddrFromAddrPort(at)
		var c *net.UDPConn
		var err error
		if to.IsValid() {
			c, err = net.DialUDP(networkOf("udp", at), local, net.UDPAddrFromAddrPort(to))
		} else {
			c, err = net.ListenUDP(networkOf("udp", at), local)
		}
		if err == nil {
			r.owner.Cleanup(func() { c.Close() })
		}
		return err
	}))
}

func networkOf(name string, at netip.AddrPort) string {
	if at.Addr().Is4() {
		return name + "4"
	}
	return name + "6"
}
