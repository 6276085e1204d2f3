// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
	"github.com/godatapath/datapath/tunnel"
)

// The cast of the packet tests. Blue and green live on the node, red on the
// other one.
var (
	blue4, blue6   = netip.MustParseAddr("10.244.1.10"), netip.MustParseAddr("fd00:244:1::10")
	green4, green6 = netip.MustParseAddr("10.244.1.11"), netip.MustParseAddr("fd00:244:1::11")
	red4, red6     = netip.MustParseAddr("10.244.2.10"), netip.MustParseAddr("fd00:244:2::10")
	gate4, gate6   = netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd00:244:1::1")
	world4, world6 = netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::7")
	redNode        = netip.MustParseAddr("172.16.16.12")
	strangerNode   = netip.MustParseAddr("172.16.16.99")

	blueMAC   = packet.MAC{0x02, 0, 0, 0, 0, 0x10}
	blueHost  = packet.MAC{} // what the loopback device takes for its own
	greenMAC  = packet.MAC{0x02, 0, 0, 0, 0, 0x11}
	greenHost = packet.MAC{0x02, 0, 0, 0, 1, 0x11}
	hostMAC   = packet.MAC{0x02, 0, 0, 0, 2, 0x01}
	nodeMAC   = packet.MAC{0x02, 0, 0, 0, 1, 0x10}
)

const (
	blueID, greenID                   = 10, 11
	blueIdentity, greenIdentity       = 1000, 1001
	redIdentity                       = 2000
	blueIfindex, greenIfindex         = 1, 77 // a test run arrives on the loopback device
	hostIfindex, overlayIfindex       = 80, 81
	verdictNext, verdictDrop, rediret = -1, 2, 7
)

// rig is a node's datapath with nothing attached: programs are run by hand.
type rig struct {
	t         testing.TB // of the running subtest
	owner     testing.TB // of the rig
	ns        devices.Namespace
	endpoints *maps.Endpoints
	metrics   *maps.Metrics
	flows     *conntrack.Table
	peers     *tunnel.Peers
	dp        *programs.Datapath
	senders   map[port]*ebpf.Program
	blocks    []programs.Block
	calls     *ebpf.Map // what the recorded programs ask of the kernel
	recorded  map[string]*ebpf.Program
}

type rigConfig struct {
	flows    conntrack.Config
	tunnel   tunnel.Config
	noFlows  bool
	noPeers  bool
	notReady bool // nothing is attached
	services *lb.Balancer

	stackRouting bool
	routeAge     time.Duration
}

func newRig(t testing.TB, cfg rigConfig) *rig {
	t.Helper()
	r := &rig{t: t, owner: t}
	var err error
	r.ns, err = devices.NewNamespace()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.ns.Close()) })
	r.endpoints, err = maps.NewEndpoints(maps.EndpointsConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.endpoints.Close()) })
	r.metrics, err = maps.NewMetrics(maps.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.metrics.Close()) })
	r.peers, err = tunnel.New(cfg.tunnel)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.peers.Close()) })
	r.blocks = []programs.Block{r.endpoints, r.metrics}
	if !cfg.noPeers {
		r.blocks = append(r.blocks, r.peers)
	}
	if !cfg.noFlows {
		r.flows, err = conntrack.New(cfg.flows)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, r.flows.Close()) })
		r.blocks = append(r.blocks, r.flows)
	}
	if cfg.services != nil {
		r.blocks = append(r.blocks, cfg.services)
	}
	r.dp, err = programs.Load(programs.Config{
		Namespace: r.ns, Gateways: []netip.Addr{gate4, gate6}, EndpointRoutes: true, StackRouting: cfg.stackRouting, RouteAge: cfg.routeAge,
	}, r.blocks...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.dp.Close()) })

	mac := func(m packet.MAC) net.HardwareAddr { return net.HardwareAddr(m[:]) }
	require.NoError(t, r.endpoints.Set(maps.Endpoint{
		ID: blueID, Identity: blueIdentity, Ifindex: blueIfindex, Addrs: []netip.Addr{blue4, blue6}, MAC: mac(blueMAC), NodeMAC: mac(nodeMAC),
	}))
	require.NoError(t, r.endpoints.Set(maps.Endpoint{
		ID: greenID, Identity: greenIdentity, Ifindex: greenIfindex, Addrs: []netip.Addr{green4, green6}, MAC: mac(greenMAC), NodeMAC: mac(greenHost),
	}))
	if cfg.tunnel.IPv6 {
		t.Fatal("the rig's red node is reached over IPv4")
	}
	for _, p := range []string{"10.244.2.0/24", "fd00:244:2::/64"} {
		require.NoError(t, r.peers.Set(tunnel.Peer{Prefix: netip.MustParsePrefix(p), Node: redNode}))
	}
	if cfg.notReady {
		return r
	}
	programs.SetForTest(r.dp, hostIfindex, overlayIfindex, mac(hostMAC), map[uint32]uint32{blueIfindex: blueID, greenIfindex: greenID})
	return r
}

// overlayProgram makes a program that sets the outer header of an arriving
// packet and runs another one. The kernel tells the sender from the local
// address of the header, as it does for a packet that has come in.
func (r *rig) overlayProgram(node netip.Addr, vni uint32, next *ebpf.Program) *ebpf.Program {
	r.t.Helper()
	jump, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	require.NoError(r.t, err)
	r.owner.Cleanup(func() { jump.Close() })
	require.NoError(r.t, jump.Put(uint32(0), next))
	const size = 44 // struct bpf_tunnel_key since 5.19, with the local address
	a := node.As4()
	host := int32(a[0])<<24 | int32(a[1])<<16 | int32(a[2])<<8 | int32(a[3])
	insns := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	for off := int16(-48); off < 0; off += 4 {
		insns = append(insns, asm.StoreImm(asm.R10, off, 0, asm.Word))
	}
	insns = append(insns,
		asm.StoreImm(asm.R10, -48, int64(vni), asm.Word),
		asm.StoreImm(asm.R10, -48+28, int64(host), asm.Word), // local_ipv4
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -48),
		asm.Mov.Imm(asm.R3, size), asm.Mov.Imm(asm.R4, 0),
		asm.FnSkbSetTunnelKey.Call(),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, jump.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 99), asm.Return(),
	)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "set_sender", Type: ebpf.SchedCLS, License: "GPL", Instructions: insns})
	require.NoError(r.t, err)
	r.owner.Cleanup(func() { p.Close() })
	return p
}

// counted returns all counters as "program: outcome" to packets.
func (r *rig) counted() map[string]uint64 {
	r.t.Helper()
	out := map[string]uint64{}
	for m, err := range r.metrics.All() {
		require.NoError(r.t, err)
		key := m.Program + ": " + m.Outcome
		if m.Dropped {
			key = m.Program + ": drop " + m.Outcome
		}
		out[key] = m.Packets
	}
	return out
}

func (r *rig) flow(proto conntrack.Protocol, src netip.Addr, sport uint16, dst netip.Addr, dport uint16) (conntrack.Flow, bool) {
	r.t.Helper()
	f, err := r.flows.Lookup(conntrack.Tuple{Src: netip.AddrPortFrom(src, sport), Dst: netip.AddrPortFrom(dst, dport), Protocol: proto})
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return f, false
	}
	require.NoError(r.t, err)
	return f, true
}

func ip(src, dst netip.Addr, ttl uint8) packet.Layer {
	if src.Is4() {
		return packet.IPv4{Src: src, Dst: dst, TTL: ttl}
	}
	return packet.IPv6{Src: src, Dst: dst, HopLimit: ttl}
}

func ether(dst, src packet.MAC) packet.Ethernet { return packet.Ethernet{Dst: dst, Src: src} }

// tcp makes a segment. Each side's numbers begin with 0, so what acknowledges
// acknowledges an opening.
func tcp(src, dst netip.Addr, sport, dport uint16, flags uint8, payload ...byte) []byte {
	h := packet.TCP{SrcPort: sport, DstPort: dport, Flags: flags}
	if flags&packet.ACK != 0 {
		h.Ack = 1
	}
	return packet.Build(ether(blueHost, blueMAC), ip(src, dst, 64), h, packet.Payload(payload))
}

func udp(src, dst netip.Addr, sport, dport uint16, payload ...byte) []byte {
	return packet.Build(ether(blueHost, blueMAC), ip(src, dst, 64), packet.UDP{SrcPort: sport, DstPort: dport}, packet.Payload(payload))
}
