// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/internal/node"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
	"github.com/godatapath/datapath/tunnel"
)

var redNode = netip.MustParseAddr("172.16.16.12") // the peer, which has 10.245.0.0/16

// rig is a flow table that real programs write: packets are given to them by
// test run, as if they had arrived on a device of either of two endpoints.
type rig struct {
	t            testing.TB
	ns           devices.Namespace
	table        *Table
	dp           *programs.Datapath
	program      *ebpf.Program
	blueDevice   uint32
	greenDevice  uint32
	blue, green  netip.Addr
	blueM, gateM packet.MAC
}

func newRig(t *testing.T, cfg Config) *rig {
	t.Helper()
	r := &rig{
		t: t, blue: netip.MustParseAddr("10.244.1.10"), green: netip.MustParseAddr("10.244.1.11"),
		blueM: packet.MAC{2, 0, 0, 0, 0, 1}, gateM: packet.MAC{2, 0, 0, 0, 1, 1},
	}
	dir := pins(t)
	var err error
	r.ns, err = devices.NewNamespace()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.ns.Close()) })
	require.NoError(t, r.ns.Do(func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "lxcblue"
		v := netlink.NewVeth(attrs)
		v.PeerName = "lxcgreen"
		if err := h.LinkAdd(v); err != nil {
			return err
		}
		for name, to := range map[string]*uint32{attrs.Name: &r.blueDevice, v.PeerName: &r.greenDevice} {
			l, err := h.LinkByName(name)
			if err != nil {
				return err
			}
			*to = uint32(l.Attrs().Index)
		}
		return nil
	}))
	endpoints, err := maps.NewEndpoints(maps.EndpointsConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, endpoints.Close()) })
	r.table = newTable(t, cfg)
	// A port that no test sends from: an endpoint may not.
	peers, err := tunnel.New(tunnel.Config{Port: 0x7777})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, peers.Close()) })
	require.NoError(t, peers.Set(tunnel.Peer{Prefix: netip.MustParsePrefix("10.245.0.0/16"), Node: redNode}))
	r.dp, err = programs.Load(programs.Config{Namespace: r.ns, Pins: dir}, endpoints, r.table, peers)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.dp.Remove()) })
	r.program = r.dp.Program("from_endpoint")
	state, err := node.Open(dir)
	require.NoError(t, err)
	defer state.Close()
	require.NoError(t, state.SetHost(90, 91, net.HardwareAddr{2, 0, 0, 0, 2, 1}))
	attached, err := ebpf.LoadPinnedMap(filepath.Join(dir, "endpoint_attached"), nil)
	require.NoError(t, err)
	defer attached.Close()
	for id, ep := range map[uint32]struct {
		addr    netip.Addr
		ifindex uint32
	}{1: {r.blue, r.blueDevice}, 2: {r.green, r.greenDevice}} {
		require.NoError(t, endpoints.Set(maps.Endpoint{
			ID: id, Identity: 300, Ifindex: int(ep.ifindex), Addrs: []netip.Addr{ep.addr},
			MAC: net.HardwareAddr(r.blueM[:]), NodeMAC: net.HardwareAddr(r.gateM[:]),
		}))
		require.NoError(t, attached.Put(ep.ifindex, id))
	}
	return r
}

// sender gives packets to the program, as from one endpoint. It is for one
// goroutine, inside ns.Do.
type sender struct {
	program *ebpf.Program
	context [192]byte // struct __sk_buff
	opts    ebpf.RunOptions
}

func (r *rig) from(ifindex uint32) *sender {
	s := &sender{program: r.program}
	binary.NativeEndian.PutUint32(s.context[40:], ifindex)
	s.opts.Context = &s.context
	return s
}

func (s *sender) send(frame []byte) (verdict int, err error) {
	s.opts.Data = frame
	ret, err := s.program.Run(&s.opts)
	return int(int32(ret)), err
}

// frame makes a packet of the tuple. Its ports are at 34 and 36, the
// destination address at 30.
func (r *rig) frame(t Tuple, flags uint8) []byte {
	ip := packet.IPv4{Src: t.Src.Addr(), Dst: t.Dst.Addr(), TTL: 64}
	eth := packet.Ethernet{Dst: r.gateM, Src: r.blueM}
	if t.Protocol == TCP {
		// Numbers begin with 0, so what acknowledges acknowledges an opening.
		return packet.Build(eth, ip, packet.TCP{SrcPort: t.Src.Port(), DstPort: t.Dst.Port(), Flags: flags, Ack: uint32(flags&packet.ACK) / packet.ACK})
	}
	return packet.Build(eth, ip, packet.UDP{SrcPort: t.Src.Port(), DstPort: t.Dst.Port()})
}

const redirected = 7 // TCX_REDIRECT
