// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/packet"
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
	best  []float64
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
				x.best = append(x.best, ns)
			}
		}
		return nil
	}))
	for _, x := range all {
		slices.Sort(x.best)
		out[x.name] = x.best[len(x.best)/2]
	}
	return out
}

func timed(p *ebpf.Program, frame []byte) (float64, error) {
	_, d, err := p.Benchmark(frame, repeat, nil)
	return float64(d) / float64(time.Nanosecond), err
}

// BenchmarkPath prints what each path costs, in nanoseconds and in L.
func BenchmarkPath(b *testing.B) {
	r := newRig(b, rigConfig{})
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
	establish := func(src, dst [2]any) {}
	_ = establish

	// Established TCP: SYN, SYN-ACK and ACK have been through.
	empty := program(b, "empty", asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()})
	lookup := lookupProgram(b)
	ack := func(frame []byte) []byte { return long(frame) }
	shake := func(fwd, back func(flags uint8) (int, []byte)) {
		fwd(packet.SYN)
		back(packet.SYN | packet.ACK)
		fwd(packet.ACK)
		back(packet.ACK)
	}
	overlay := r.overlayProgram(redNode, redIdentity, r.dp.Program("from_overlay"))
	overlayEmpty := r.overlayProgram(redNode, redIdentity, empty)

	all := []*runner{
		{name: "empty", prog: empty, frame: ack(tcp(blue4, green4, 1, 2, packet.ACK))},
		{name: "look-up", prog: lookup, frame: ack(tcp(blue4, green4, 1, 2, packet.ACK)), base: "empty"},
		{name: "overlay empty", prog: overlayEmpty, frame: ack(tcp(blue4, green4, 1, 2, packet.ACK))},
	}
	for _, f := range []string{"IPv4", "IPv6"} {
		blue, green, red := blue4, green4, red4
		if f == "IPv6" {
			blue, green, red = blue6, green6, red6
		}
		// The flow to green is completed from blue's side: the rig's only device is blue's.
		r.run("from_endpoint", tcp(blue, green, 1000, 80, packet.SYN))
		r.run("from_endpoint", tcp(blue, green, 1000, 80, packet.ACK))
		r.run("from_endpoint", tcp(blue, green, 1000, 80, packet.ACK))
		shake(
			func(flags uint8) (int, []byte) { return r.run("from_endpoint", tcp(blue, red, 2000, 80, flags)) },
			func(flags uint8) (int, []byte) {
				return r.fromOverlay(redNode, redIdentity, tcp(red, blue, 80, 2000, flags))
			},
		)
		all = append(all,
			&runner{name: f + " from_endpoint to endpoint", prog: r.dp.Program("from_endpoint"), frame: ack(tcp(blue, green, 1000, 80, packet.ACK)), base: "empty", limit: 3},
			&runner{name: f + " from_endpoint to overlay", prog: r.dp.Program("from_endpoint"), frame: ack(tcp(blue, red, 2000, 80, packet.ACK)), base: "empty", limit: 5},
			&runner{name: f + " from_overlay to endpoint", prog: overlay, frame: ack(tcp(red, blue, 80, 2000, packet.ACK)), base: "overlay empty", limit: 4},
		)
	}
	for _, x := range all {
		verdict, _ := r.runProgram(x.prog, x.frame)
		if x.limit > 0 {
			require.Equal(b, 7, verdict, "%s must redirect", x.name)
		}
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

func program(t testing.TB, name string, insns asm.Instructions) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "GPL", Instructions: insns})
	require.NoError(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

// lookupProgram looks a constant 40-byte key up that is there.
func lookupProgram(t testing.TB) *ebpf.Program {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 40, ValueSize: 128, MaxEntries: 131072})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	var key [40]byte
	key[0] = 1
	require.NoError(t, m.Put(key[:], make([]byte, 128)))
	insns := asm.Instructions{}
	for off := int16(-40); off < 0; off += 4 {
		v := int64(0)
		if off == -40 {
			v = 1
		}
		insns = append(insns, asm.StoreImm(asm.R10, off, v, asm.Word))
	}
	insns = append(insns,
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -40),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "miss"),
		asm.LoadMem(asm.R0, asm.R0, 0, asm.Word),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 2).WithSymbol("miss"),
		asm.Return(),
	)
	return program(t, "lookup", insns)
}
