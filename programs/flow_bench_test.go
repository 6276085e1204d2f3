// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/internal/yardstick"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
	"github.com/godatapath/datapath/tunnel"
)

// once runs a program on a packet a single time and returns its time, with the
// cost of taking it.
func once(p *ebpf.Program, frame []byte) (float64, error) {
	_, d, err := p.Benchmark(frame, 1, nil)
	return float64(d), err
}

// BenchmarkNewFlow prints what the first packet of a flow costs, in L.
func BenchmarkNewFlow(b *testing.B) {
	empty := yardstick.Empty(b)
	lookup := yardstick.LookUp(b)
	const flows, rounds = 4000, 5
	for b.Loop() {
		var l float64
		fmt.Fprintf(os.Stdout, "\n%-32s %8s %6s %6s\n", "new TCP flow", "net ns", "L", "target")
		for _, path := range []struct {
			name     string
			overlay  bool
			src, dst netip.Addr
		}{
			{"from_endpoint to endpoint", false, blue4, green4},
			{"from_endpoint to overlay", false, blue4, red4},
			{"from_overlay to endpoint", true, red4, blue4},
		} {
			// Room in the ring for all of them: those of a node that runs are confirmed and leave it.
			r := newRig(b, rigConfig{flows: conntrack.Config{Flows: 65536, Unconfirmed: 32768}})
			new, base := r.dp.Program("from_endpoint"), empty
			if path.overlay {
				new, base = r.overlayProgram(redNode, redIdentity, r.dp.Program("from_overlay")), r.overlayProgram(redNode, redIdentity, empty)
			}
			var news, bases, lookups, empties []float64
			note := func(to *[]float64, measure func(*ebpf.Program, []byte) (float64, error), p *ebpf.Program, frame []byte) {
				ns, err := measure(p, frame)
				require.NoError(b, err)
				*to = append(*to, ns)
			}
			for round := range 1 + rounds {
				if round == 1 { // the table has been used before, as on a node that runs
					news, bases, lookups, empties = nil, nil, nil, nil
				}
				require.NoError(b, r.ns.Do(func() error {
					for i := range flows {
						frame := packet.Build(ether(blueHost, blueMAC), ip(path.src, path.dst, 64), packet.TCP{SrcPort: uint16(10000 + i), DstPort: 80, Flags: packet.SYN})
						note(&news, once, new, frame)
						note(&bases, once, base, frame)
						if i%8 == 0 {
							note(&lookups, timed, lookup, frame)
							note(&empties, timed, empty, frame)
						}
					}
					return nil
				}))
				_, err := r.flows.Flush(conntrack.Filter{})
				require.NoError(b, err)
			}
			l = middle(lookups) - middle(empties)
			net := middle(news) - middle(bases)
			fmt.Fprintf(os.Stdout, "%-32s %8.0f %6.1f %6d\n", path.name, net, net/l, 40)
		}
		b.ReportMetric(l, "ns/L")
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// BenchmarkLoad is all programs, from the embedded objects to the kernel.
func BenchmarkLoad(b *testing.B) {
	endpoints, err := maps.NewEndpoints(maps.EndpointsConfig{})
	require.NoError(b, err)
	defer endpoints.Close()
	flows, err := conntrack.New(conntrack.Config{})
	require.NoError(b, err)
	defer flows.Close()
	peers, err := tunnel.New(tunnel.Config{Node: ownNode})
	require.NoError(b, err)
	defer peers.Close()
	metrics, err := maps.NewMetrics(maps.Config{})
	require.NoError(b, err)
	defer metrics.Close()
	cfg := programs.Config{Gateways: []netip.Addr{gate4, gate6}, EndpointRoutes: true}
	for b.Loop() {
		dp, err := programs.Load(cfg, endpoints, flows, peers, metrics)
		require.NoError(b, err)
		b.StopTimer()
		require.NoError(b, dp.Close())
		b.StartTimer()
	}
}

// BenchmarkAddEndpoint is Endpoints.Set and AttachEndpoint, with few and with
// many endpoints present: what an operator waits for, without the veth.
func BenchmarkAddEndpoint(b *testing.B) {
	for _, mode := range []struct {
		present  int
		prepared bool
	}{{10, false}, {1000, false}, {10, true}, {1000, true}} {
		present := mode.present
		b.Run(fmt.Sprintf("present=%d/prepared=%t", present, mode.prepared), func(b *testing.B) {
			r := newRig(b, rigConfig{})
			require.NoError(b, r.endpoints.Delete(greenIfindex))
			require.NoError(b, r.endpoints.Delete(blueIfindex))
			links := veths(b, r.ns, present+100)
			for i, l := range links[:present] {
				require.NoError(b, r.endpoints.Set(numbered(i, l)))
				// What is there already is there; the kernel need not wait for each.
				require.NoError(b, programs.MarkAttached(r.dp, uint32(l.Index), uint32(1000+i)))
			}
			var took []float64
			i := 0
			for b.Loop() {
				l := links[present+i%100]
				if mode.prepared {
					b.StopTimer()
					require.NoError(b, r.dp.PrepareEndpoint(link{l.Index}))
					b.StartTimer()
				}
				start := time.Now()
				require.NoError(b, r.endpoints.Set(numbered(present+i%100, l)))
				require.NoError(b, r.dp.AttachEndpoint(link{l.Index}))
				took = append(took, float64(time.Since(start).Nanoseconds()))
				b.StopTimer()
				require.NoError(b, r.dp.DetachEndpoint(link{l.Index}))
				require.NoError(b, r.endpoints.Delete(l.Index))
				b.StartTimer()
				i++
			}
			b.ReportMetric(median(took)/1e6, "ms/median")
		})
	}
}

type link struct{ index int }

func (l link) Ifindex() int { return l.index }

func numbered(i int, l netlink.LinkAttrs) maps.Endpoint {
	a := netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
	return maps.Endpoint{
		ID: uint32(1000 + i), Identity: 300, Ifindex: l.Index, Addrs: []netip.Addr{a},
		MAC: net.HardwareAddr{2, 1, 0, 0, byte(i >> 8), byte(i)}, NodeMAC: net.HardwareAddr{2, 2, 0, 0, byte(i >> 8), byte(i)},
	}
}

// veths makes devices to attach to, two to a pair.
func veths(t testing.TB, ns devices.Namespace, n int) []netlink.LinkAttrs {
	t.Helper()
	var out []netlink.LinkAttrs
	require.NoError(t, ns.Do(func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		for i := 0; i < n; i += 2 {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = fmt.Sprintf("a%d", i)
			v := netlink.NewVeth(attrs)
			v.PeerName = fmt.Sprintf("b%d", i)
			if err := h.LinkAdd(v); err != nil {
				return err
			}
			for _, name := range []string{attrs.Name, v.PeerName} {
				l, err := h.LinkByName(name)
				if err != nil {
					return err
				}
				out = append(out, *l.Attrs())
			}
		}
		return nil
	}))
	return out
}
