// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
)

// model is the slow and obvious twin of the programs: it decides every packet
// from its layers and from plain Go maps, with no cached verdict, no epoch and
// no fast path. Random packets go through both.
type model struct {
	endpoints map[netip.Addr]modelEndpoint
	peers     map[netip.Prefix]netip.Addr
	gateways  map[netip.Addr]bool
	flows     map[conntrack.Tuple]*modelFlow // by both directions
	over      map[uint32]conntrack.Tuple     // closed connections, by their places
}

type modelEndpoint struct {
	ifindex, identity uint32
	into              func(frame []byte, flows ...string) want
}

type modelFlow struct {
	original  conntrack.Tuple
	confirmed bool
	closed    bool // its verdicts are not used from the cache any more, and a later one may take its place
	opened    bool // the replying side has opened, and its number is known
	seen      map[conntrack.Tuple]bool
	fin, rst  map[conntrack.Tuple]bool
	counters  map[conntrack.Tuple]conntrack.Counters
	way       map[conntrack.Tuple][2]uint32 // in and out, as judged last
}

func newModel() *model {
	m := &model{
		endpoints: map[netip.Addr]modelEndpoint{},
		peers:     map[netip.Prefix]netip.Addr{netip.MustParsePrefix("10.244.2.0/24"): redNode, netip.MustParsePrefix("fd00:244:2::/64"): redNode},
		gateways:  map[netip.Addr]bool{gate4: true, gate6: true},
		flows:     map[conntrack.Tuple]*modelFlow{},
		over:      map[uint32]conntrack.Tuple{},
	}
	for _, f := range families {
		m.endpoints[f.blue] = modelEndpoint{blueIfindex, blueIdentity, intoBlue}
		m.endpoints[f.green] = modelEndpoint{greenIfindex, greenIdentity, intoGreen}
	}
	return m
}

func (m *model) peer(a netip.Addr) netip.Addr {
	for p, node := range m.peers {
		if p.Contains(a) {
			return node
		}
	}
	return netip.Addr{}
}

func reversed(t conntrack.Tuple) conntrack.Tuple { t.Src, t.Dst = t.Dst, t.Src; return t }

// tupleOfPacket reads the flow's tuple and what the packet says of its
// connection, in TCP's words. ok is false for what is no conversation.
func tupleOfPacket(d packet.Decoded) (t conntrack.Tuple, flags uint8, ok bool) {
	t.Protocol = conntrack.Protocol(d.Protocol())
	var sport, dport uint16
	switch {
	case d.TCP != nil:
		sport, dport, flags = d.TCP.SrcPort, d.TCP.DstPort, d.TCP.Flags
	case d.UDP != nil:
		sport, dport = d.Ports()
	case d.SCTP != nil:
		sport, dport = d.Ports()
		flags = packet.ACK
		if len(d.Payload) > 0 {
			switch d.Payload[0] {
			case packet.ChunkInit:
				flags = packet.SYN
			case packet.ChunkInitAck:
				flags = packet.SYN | packet.ACK
			case packet.ChunkAbort:
				flags = packet.RST
			case packet.ChunkShutdownAck, packet.ChunkShutdownComplete:
				flags = packet.FIN | packet.ACK
			}
		}
	case d.ICMPv4 != nil && d.ICMPv4.Type == packet.ICMPv4EchoRequest:
		sport = d.ICMPv4.ID
	case d.ICMPv4 != nil && d.ICMPv4.Type == packet.ICMPv4EchoReply:
		dport = d.ICMPv4.ID
	case d.ICMPv6 != nil && d.ICMPv6.Type == packet.ICMPv6EchoRequest:
		sport = d.ICMPv6.ID
	case d.ICMPv6 != nil && d.ICMPv6.Type == packet.ICMPv6EchoReply:
		dport = d.ICMPv6.ID
	case (t.Protocol == conntrack.TCP || t.Protocol == conntrack.SCTP) && len(d.Payload) >= 8: // quoted in part
		sport, dport = binary.BigEndian.Uint16(d.Payload), binary.BigEndian.Uint16(d.Payload[2:])
	default:
		return t, 0, false
	}
	t.Src, t.Dst = netip.AddrPortFrom(d.Src(), sport), netip.AddrPortFrom(d.Dst(), dport)
	return t, flags, true
}

func isOdd(a netip.Addr, dst bool) string {
	b := a.AsSlice()
	switch {
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		if dst {
			return "multicast"
		}
		return "bad address"
	case a.IsLinkLocalUnicast() && dst:
		return "multicast"
	case a.IsLoopback() || a.IsUnspecified() || a.Is4() && b[0] == 0:
		return "bad address"
	}
	return ""
}

// judge returns what must become of a packet.
func (m *model) judge(p port, frame []byte) want {
	d, err := packet.Decode(frame)
	if err != nil {
		panic(err) // the generator makes sound packets only
	}
	t, flags, ok := tupleOfPacket(d)
	from := d.Src()
	fault := d.Inner != nil
	if fault {
		inner, _, known := tupleOfPacket(*d.Inner)
		if !known || inner.Src.Addr() != d.Dst() {
			return dropped("icmp untracked")
		}
		t, flags = reversed(inner), 0
		if m.flows[t] == nil {
			return dropped("icmp untracked")
		}
	} else if !ok {
		if d.ICMPv4 != nil || d.ICMPv6 != nil {
			if d.ICMPv6 != nil && d.Dst().IsMulticast() {
				return dropped("multicast")
			}
			return dropped("icmp unsupported")
		}
		return dropped("unknown l4")
	}
	flow := m.flows[t]
	if p.program == "to_endpoint" && flow != nil {
		if way := flow.way[t]; way[1] == p.ifindex && way[0] != 0 && flow.counters[t].Packets > 0 {
			return want{verdict: verdictNext, counted: "pass"} // admitted by the sender
		}
	}
	w, iif, oif, back := m.route(p, frame, t, from, fault)
	if w.verdict == verdictDrop {
		return w
	}
	size := len(frame) - 14
	reason := ""
	switch {
	case (p.program == "from_endpoint" || p.program == "from_overlay") && oif != hostIfindex && d.TTL() <= 1:
		reason, w.frame = "ttl exceeded", nil
		if !fault {
			w.frame = timeExceeded(frame)
		}
	case oif == overlayIfindex && size > overlayMTU && (d.IPv6 != nil || d.IPv4.DontFragment):
		reason, w.frame = "too big", nil
		if !fault {
			w.frame = tooBig(frame, overlayMTU)
		}
	}
	if reason != "" {
		if fault {
			return dropped(reason)
		}
		return want{verdict: rediret, frame: w.frame, counted: "drop " + reason, sent: back}
	}
	if !fault {
		ack := uint32(0)
		if d.TCP != nil {
			ack = d.TCP.Ack
		}
		w.events = m.track(p, t, flags, ack, len(frame), iif, oif)
	}
	return w
}

// route is the decision without the flow.
func (m *model) route(p port, frame []byte, t conntrack.Tuple, from netip.Addr, fault bool) (w want, iif, oif uint32, back hop) {
	src, dst := t.Src.Addr(), t.Dst.Addr()
	sane := func() string {
		if odd := isOdd(dst, true); odd != "" {
			return odd
		}
		if isOdd(src, false) != "" || src == dst || fault && isOdd(from, false) != "" {
			return "bad address"
		}
		return ""
	}
	if p.program == "from_overlay" {
		if _, ours := m.endpoints[src]; ours || m.gateways[src] {
			return dropped("spoofed source"), 0, 0, back
		}
		if m.peer(src) != p.node {
			return dropped("foreign overlay"), 0, 0, back
		}
		if !(p.vni >= 1 && p.vni <= 8 || p.vni >= 256 && p.vni < 1<<24) {
			return dropped("bad vni"), 0, 0, back
		}
	}
	if odd := sane(); odd != "" {
		return dropped(odd), 0, 0, back
	}
	to, local := m.endpoints[dst]
	toHost := func() (want, uint32, uint32, hop) {
		if t.Protocol == conntrack.UDP && (t.Dst.Port() == 8472 || t.Src.Port() == 8472) {
			return dropped("overlay port"), 0, 0, back
		}
		return intoHost(frame), p.ifindex, hostIfindex, back
	}
	switch p.program {
	case "from_endpoint":
		back = hop{ifindex: p.ifindex, peer: true}
		self, ok := m.endpoints[src]
		if !ok || self.ifindex != p.ifindex || fault && from != src {
			return dropped("spoofed source"), 0, 0, back
		}
		if local {
			return to.into(frame), p.ifindex, to.ifindex, back
		}
		if m.peer(dst).IsValid() {
			return intoOverlay(frame, self.identity), p.ifindex, overlayIfindex, back
		}
		return toHost()
	case "from_overlay":
		back = hop{ifindex: overlayIfindex, vni: 1, node: p.node}
		if local {
			return to.into(frame), p.ifindex, to.ifindex, back
		}
		if m.gateways[dst] {
			return toHost()
		}
		return dropped("no endpoint"), 0, 0, back
	case "from_host":
		back = hop{ifindex: hostIfindex, flags: 1}
		speaker := src
		if fault {
			speaker = from
		}
		identity := uint32(1)
		if !m.gateways[speaker] {
			identity = 2
			if _, endpoint := m.endpoints[speaker]; endpoint || m.peer(speaker).IsValid() {
				return dropped("spoofed source"), 0, 0, back
			}
		}
		if local {
			return to.into(frame).unhopped(frame), p.ifindex, to.ifindex, back
		}
		if m.peer(dst).IsValid() {
			return intoOverlay(frame, identity).unhopped(frame), p.ifindex, overlayIfindex, back
		}
		return dropped("no route"), 0, 0, back
	}
	if !local || to.ifindex != p.ifindex {
		return dropped("wrong endpoint"), 0, 0, back
	}
	return want{verdict: verdictNext, counted: "pass"}, 0, p.ifindex, back
}

func (f *modelFlow) closing() bool {
	return len(f.rst) > 0 || len(f.fin) == 2
}

// closingWith tells whether the flow is over once it has seen this packet too.
func (f *modelFlow) closingWith(t conntrack.Tuple, flags uint8) bool {
	fins := len(f.fin)
	if flags&packet.FIN != 0 && !f.fin[t] {
		fins++
	}
	return len(f.rst) > 0 || flags&packet.RST != 0 || fins == 2
}

// isAnswer tells whether a packet shows that its sender has seen the reply.
func (f *modelFlow) isAnswer(flags uint8, ack uint32) bool {
	switch f.original.Protocol {
	case conntrack.ICMP, conntrack.ICMPv6:
		return false
	case conntrack.TCP:
		return !f.opened || flags&packet.ACK != 0 && ack >= 1 && ack < 1+65536 // all numbers begin with 0
	}
	return true
}

func (m *model) track(p port, t conntrack.Tuple, flags uint8, ack uint32, size int, iif, oif uint32) (events []string) {
	f := m.flows[t]
	if f != nil && flags&(packet.SYN|packet.ACK) == packet.SYN && f.closing() {
		delete(m.flows, t)
		delete(m.flows, reversed(t))
		f, events = nil, append(events, "reused")
	}
	if f == nil {
		f = &modelFlow{
			original: t, seen: map[conntrack.Tuple]bool{}, fin: map[conntrack.Tuple]bool{}, rst: map[conntrack.Tuple]bool{},
			counters: map[conntrack.Tuple]conntrack.Counters{}, way: map[conntrack.Tuple][2]uint32{},
		}
		m.flows[t], m.flows[reversed(t)] = f, f
		f.way[reversed(t)] = wayBack(p, iif, oif)
		events = append(events, "created")
	} else if t == f.original && !f.confirmed && f.seen[reversed(t)] && flags&packet.SYN == 0 && !f.closingWith(t, flags) && f.isAnswer(flags, ack) {
		f.confirmed = true
		events = append(events, "confirmations")
	}
	if t != f.original && flags&(packet.SYN|packet.ACK) == packet.SYN|packet.ACK && t.Protocol == conntrack.TCP {
		f.opened = true
	}
	f.seen[t] = true
	f.way[t] = [2]uint32{iif, oif}
	if flags&packet.FIN != 0 {
		f.fin[t] = true
	}
	if flags&packet.RST != 0 {
		f.rst[t] = true
	}
	if flags&(packet.FIN|packet.RST) != 0 && f.confirmed && !f.closed && f.closing() {
		f.closed = true
		events = append(events, m.makeRoom(f.original)...)
	}
	c := f.counters[t]
	f.counters[t] = conntrack.Counters{Packets: c.Packets + 1, Bytes: c.Bytes + uint64(size)}
	return events
}

// wayBack is what a packet that opens a flow tells of the way of its answers.
func wayBack(p port, iif, oif uint32) [2]uint32 {
	switch {
	case p.program == "from_endpoint" && oif == hostIfindex:
		return [2]uint32{netIfindex, iif}
	case p.program == "from_endpoint" && oif != overlayIfindex, p.program == "from_overlay" && oif != hostIfindex:
		return [2]uint32{oif, iif}
	}
	return [2]uint32{}
}

// makeRoom gives a closed connection its place, and forgets who had it.
func (m *model) makeRoom(t conntrack.Tuple) (events []string) {
	var key [40]byte
	src, dst := t.Src.Addr().As16(), t.Dst.Addr().As16()
	copy(key[:], src[:])
	copy(key[16:], dst[:])
	binary.BigEndian.PutUint16(key[32:], t.Src.Port())
	binary.BigEndian.PutUint16(key[34:], t.Dst.Port())
	key[36] = uint8(t.Protocol)
	word := func(i int) uint64 { return binary.NativeEndian.Uint64(key[8*i:]) }
	place := uint32((word(4) ^ word(1)*3 ^ word(3)*5) * 0x9e3779b97f4a7c15 >> 58)
	old, taken := m.over[place]
	m.over[place] = t
	if f := m.flows[old]; taken && old != t && f != nil && f.closed && f.original == old {
		delete(m.flows, old)
		delete(m.flows, reversed(old))
		events = append(events, "ended")
	}
	return events
}

// flowList is what the flow table must hold.
func (m *model) flowList() map[string]string {
	out := map[string]string{}
	for _, f := range m.flows {
		state := conntrack.StateNew
		if f.closing() {
			state = conntrack.StateClosing
		} else if f.confirmed {
			state = conntrack.StateEstablished
		}
		out[f.original.String()] = fmt.Sprintf("%s sent %v received %v ways %v %v", state,
			f.counters[f.original], f.counters[reversed(f.original)], f.way[f.original], f.way[reversed(f.original)])
	}
	return out
}

func (r *rig) modelFlowList() map[string]string {
	out := map[string]string{}
	for f, err := range r.flows.All() {
		require.NoError(r.t, err)
		way := func(v conntrack.Verdict) [2]uint32 { return [2]uint32{uint32(v.ArrivesOn), uint32(v.SendsTo)} }
		out[f.Original.String()] = fmt.Sprintf("%s sent %v received %v ways %v %v", f.State, f.Sent, f.Received, way(f.Forward), way(f.Back))
	}
	return out
}

// generator makes packets that are sound, of few addresses and ports so that
// they meet.
type generator struct {
	rnd  *rand.Rand
	f    family
	sent [][]byte
}

func pick[T any](g *generator, of ...T) T { return of[g.rnd.IntN(len(of))] }

func (g *generator) chance(oneIn int) bool { return g.rnd.IntN(oneIn) == 0 }

func (g *generator) next() (port, []byte) {
	f := g.f
	p := pick(g, fromBlue, fromBlue, fromGreen, fromHost, fromRed, fromRed, fromNode(redNode, 1), fromNode(redNode, 9), fromNode(strangerNode, redIdentity), toGreen, toBlue)
	own := map[string]netip.Addr{"from_endpoint": f.blue, "from_host": f.gate, "from_overlay": f.red, "to_endpoint": f.gate}[p.program]
	if p.ifindex == greenIfindex && p.program == "from_endpoint" {
		own = f.green
	}
	odd := []netip.Addr{addr("224.0.0.5"), addr("127.0.0.1"), addr("169.254.1.1"), addr("0.0.0.0"), addr("255.255.255.255")}
	if f.blue.Is6() {
		odd = []netip.Addr{addr("ff02::5"), addr("::1"), addr("fe80::1"), addr("::")}
	}
	cast := []netip.Addr{f.blue, f.green, f.red, f.blue, f.green, f.red, f.gate, f.redGate, f.world, f.far, f.nobodyHere}
	if g.chance(20) {
		cast = odd
	}
	src, dst := own, pick(g, cast...)
	if g.chance(4) {
		src = pick(g, cast...)
	}
	if g.chance(12) && len(g.sent) > 0 {
		about := pick(g, g.sent...)
		d, _ := packet.Decode(about)
		dst = d.Src()
		if g.chance(10) {
			dst = pick(g, f.blue, f.green, f.red)
		}
		if !g.chance(4) {
			src = d.Dst()
		}
		if h := headers(about); len(about) >= 14+h && !d.IsFragment() {
			fault := portUnreachable(src, dst, about, h+g.rnd.IntN(len(about)-13-h))
			return p, withTTL(fault, pick[byte](g, 64, 64, 64, 1))
		}
	}
	var head packet.Layer
	ttl := pick[uint8](g, 64, 64, 64, 64, 255, 2, 1)
	if src.Is4() {
		h := packet.IPv4{Src: src, Dst: dst, TTL: ttl, DontFragment: g.chance(2), ZeroTTL: g.chance(30), TOS: uint8(g.rnd.Uint32()), ID: uint16(g.rnd.Uint32())}
		if g.chance(8) {
			h.Options = make([]byte, 4*g.rnd.IntN(11))
		}
		head = h
	} else {
		head = packet.IPv6{Src: src, Dst: dst, HopLimit: ttl, ZeroHopLimit: g.chance(30), FlowLabel: g.rnd.Uint32() & 0xfffff, TrafficClass: uint8(g.rnd.Uint32())}
	}
	layers := []packet.Layer{ether(blueHost, blueMAC), head}
	for src.Is6() && g.chance(8) && len(layers) < 6 {
		layers = append(layers, packet.Extension{Type: packet.ProtoDestOptions, Data: make([]byte, 6+8*g.rnd.IntN(3))})
	}
	ports := []uint16{1000, 1001, 80, 8472}
	sport, dport := pick(g, ports...), pick(g, ports...)
	size := pick(g, 0, 0, 1, 30, 100, 1300, 1400, 1500)
	switch g.rnd.IntN(9) {
	case 0, 1, 2:
		flags := pick[uint8](g, packet.SYN, packet.SYN, packet.SYN|packet.ACK, packet.ACK, packet.ACK, packet.ACK|packet.PSH, packet.FIN|packet.ACK, packet.RST, packet.RST|packet.ACK, 0, packet.SYN|packet.FIN)
		layers = append(layers, packet.TCP{SrcPort: sport, DstPort: dport, Flags: flags, Ack: pick[uint32](g, 1, 1, 1, 65536, 65537, 0, 1<<31)}, packet.Sized(size))
	case 3, 4:
		layers = append(layers, packet.UDP{SrcPort: sport, DstPort: dport}, packet.Sized(size))
	case 5, 6:
		id := pick[uint16](g, 1, 2)
		if src.Is4() {
			layers = append(layers, packet.ICMPv4{Type: pick[uint8](g, packet.ICMPv4EchoRequest, packet.ICMPv4EchoReply, packet.ICMPv4EchoRequest, packet.ICMPv4EchoReply, 13), ID: id}, packet.Sized(size))
		} else {
			layers = append(layers, packet.ICMPv6{Type: pick[uint8](g, packet.ICMPv6EchoRequest, packet.ICMPv6EchoReply, packet.ICMPv6EchoRequest, packet.ICMPv6EchoReply, packet.ICMPv6RouterSolicit), ID: id}, packet.Sized(size))
		}
	case 7:
		chunk := pick[uint8](g, packet.ChunkData, packet.ChunkInit, packet.ChunkInitAck, packet.ChunkCookieEcho, packet.ChunkShutdownAck, packet.ChunkShutdownComplete, packet.ChunkAbort)
		layers = append(layers, packet.SCTP{SrcPort: sport, DstPort: dport}, packet.Chunk(chunk, 0, packet.Sized(size)))
	default:
		if g.chance(3) {
			h := protocolHeader(src, dst, pick[uint8](g, 4, 41, 47, 89))
			return p, packet.Build(ether(blueHost, blueMAC), h, packet.Sized(64))
		}
		layers = append(layers, packet.UDP{SrcPort: sport, DstPort: dport}, packet.Sized(size))
	}
	frame := packet.Build(layers...)
	g.sent = append(g.sent, frame)
	if len(g.sent) > 32 {
		g.sent = slices.Delete(g.sent, 0, 1)
	}
	return p, frame
}

func TestModel(t *testing.T) {
	t.Parallel()
	for _, seed := range []uint64{1, 2, 1795884734890652946, uint64(time.Now().UnixNano())} {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			eachFamily(t, rigConfig{flows: conntrack.Config{Flows: 16384, Unconfirmed: 8192}}, func(t *testing.T, r *rig, f family) {
				g := &generator{rnd: rand.New(rand.NewPCG(seed, seed)), f: f}
				m := newModel()
				for i := range 1500 {
					p, frame := g.next()
					want := m.judge(p, frame)
					if want.frame == nil {
						want.frame = frame
					}
					events := map[string]uint64{}
					for _, e := range want.events {
						events[e]++
					}
					before := r.events()
					got := r.inject(p, frame)
					d, _ := packet.Decode(frame)
					what := fmt.Sprintf("packet %d, %s %+v: %s", i, p.program, p, d)
					require.Equal(t, map[string]uint64{p.counter(want.counted): 1}, got.counted, what)
					require.Equal(t, want.verdict, got.verdict, what)
					require.Equal(t, want.sent, got.sent, what)
					require.True(t, slices.Equal(want.frame, got.frame), what)
					require.Equal(t, events, moved(before, r.events()), what)
				}
				require.Equal(t, m.flowList(), r.modelFlowList())
				stats, err := r.flows.Stats()
				require.NoError(t, err)
				require.Equal(t, len(m.flows), stats.Entries, "two entries a flow and nothing else")
				require.Greater(t, len(m.flows), 100, "the packets meet too little")
			})
		})
	}
}
