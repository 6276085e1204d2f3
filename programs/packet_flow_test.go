// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/packet"
)

// talk is a conversation from blue (">") with red ("<"), packet by packet, and
// the state of its flow after each.
type talk struct {
	r     *rig
	f     family
	proto conntrack.Protocol
	sport uint16
	dport uint16
	frame func(forth bool, what uint8) []byte
	seen  int
}

func (c *talk) say(line string, what uint8, state conntrack.State, events ...string) {
	c.r.t.Helper()
	key := tupleOf(c.proto, c.f.blue, c.sport, c.f.red, c.dport)
	forth := line[0] == '>'
	frame := c.frame(forth, what)
	p, w := fromRed, intoBlue(frame, "~"+key)
	if forth {
		p, w = fromBlue, intoOverlay(frame, blueIdentity, "~"+key)
	}
	if c.seen == 0 {
		w.flows = []string{"+" + key}
	}
	c.seen++
	c.r.expect(p, frame, w.with(events...), "%s (packet %d)", line, c.seen)
	have, ok := c.r.flow(c.proto, c.f.blue, c.sport, c.f.red, c.dport)
	require.True(c.r.t, ok)
	require.Equal(c.r.t, state, have.State, "%s (packet %d)", line, c.seen)
	// Both directions lead to the same flow.
	back, ok := c.r.flow(c.proto, c.f.red, c.dport, c.f.blue, c.sport)
	require.True(c.r.t, ok)
	require.Equal(c.r.t, have.Original, back.Original)
}

func tcpTalk(r *rig, f family, sport uint16) *talk {
	return &talk{r: r, f: f, proto: conntrack.TCP, sport: sport, dport: 80, frame: func(forth bool, flags uint8) []byte {
		if forth {
			return tcp(f.blue, f.red, sport, 80, flags)
		}
		return tcp(f.red, f.blue, 80, sport, flags)
	}}
}

const (
	fresh       = conntrack.StateNew
	established = conntrack.StateEstablished
	closing     = conntrack.StateClosing
)

func (c *talk) handshake() *talk {
	c.r.t.Helper()
	c.say("> SYN", packet.SYN, fresh, "created")
	c.say("< SYN ACK", packet.SYN|packet.ACK, fresh)
	c.say("> ACK", packet.ACK, established, "confirmations")
	return c
}

func TestTCPStates(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		const syn, ack, fin, rst, psh = packet.SYN, packet.ACK, packet.FIN, packet.RST, packet.PSH
		port := uint16(1000)
		run := func(name string, fn func(c *talk)) {
			t.Run(name, func(t *testing.T) {
				r.as(t)
				port++
				fn(tcpTalk(r, f, port))
			})
		}
		run("established with the third packet", func(c *talk) {
			c.handshake()
			c.say("< data", ack|psh, established)
			c.say("> data", ack|psh, established)
			c.say("< data", ack|psh, established)
		})
		run("not by the opening alone", func(c *talk) {
			c.say("> SYN", syn, fresh, "created")
			c.say("> SYN", syn, fresh)
			c.say("> ACK", ack, fresh)
			c.say("> data", ack|psh, fresh)
		})
		run("an opening sent again", func(c *talk) {
			c.say("> SYN", syn, fresh, "created")
			c.say("> SYN", syn, fresh)
			c.say("< SYN ACK", syn|ack, fresh)
			c.say("> ACK", ack, established, "confirmations")
		})
		run("an opening sent again that crosses its answer", func(c *talk) {
			c.say("> SYN", syn, fresh, "created")
			c.say("< SYN ACK", syn|ack, fresh)
			c.say("> SYN", syn, fresh)
			c.say("> ACK", ack, established, "confirmations")
		})
		run("an answer sent again", func(c *talk) {
			c.say("> SYN", syn, fresh, "created")
			c.say("< SYN ACK", syn|ack, fresh)
			c.say("< SYN ACK", syn|ack, fresh)
			c.say("> ACK", ack, established, "confirmations")
			c.say("< SYN ACK", syn|ack, established)
		})
		run("both open at once", func(c *talk) {
			c.say("> SYN", syn, fresh, "created")
			c.say("< SYN", syn, fresh)
			c.say("> SYN ACK", syn|ack, fresh)
			c.say("< SYN ACK", syn|ack, fresh)
			c.say("> ACK", ack, established, "confirmations")
			c.say("< ACK", ack, established)
		})
		run("FIN from both sides", func(c *talk) {
			c.handshake()
			c.say("> FIN", fin|ack, established)
			c.say("< ACK", ack, established)
			c.say("< data", ack|psh, established)
			c.say("< FIN", fin|ack, closing)
			c.say("> ACK", ack, closing)
		})
		run("FIN from the other side first", func(c *talk) {
			c.handshake()
			c.say("< FIN", fin|ack, established)
			c.say("> FIN", fin|ack, closing)
			c.say("< ACK", ack, closing)
		})
		run("RST", func(c *talk) {
			c.handshake()
			c.say("> RST", rst, closing)
		})
		run("RST from the other side", func(c *talk) {
			c.handshake()
			c.say("< RST", rst|ack, closing)
		})
		run("refused", func(c *talk) {
			c.say("> SYN", syn, fresh, "created")
			c.say("< RST", rst|ack, closing)
			c.say("> SYN", syn, fresh, "reused", "created")
			c.say("< SYN ACK", syn|ack, fresh)
			c.say("> ACK", ack, established, "confirmations")
		})
		run("a SYN on a closing tuple starts anew", func(c *talk) {
			c.handshake()
			c.say("> FIN", fin|ack, established)
			c.say("< FIN", fin|ack, closing)
			c.say("> SYN", syn, fresh, "reused", "created")
			have, _ := r.flow(conntrack.TCP, f.blue, c.sport, f.red, 80)
			require.Equal(r.t, uint64(1), have.Sent.Packets)
			require.Equal(r.t, uint64(0), have.Received.Packets)
			c.say("< SYN ACK", syn|ack, fresh)
			c.say("> ACK", ack, established, "confirmations")
		})
		run("a SYN on an established one does not", func(c *talk) {
			c.handshake()
			c.say("> SYN", syn, established)
			c.say("< SYN", syn, established)
			c.say("> FIN", fin|ack, established)
			c.say("> SYN", syn, established)
			have, _ := r.flow(conntrack.TCP, f.blue, c.sport, f.red, 80)
			require.Equal(r.t, uint64(5), have.Sent.Packets)
		})
		run("met in the middle", func(c *talk) {
			c.say("> data", ack|psh, fresh, "created")
			c.say("< data", ack|psh, fresh)
			c.say("> data", ack|psh, established, "confirmations")
		})
		// The roles change: the side that answered starts anew.
		c := tcpTalk(r, f, 900).handshake()
		c.say("< RST", rst, closing)
		back := tcp(f.red, f.blue, 80, 900, syn)
		r.expect(fromRed, back, intoBlue(back, "-"+tupleOf(conntrack.TCP, f.blue, 900, f.red, 80), "+"+tupleOf(conntrack.TCP, f.red, 80, f.blue, 900)).with("reused"))
	})
}

func TestUDPStates(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		c := &talk{r: r, f: f, proto: conntrack.UDP, sport: 1000, dport: 53, frame: func(forth bool, _ uint8) []byte {
			if forth {
				return udp(f.blue, f.red, 1000, 53, 'q')
			}
			return udp(f.red, f.blue, 53, 1000, 'a')
		}}
		c.say("> question", 0, fresh, "created")
		c.say("> question", 0, fresh)
		c.say("< answer", 0, fresh)
		c.say("< answer", 0, fresh)
		c.say("> question", 0, established, "confirmations")
		c.say("< answer", 0, established)
		c.say("> question", 0, established)
	})
}

func TestEchoStates(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		c := &talk{r: r, f: f, proto: f.icmp, sport: 77, frame: func(forth bool, _ uint8) []byte {
			if forth {
				return echo(f.blue, f.red, 77)
			}
			return echoReply(f.red, f.blue, 77)
		}}
		c.say("> request", 0, fresh, "created")
		c.say("< reply", 0, fresh)
		// An echo is over with its reply: a second one confirms nothing, else pings
		// could fill the table with what no flood may push out.
		c.say("> request", 0, fresh)
		c.say("< reply", 0, fresh)
		// The other side's pings with the same identifier are another flow.
		back := echo(f.red, f.blue, 77)
		r.expect(fromRed, back, intoBlue(back, "+"+tupleOf(f.icmp, f.red, 77, f.blue, 0)))
		// Other messages are no conversation.
		for _, typ := range []uint8{4, 5, 9, 10, 13, 17, 200} {
			var m packet.Layer = packet.ICMPv4{Type: typ}
			if f.blue.Is6() {
				m = packet.ICMPv6{Type: map[bool]uint8{true: 200, false: 130 + typ%4}[typ == 200]}
			}
			r.expect(fromBlue, build(f.blue, f.red, m, packet.Sized(40)), dropped("icmp unsupported"), "type %d", typ)
		}
	})
}

func TestSCTPStates(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		conversation := func(sport uint16) *talk {
			return &talk{r: r, f: f, proto: conntrack.SCTP, sport: sport, dport: 9, frame: func(forth bool, chunk uint8) []byte {
				if forth {
					return sctp(f.blue, f.red, sport, 9, chunk)
				}
				return sctp(f.red, f.blue, 9, sport, chunk)
			}}
		}
		open := func(c *talk, events ...string) {
			c.say("> INIT", packet.ChunkInit, fresh, append(events, "created")...)
			c.say("< INIT ACK", packet.ChunkInitAck, fresh)
			c.say("> COOKIE ECHO", packet.ChunkCookieEcho, established, "confirmations")
			c.say("< COOKIE ACK", packet.ChunkCookieAck, established)
			c.say("> DATA", packet.ChunkData, established)
		}
		c := conversation(1000)
		open(c)
		c.say("> SHUTDOWN", packet.ChunkShutdown, established)
		c.say("< SHUTDOWN ACK", packet.ChunkShutdownAck, established)
		c.say("> SHUTDOWN COMPLETE", packet.ChunkShutdownComplete, closing)
		open(c, "reused")
		c.say("< ABORT", packet.ChunkAbort, closing)
		c.say("> DATA", packet.ChunkData, closing)
	})
}

// A flood of openings costs others nothing but the unconfirmed.
func TestFlood(t *testing.T) {
	t.Parallel()
	const budget, flood = 16, 200
	eachFamily(t, rigConfig{flows: conntrack.Config{Flows: 64, Unconfirmed: budget}}, func(t *testing.T, r *rig, f family) {
		c := tcpTalk(r, f, 1000).handshake()
		half := tcpTalk(r, f, 1001)
		half.say("> SYN", packet.SYN, fresh, "created")
		half.say("< SYN ACK", packet.SYN|packet.ACK, fresh)
		before := r.counted()
		for i := range flood {
			got := r.inject(fromBlue, tcp(f.blue, f.red, uint16(20000+i), 80, packet.SYN))
			require.Equal(t, rediret, got.verdict)
		}
		require.Equal(t, map[string]uint64{"from endpoint: to overlay": flood}, moved(before, r.counted()))
		stats, err := r.flows.Stats()
		require.NoError(t, err)
		require.EqualValues(t, 1, stats.Established)
		require.EqualValues(t, budget, stats.New)
		require.Equal(t, 2*(budget+1), stats.Entries)
		require.EqualValues(t, flood+2, stats.Created)
		// Of the ring's slots the first is the established flow's: it is not taken.
		require.EqualValues(t, flood+2-1-budget, stats.Evicted)
		require.Empty(t, stats.InsertErrors)
		_, ok := r.flow(conntrack.TCP, f.blue, 1001, f.red, 80)
		require.False(t, ok, "half open: pushed out")
		c.say("< data", packet.ACK, established)
		c.say("> data", packet.ACK, established)
	})
}

// A full table is not the packet's fault.
func TestFlowsFull(t *testing.T) {
	t.Parallel()
	const capacity = 16
	eachFamily(t, rigConfig{flows: conntrack.Config{Flows: capacity, Unconfirmed: 4}}, func(t *testing.T, r *rig, f family) {
		for i := range capacity {
			tcpTalk(r, f, uint16(1000+i)).handshake()
		}
		for range 2 {
			frame := udp(f.blue, f.red, 5, 53)
			r.expect(fromBlue, frame, intoOverlay(frame, blueIdentity).with("full"))
			frame = udp(f.red, f.blue, 53, 5)
			r.expect(fromRed, frame, intoBlue(frame).with("full"))
			frame = echo(f.blue, f.green, 5)
			r.expect(fromBlue, frame, intoGreen(frame).with("full"))
			frame = tcp(f.blue, f.world, 5, 80, packet.SYN)
			r.expect(fromBlue, frame, intoHost(frame).with("full"))
		}
		// Datagrams in fragments too: their ports are in another table.
		pieces, err := packet.Fragment(build(f.blue, f.red, packet.UDP{SrcPort: 5, DstPort: 53}, packet.Sized(2000)), 1200, 9)
		require.NoError(t, err)
		for _, piece := range pieces {
			r.expect(fromBlue, piece, intoOverlay(piece, blueIdentity).with("full"))
		}
		// What is established goes on.
		frame := tcp(f.blue, f.red, 1000, 80, packet.ACK)
		r.expect(fromBlue, frame, intoOverlay(frame, blueIdentity, "~"+tupleOf(conntrack.TCP, f.blue, 1000, f.red, 80)))
		stats, err := r.flows.Stats()
		require.NoError(t, err)
		require.Equal(t, 2*capacity, stats.Entries)
		require.Equal(t, map[unix.Errno]uint64{unix.E2BIG: 8 + uint64(len(pieces))}, stats.InsertErrors)

		// Room for one entry is not room for a flow: none of it stays.
		m := r.flows.DatapathParts().Maps[bpf.TableMapFlows]
		require.NoError(t, m.Delete(key(f.red, 80, f.blue, 1001, unix.IPPROTO_TCP)))
		frame = udp(f.blue, f.red, 5, 53)
		r.expect(fromBlue, frame, intoOverlay(frame, blueIdentity).with("full"))
		stats, err = r.flows.Stats()
		require.NoError(t, err)
		require.Equal(t, 2*capacity-1, stats.Entries)
	})
}

// Half of a flow can be left where expiry, the budget and a packet meet. The
// next packet makes a whole one of it, and does not leave an entry for ever.
func TestHalfAFlow(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		m := r.flows.DatapathParts().Maps[bpf.TableMapFlows]
		there := key(f.blue, 1000, f.red, 80, unix.IPPROTO_TCP)
		back := key(f.red, 80, f.blue, 1000, unix.IPPROTO_TCP)
		forth := tupleOf(conntrack.TCP, f.blue, 1000, f.red, 80)
		reverse := tupleOf(conntrack.TCP, f.red, 80, f.blue, 1000)
		entries := func() int {
			stats, err := r.flows.Stats()
			require.NoError(t, err)
			return stats.Entries
		}

		// The originator's half is gone; the replying side speaks first.
		tcpTalk(r, f, 1000).handshake()
		require.NoError(t, m.Delete(there))
		require.NoError(t, r.dp.Bump(), "expiry takes the verdict away before the entry")
		frame := tcp(f.red, f.blue, 80, 1000, packet.ACK)
		r.expect(fromRed, frame, intoBlue(frame, "+"+reverse))
		require.Equal(t, 2, entries())
		frame = tcp(f.blue, f.red, 1000, 80, packet.ACK)
		r.expect(fromBlue, frame, intoOverlay(frame, blueIdentity, "~"+reverse))
		frame = tcp(f.red, f.blue, 80, 1000, packet.ACK)
		r.expect(fromRed, frame, intoBlue(frame, "~"+reverse).with("confirmations"))
		n, err := r.flows.Flush(conntrack.Filter{})
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Zero(t, entries())

		// The originator's half is gone; the originator speaks first. What the
		// old replies were is not the new flow's.
		tcpTalk(r, f, 1000).handshake()
		frame = tcp(f.red, f.blue, 80, 1000, packet.FIN|packet.RST)
		r.expect(fromRed, frame, intoBlue(frame, "~"+forth))
		require.NoError(t, m.Delete(there))
		c := tcpTalk(r, f, 1000)
		c.say("> SYN", packet.SYN, fresh, "created")
		c.say("> ACK", packet.ACK, fresh)
		c.say("< SYN ACK", packet.SYN|packet.ACK, fresh)
		c.say("> ACK", packet.ACK, established, "confirmations")
		require.Equal(t, 2, entries())

		// The reply's half is gone.
		require.NoError(t, m.Delete(back))
		frame = tcp(f.blue, f.red, 1000, 80, packet.ACK)
		r.expect(fromBlue, frame, intoOverlay(frame, blueIdentity, "~"+forth))
		frame = tcp(f.red, f.blue, 80, 1000, packet.ACK)
		got := r.send(fromRed, frame)
		require.Equal(t, rediret, got.verdict)
		require.Equal(t, 2, entries(), fmt.Sprint(got.flows))
	})
}

// Without a flow table each packet is judged for itself.
func TestStateless(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{noFlows: true}, func(t *testing.T, r *rig, f family) {
		for range 2 {
			for _, flags := range []uint8{packet.SYN, packet.ACK, packet.FIN, packet.RST} {
				frame := tcp(f.blue, f.green, 1, 2, flags)
				r.expect(fromBlue, frame, intoGreen(frame))
				frame = tcp(f.blue, f.red, 1, 2, flags)
				r.expect(fromBlue, frame, intoOverlay(frame, blueIdentity))
				frame = tcp(f.red, f.blue, 1, 2, flags)
				r.expect(fromRed, frame, intoBlue(frame))
				frame = tcp(f.blue, f.world, 1, 2, flags)
				r.expect(fromBlue, frame, intoHost(frame))
				frame = tcp(f.gate, f.blue, 1, 2, flags)
				r.expect(fromHost, frame, intoBlue(frame).unhopped(frame))
				r.expect(toBlue, frame, want{verdict: verdictNext, counted: "pass"})
				r.expect(fromBlue, tcp(f.green, f.blue, 1, 2, flags), dropped("spoofed source"))
			}
			pieces, err := packet.Fragment(build(f.blue, f.green, packet.UDP{SrcPort: 5, DstPort: 53}, packet.Sized(2000)), 1200, 9)
			require.NoError(t, err)
			for _, piece := range []int{1, 0, 1} {
				r.expect(fromBlue, pieces[piece], intoGreen(pieces[piece]), "nothing is remembered of fragments")
			}
			about := udp(f.green, f.blue, 1, 2)
			r.expect(fromBlue, portUnreachable(f.blue, f.green, about, 100), dropped("icmp untracked"))
		}
	})
}

func TestWithoutPeers(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{noPeers: true}, func(t *testing.T, r *rig, f family) {
		frame := udp(f.blue, f.red, 1, 2)
		r.expect(fromBlue, frame, intoHost(frame, "+"+tupleOf(conntrack.UDP, f.blue, 1, f.red, 2)))
		frame = udp(f.blue, f.gate, 1, 8472)
		r.expect(fromBlue, frame, intoHost(frame, "+"+tupleOf(conntrack.UDP, f.blue, 1, f.gate, 8472)), "no overlay, no overlay port")
		r.expect(fromHost, udp(f.gate, f.red, 1, 2), dropped("no route"))
		r.expect(fromRed, udp(f.red, f.blue, 1, 2), dropped("foreign overlay"))
		frame = udp(f.blue, f.green, 1, 2)
		r.expect(fromBlue, frame, intoGreen(frame, "+"+tupleOf(conntrack.UDP, f.blue, 1, f.green, 2)))
	})
}

// The slot of a confirmed flow is free: whoever comes to it need not ask.
func TestConfirmedFlowLeavesTheRing(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		ring := r.flows.DatapathParts().Maps[bpf.TableMapFlowRing]
		taken := func() (n int) {
			var slot uint32
			var tuple bpf.TableTuple
			for all := ring.Iterate(); all.Next(&slot, &tuple); {
				if tuple.Protocol != 0 {
					n++
				}
			}
			return n
		}
		for sport := range uint16(3) {
			r.inject(fromBlue, tcp(f.blue, f.green, sport, 80, packet.SYN))
		}
		require.Equal(t, 3, taken())
		r.inject(fromGreen, tcp(f.green, f.blue, 80, 1, packet.SYN|packet.ACK))
		require.Equal(t, 3, taken())
		r.inject(fromBlue, tcp(f.blue, f.green, 1, 80, packet.ACK))
		require.Equal(t, 2, taken())
		require.Equal(t, stateOf(t, r, f, 1), conntrack.StateEstablished)
	})
}

func stateOf(t *testing.T, r *rig, f family, sport uint16) conntrack.State {
	t.Helper()
	have, ok := r.flow(conntrack.TCP, f.blue, sport, f.green, 80)
	require.True(t, ok)
	return have.State
}

// A node that opens and closes many connections keeps few of the closed, and all
// that are not.
func TestClosedGiveRoom(t *testing.T) {
	t.Parallel()
	const kept, over = 100, 6000
	eachFamily(t, rigConfig{flows: conntrack.Config{Flows: 32768, Unconfirmed: 8192}}, func(t *testing.T, r *rig, f family) {
		all := func(p port, ports int, frame func(sport uint16) []byte) {
			var frames [][]byte
			for i := range ports {
				frames = append(frames, frame(uint16(1000+i)))
			}
			for _, passed := range r.injectAll(p, frames) {
				require.Equal(t, rediret, passed.verdict)
			}
		}
		forth := func(ports int, flags uint8) {
			all(fromBlue, ports, func(sport uint16) []byte { return tcp(f.blue, f.red, sport, 80, flags) })
		}
		back := func(ports int, flags uint8) {
			all(fromRed, ports, func(sport uint16) []byte { return tcp(f.red, f.blue, 80, sport, flags) })
		}
		forth(kept+over, packet.SYN)
		back(kept+over, packet.SYN|packet.ACK)
		forth(kept+over, packet.ACK)
		forth(over, packet.FIN|packet.ACK)
		back(over, packet.FIN|packet.ACK)
		stats, err := r.flows.Stats()
		require.NoError(t, err)
		require.Equal(t, uint64(kept+over), stats.Created)
		require.Equal(t, uint64(kept+over), stats.Confirmed)
		require.Equal(t, uint64(kept+over), stats.Ended+stats.Established)
		require.Equal(t, 2*int(stats.Established), stats.Entries, "whole flows only")
		require.LessOrEqual(t, stats.Established, uint64(kept+64))
		require.Greater(t, stats.Established, uint64(kept+50), "their places are spread badly")
		for i := over; i < kept+over; i++ {
			have, ok := r.flow(conntrack.TCP, f.blue, uint16(1000+i), f.red, 80)
			require.True(t, ok)
			require.Equal(t, established, have.State)
		}
	})
}
