// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
)

// A connection to a service goes to its backend and back, and the client sees
// nothing but the service.
func TestServiceOfAnEndpoint(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{}, func(t *testing.T, r *rig, c cast) {
		vip := at(c.vip, 80)
		for name, to := range map[string]struct {
			backend         netip.AddrPort
			program, device string // where the answers come in
		}{
			"same node": {at(c.green, 8080), "from_endpoint", "green"},
			"the node":  {at(c.gate, 8081), "from_host", "net"},
		} {
			for _, proto := range []Protocol{TCP, UDP} {
				require.NoError(t, r.bal.SetService(Service{
					Name: "web", Frontends: []Frontend{{Addr: vip, Protocol: proto}}, Backends: []Backend{{Addr: to.backend}},
				}))
				client := at(c.blue, 40000+to.backend.Port()-8080)
				segment := func(src, dst netip.AddrPort, flags uint8, payload ...byte) []byte {
					if proto == TCP {
						return tcp(src, dst, flags, payload...)
					}
					return udp(src, dst, payload...)
				}
				for _, flags := range []uint8{packet.SYN, packet.ACK, packet.ACK, packet.ACK | packet.PSH, packet.ACK | packet.FIN} {
					out := r.send("from_endpoint", "blue", segment(client, vip, flags, 1, 2, 3))
					require.Equal(t, redirected, out.verdict, "%s %s: %v", name, proto, out.counted)
					require.Equal(t, [2]netip.AddrPort{client, to.backend}, out.ends(), "%s %s", name, proto)
					back := r.send(to.program, to.device, segment(to.backend, client, flags|packet.ACK, 4, 5))
					require.Equal(t, redirected, back.verdict, "%s %s: %v", name, proto, back.counted)
					require.Equal(t, [2]netip.AddrPort{vip, client}, back.ends(), "%s %s", name, proto)
				}
			}
		}
	})
}

func require1(t *testing.T, out outcome, what string) {
	t.Helper()
	require.Equal(t, map[string]uint64{what: 1}, out.counted)
}

// An endpoint reaches itself through a service, from an address that it answers.
func TestHairpin(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{}, func(t *testing.T, r *rig, c cast) {
		vip, self, client := at(c.vip, 80), at(c.blue, 8080), at(c.blue, 40000)
		require.NoError(t, r.bal.SetService(Service{Name: "web", Frontends: []Frontend{{Addr: vip}}, Backends: []Backend{{Addr: self}}}))
		for _, flags := range []uint8{packet.SYN, packet.ACK, packet.ACK} {
			out := r.send("from_endpoint", "blue", tcp(client, vip, flags))
			require.Equal(t, redirected, out.verdict, "%v", out.counted)
			require.Equal(t, [2]netip.AddrPort{at(c.hairpin, 40000), self}, out.ends())
			back := r.send("from_endpoint", "blue", tcp(self, at(c.hairpin, 40000), flags|packet.ACK))
			require.Equal(t, redirected, back.verdict, "%v", back.counted)
			require.Equal(t, [2]netip.AddrPort{vip, client}, back.ends())
		}
		// Nobody else can speak from there, or to there.
		out := r.send("from_endpoint", "green", tcp(at(c.hairpin, 1), self, packet.SYN))
		require.Equal(t, dropped, out.verdict)
		require.Contains(t, []uint64{out.counted["spoofed source"], out.counted["bad address"], out.counted["multicast"]}, uint64(1))
	})
}

// What nobody will take is told so at once, by the address that was asked.
func TestRefusals(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{}, func(t *testing.T, r *rig, c cast) {
		vip, client := at(c.vip, 80), at(c.blue, 40000)
		set := func(no NoBackend, backends ...Backend) {
			t.Helper()
			require.NoError(t, r.bal.SetService(Service{
				Name: "web", Frontends: []Frontend{{Addr: vip}, {Addr: vip, Protocol: UDP}}, Backends: backends, NoBackend: no,
			}))
		}
		reset := func(out outcome, from netip.AddrPort, reason string) {
			t.Helper()
			require.Equal(t, redirected, out.verdict)
			require1(t, out, reason)
			require.Equal(t, [2]netip.AddrPort{from, client}, out.ends())
			require.NotZero(t, out.packet.TCP.Flags&packet.RST)
		}
		unreachable := func(out outcome, from netip.Addr, reason string) {
			t.Helper()
			require.Equal(t, redirected, out.verdict)
			require1(t, out, reason)
			require.Equal(t, [2]netip.Addr{from, c.blue}, [2]netip.Addr{out.packet.Src(), out.packet.Dst()})
			require.NotNil(t, out.packet.Inner, "it quotes what it is about")
		}
		set(Reject)
		out := r.send("from_endpoint", "blue", tcp(client, vip, packet.SYN, 1, 2))
		reset(out, vip, "no backend")
		require.EqualValues(t, 1000+1+2, out.packet.TCP.Ack, "all of the segment, and its SYN")
		out = r.send("from_endpoint", "blue", tcp(client, vip, packet.ACK))
		reset(out, vip, "no backend")
		require.EqualValues(t, 1001, out.packet.TCP.Seq)
		out = r.send("from_endpoint", "blue", tcp(client, vip, packet.RST))
		require.Equal(t, dropped, out.verdict, "a reset is not answered")
		unreachable(r.send("from_endpoint", "blue", udp(client, vip, 1, 2, 3)), c.vip, "no backend")

		set(Drop)
		for _, f := range [][]byte{tcp(client, vip, packet.SYN), udp(client, vip)} {
			out := r.send("from_endpoint", "blue", f)
			require.Equal(t, dropped, out.verdict, "silence")
			require1(t, out, "no backend")
		}
		set(Reject, Backend{Addr: at(c.green, 1), State: Quarantined}, Backend{Addr: at(c.green, 2), State: Maintenance})
		reset(r.send("from_endpoint", "blue", tcp(client, vip, packet.SYN)), vip, "no backend")

		// A port that the address has not.
		reset(r.send("from_endpoint", "blue", tcp(client, at(c.vip, 81), packet.SYN)), at(c.vip, 81), "no such port")
		unreachable(r.send("from_endpoint", "blue", udp(client, at(c.vip, 81))), c.vip, "no such port")
		require.Zero(t, flowsOf(t, r), "nothing of it is remembered")
		// A neighbour can not be made to refuse.
		out = r.send("from_endpoint", "green", tcp(client, at(c.vip, 81), packet.SYN))
		require.Equal(t, dropped, out.verdict)
		require1(t, out, "spoofed source")
	})
}

func flowsOf(t *testing.T, r *rig) int {
	t.Helper()
	n := 0
	for _, err := range r.flows.All() {
		require.NoError(t, err)
		n++
	}
	return n
}

func TestEchoOfAServiceAddress(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{}, func(t *testing.T, r *rig, c cast) {
		require.NoError(t, r.bal.SetService(Service{Name: "web", Frontends: []Frontend{{Addr: at(c.vip, 80)}}}))
		var ask packet.Layer = packet.ICMPv4{Type: packet.ICMPv4EchoRequest, ID: 7, Seq: 3}
		if c.blue.Is6() {
			ask = packet.ICMPv6{Type: packet.ICMPv6EchoRequest, ID: 7, Seq: 3}
		}
		out := r.send("from_endpoint", "blue", frame(c.blue, c.vip, ask, 1, 2, 3))
		require.Equal(t, redirected, out.verdict)
		require1(t, out, "answered")
		require.Equal(t, [2]netip.Addr{c.vip, c.blue}, [2]netip.Addr{out.packet.Src(), out.packet.Dst()})
		if c.blue.Is6() {
			require.Equal(t, uint8(packet.ICMPv6EchoReply), out.packet.ICMPv6.Type)
		} else {
			require.Equal(t, uint8(packet.ICMPv4EchoReply), out.packet.ICMPv4.Type)
		}
		require.EqualValues(t, 64, out.packet.TTL())
		require.NoError(t, r.bal.DeleteService("web"))
		out = r.send("from_endpoint", "blue", frame(c.blue, c.vip, ask))
		require1(t, out, "to host")
	})
}

// Two services with one backend, and the backend itself, from one port of a
// client: three connections, and the backend can tell them apart.
func TestOneBackendThreeWays(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{}, func(t *testing.T, r *rig, c cast) {
		backend, client := at(c.green, 8080), at(c.blue, 40000)
		ways := []netip.AddrPort{at(c.vip, 80), at(c.vip, 81), backend}
		for i, vip := range ways[:2] {
			require.NoError(t, r.bal.SetService(Service{Name: string(rune('a' + i)), Frontends: []Frontend{{Addr: vip}}, Backends: []Backend{{Addr: backend}}}))
		}
		seen := map[netip.AddrPort]netip.AddrPort{}
		for _, way := range ways {
			out := r.send("from_endpoint", "blue", tcp(client, way, packet.SYN))
			require.Equal(t, redirected, out.verdict, "%v", out.counted)
			ends := out.ends()
			require.Equal(t, backend, ends[1])
			require.NotContains(t, seen, ends[0])
			seen[ends[0]] = way
		}
		for as, way := range seen {
			for _, flags := range []uint8{packet.SYN | packet.ACK, packet.ACK} {
				back := r.send("from_endpoint", "green", tcp(backend, as, flags))
				require.Equal(t, redirected, back.verdict, "%v", back.counted)
				require.Equal(t, [2]netip.AddrPort{way, client}, back.ends())
				out := r.send("from_endpoint", "blue", tcp(client, way, packet.ACK))
				require.Equal(t, [2]netip.AddrPort{as, backend}, out.ends())
			}
		}
	})
}

// A client never goes on talking to a backend that the service has lost.
func TestBackendThatGoes(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{}, func(t *testing.T, r *rig, c cast) {
		vip, one, two := at(c.vip, 80), at(c.green, 8080), at(c.green, 8081)
		set := func(remove Removal, backends ...Backend) {
			t.Helper()
			require.NoError(t, r.bal.SetService(Service{
				Name: "web", Frontends: []Frontend{{Addr: vip}, {Addr: vip, Protocol: UDP}}, Backends: backends, OnRemove: remove,
			}))
		}
		talk := func(client netip.AddrPort, to netip.AddrPort) {
			t.Helper()
			require.Equal(t, to, r.send("from_endpoint", "blue", tcp(client, vip, packet.SYN)).ends()[1])
			require.Equal(t, redirected, r.send("from_endpoint", "green", tcp(to, client, packet.SYN|packet.ACK)).verdict)
			require.Equal(t, to, r.send("from_endpoint", "blue", tcp(client, vip, packet.ACK)).ends()[1])
			require.Equal(t, to, r.send("from_endpoint", "blue", udp(client, vip)).ends()[1])
		}
		client := at(c.blue, 40000)
		set(Reset, Backend{Addr: one})
		talk(client, one)

		// One that is about to go keeps what it has, and gets nothing new.
		set(Reset, Backend{Addr: one, State: Terminating}, Backend{Addr: two})
		require.Equal(t, one, r.send("from_endpoint", "blue", tcp(client, vip, packet.ACK)).ends()[1])
		require.Equal(t, one, r.send("from_endpoint", "blue", udp(client, vip)).ends()[1])
		for port := range uint16(20) {
			require.Equal(t, two, r.send("from_endpoint", "blue", tcp(at(c.blue, 41000+port), vip, packet.SYN)).ends()[1])
		}
		// Unless nobody else is left.
		set(Reset, Backend{Addr: one, State: Terminating})
		require.Equal(t, one, r.send("from_endpoint", "blue", tcp(at(c.blue, 42000), vip, packet.SYN)).ends()[1])

		// Gone: a connection is reset, a datagram goes to another one, and what the
		// old one still says does not arrive.
		set(Reset, Backend{Addr: two})
		out := r.send("from_endpoint", "blue", tcp(client, vip, packet.ACK))
		require1(t, out, "backend gone")
		require.Equal(t, redirected, out.verdict)
		require.NotZero(t, out.packet.TCP.Flags&packet.RST)
		require.Equal(t, [2]netip.AddrPort{vip, client}, out.ends())
		require1(t, r.send("from_endpoint", "green", tcp(one, client, packet.ACK)), "backend gone")
		require.Equal(t, two, r.send("from_endpoint", "blue", udp(client, vip)).ends()[1])
		// A new connection from the same port is a new one.
		require.Equal(t, two, r.send("from_endpoint", "blue", tcp(client, vip, packet.SYN)).ends()[1])

		// Removed, and let end in peace.
		set(Drain, Backend{Addr: two})
		client = at(c.blue, 43000)
		talk(client, two)
		set(Drain, Backend{Addr: one})
		require.Equal(t, two, r.send("from_endpoint", "blue", tcp(client, vip, packet.ACK)).ends()[1])
		require.Equal(t, one, r.send("from_endpoint", "blue", tcp(at(c.blue, 43001), vip, packet.SYN)).ends()[1])

		// The service goes as a whole.
		require.NoError(t, r.bal.DeleteService("web"))
		require1(t, r.send("from_endpoint", "blue", tcp(client, vip, packet.ACK)), "backend gone")
	})
}

func TestSourceRanges(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{}, func(t *testing.T, r *rig, c cast) {
		external, internal := at(c.vip, 80), at(c.vip, 81)
		blue := netip.PrefixFrom(c.blue, c.blue.BitLen())
		for _, row := range []struct {
			deny        bool
			blue, green bool
		}{{false, true, false}, {true, false, true}} {
			require.NoError(t, r.bal.SetService(Service{
				Name: "web", Frontends: []Frontend{{Addr: external, Type: LoadBalancer}, {Addr: internal}},
				Backends: []Backend{{Addr: at(c.gate, 8080)}}, SourceRanges: []netip.Prefix{blue}, DenySources: row.deny,
			}))
			for device, let := range map[string]bool{"blue": row.blue, "green": row.green} {
				client := map[string]netip.Addr{"blue": c.blue, "green": c.green}[device]
				out := r.send("from_endpoint", device, tcp(at(client, 40000), external, packet.SYN))
				if let {
					require1(t, out, "to host")
				} else {
					require1(t, out, "source range")
				}
				require1(t, r.send("from_endpoint", device, tcp(at(client, 40000), internal, packet.SYN)), "to host")
			}
		}
	})
}

func TestAffinity(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{}, func(t *testing.T, r *rig, c cast) {
		vip := at(c.vip, 80)
		var all []Backend
		for port := range uint16(16) {
			all = append(all, Backend{Addr: at(c.green, 8000+port)})
		}
		s := Service{Name: "web", Frontends: []Frontend{{Addr: vip}}, Backends: all, Affinity: 3600e9}
		require.NoError(t, r.bal.SetService(s))
		first := r.send("from_endpoint", "blue", tcp(at(c.blue, 40000), vip, packet.SYN)).ends()[1]
		for port := range uint16(50) {
			require.Equal(t, first, r.send("from_endpoint", "blue", tcp(at(c.blue, 40001+port), vip, packet.SYN)).ends()[1])
		}
		// Its backend leaves: another one, and that for good.
		s.Backends = nil
		for _, b := range all {
			if b.Addr != first {
				s.Backends = append(s.Backends, b)
			}
		}
		require.NoError(t, r.bal.SetService(s))
		second := r.send("from_endpoint", "blue", tcp(at(c.blue, 41000), vip, packet.SYN)).ends()[1]
		require.NotEqual(t, first, second)
		s.Backends = all
		require.NoError(t, r.bal.SetService(s))
		for port := range uint16(50) {
			require.Equal(t, second, r.send("from_endpoint", "blue", tcp(at(c.blue, 41001+port), vip, packet.SYN)).ends()[1])
		}
	})
}

// Flows are spread by weight, and with Maglev as the table says.
func TestSelection(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{MaglevSize: 251})
	c := casts[0]
	vip := at(c.vip, 80)
	for _, algorithm := range []Algorithm{Random, Maglev} {
		require.NoError(t, r.bal.SetService(Service{
			Name: "web", Frontends: []Frontend{{Addr: vip}}, Algorithm: algorithm,
			Backends: []Backend{{Addr: at(c.green, 1), Weight: 1}, {Addr: at(c.green, 2), Weight: 3}, {Addr: at(c.green, 3), Weight: 1, State: Maintenance}},
		}))
		got := map[uint16]int{}
		for port := range uint16(800) {
			got[r.send("from_endpoint", "blue", tcp(at(c.blue, 30000+1000*uint16(algorithm)+port), vip, packet.SYN)).ends()[1].Port()]++
		}
		require.Zero(t, got[3], algorithm)
		require.InDelta(t, 200, got[1], 60, algorithm)
	}
	// The same tuple goes to the same backend, also when all of it is forgotten.
	first := map[uint16]uint16{}
	for range 3 {
		for port := range uint16(50) {
			to := r.send("from_endpoint", "blue", tcp(at(c.blue, 50000+port), vip, packet.SYN)).ends()[1].Port()
			if first[port] == 0 {
				first[port] = to
			}
			require.Equal(t, first[port], to)
		}
		_, err := r.flows.Flush(conntrack.Filter{})
		require.NoError(t, err)
	}
}

// All parts of a datagram go the same way.
func TestFragmentsToAService(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	c := casts[0]
	vip, backend := at(c.vip, 53), at(c.green, 5353)
	require.NoError(t, r.bal.SetService(Service{Name: "dns", Frontends: []Frontend{{Addr: vip, Protocol: UDP}}, Backends: []Backend{{Addr: backend}}}))
	parts := func(dst netip.AddrPort, ttl uint8) [][]byte {
		whole := packet.Build(packet.Ethernet{Dst: mac, Src: mac}, packet.IPv4{Src: c.blue, Dst: dst.Addr(), TTL: ttl, ID: 9},
			packet.UDP{SrcPort: 40000, DstPort: dst.Port()}, packet.Sized(800))
		all, err := packet.Fragment(whole, 400, 9)
		require.NoError(t, err)
		require.Greater(t, len(all), 1)
		return all
	}
	want := parts(backend, 63)
	for i, p := range parts(vip, 64) {
		got := r.send("from_endpoint", "blue", p)
		require.Equal(t, redirected, got.verdict, "%v", got.counted)
		require.Equal(t, want[i], got.frame, "part %d, as if it had been sent there", i)
	}
}

// An error about a packet to a service speaks of the service: from the backend
// in its name, from a router in the router's.
func TestErrorsAboutAService(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{}, func(t *testing.T, r *rig, c cast) {
		vip, backend, client := at(c.vip, 80), at(c.green, 8080), at(c.blue, 40000)
		require.NoError(t, r.bal.SetService(Service{
			Name: "web", Frontends: []Frontend{{Addr: vip, Protocol: UDP}, {Addr: vip}}, Backends: []Backend{{Addr: backend}},
		}))
		for _, ask := range [][]byte{udp(client, vip, 1, 2, 3, 4, 5, 6, 7, 8), tcp(client, vip, packet.SYN)} {
			sent := r.send("from_endpoint", "blue", ask)
			require.Equal(t, redirected, sent.verdict)
			for from, as := range map[netip.Addr]netip.Addr{c.green: c.vip, c.gate: c.gate} {
				var l4 packet.Layer = packet.ICMPv4{Type: 3, Code: 3}
				if c.blue.Is6() {
					l4 = packet.ICMPv6{Type: 1, Code: 4}
				}
				fault := packet.Build(packet.Ethernet{Dst: mac, Src: mac}, ip(from, c.blue), l4, packet.Payload(sent.frame[14:]))
				program, device := "from_endpoint", "green"
				if from == c.gate {
					program, device = "from_host", "net"
				}
				out := r.send(program, device, fault)
				require.Equal(t, redirected, out.verdict, "%v", out.counted)
				require.Equal(t, [2]netip.Addr{as, c.blue}, [2]netip.Addr{out.packet.Src(), out.packet.Dst()})
				sport, dport := out.packet.Inner.Ports()
				require.Equal(t, [2]netip.AddrPort{client, vip},
					[2]netip.AddrPort{at(out.packet.Inner.Src(), sport), at(out.packet.Inner.Dst(), dport)}, "in the client's words")
			}
		}
	})
}

// A removal tells how many flows it has met, and Purge forgets them.
func TestRemovalCountsFlows(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	r.bal.cfg.Flows = r.flows
	c := casts[0]
	vip, one, two := at(c.vip, 80), at(c.green, 8080), at(c.green, 8081)
	for _, how := range []Removal{Reset, Purge, Drain} {
		require.NoError(t, r.bal.SetService(Service{
			Name: "web", Frontends: []Frontend{{Addr: vip}, {Addr: vip, Protocol: UDP}}, Backends: []Backend{{Addr: one}},
		}))
		for port := range uint16(10) {
			r.send("from_endpoint", "blue", tcp(at(c.blue, 40000+port), vip, packet.SYN))
			r.send("from_endpoint", "blue", udp(at(c.blue, 40000+port), vip))
			r.send("from_endpoint", "blue", tcp(at(c.blue, 41000+port), one, packet.SYN))
		}
		require.NoError(t, r.bal.SetService(Service{
			Name: "web", Frontends: []Frontend{{Addr: vip}, {Addr: vip, Protocol: UDP}}, Backends: []Backend{{Addr: one}, {Addr: two}},
		}))
		done, err := r.bal.RemoveBackend("web", one, how)
		require.NoError(t, err)
		require.Equal(t, Touched{Flows: 20}, done)
		n, err := r.flows.CountTranslated(0, netip.AddrPort{}, one)
		require.NoError(t, err)
		if how == Purge {
			require.Zero(t, n)
		} else {
			require.Equal(t, 20, n)
		}
		_, err = r.flows.Flush(conntrack.Filter{})
		require.NoError(t, err)
	}
}

// A backend that drains is kept as long as it has flows, and no longer.
func TestDraining(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	r.bal.cfg.Flows = r.flows
	c := casts[0]
	now := time.Now()
	r.bal.ids.now = func() time.Time { return now }
	vip, one, two, three := at(c.vip, 80), at(c.green, 8080), at(c.green, 8081), at(c.green, 8082)
	states := func() map[netip.AddrPort]State {
		all, err := r.bal.Services()
		require.NoError(t, err)
		out := map[netip.AddrPort]State{}
		for _, b := range all[0].Backends {
			out[b.Addr] = b.State
		}
		return out
	}
	require.NoError(t, r.bal.SetService(Service{Name: "web", Frontends: []Frontend{{Addr: vip}}, Backends: []Backend{{Addr: one}}, OnRemove: Drain}))
	r.send("from_endpoint", "blue", tcp(at(c.blue, 40000), vip, packet.SYN))
	require.NoError(t, r.bal.SetService(Service{Name: "web", Frontends: []Frontend{{Addr: vip}}, Backends: []Backend{{Addr: two}}, OnRemove: Drain}))
	require.Equal(t, map[netip.AddrPort]State{one: Draining, two: Active}, states())
	// A change that has another policy is about those that it takes away itself.
	web := Service{Name: "web", Frontends: []Frontend{{Addr: vip}}, Backends: []Backend{{Addr: two}, {Addr: three}}}
	require.NoError(t, r.bal.SetService(web))
	_, err := r.bal.RemoveBackend("web", three, Reset)
	require.NoError(t, err)
	require.Equal(t, map[netip.AddrPort]State{one: Draining, two: Active}, states())
	now = now.Add(2 * shortestDrain)
	n, err := r.bal.Sweep()
	require.NoError(t, err)
	require.Zero(t, n)
	require.Equal(t, one, r.send("from_endpoint", "blue", tcp(at(c.blue, 40000), vip, packet.ACK)).ends()[1])
	_, err = r.flows.Flush(conntrack.Filter{})
	require.NoError(t, err)
	n, err = r.bal.Sweep()
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, map[netip.AddrPort]State{two: Active}, states())
	require.Equal(t, [7]int{1, 1, 0, 1, 0, 1, 2}, countRows(t, r.bal))

	// Without a flow table it is a matter of time; one that comes back is as before.
	r.bal.cfg.Flows = nil
	require.NoError(t, r.bal.SetService(Service{Name: "web", Frontends: []Frontend{{Addr: vip}}, Backends: []Backend{{Addr: one}}, OnRemove: Drain}))
	now = now.Add(2 * shortestDrain)
	n, err = r.bal.Sweep()
	require.NoError(t, err)
	require.Zero(t, n)
	now = now.Add(7 * time.Hour)
	n, err = r.bal.Sweep()
	require.NoError(t, err)
	require.Equal(t, 1, n)

	// Nobody waits for a flow that is not to end in peace.
	r.bal.cfg.Flows = r.flows
	_, err = r.bal.RemoveBackend("web", one, Drain)
	require.NoError(t, err)
	require.Equal(t, map[netip.AddrPort]State{one: Draining}, states())
	_, err = r.bal.RemoveBackend("web", one, Reset)
	require.NoError(t, err)
	require.Empty(t, states())
	_, err = r.bal.RemoveBackend("web", one, Reset)
	require.ErrorIs(t, err, os.ErrNotExist)
}
