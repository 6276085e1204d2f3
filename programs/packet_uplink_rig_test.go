// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/lb"
)

// What the rig has besides where packets leave the node: two uplinks with
// addresses and routers, and a device that is none.
const (
	upIfindex, up2Ifindex, sideIfindex = 90, 91, 92
	upMTU                              = 1400
)

var (
	fromUp   = port{program: "from_device", ifindex: upIfindex}
	fromUp2  = port{program: "from_device", ifindex: up2Ifindex}
	fromSide = port{program: "from_device", ifindex: sideIfindex}
)

// outside is what lies there, in one family.
type outside struct {
	node, router   netip.Addr // of the first uplink, which the default route leads by
	node2, router2 netip.Addr // of the second
	extra          netip.Addr // another address of the node
	other          netip.Addr // of the world
	side           netip.Addr // behind the device that is no uplink
	nowhere        map[string]netip.Addr
	vip            netip.Addr // of services
	icmp           uint8
}

var outsides = map[string]outside{
	"IPv4": {
		node: addr("192.0.2.10"), router: addr("192.0.2.1"), node2: addr("203.0.113.10"), router2: addr("203.0.113.1"), extra: addr("192.0.2.11"),
		other: addr("198.51.100.8"), side: addr("198.18.1.1"), vip: addr("10.96.0.1"), icmp: packet.ProtoICMP,
		nowhere: map[string]netip.Addr{"blackhole": addr("198.19.1.1"), "unreachable": addr("198.19.2.1"), "prohibit": addr("198.19.3.1")},
	},
	"IPv6": {
		node: addr("2001:db8:a::10"), router: addr("2001:db8:a::1"), node2: addr("2001:db8:b::10"), router2: addr("2001:db8:b::1"), extra: addr("2001:db8:a::11"),
		other: addr("2001:db8::8"), side: addr("2001:db8:c::1"), vip: addr("fd00:96::1"), icmp: packet.ProtoICMPv6,
		nowhere: map[string]netip.Addr{"blackhole": addr("2001:db8:d1::1"), "unreachable": addr("2001:db8:d2::1"), "prohibit": addr("2001:db8:d3::1")},
	},
}

// masquerading is a rig whose endpoints leave in the node's name.
func masquerading() rigConfig {
	return rigConfig{flows: conntrack.Config{NAT: &conntrack.NAT{Masquerade: true}}, routeAge: time.Hour}
}

// withPorts is the same with a range of its own.
func withPorts(first, last uint16) rigConfig {
	cfg := masquerading()
	cfg.flows.NAT.FirstPort, cfg.flows.NAT.LastPort = first, last
	return cfg
}

// eachUplink is eachFamily on a node with uplinks. Both families have one rig, since
// a load takes its time: the second finds it as it was.
func eachUplink(t *testing.T, cfg func(t *testing.T) rigConfig, fn func(t *testing.T, r *rig, f family, o outside)) {
	t.Helper()
	r := newUplinkRig(t, cfg(t))
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			r.as(t)
			r.reset()
			fn(t, r, f, outsides[f.name])
		})
	}
}

// uplinkTest is one of several tests that share a rig.
type uplinkTest struct {
	name string
	run  func(t *testing.T, r *rig, f family, o outside)
}

func eachUplinkTest(t *testing.T, cfg func(t *testing.T) rigConfig, tests []uplinkTest) {
	t.Helper()
	eachUplink(t, cfg, func(t *testing.T, r *rig, f family, o outside) {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				r.as(t)
				r.reset()
				test.run(t, r, f, o)
			})
		}
	})
}

// reset takes back what a test has changed that does not belong to one family.
func (r *rig) reset() {
	r.t.Helper()
	r.attachUplink(upIfindex, "up")
	require.NoError(r.t, r.dp.DetachDevice(link{up2Ifindex}))
	require.NoError(r.t, r.dp.SetNodeAddrs())
	require.NoError(r.t, r.attached().Put(uint32(blueIfindex), uint32(blueID)))
	for _, o := range outsides {
		r.route("default", netip.PrefixFrom(zeroOf(o.node), 0), upIfindex, o.router)
	}
	_, err := r.flows.Flush(conntrack.Filter{})
	require.NoError(r.t, err)
	if events := r.table(bpf.TableMapNatEvents); events != nil {
		r.clearHints()
		require.NoError(r.t, r.flows.SetUnmasqueraded(nil))
		for i := range events.MaxEntries() {
			require.NoError(r.t, events.Put(i, make([]uint64, ebpf.MustPossibleCPU())))
		}
	}
	if s := r.services(); s != nil {
		for _, name := range []string{"web", "sctp", "vip", "inside", lb.ExternalIP.String(), lb.LoadBalancer.String()} {
			require.NoError(r.t, s.DeleteService(name))
		}
	}
}

func fixed(cfg func() rigConfig) func(*testing.T) rigConfig {
	return func(*testing.T) rigConfig { return cfg() }
}

// newUplinkRig is a packet rig whose node has devices and routes.
func newUplinkRig(t testing.TB, cfg rigConfig) *rig {
	t.Helper()
	r := newPacketRig(t, cfg)
	require.NoError(t, devices.EnsureForwarding(r.ns, devices.Forwarding{}))
	r.netlink(func(h *netlink.Handle) error {
		for name, index := range map[string]int{"host": hostIfindex, "up": upIfindex, "up2": up2Ifindex, "side": sideIfindex} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.Index, attrs.MTU = name, index, upMTU
			v := netlink.NewVeth(attrs)
			v.PeerName = name + "_in"
			if err := h.LinkAdd(v); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			for _, n := range []string{name, v.PeerName} {
				l, err := h.LinkByName(n)
				if err != nil {
					return err
				}
				// Nothing of the stack's own shall go by.
				if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+n+"/accept_ra", []byte("0"), 0o644); err != nil {
					return err
				}
				if err := h.LinkSetARPOff(l); err != nil {
					return err
				}
				if err := h.LinkSetUp(l); err != nil {
					return err
				}
			}
		}
		return nil
	})
	for _, o := range outsides {
		r.addAddr(upIfindex, o.node, 24)
		r.addAddr(up2Ifindex, o.node2, 24)
		r.neighbour(upIfindex, o.router)
		r.neighbour(up2Ifindex, o.router2)
		r.route("default", netip.PrefixFrom(zeroOf(o.node), 0), upIfindex, o.router)
		r.route("side", prefixOf(o.side, 16), sideIfindex, netip.Addr{})
		for kind, a := range o.nowhere {
			r.route(kind, prefixOf(a, 24), 0, netip.Addr{})
		}
	}
	if cfg.noFlows {
		return r
	}
	r.attachUplink(upIfindex, "up")
	return r
}

// attachUplink makes a device an uplink, with an address of each family: those of
// the first uplink or, by the name "up2", of the second.
func (r *rig) attachUplink(ifindex int, name string) {
	r.t.Helper()
	var addrs []netip.Addr
	for _, o := range outsides {
		addrs = append(addrs, map[string]netip.Addr{"up": o.node, "up2": o.node2}[name])
	}
	require.NoError(r.t, r.dp.AttachDevice(link{ifindex}, addrs...))
}

func zeroOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// prefixOf is the prefix of an address: of IPv6 always 48 bits.
func prefixOf(a netip.Addr, bits4 int) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(a, bits4).Masked()
	}
	return netip.PrefixFrom(a, 48).Masked()
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (r *rig) netlink(fn func(h *netlink.Handle) error) {
	r.t.Helper()
	require.NoError(r.t, r.ns.Do(func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	}))
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (r *rig) addAddr(ifindex int, a netip.Addr, bits4 int) {
	r.t.Helper()
	p := netip.PrefixFrom(a, bits4)
	if a.Is6() {
		p = netip.PrefixFrom(a, 64)
	}
	r.netlink(func(h *netlink.Handle) error {
		l, err := h.LinkByIndex(ifindex)
		if err != nil {
			return err
		}
		const noDAD = 0x02
		return h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(p), Flags: noDAD * b2i(a.Is6())})
	})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// route sets a route; kind is "blackhole", "unreachable" or "prohibit", else it
// leads by a device.
func (r *rig) route(kind string, to netip.Prefix, ifindex int, via netip.Addr) {
	r.t.Helper()
	types := map[string]int{"blackhole": 6, "unreachable": 7, "prohibit": 8}
	route := netlink.Route{Dst: ipNet(to), LinkIndex: ifindex, Type: types[kind]}
	if via.IsValid() {
		route.Gw = via.AsSlice()
	}
	r.netlink(func(h *netlink.Handle) error {
		if err := h.RouteReplace(&route); err != nil {
			return fmt.Errorf("route to %s: %w", to, err)
		}
		return nil
	})
}

// neighbour has the stack know a next hop: a way to one that it does not know is
// looked at again with every packet.
func (r *rig) neighbour(ifindex int, a netip.Addr) {
	r.t.Helper()
	n := netlink.Neigh{
		LinkIndex: ifindex, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 3, byte(ifindex)},
	}
	if a.Is6() {
		n.Family = unix.AF_INET6
	}
	r.netlink(func(h *netlink.Handle) error { return h.NeighSet(&n) })
}

func (r *rig) unroute(to netip.Prefix) {
	r.t.Helper()
	r.netlink(func(h *netlink.Handle) error { return h.RouteDel(&netlink.Route{Dst: ipNet(to)}) })
}

// translating is a balancer whose NodePorts are at the node's addresses, and a rig
// for it.
func translating(t *testing.T, cfg rigConfig) rigConfig {
	t.Helper()
	var addrs []netip.Addr
	for _, o := range outsides {
		addrs = append(addrs, o.node, o.node2)
	}
	services, err := lb.New(lb.Config{NodeAddrs: addrs, Frontends: 64, Backends: 64, Clients: 64, Sockets: 64, MaglevSize: 31})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, services.Close()) })
	cfg.services = services
	return cfg
}

// Where a packet can go, besides.

func outBy(frame []byte, ifindex uint32, via netip.Addr, flows ...string) want {
	return want{
		verdict: rediret, frame: hopped(frame), counted: "to device",
		sent: hop{ifindex: ifindex, neigh: true, via: via}, flows: flows, events: eventsOf(flows),
	}
}

// left is a packet that is not ours: as it came, and nothing has moved.
func (r *rig) left(p port, frame []byte, msg ...any) {
	r.t.Helper()
	got := r.send(p, frame)
	require.Equal(r.t, verdictNext, got.verdict, msg...)
	require.Equal(r.t, frame, got.frame, msg...)
	require.Equal(r.t, hop{}, got.sent, msg...)
	require.Empty(r.t, got.counted, msg...)
	require.Empty(r.t, got.flows, msg...)
	require.Empty(r.t, got.events, msg...)
}

// sentBack is a packet that comes back to where it came from.
func sentBack(frame []byte, ifindex uint32, counted string) want {
	return want{verdict: rediret, frame: frame, counted: counted, sent: hop{ifindex: ifindex}}
}

// errorFrom changes the source of one of the node's own errors.
func errorFrom(frame []byte, src netip.Addr) []byte {
	d, err := packet.Decode(frame)
	if err != nil {
		panic(err)
	}
	layers := []packet.Layer{*d.Ethernet}
	if d.IPv4 != nil {
		ip, icmp := *d.IPv4, *d.ICMPv4
		ip.Src, icmp.Checksum = src, nil
		layers = append(layers, ip, icmp)
	} else {
		ip, icmp := *d.IPv6, *d.ICMPv6
		ip.Src, icmp.Checksum = src, nil
		layers = append(layers, ip, icmp)
	}
	return packet.Build(append(layers, packet.Payload(d.Payload))...)
}

// hints counts the ports that are noted as used.
func (r *rig) hints() int {
	r.t.Helper()
	n := 0
	m := r.table(bpf.TableMapNatHints)
	var place uint32
	var row bpf.TableNatPorts
	rows := m.Iterate()
	for rows.Next(&place, &row) {
		for _, w := range row.Used {
			n += bits.OnesCount64(w)
		}
	}
	require.NoError(r.t, rows.Err())
	return n
}

func (r *rig) nat() conntrack.NATStats {
	r.t.Helper()
	s, err := r.flows.NATStats()
	require.NoError(r.t, err)
	return s
}

// mapped is the address and the port that a packet's answers come to.
func mapped(t testing.TB, got passage) netip.AddrPort {
	t.Helper()
	require.Equal(t, rediret, got.verdict, "%v", got.counted)
	d, err := packet.Decode(got.frame)
	require.NoError(t, err)
	require.NoError(t, packet.Check(got.frame))
	sport, _ := d.Ports()
	switch {
	case d.ICMPv4 != nil:
		sport = d.ICMPv4.ID
	case d.ICMPv6 != nil:
		sport = d.ICMPv6.ID
	}
	return netip.AddrPortFrom(d.Src(), sport)
}

// table is a table of the blocks, to be looked at or changed behind their backs;
// nil if none has it.
func (r *rig) table(name string) *ebpf.Map {
	for _, b := range r.blocks {
		if m := b.DatapathParts().Maps[name]; m != nil {
			return m
		}
	}
	return nil
}

// services is the rig's balancer; nil if it has none.
func (r *rig) services() *lb.Balancer {
	for _, b := range r.blocks {
		if s, ok := b.(*lb.Balancer); ok {
			return s
		}
	}
	return nil
}

// clearHints forgets which ports are noted as used.
func (r *rig) clearHints() {
	r.t.Helper()
	m := r.table(bpf.TableMapNatHints)
	for place := range m.MaxEntries() {
		require.NoError(r.t, m.Put(place, bpf.TableNatPorts{}))
	}
}
