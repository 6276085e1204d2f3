// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/maps"
)

// A test run arrives on the loopback device, so for a benchmark that is an
// endpoint's.
var loop = map[bool]netip.Addr{true: a("10.244.1.20"), false: a("fd00:244:1::20")}

func (r *rig) addLoop() {
	r.t.Helper()
	require.NoError(r.t, r.endpoints.Set(maps.Endpoint{
		ID: 3, Identity: 300, Ifindex: 1, Addrs: []netip.Addr{loop[true], loop[false]}, MAC: net.HardwareAddr(mac[:]), NodeMAC: net.HardwareAddr(mac[:]),
	}))
	attached, err := ebpf.LoadPinnedMap(filepath.Join(r.pins, "endpoint_attached"), nil)
	require.NoError(r.t, err)
	defer attached.Close()
	require.NoError(r.t, attached.Put(uint32(1), uint32(3)))
	r.ifindex["lo"] = 1
}

// middle is the mean of the middle half: the kernel answers in whole nanoseconds.
func middle(all []float64) float64 {
	slices.Sort(all)
	half, sum := all[len(all)/4:len(all)-len(all)/4], 0.0
	for _, v := range half {
		sum += v
	}
	return sum / float64(len(half))
}

// freshly makes a program that writes a packet anew before the next one gets it:
// in the runs of a benchmark it is the one that the run before has translated.
func (r *rig) freshly(frame []byte, next *ebpf.Program) *ebpf.Program {
	r.t.Helper()
	jump, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	require.NoError(r.t, err)
	r.t.Cleanup(func() { jump.Close() })
	require.NoError(r.t, jump.Put(uint32(0), next))
	bytes, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(frame)), MaxEntries: 1})
	require.NoError(r.t, err)
	r.t.Cleanup(func() { bytes.Close() })
	require.NoError(r.t, bytes.Put(uint32(0), frame))
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMapValue(asm.R3, bytes.FD(), 0),
		asm.Mov.Imm(asm.R2, 0), asm.Mov.Imm(asm.R4, int32(len(frame))), asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, jump.FD()), asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 99), asm.Return(),
	}})
	require.NoError(r.t, err)
	r.t.Cleanup(func() { p.Close() })
	return p
}

// BenchmarkEstablished prints what a packet to a service costs, beside one to
// the backend itself; the same for their answers.
func BenchmarkEstablished(b *testing.B) {
	r := newRig(b, Config{})
	r.addLoop()
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	require.NoError(b, err)
	defer empty.Close()
	type runner struct {
		name  string
		prog  *ebpf.Program
		frame []byte
		times []float64
	}
	some := tcp(at(casts[0].blue, 1), at(casts[0].green, 2), packet.ACK)
	all := []*runner{{name: "empty", prog: r.freshly(some, empty), frame: some}}
	for _, c := range casts {
		is4 := c.name == "IPv4"
		self, pod, vip := loop[is4], at(c.green, 8080), at(c.vip, 80)
		client := at(c.green, 50000)
		require.NoError(b, r.bal.SetService(Service{Name: "away" + c.name, Frontends: []Frontend{{Addr: vip}}, Backends: []Backend{{Addr: pod}}}))
		require.NoError(b, r.bal.SetService(Service{Name: "here" + c.name, Frontends: []Frontend{{Addr: at(c.vip, 90)}}, Backends: []Backend{{Addr: at(self, 9090)}}}))
		for i, dst := range []netip.AddrPort{pod, vip} {
			from := at(self, 40000+uint16(i))
			for _, flags := range []uint8{packet.SYN, packet.ACK, packet.ACK} {
				to := r.send("from_endpoint", "lo", tcp(from, dst, flags)).ends()[1]
				require.Equal(b, redirected, r.send("from_endpoint", "green", tcp(to, from, flags|packet.ACK)).verdict)
			}
			f := tcp(from, dst, packet.ACK)
			all = append(all, &runner{name: c.name + []string{" to a pod", " to a service"}[i], prog: r.freshly(f, r.dp.Program("from_endpoint")), frame: f})
		}
		for i, dst := range []netip.AddrPort{at(self, 9090), at(c.vip, 90)} {
			from := at(client.Addr(), client.Port()+uint16(i))
			for _, flags := range []uint8{packet.SYN, packet.ACK, packet.ACK} {
				require.Equal(b, redirected, r.send("from_endpoint", "green", tcp(from, dst, flags)).verdict)
				require.Equal(b, redirected, r.send("from_endpoint", "lo", tcp(at(self, 9090), from, flags|packet.ACK)).verdict)
			}
			f := tcp(at(self, 9090), from, packet.ACK)
			all = append(all, &runner{name: c.name + []string{" answer of a pod", " answer of a service"}[i], prog: r.freshly(f, r.dp.Program("from_endpoint")), frame: f})
		}
	}
	for b.Loop() {
		require.NoError(b, r.ns.Do(func() error {
			for range 600 {
				for _, x := range all {
					_, d, err := x.prog.Benchmark(x.frame, 60, nil)
					if err != nil {
						return err
					}
					x.times = append(x.times, float64(d))
				}
			}
			return nil
		}))
		base := middle(all[0].times)
		fmt.Fprintf(os.Stdout, "\n%-28s %8s %8s %14s\n", "established TCP", "ns", "net ns", "against a pod")
		for i, x := range all[1:] {
			ns, ratio := middle(x.times), ""
			if i%2 == 1 {
				pod := middle(all[i].times)
				ratio = fmt.Sprintf("%.3f, net %.3f", ns/pod, (ns-base)/(pod-base))
			}
			fmt.Fprintf(os.Stdout, "%-28s %8.1f %8.1f  %s\n", x.name, ns, ns-base, ratio)
		}
	}
}
