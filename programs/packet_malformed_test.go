// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/packet"
)

// unsafe says what is wrong with a passage of whatever bytes, by an own and
// simple reading of the frame: the addresses stand at fixed places. "" if
// nothing is.
func unsafe(p port, got passage) string {
	if len(got.counted) != 1 {
		return fmt.Sprintf("counters %v, want one", got.counted)
	}
	what := slices.Collect(maps.Keys(got.counted))[0]
	if got.counted[what] != 1 || !strings.HasPrefix(what, p.counter("")) {
		return fmt.Sprintf("counter %s moved by %d", what, got.counted[what])
	}
	what = strings.TrimPrefix(what, p.counter(""))
	in := got.in
	if len(got.frame) < 14 || len(got.frame) > len(in)+200 {
		return fmt.Sprintf("%d bytes became %d", len(in), len(got.frame))
	}
	if sumIsRight(in) && !sumIsRight(got.frame) {
		return "the IPv4 header checksum is wrong now"
	}
	switch {
	case got.verdict == verdictDrop:
		if !strings.HasPrefix(what, "drop ") {
			return "dropped and counted as " + what
		}
		if !bytes.Equal(in, got.frame) {
			return "dropped, but changed"
		}
		if got.sent != (hop{}) {
			return fmt.Sprintf("dropped, but sent to %+v", got.sent)
		}
		return ""
	case got.verdict == verdictNext:
		if p.program != "to_endpoint" || what != "pass" || !bytes.Equal(in, got.frame) || got.sent != (hop{}) {
			return fmt.Sprintf("passed on: %s, sent to %+v", what, got.sent)
		}
		if in[12] == 8 && in[13] == 6 || len(in) > 54 && in[12] == 0x86 && in[20] == packet.ProtoICMPv6 && in[54]>>1 == 67 {
			return "" // ARP or NDP
		}
		if _, dst := addresses(in); dst != map[uint32]netip.Addr{blueIfindex: blue4, greenIfindex: green4}[p.ifindex] &&
			dst != map[uint32]netip.Addr{blueIfindex: blue6, greenIfindex: green6}[p.ifindex] {
			return fmt.Sprintf("passed on to %s", dst)
		}
		return ""
	case got.verdict != rediret:
		return fmt.Sprintf("verdict %d", got.verdict)
	}
	back := map[string]hop{
		"from_endpoint": {ifindex: p.ifindex, peer: true},
		"from_overlay":  {ifindex: overlayIfindex, vni: 1, node: p.node},
		"from_host":     {ifindex: hostIfindex, flags: 1},
	}[p.program]
	switch what {
	case "answered", "drop ttl exceeded", "drop too big":
		if got.sent != back {
			return fmt.Sprintf("%s: sent to %+v", what, got.sent)
		}
		if err := packet.Check(got.frame); err != nil {
			return fmt.Sprintf("%s: %s", what, err)
		}
		return ""
	case "to endpoint", "to overlay", "to host":
	default:
		return "sent and counted as " + what
	}
	src, dst := addresses(in)
	red := netip.MustParsePrefix("10.244.2.0/24")
	if src.Is6() {
		red = netip.MustParsePrefix("fd00:244:2::/64")
	}
	switch own := map[uint32][2]netip.Addr{blueIfindex: {blue4, blue6}, greenIfindex: {green4, green6}}[p.ifindex]; {
	case p.program == "from_endpoint" && src != own[0] && src != own[1]:
		return fmt.Sprintf("%s was let send as %s", p.program, src)
	case p.program == "from_overlay" && (!red.Contains(src) || p.node != redNode):
		if d, _ := packet.Decode(in); d.Inner != nil && p.node == redNode {
			break // an error may be a router's beyond that node
		}
		return fmt.Sprintf("%s was let send as %s", p.node, src)
	}
	var want hop
	switch {
	case dst == blue4 || dst == blue6:
		want = hop{ifindex: blueIfindex, peer: true}
	case dst == green4 || dst == green6:
		want = hop{ifindex: greenIfindex, peer: true}
	case red.Contains(dst) && p.program == "from_endpoint":
		want = hop{ifindex: overlayIfindex, node: redNode, vni: map[uint32]uint32{blueIfindex: blueIdentity, greenIfindex: greenIdentity}[p.ifindex]}
	case red.Contains(dst) && p.program == "from_host":
		want = hop{ifindex: overlayIfindex, node: redNode, vni: 2}
		if src == gate4 || src == gate6 {
			want.vni = 1
		}
	case p.program == "from_endpoint", dst == gate4, dst == gate6:
		want = hop{ifindex: hostIfindex, flags: 1}
	}
	if got.sent != want {
		return fmt.Sprintf("to %s: sent to %+v, want %+v", dst, got.sent, want)
	}
	// The addresses of the link, the TTL and its checksum are all that may change.
	a, b := slices.Clone(in), slices.Clone(got.frame)
	hop := byte(1)
	if want.ifindex == hostIfindex || p.program == "from_host" {
		hop = 0
	}
	if len(a) != len(b) || b[ttlAt(b)] != a[ttlAt(a)]-hop {
		return fmt.Sprintf("%d bytes with TTL %d became %d with %d", len(a), a[ttlAt(a)], len(b), b[ttlAt(b)])
	}
	for _, f := range [][]byte{a, b} {
		clear(f[:12])
		f[ttlAt(f)] = 0
		if f[12] == 8 {
			clear(f[24:26])
		}
	}
	if !bytes.Equal(a, b) {
		return "changed where it must not be"
	}
	return ""
}

func addresses(frame []byte) (src, dst netip.Addr) {
	if frame[12] == 8 {
		return netip.AddrFrom4([4]byte(frame[26:])), netip.AddrFrom4([4]byte(frame[30:]))
	}
	return netip.AddrFrom16([16]byte(frame[22:])), netip.AddrFrom16([16]byte(frame[38:]))
}

func sumIsRight(frame []byte) bool {
	if len(frame) < 34 || frame[12] != 8 || frame[13] != 0 {
		return false
	}
	n := int(frame[14]&15) * 4
	return n >= 20 && len(frame) >= 14+n && packet.Checksum(frame[14:14+n]) == 0
}

// kinds are packets of every kind from src to dst. Those of known flows come
// behind the packets that make the flows.
func kinds(src, dst netip.Addr) (names []string, frames map[string][]byte) {
	frames = map[string][]byte{}
	add := func(name string, frame []byte) {
		names = append(names, name)
		frames[name] = frame
	}
	add("TCP", tcp(src, dst, 1000, 80, packet.SYN, packet.Sized(20)...))
	add("TCP options", build(src, dst, packet.TCP{SrcPort: 1001, DstPort: 80, Flags: packet.ACK, Options: make([]byte, 12)}, packet.Sized(20)))
	add("UDP", udp(src, dst, 1000, 53, packet.Sized(20)...))
	add("echo", echo(src, dst, 77, packet.Sized(20)...))
	add("SCTP", sctp(src, dst, 1000, 9, packet.ChunkInit))
	d := datagram{src: src, dst: dst, sport: 1000, dport: 53, id: 3, size: 152}
	add("first fragment", d.piece(0, 80, true))
	add("later fragment", d.piece(80, 120, true))
	add("expired", withTTL(udp(src, dst, 1000, 53, packet.Sized(20)...), 1))
	add("too big", ofSize(src, dst, 1500)["UDP"])
	back := udp(dst, src, 53, 1000, packet.Sized(20)...)
	add("error", portUnreachable(src, dst, back, headers(back)))
	if src.Is4() {
		add("options", packet.Build(ether(blueHost, blueMAC), packet.IPv4{Src: src, Dst: dst, Options: make([]byte, 8)}, packet.UDP{SrcPort: 1, DstPort: 2}, packet.Sized(20)))
		add("ARP", packet.Build(ether(packet.Broadcast(), blueMAC), packet.ARP{Op: packet.ARPRequest, SenderMAC: blueMAC, SenderIP: src, TargetIP: gate4}))
		return names, frames
	}
	add("extensions", build(src, dst, packet.Extension{}, packet.Extension{Type: packet.ProtoAH, Data: make([]byte, 14)},
		packet.Extension{Type: packet.ProtoDestOptions, Data: make([]byte, 14)}, packet.UDP{SrcPort: 1, DstPort: 2}, packet.Sized(20)))
	add("NDP", packet.Build(ether(blueHost, blueMAC), packet.IPv6{Src: src, Dst: gate6, HopLimit: 255}, packet.NeighborSolicit{Target: gate6, SourceMAC: blueMAC}))
	return names, frames
}

// Every packet of every kind, cut at every length and with every byte of its
// headers changed: it may be dropped or not, but it is counted once, with a
// reason, and goes nowhere but to where its addresses say.
func TestMalformed(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		for _, way := range []struct {
			from     port
			src, dst netip.Addr
			step     int // the parser is one and the same: the other ways are looked at in passing
		}{{fromBlue, f.blue, f.green, 1}, {fromBlue, f.blue, f.red, 5}, {fromHost, f.gate, f.red, 5}, {fromRed, f.red, f.blue, 3}, {toGreen, f.gate, f.green, 5}} {
			names, all := kinds(way.src, way.dst)
			for _, name := range names {
				frame := all[name]
				frames := [][]byte{frame}
				headerEnd := min(len(frame), 120)
				for n := 14; n < headerEnd; n += way.step {
					frames = append(frames, frame[:n])
					// The same with the lengths of the headers set right for what is left.
					frames = append(frames, edit(frame, func(b []byte) {
						if b[12] == 8 && b[13] == 0 {
							binary.BigEndian.PutUint16(b[16:], uint16(max(0, n-14)))
						} else if b[12] == 0x86 {
							binary.BigEndian.PutUint16(b[18:], uint16(max(0, n-54)))
						}
					})[:max(n, 34)])
				}
				for at := 12; at < headerEnd; at += way.step {
					for _, v := range []byte{0xff, frame[at] ^ 1, frame[at] ^ 0x80} {
						b := slices.Clone(frame)
						b[at] = v
						frames = append(frames, b)
					}
				}
				for _, got := range r.injectAll(way.from, frames) {
					if bad := unsafe(way.from, got); bad != "" {
						d, err := packet.Decode(got.in)
						require.Fail(t, bad, "%s, %s: % x\n%s (%v)", way.from.program, name, got.in[:min(130, len(got.in))], d, err)
					}
				}
			}
		}
	})
}

// Lies about lengths, each with its reason.
func TestLies(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		four := f.blue.Is4()
		l4 := 54
		if four {
			l4 = 34
		}
		good := map[string][]byte{
			"TCP": tcp(f.blue, f.green, 1, 2, packet.SYN, packet.Sized(40)...), "UDP": udp(f.blue, f.green, 1, 2, packet.Sized(40)...),
			"echo": echo(f.blue, f.green, 1, packet.Sized(40)...), "SCTP": sctp(f.blue, f.green, 1, 2, packet.ChunkInit),
		}
		for name, frame := range good {
			set := func(at int, v ...byte) []byte { return edit(frame, func(b []byte) { copy(b[at:], v) }) }
			length := func(n int) []byte {
				if four {
					return set(16, byte((20+n)>>8), byte(20+n))
				}
				return set(18, byte(n>>8), byte(n))
			}
			refuse := func(frame []byte, reason string, what string) {
				t.Helper()
				r.expect(fromBlue, frame, dropped(reason), "%s: %s", name, what)
				r.expect(fromHost, frame, dropped(reason), "%s: %s", name, what)
				r.expect(toGreen, frame, dropped(reason), "%s: %s", name, what)
			}
			refuse(length(len(frame)-l4+1), "bad length", "longer than the frame")
			refuse(length(65515), "bad length", "the longest")
			refuse(length(0), "bad length", "no payload")
			refuse(length(7), "bad length", "less than any header")
			refuse(frame[:l4+7], "bad length", "the frame is cut in the header")
			refuse(frame[:l4], "bad length", "the frame is cut before the header")
			if name != "UDP" { // a datagram tells its own length
				n := map[string]int{"TCP": 20, "echo": 8, "SCTP": 16}[name]
				refuse(length(n-1), "bad length", "a byte less than the header")
				short := length(n)[:l4+n]
				require.Equal(t, rediret, r.inject(fromBlue, short).verdict, "%s: the header alone", name)
			}
			padded := append(slices.Clone(frame), 0, 0, 0)
			require.Equal(t, rediret, r.inject(fromBlue, padded).verdict, "%s: padding", name)
			if !four {
				refuse(set(14, 0x40), "bad length", "version 4")
				continue
			}
			refuse(set(14, 0x65), "bad length", "version 6")
			for ihl := range byte(5) {
				bad := slices.Clone(frame)
				bad[14] = 0x40 | ihl
				refuse(bad, "bad length", "a short header")
			}
			bad := slices.Clone(frame)
			bad[14] = 0x4f
			got := r.send(fromBlue, bad)
			require.Equal(t, verdictDrop, got.verdict, "%s: a header of 60 bytes over its payload: %v", name, got.counted)
			short := length(0)
			binary.BigEndian.PutUint16(short[16:], 19)
			refuse(short, "bad length", "a total length below the header's")
		}
		tcpFrame, udpFrame := good["TCP"], good["UDP"]
		for words := range byte(16) {
			bad := slices.Clone(tcpFrame)
			bad[l4+12] = words << 4
			if n := int(words) * 4; n < 20 || n > len(tcpFrame)-l4 {
				r.expect(fromBlue, bad, dropped("bad length"), "TCP: a header of %d words", words)
			} else {
				require.Equal(t, rediret, r.inject(fromBlue, bad).verdict, "TCP: a header of %d words", words)
			}
		}
		for _, n := range []int{0, 1, 7, 49, 1000, 65535} {
			bad := slices.Clone(udpFrame)
			binary.BigEndian.PutUint16(bad[l4+4:], uint16(n))
			r.expect(fromBlue, bad, dropped("bad length"), "UDP: %d bytes", n)
		}
		for _, n := range []int{8, 9, 47, 48} {
			ok := slices.Clone(udpFrame)
			binary.BigEndian.PutUint16(ok[l4+4:], uint16(n))
			require.Equal(t, rediret, r.inject(fromBlue, ok).verdict, "UDP: %d bytes", n)
		}
	})
}

// FuzzFromEndpoint sends whatever bytes as an endpoint would.
func FuzzFromEndpoint(f *testing.F) {
	for _, fam := range families {
		for _, dst := range []netip.Addr{fam.green, fam.red, fam.gate} {
			_, all := kinds(fam.blue, dst)
			for _, frame := range all {
				f.Add(frame)
			}
		}
	}
	r := newPacketRig(f, rigConfig{})
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 3000 {
			return
		}
		r.t = t
		for _, got := range r.injectAll(fromBlue, [][]byte{frame}) {
			if bad := unsafe(fromBlue, got); bad != "" {
				t.Fatalf("%s: % x", bad, frame)
			}
		}
	})
}
