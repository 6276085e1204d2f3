// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/internal/yardstick"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/tunnel"
)

const benchUplink = 90

// outsideBench is a rig with a way out, and with services at the node's ports.
func outsideBench(b *testing.B, flows conntrack.Config, services int) *rig {
	flows.NAT = &conntrack.NAT{Masquerade: true}
	balancer, err := lb.New(lb.Config{NodeAddrs: []netip.Addr{ownNode, ownNode6}})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, balancer.Close()) })
	r := newRig(b, rigConfig{flows: flows, tunnel: tunnel.Config{Node: ownNode}, services: balancer})
	require.NoError(b, r.ns.Do(func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		for name, index := range map[string]int{"up": benchUplink, "host": hostIfindex} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.Index = name, index
			v := netlink.NewVeth(attrs)
			v.PeerName = name + "_in"
			if err := h.LinkAdd(v); err != nil {
				return err
			}
			for _, name := range []string{attrs.Name, v.PeerName} {
				l, err := h.LinkByName(name)
				if err != nil {
					return err
				}
				if err := h.LinkSetUp(l); err != nil {
					return err
				}
			}
		}
		up, err := h.LinkByName("up")
		if err != nil {
			return err
		}
		for _, a := range []string{"172.16.16.11/24", "fd00:16::11/64"} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := h.AddrAdd(up, addr); err != nil {
				return err
			}
		}
		for to, via := range map[string]string{"0.0.0.0/0": "172.16.16.1", "::/0": "fd00:16::1"} {
			dst, err := netlink.ParseIPNet(to)
			if err != nil {
				return err
			}
			if err := h.RouteAdd(&netlink.Route{Dst: dst, Gw: netip.MustParseAddr(via).AsSlice()}); err != nil {
				return err
			}
			neigh := &netlink.Neigh{LinkIndex: benchUplink, State: netlink.NUD_PERMANENT, IP: netip.MustParseAddr(via).AsSlice(), HardwareAddr: []byte{2, 0, 0, 0, 9, 8}}
			if err := h.NeighSet(neigh); err != nil {
				return err
			}
		}
		return nil
	}))
	require.NoError(b, devices.EnsureForwarding(r.ns, devices.Forwarding{}))
	require.NoError(b, r.dp.SetNodeAddrs(ownNode, ownNode6))
	require.NoError(b, r.dp.AttachDevice(link{benchUplink}, ownNode, ownNode6))
	var all []lb.Service
	for i := range services {
		for _, f := range []struct {
			any, blue, red, far netip.Addr
		}{{netip.IPv4Unspecified(), blue4, red4, world4}, {netip.IPv6Unspecified(), blue6, red6, world6}} {
			for j, backend := range []netip.Addr{f.blue, f.red, f.far} {
				port := uint16(30000 + 3*i + j)
				all = append(all, lb.Service{
					Name:      fmt.Sprintf("%d-%d-%t", i, j, f.any.Is4()),
					Frontends: []lb.Frontend{{Addr: netip.AddrPortFrom(f.any, port), Type: lb.NodePort}},
					Backends:  []lb.Backend{{Addr: netip.AddrPortFrom(backend, 80)}},
				})
			}
		}
	}
	_, err = balancer.Sync(all)
	require.NoError(b, err)
	return r
}

var ownNode6 = netip.MustParseAddr("fd00:16::11")

// BenchmarkOutside prints what each path between endpoints and the world costs, in
// nanoseconds and in L. All of it happens in one hook.
func BenchmarkOutside(b *testing.B) {
	r := outsideBench(b, conntrack.Config{Flows: conntrack.DefaultFlows}, 1)
	empty, lookup := yardstick.Empty(b), yardstick.LookUp(b)
	endpoint, device := r.dp.Program("from_endpoint"), r.dp.Program("from_device")
	overlay := r.overlayProgram(redNode, redIdentity, r.dp.Program("from_overlay"))
	overlayEmpty := r.overlayProgram(redNode, redIdentity, empty)
	run := func(p *ebpf.Program, frame []byte) {
		b.Helper()
		require.NoError(b, r.ns.Do(func() error {
			verdict, _, err := p.Benchmark(frame, 1, nil)
			if err == nil && verdict != rediret {
				err = fmt.Errorf("verdict %d", int32(verdict))
			}
			return err
		}))
	}
	segment := func(src, dst netip.Addr, sport, dport uint16, flags uint8) []byte {
		h := packet.TCP{SrcPort: sport, DstPort: dport, Flags: flags}
		if flags&packet.ACK != 0 {
			h.Ack = 1
		}
		return packet.Build(ether(blueHost, blueMAC), ip(src, dst, 255), h)
	}
	some := segment(blue4, green4, 1, 2, packet.ACK)
	all := []*runner{
		{name: "plain", prog: empty, frame: some},
		{name: "look-up", prog: lookup, frame: some, base: "plain"},
		{name: "empty", prog: yardstick.Freshly(b, some, empty), frame: some},
		{name: "overlay empty", prog: yardstick.Freshly(b, some, overlayEmpty), frame: some},
	}
	for _, f := range []struct {
		name                               string
		blue, red, world, node, gate, user netip.Addr
	}{
		{"IPv4", blue4, red4, world4, ownNode, gate4, netip.MustParseAddr("203.0.113.5")},
		{"IPv6", blue6, red6, world6, ownNode6, gate6, netip.MustParseAddr("2001:db8:5::5")},
	} {
		// A connection: as the client's packets and the server's come in.
		path := func(name string, there, back *ebpf.Program, base string, client, to netip.Addr, sport, dport uint16, limit float64) {
			b.Helper()
			run(there, segment(client, to, sport, dport, packet.SYN))
			flow, ok := r.flow(conntrack.TCP, client, sport, to, dport)
			require.True(b, ok, name)
			from, at := flow.Reply.Src, flow.Reply.Dst
			run(back, segment(from.Addr(), at.Addr(), from.Port(), at.Port(), packet.SYN|packet.ACK))
			run(there, segment(client, to, sport, dport, packet.ACK))
			run(back, segment(from.Addr(), at.Addr(), from.Port(), at.Port(), packet.ACK))
			question, answer := segment(client, to, sport, dport, packet.ACK), segment(from.Addr(), at.Addr(), from.Port(), at.Port(), packet.ACK)
			all = append(all,
				&runner{name: f.name + " " + name, prog: yardstick.Freshly(b, question, there), frame: question, base: "empty", limit: limit},
				&runner{name: f.name + " " + name + ", reply", prog: yardstick.Freshly(b, answer, back), frame: answer, base: base, limit: limit},
			)
		}
		path("endpoint to world, masqueraded", endpoint, device, "empty", f.blue, f.world, 1000, 443, 6)
		path("NodePort to local backend", device, endpoint, "empty", f.user, f.node, 2000, 30000, 6)
		path("NodePort to overlay", device, overlay, "overlay empty", f.user, f.node, 2000, 30001, 6)
		path("NodePort to native backend", device, device, "empty", f.user, f.node, 2000, 30002, 6)
	}
	for _, x := range all[4:] {
		require.NoError(b, r.ns.Do(func() error {
			verdict, _, err := x.prog.Benchmark(x.frame, repeat, nil)
			if err == nil && verdict != rediret {
				err = fmt.Errorf("%s: verdict %d after %d runs, it must redirect", x.name, int32(verdict), repeat)
			}
			return err
		}))
	}
	before := r.counted()
	for b.Loop() {
		ns := r.measure(b, all)
		for what, n := range r.counted() {
			require.True(b, n == before[what] || strings.Contains(what, ": to "), "%s: not all took the way that is measured", what)
		}
		l := ns["look-up"] - ns["plain"]
		b.ReportMetric(l, "ns/L")
		fmt.Fprintf(os.Stdout, "\n%-44s %8s %8s %6s %6s\n", "established TCP", "ns", "net ns", "L", "target")
		for _, x := range all[4:] {
			net := ns[x.name] - ns[x.base]
			fmt.Fprintf(os.Stdout, "%-44s %8.1f %8.1f %6.2f %6.0f\n", x.name, ns[x.name], net, net/l, x.limit)
		}
	}
}

// BenchmarkEncapsulate prints what a packet costs that leaves with an outer header
// of ours. It grows, so each is run once, with what that costs beside it.
func BenchmarkEncapsulate(b *testing.B) {
	r := outsideBench(b, conntrack.Config{Flows: conntrack.DefaultFlows}, 1)
	require.NoError(b, r.ns.Do(func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		return h.NeighSet(&netlink.Neigh{LinkIndex: benchUplink, State: netlink.NUD_PERMANENT, IP: redNode.AsSlice(), HardwareAddr: []byte{2, 0, 0, 0, 9, 9}})
	}))
	require.NoError(b, r.dp.Bump())
	empty, lookup := yardstick.Empty(b), yardstick.LookUp(b)
	user := netip.MustParseAddr("203.0.113.5")
	segment := func(src, dst netip.Addr, sport, dport uint16, flags uint8) []byte {
		h := packet.TCP{SrcPort: sport, DstPort: dport, Flags: flags}
		if flags&packet.ACK != 0 {
			h.Ack = 1
		}
		return packet.Build(ether(blueHost, blueMAC), ip(src, dst, 255), h)
	}
	type path struct {
		name, hook string
		src, dst   netip.Addr
		dport      uint16
		limit      float64
		times      []float64
	}
	all := []*path{
		{name: "from_endpoint to overlay", hook: "from_endpoint", src: blue4, dst: red4, dport: 80, limit: 5},
		{name: "NodePort to overlay", hook: "from_device", src: user, dst: ownNode, dport: 30001, limit: 6},
	}
	for _, x := range all {
		require.NoError(b, r.ns.Do(func() error {
			for _, flags := range []uint8{packet.SYN, packet.ACK, packet.ACK} {
				if _, err := once(r.dp.Program(x.hook), segment(x.src, x.dst, 2000, x.dport, flags)); err != nil {
					return err
				}
				flow, ok := r.flow(conntrack.TCP, x.src, 2000, x.dst, x.dport)
				require.True(b, ok, x.name)
				require.Equal(b, benchUplink, flow.Forward.SendsTo, "%s: it is ours to encapsulate", x.name)
				back := r.overlayProgram(redNode, redIdentity, r.dp.Program("from_overlay"))
				if _, err := once(back, segment(flow.Reply.Src.Addr(), flow.Reply.Dst.Addr(), flow.Reply.Src.Port(), flow.Reply.Dst.Port(), flags|packet.ACK)); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	for b.Loop() {
		var empties, lookups []float64
		require.NoError(b, r.ns.Do(func() error {
			for range 20_000 {
				for _, x := range all {
					ns, err := once(r.dp.Program(x.hook), segment(x.src, x.dst, 2000, x.dport, packet.ACK))
					if err != nil {
						return err
					}
					x.times = append(x.times, ns)
				}
				frame := segment(blue4, red4, 2000, 80, packet.ACK)
				e, err := once(empty, frame)
				if err != nil {
					return err
				}
				l, err := once(lookup, frame)
				if err != nil {
					return err
				}
				empties, lookups = append(empties, e), append(lookups, l)
			}
			return nil
		}))
		l := middle(lookups) - middle(empties)
		fmt.Fprintf(os.Stdout, "\n%-44s %8s %6s %6s   (L is %.1f ns, run once)\n", "established TCP, run once", "net ns", "L", "target", l)
		for _, x := range all {
			net := middle(x.times) - middle(empties)
			fmt.Fprintf(os.Stdout, "%-44s %8.1f %6.2f %6.0f\n", x.name, net, net/l, x.limit)
		}
	}
}

// BenchmarkNewOutside prints what the first packet of a flow costs.
func BenchmarkNewOutside(b *testing.B) {
	empty, lookup := yardstick.Empty(b), yardstick.LookUp(b)
	const flows, rounds = 4000, 5
	for b.Loop() {
		fmt.Fprintf(os.Stdout, "\n%-44s %8s %6s %6s\n", "new TCP flow", "net ns", "L", "target")
		for _, path := range []struct {
			name     string
			hook     string
			src, dst netip.Addr
			dport    uint16
		}{
			{"endpoint to world, masqueraded", "from_endpoint", blue4, world4, 443},
			{"NodePort to local backend", "from_device", netip.MustParseAddr("203.0.113.5"), ownNode, 30000},
			{"NodePort to overlay", "from_device", netip.MustParseAddr("203.0.113.5"), ownNode, 30001},
			{"NodePort to native backend", "from_device", netip.MustParseAddr("203.0.113.5"), ownNode, 30002},
		} {
			r := outsideBench(b, conntrack.Config{Flows: 65536, Unconfirmed: 32768}, 1)
			var news, empties, lookups []float64
			for round := range 1 + rounds {
				if round == 1 { // the table has been used before, as on a node that runs
					news, empties, lookups = nil, nil, nil
				}
				require.NoError(b, r.ns.Do(func() error {
					for i := range flows {
						frame := packet.Build(ether(blueHost, blueMAC), ip(path.src, path.dst, 64), packet.TCP{SrcPort: uint16(10000 + i), DstPort: path.dport, Flags: packet.SYN})
						ns, err := once(r.dp.Program(path.hook), frame)
						if err != nil {
							return err
						}
						news = append(news, ns)
						if ns, err = once(empty, frame); err != nil {
							return err
						}
						empties = append(empties, ns)
						if i%8 == 0 {
							with, err := timed(lookup, frame)
							if err != nil {
								return err
							}
							without, err := timed(empty, frame)
							if err != nil {
								return err
							}
							lookups = append(lookups, with-without)
						}
					}
					return nil
				}))
				_, err := r.flows.Flush(conntrack.Filter{})
				require.NoError(b, err)
			}
			net, l := middle(news)-middle(empties), middle(lookups)
			fmt.Fprintf(os.Stdout, "%-44s %8.0f %6.1f %6d\n", path.name, net, net/l, 60)
		}
	}
}
