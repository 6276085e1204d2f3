// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/internal/yardstick"
	"github.com/godatapath/datapath/tunnel"
)

// The unit of the fast path: L is what one look-up in a hash table with a
// 40-byte key costs, net of an empty program, measured in the same run as the
// paths. A path's cost in L does not depend on how fast the machine is, or on
// who else is on it.

const (
	repeat = 60 // runs of one packet: each takes one from its TTL of 255
	rounds = 400
)

// runner measures one program with one packet.
type runner struct {
	name  string
	prog  *ebpf.Program
	frame []byte
	base  string // what to subtract: another runner
	limit float64
	times []float64
}

func (r *rig) measure(b *testing.B, all []*runner) map[string]float64 {
	b.Helper()
	out := map[string]float64{}
	require.NoError(b, r.ns.Do(func() error {
		for range rounds {
			for _, x := range all {
				ns, err := timed(x.prog, x.frame)
				if err != nil {
					return fmt.Errorf("%s: %w", x.name, err)
				}
				x.times = append(x.times, ns)
			}
		}
		return nil
	}))
	for _, x := range all {
		out[x.name] = middle(x.times)
	}
	return out
}

// middle is the mean of the middle half: the kernel answers in whole nanoseconds,
// too coarse for a median, and those at the ends have met somebody else's work.
func middle(all []float64) float64 {
	slices.Sort(all)
	half, sum := all[len(all)/4:len(all)-len(all)/4], 0.0
	for _, v := range half {
		sum += v
	}
	return sum / float64(len(half))
}

func timed(p *ebpf.Program, frame []byte) (float64, error) {
	_, d, err := p.Benchmark(frame, repeat, nil)
	return float64(d) / float64(time.Nanosecond), err
}

// BenchmarkPath prints what each path costs, in nanoseconds and in L.
func BenchmarkPath(b *testing.B) {
	r := newPacketRig(b, rigConfig{flows: conntrack.Config{Flows: conntrack.DefaultFlows}, tunnel: tunnel.Config{Node: ownNode}})
	long := func(frame []byte) []byte {
		f := slices.Clone(frame)
		d, err := packet.Decode(f)
		require.NoError(b, err)
		if d.IPv4 != nil {
			d.IPv4.TTL = 255
			d.IPv4.Checksum = nil
		}
		layers := slices.Clone(d.Layers)
		for i, l := range layers {
			switch v := l.(type) {
			case packet.IPv4:
				v.TTL = 255
				layers[i] = v
			case packet.IPv6:
				v.HopLimit = 255
				layers[i] = v
			}
		}
		return packet.Build(layers...)
	}
	// Established TCP: openings, answers and more have been through, both ways.
	empty := yardstick.Empty(b)
	lookup := yardstick.LookUp(b)
	ack := func(frame []byte) []byte { return long(frame) }
	overlay := r.overlayProgram(redNode, redIdentity, r.dp.Program("from_overlay"))
	overlayEmpty := r.overlayProgram(redNode, redIdentity, empty)

	outside := outer{src: redNode, dst: ownNode, port: tunnel.DefaultPort, vni: redIdentity}.around(ack(tcp(red4, blue4, 80, 3000, packet.ACK)))[:50]
	underlay := r.wrapProgram(outside, r.dp.Program("from_device"))
	// The packet must be as before for the next run, so the headers come off without us too.
	strip := r.wrapProgram(outside, yardstick.Program(b, "strip", asm.Instructions{
		asm.Mov.Imm(asm.R2, -int32(len(outside))), asm.Mov.Imm(asm.R3, 1), asm.Mov.Imm(asm.R4, 1<<7), // BPF_F_ADJ_ROOM_DECAP_L3_IPV4
		asm.FnSkbAdjustRoom.Call(), asm.Mov.Imm(asm.R0, 0), asm.Return(),
	}))

	all := []*runner{
		{name: "empty", prog: empty, frame: ack(tcp(blue4, green4, 1, 2, packet.ACK))},
		{name: "look-up", prog: lookup, frame: ack(tcp(blue4, green4, 1, 2, packet.ACK)), base: "empty"},
		{name: "overlay empty", prog: overlayEmpty, frame: ack(tcp(blue4, green4, 1, 2, packet.ACK))},
		{name: "headers off", prog: strip, frame: ack(tcp(blue4, green4, 1, 2, packet.ACK))},
	}
	for _, f := range []string{"IPv4", "IPv6"} {
		blue, green, red := blue4, green4, red4
		if f == "IPv6" {
			blue, green, red = blue6, green6, red6
		}
		shake := func(from, back port, src, dst netip.Addr, sport uint16) {
			for _, flags := range []uint8{packet.SYN, packet.ACK, packet.ACK} {
				require.Equal(b, rediret, r.inject(from, tcp(src, dst, sport, 80, flags)).verdict)
				require.Equal(b, rediret, r.inject(back, tcp(dst, src, 80, sport, flags|packet.ACK)).verdict)
			}
		}
		// A test run arrives on the device of blue.
		shake(fromBlue, fromGreen, blue, green, 1000)
		shake(fromGreen, fromBlue, green, blue, 1000)
		shake(fromBlue, fromNode(redNode, redIdentity).on(blueIfindex), blue, red, 2000)
		// The short cut wants to know that the flow comes from the overlay device.
		shake(fromBlue, fromRed, blue, red, 3000)
		all = append(all,
			&runner{name: f + " from_endpoint to endpoint", prog: r.dp.Program("from_endpoint"), frame: ack(tcp(blue, green, 1000, 80, packet.ACK)), base: "empty", limit: 3},
			&runner{name: f + " its reply", prog: r.dp.Program("from_endpoint"), frame: ack(tcp(blue, green, 80, 1000, packet.ACK)), base: "empty", limit: 3},
			&runner{name: f + " from_endpoint to overlay", prog: r.dp.Program("from_endpoint"), frame: ack(tcp(blue, red, 2000, 80, packet.ACK)), base: "empty", limit: 5},
			&runner{name: f + " from_overlay to endpoint", prog: overlay, frame: ack(tcp(red, blue, 80, 2000, packet.ACK)), base: "overlay empty", limit: 4},
		)
		if f == "IPv4" { // a test run can not be told that IPv4 is around IPv6
			all = append(all, &runner{name: f + " from_device to endpoint", prog: underlay, frame: ack(tcp(red, blue, 80, 3000, packet.ACK)), base: "headers off"})
		}
	}
	for _, x := range all {
		require.NoError(b, r.ns.Do(func() error {
			verdict, _, err := x.prog.Benchmark(x.frame, repeat, nil)
			if err == nil && x.base != "" && x.prog != lookup && verdict != rediret {
				err = fmt.Errorf("%s: verdict %d after %d runs, it must redirect", x.name, int32(verdict), repeat)
			}
			return err
		}))
	}
	for b.Loop() {
		ns := r.measure(b, all)
		l := ns["look-up"] - ns["empty"]
		b.ReportMetric(l, "ns/L")
		fmt.Fprintf(os.Stdout, "\n%-32s %8s %8s %6s %6s\n", "path", "ns", "net ns", "L", "target")
		for _, x := range all {
			net := ns[x.name] - ns[x.base]
			if x.base == "" {
				net = 0
			}
			target := ""
			if x.limit > 0 {
				target = fmt.Sprintf("%.0f", x.limit)
			}
			fmt.Fprintf(os.Stdout, "%-32s %8.1f %8.1f %6.2f %6s\n", x.name, ns[x.name], net, net/l, target)
		}
	}
}

// wrapProgram makes a program that puts outer headers, up to the inner Ethernet
// header, in front of the packet and runs another one.
func (r *rig) wrapProgram(outer []byte, next *ebpf.Program) *ebpf.Program {
	r.t.Helper()
	jump, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	require.NoError(r.t, err)
	r.owner.Cleanup(func() { jump.Close() })
	require.NoError(r.t, jump.Put(uint32(0), next))
	size := int32(len(outer) + 14)
	headers, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(size), MaxEntries: 1})
	require.NoError(r.t, err)
	r.owner.Cleanup(func() { headers.Close() })
	require.NoError(r.t, headers.Put(uint32(0), append(slices.Clone(outer), make([]byte, 14)...)))
	// The type of the inner frame is in the packet; the rest of its Ethernet header nobody reads.
	return yardstick.Program(r.t, "wrap", asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.Mov.Imm(asm.R2, 12), asm.Mov.Reg(asm.R3, asm.R10), asm.Add.Imm(asm.R3, -8), asm.Mov.Imm(asm.R4, 2),
		asm.FnSkbLoadBytes.Call(),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, size-14), asm.Mov.Imm(asm.R3, 1), asm.Mov.Imm(asm.R4, 0),
		asm.FnSkbAdjustRoom.Call(),
		asm.LoadMapValue(asm.R3, headers.FD(), 0),
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, 0), asm.Mov.Imm(asm.R4, size), asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, size-2), asm.Mov.Reg(asm.R3, asm.R10), asm.Add.Imm(asm.R3, -8),
		asm.Mov.Imm(asm.R4, 2), asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, jump.FD()), asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 99), asm.Return(),
	})
}
