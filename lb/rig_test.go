// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"encoding/binary"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/internal/node"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
	"github.com/godatapath/datapath/tunnel"
)

// rig is a node with services whose programs are run by hand: packets are given
// to them as if they had arrived on a device.
type rig struct {
	t         testing.TB
	ns        devices.Namespace
	flows     *conntrack.Table
	metrics   *maps.Metrics
	endpoints *maps.Endpoints
	bal       *Balancer
	dp        *programs.Datapath
	ifindex   map[string]uint32
	pins      string
}

// cast is who is there in a family: blue and green on the node, red on another.
type cast struct {
	name                                 string
	blue, green, red, gate, vip, hairpin netip.Addr
}

var casts = []cast{
	{
		name: "IPv4", blue: a("10.244.1.10"), green: a("10.244.1.11"), red: a("10.244.2.10"), gate: a("10.244.1.1"), vip: a("10.96.0.1"),
		hairpin: defaultHairpin[0],
	},
	{
		name: "IPv6", blue: a("fd00:244:1::10"), green: a("fd00:244:1::11"), red: a("fd00:244:2::10"), gate: a("fd00:244:1::1"), vip: a("fd00:96::1"),
		hairpin: defaultHairpin[1],
	},
}

var (
	redNode = a("172.16.16.12")
	mac     = packet.MAC{2, 0, 0, 0, 0, 1}
)

func a(s string) netip.Addr { return netip.MustParseAddr(s) }

func at(addr netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(addr, port) }

func newRig(t testing.TB, cfg Config) *rig { return newRigOf(t, cfg, conntrack.Config{Flows: 4096}) }

func newRigOf(t testing.TB, cfg Config, flows conntrack.Config) *rig {
	t.Helper()
	r := &rig{t: t, ifindex: map[string]uint32{}}
	var err error
	r.ns, err = devices.NewNamespace()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.ns.Close()) })
	require.NoError(t, r.ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		for name, peer := range map[string]string{"blue": "green", "net": "overlay"} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = name
			v := netlink.NewVeth(attrs)
			v.PeerName = peer
			if err := h.LinkAdd(v); err != nil {
				return err
			}
			for _, n := range []string{name, peer} {
				l, err := h.LinkByName(n)
				if err != nil {
					return err
				}
				r.ifindex[n] = uint32(l.Attrs().Index)
			}
		}
		return nil
	}))
	r.endpoints, err = maps.NewEndpoints(maps.EndpointsConfig{Max: 16})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.endpoints.Close()) })
	r.metrics, err = maps.NewMetrics(maps.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.metrics.Close()) })
	r.flows, err = conntrack.New(flows)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.flows.Close()) })
	peers, err := tunnel.New(tunnel.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, peers.Close()) })
	for _, p := range []string{"10.244.2.0/24", "fd00:244:2::/64"} {
		require.NoError(t, peers.Set(tunnel.Peer{Prefix: netip.MustParsePrefix(p), Node: redNode}))
	}
	r.bal, err = New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, r.bal.Close()) })
	dir := netnstest.NewLab(t).PinDir()
	r.pins = dir
	r.dp, err = programs.Load(programs.Config{Namespace: r.ns, Pins: dir, Gateways: []netip.Addr{casts[0].gate, casts[1].gate}},
		r.endpoints, r.metrics, r.flows, peers, r.bal)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { assert.NoError(t, r.dp.Remove()) })
	state, err := node.Open(dir)
	require.NoError(t, err)
	defer state.Close()
	require.NoError(t, state.SetHost(900, r.ifindex["net"], net.HardwareAddr(mac[:])))
	require.NoError(t, state.SetOverlay(r.ifindex["overlay"]))
	attached, err := ebpf.LoadPinnedMap(filepath.Join(dir, "endpoint_attached"), nil)
	require.NoError(t, err)
	defer attached.Close()
	for id, e := range map[uint32]struct {
		device string
		addrs  []netip.Addr
	}{1: {"blue", []netip.Addr{casts[0].blue, casts[1].blue}}, 2: {"green", []netip.Addr{casts[0].green, casts[1].green}}} {
		require.NoError(t, r.endpoints.Set(maps.Endpoint{
			ID: id, Identity: 300, Ifindex: int(r.ifindex[e.device]), Addrs: e.addrs, MAC: net.HardwareAddr(mac[:]), NodeMAC: net.HardwareAddr(mac[:]),
		}))
		require.NoError(t, attached.Put(r.ifindex[e.device], id))
	}
	return r
}

// Verdicts of tcx.
const (
	dropped    = 2
	redirected = 7
)

// outcome is what became of a packet.
type outcome struct {
	verdict int
	frame   []byte
	packet  packet.Decoded
	counted map[string]uint64
}

// send gives a frame to a program, as from a device.
func (r *rig) send(program, device string, frame []byte) outcome {
	r.t.Helper()
	before := r.counted()
	out := outcome{counted: map[string]uint64{}}
	require.NoError(r.t, r.ns.Do(func() error {
		var context [192]byte // struct __sk_buff
		binary.NativeEndian.PutUint32(context[40:], r.ifindex[device])
		opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: &context}
		ret, err := r.dp.Program(program).Run(&opts)
		out.verdict, out.frame = int(int32(ret)), opts.DataOut
		return err
	}))
	for k, n := range r.counted() {
		if n != before[k] {
			out.counted[k] = n - before[k]
		}
	}
	if out.verdict == redirected {
		require.NoError(r.t, packet.Check(out.frame), "checksums and lengths")
	}
	var err error
	out.packet, err = packet.Decode(out.frame)
	require.NoError(r.t, err)
	return out
}

func (r *rig) counted() map[string]uint64 {
	r.t.Helper()
	out := map[string]uint64{}
	for m, err := range r.metrics.All() {
		require.NoError(r.t, err)
		out[m.Outcome] += m.Packets
	}
	return out
}

// ends are source and destination of a packet.
func (o outcome) ends() [2]netip.AddrPort {
	sport, dport := o.packet.Ports()
	return [2]netip.AddrPort{at(o.packet.Src(), sport), at(o.packet.Dst(), dport)}
}

func ip(src, dst netip.Addr) packet.Layer {
	if src.Is4() {
		return packet.IPv4{Src: src, Dst: dst, TTL: 64, DontFragment: true}
	}
	return packet.IPv6{Src: src, Dst: dst, HopLimit: 64}
}

func frame(src, dst netip.Addr, l4 packet.Layer, payload ...byte) []byte {
	return packet.Build(packet.Ethernet{Dst: mac, Src: mac}, ip(src, dst), l4, packet.Payload(payload))
}

func tcp(src, dst netip.AddrPort, flags uint8, payload ...byte) []byte {
	h := packet.TCP{SrcPort: src.Port(), DstPort: dst.Port(), Flags: flags, Seq: 1000}
	if flags&packet.ACK != 0 {
		h.Ack = 1001
	}
	return frame(src.Addr(), dst.Addr(), h, payload...)
}

func udp(src, dst netip.AddrPort, payload ...byte) []byte {
	return frame(src.Addr(), dst.Addr(), packet.UDP{SrcPort: src.Port(), DstPort: dst.Port()}, payload...)
}

func eachCast(t *testing.T, cfg Config, fn func(t *testing.T, r *rig, c cast)) {
	t.Helper()
	for _, c := range casts {
		t.Run(c.name, func(t *testing.T) { fn(t, newRig(t, cfg), c) })
	}
}
