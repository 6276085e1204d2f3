// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
)

// What arrives at an endpoint's device is for it, or it does not come in.
func TestToEndpoint(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		next := func(flows ...string) want {
			return want{verdict: verdictNext, counted: "pass", flows: flows, events: eventsOf(flows)}
		}
		for _, src := range []netip.Addr{f.gate, f.world, f.red, f.blue} {
			frame := udp(src, f.green, 1000, 53)
			flow := tupleOf(conntrack.UDP, src, 1000, f.green, 53)
			r.expect(toGreen, frame, next("+"+flow))
			r.expect(toGreen, frame, next("~"+flow), "from the flow table")
			have, ok := r.flow(conntrack.UDP, src, 1000, f.green, 53)
			require.True(t, ok)
			require.Equal(t, conntrack.Verdict{Action: "pass", SendsTo: greenIfindex}, have.Forward)
			r.expect(toBlue, frame, dropped("wrong endpoint"), "its flow does not lead here")
			r.expect(fromGreen, frame, dropped("spoofed source"), "the endpoint itself says so")
		}
		for _, dst := range []netip.Addr{f.blue, f.red, f.world, f.nobodyHere, f.gate} {
			r.expect(toGreen, udp(f.redGate, dst, 1000, 53), dropped("wrong endpoint"), dst)
		}
		// The TTL is not ours to count here.
		for _, ttl := range []byte{0, 1, 2} {
			frame := withTTL(udp(f.gate, f.green, 2000+uint16(ttl), 53), ttl)
			r.expect(toGreen, frame, next("+"+tupleOf(conntrack.UDP, f.gate, 2000+uint16(ttl), f.green, 53)))
		}
		big := udp(f.gate, f.green, 2100, 53, packet.Sized(2000)...)
		r.expect(toGreen, big, next("+"+tupleOf(conntrack.UDP, f.gate, 2100, f.green, 53)))
	})
}

// A connection that the node's stack has put on the device is followed like
// any other.
func TestToEndpointFollows(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		flow := tupleOf(conntrack.TCP, f.gate, 1000, f.green, 80)
		state := func(want conntrack.State) {
			have, ok := r.flow(conntrack.TCP, f.gate, 1000, f.green, 80)
			require.True(t, ok)
			require.Equal(t, want, have.State)
		}
		in := func(flags uint8, mark string, events ...string) {
			w := want{verdict: verdictNext, counted: "pass", flows: []string{mark + flow}}
			r.expect(toGreen, tcp(f.gate, f.green, 1000, 80, flags), w.with(events...))
		}
		out := func(flags uint8) {
			frame := tcp(f.green, f.gate, 80, 1000, flags)
			r.expect(fromGreen, frame, intoHost(frame, "~"+flow))
		}
		in(packet.SYN, "+", "created")
		out(packet.SYN | packet.ACK)
		state(fresh)
		in(packet.ACK, "~", "confirmations")
		state(established)
		in(packet.ACK, "~")
		out(packet.FIN | packet.ACK)
		in(packet.FIN|packet.ACK, "~")
		state(closing)
	})
}

// What our own programs hand to a device has been admitted and counted there.
func TestToEndpointAdmitted(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		green, err := r.endpoints.Lookup(f.green)
		require.NoError(t, err)
		green.NoPeerRedirect = true
		require.NoError(t, r.endpoints.Set(green))
		admitted := want{verdict: verdictNext, counted: "pass"}
		for _, way := range []struct {
			from port
			src  netip.Addr
		}{{fromBlue, f.blue}, {fromRed, f.red}, {fromHost, f.gate}} {
			for _, flags := range []uint8{packet.SYN, packet.ACK, packet.FIN, packet.RST} {
				got := r.inject(way.from, tcp(way.src, f.green, 1000, 80, flags))
				require.Equal(t, rediret, got.verdict)
				require.Equal(t, hop{ifindex: greenIfindex}, got.sent)
				r.expect(toGreen, got.frame, admitted)
				r.expect(toBlue, got.frame, dropped("wrong endpoint"))
			}
			about := udp(f.green, way.src, 1000, 53)
			require.Equal(t, rediret, r.inject(fromGreen, about).verdict)
			fault := portUnreachable(way.src, f.green, about, headers(about))
			got := r.inject(way.from, fault)
			require.Equal(t, rediret, got.verdict)
			r.expect(toGreen, got.frame, admitted, "an error")
		}
		// An admission ends with its epoch; what was moved away is not let in.
		frame := tcp(f.blue, f.green, 1000, 80, packet.ACK)
		require.NoError(t, r.endpoints.Delete(greenIfindex))
		r.expect(toGreen, frame, dropped("wrong endpoint"))
	})
}

func TestToEndpointErrors(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		about := udp(f.green, f.world, 1000, 53)
		fault := portUnreachable(f.gate, f.green, about, headers(about))
		r.expect(toGreen, fault, dropped("icmp untracked"))
		require.Equal(t, rediret, r.inject(fromGreen, about).verdict)
		r.expect(toGreen, fault, want{verdict: verdictNext, counted: "pass"}, "the host says it about a known flow")
		r.expect(toBlue, fault, dropped("wrong endpoint"))
	})
}
