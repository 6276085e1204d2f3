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
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/internal/yardstick"
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

// BenchmarkEstablished prints what a packet to a service costs, beside one to
// the backend itself; the same for their answers.
func BenchmarkEstablished(b *testing.B) {
	r := newRig(b, Config{})
	r.addLoop()
	empty := yardstick.Empty(b)
	type runner struct {
		name  string
		prog  *ebpf.Program
		frame []byte
		times []float64
	}
	some := tcp(at(casts[0].blue, 1), at(casts[0].green, 2), packet.ACK)
	all := []*runner{{name: "empty", prog: yardstick.Freshly(b, some, empty), frame: some}}
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
			all = append(all, &runner{name: c.name + []string{" to a pod", " to a service"}[i], prog: yardstick.Freshly(b, f, r.dp.Program("from_endpoint")), frame: f})
		}
		for i, dst := range []netip.AddrPort{at(self, 9090), at(c.vip, 90)} {
			from := at(client.Addr(), client.Port()+uint16(i))
			for _, flags := range []uint8{packet.SYN, packet.ACK, packet.ACK} {
				require.Equal(b, redirected, r.send("from_endpoint", "green", tcp(from, dst, flags)).verdict)
				require.Equal(b, redirected, r.send("from_endpoint", "lo", tcp(at(self, 9090), from, flags|packet.ACK)).verdict)
			}
			f := tcp(at(self, 9090), from, packet.ACK)
			all = append(all, &runner{name: c.name + []string{" answer of a pod", " answer of a service"}[i], prog: yardstick.Freshly(b, f, r.dp.Program("from_endpoint")), frame: f})
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

// BenchmarkNewFlow prints what the first packet of a flow to a service costs, in
// L and beside that to a pod.
func BenchmarkNewFlow(b *testing.B) {
	const flows, rounds, target = 4000, 5, 50
	empty, lookUp := yardstick.Empty(b), yardstick.LookUp(b)
	for b.Loop() {
		fmt.Fprintf(os.Stdout, "\n%-32s %8s %6s %6s\n", "new TCP flow", "net ns", "L", "target")
		for _, c := range casts {
			r := newRigOf(b, Config{}, conntrack.Config{Flows: 65536, Unconfirmed: 32768})
			r.addLoop()
			self := loop[c.name == "IPv4"]
			var backends []Backend
			for i := range 3 {
				backends = append(backends, Backend{Addr: at(c.green, uint16(8080+i))})
			}
			for i, s := range []Service{{Algorithm: Random}, {Algorithm: Maglev}, {Algorithm: Random, Affinity: time.Hour}} {
				s.Name, s.Backends = fmt.Sprint(c.name, i), backends
				s.Frontends = []Frontend{{Addr: at(c.vip, uint16(80+i))}}
				require.NoError(b, r.bal.SetService(s))
			}
			for _, to := range []struct {
				name string
				dst  netip.AddrPort
			}{
				{"pod", at(c.green, 8080)}, {"service", at(c.vip, 80)}, {"service, Maglev", at(c.vip, 81)}, {"service, affinity", at(c.vip, 82)},
			} {
				var news, bases, lookUps, empties []float64
				once := func(out *[]float64, p *ebpf.Program, frame []byte, repeat int) {
					_, d, err := p.Benchmark(frame, repeat, nil)
					require.NoError(b, err)
					*out = append(*out, float64(d))
				}
				for round := range 1 + rounds {
					if round == 1 { // the table has been used before, as on a node that runs
						news, bases, lookUps, empties = nil, nil, nil, nil
					}
					require.NoError(b, r.ns.Do(func() error {
						for i := range flows {
							frame := tcp(at(self, uint16(10000+i)), to.dst, packet.SYN)
							once(&news, r.dp.Program("from_endpoint"), frame, 1)
							once(&bases, empty, frame, 1)
							if i%8 == 0 {
								once(&lookUps, lookUp, frame, 1000)
								once(&empties, empty, frame, 1000)
							}
						}
						return nil
					}))
					n, err := r.flows.Flush(conntrack.Filter{})
					require.NoError(b, err)
					require.Equal(b, flows, n)
				}
				l, net := middle(lookUps)-middle(empties), middle(news)-middle(bases)
				fmt.Fprintf(os.Stdout, "%-32s %8.0f %6.1f %6d\n", c.name+" to a "+to.name, net, net/l, target)
			}
		}
	}
}
