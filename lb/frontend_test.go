// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/internal/wire"
	"github.com/godatapath/datapath/maps"
)

// A frontend of every type is reached by an endpoint's packets, and what else is
// at its address is whose the address is.
func TestFrontendTypes(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{NodeAddrs: []netip.Addr{casts[0].gate, casts[1].gate}}, func(t *testing.T, r *rig, c cast) {
		backend, any := at(c.green, 8080), netip.IPv6Unspecified()
		if c.gate.Is4() {
			any = netip.IPv4Unspecified()
		}
		for i, row := range []struct {
			front  netip.AddrPort
			kind   FrontendType
			asked  netip.AddrPort
			beside string // what becomes of a packet to another port there
		}{
			{at(c.vip, 80), ClusterIP, at(c.vip, 80), "no such port"},
			{at(any, 30080), NodePort, at(c.gate, 30080), "to host"},
			{at(c.gate, 30081), NodePort, at(c.gate, 30081), "to host"},
			{at(c.gate, 8081), HostPort, at(c.gate, 8081), "to host"},
			{at(c.vip.Next(), 80), ExternalIP, at(c.vip.Next(), 80), "no such port"},
			{at(c.vip.Next().Next(), 80), LoadBalancer, at(c.vip.Next().Next(), 80), "no such port"},
			{at(c.gate, 8082), ExternalIP, at(c.gate, 8082), "to host"},
		} {
			name := fmt.Sprintf("%s at %s", row.kind, row.front)
			require.NoError(t, r.bal.SetService(Service{
				Name: name, Backends: []Backend{{Addr: backend}},
				Frontends: []Frontend{{Addr: row.front, Type: row.kind}, {Addr: row.front, Type: row.kind, Protocol: UDP}},
			}))
			client := at(c.blue, uint16(40000+i))
			for _, f := range [][2][]byte{
				{tcp(client, row.asked, packet.SYN), tcp(backend, client, packet.SYN|packet.ACK)}, {udp(client, row.asked), udp(backend, client)},
			} {
				require.Equal(t, [2]netip.AddrPort{client, backend}, r.send("from_endpoint", "blue", f[0]).ends(), name)
				require.Equal(t, [2]netip.AddrPort{row.asked, client}, r.send("from_endpoint", "green", f[1]).ends(), name)
			}
			require1(t, r.send("from_endpoint", "blue", udp(client, at(row.asked.Addr(), 9))), row.beside)
		}
		// The wildcard is no address to send to.
		out := r.send("from_endpoint", "blue", tcp(at(c.blue, 41000), at(any, 30080), packet.SYN))
		require1(t, out, "bad address")
	})
}

// SCTP keeps its ports, and so two services with one backend can not be asked from
// one port.
func TestSCTP(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{}, func(t *testing.T, r *rig, c cast) {
		init := func(src, dst netip.AddrPort) []byte {
			return frame(src.Addr(), dst.Addr(), packet.SCTP{SrcPort: src.Port(), DstPort: dst.Port()}, 1, 0, 0, 20, 1, 2, 3, 4, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1)
		}
		vip, other, client, backend := at(c.vip, 80), at(c.vip.Next(), 80), at(c.blue, 40000), at(c.green, 80)
		for _, front := range []netip.AddrPort{vip, other} {
			require.NoError(t, r.bal.SetService(Service{
				Name: front.String(), Frontends: []Frontend{{Addr: front, Protocol: SCTP}}, Backends: []Backend{{Addr: backend}},
			}))
		}
		require.Equal(t, [2]netip.AddrPort{client, backend}, r.send("from_endpoint", "blue", init(client, vip)).ends())
		require.Equal(t, [2]netip.AddrPort{vip, client}, r.send("from_endpoint", "green", init(backend, client)).ends())
		require1(t, r.send("from_endpoint", "blue", init(client, other)), "no port")
		require.Equal(t, backend, r.send("from_endpoint", "blue", init(at(c.blue, 40001), other)).ends()[1])
	})
}

// Two nodes that know the same backends, in whatever order and with whatever ids,
// send a client to the same one.
func TestMaglevIsTheSameOnEveryNode(t *testing.T) {
	t.Parallel()
	for _, c := range casts {
		one, two := newRig(t, Config{MaglevSize: 251}), newRig(t, Config{MaglevSize: 251})
		s := Service{Name: "web", Frontends: []Frontend{{Addr: at(c.vip, 80)}}, Algorithm: Maglev}
		for i := range uint16(7) {
			s.Backends = append(s.Backends, Backend{Addr: at(c.red, 8000+i), Weight: 1 + int(i)})
		}
		require.NoError(t, two.bal.SetService(web(1, 5))) // so that the ids are others
		require.NoError(t, one.bal.SetService(s))
		slices.Reverse(s.Backends)
		require.NoError(t, two.bal.SetService(s))
		used := map[netip.AddrPort]bool{}
		for port := range uint16(200) {
			syn := tcp(at(c.blue, 40000+port), at(c.vip, 80), packet.SYN)
			to := one.send("from_endpoint", "blue", syn).ends()[1]
			require.Equal(t, to, two.send("from_endpoint", "blue", syn).ends()[1])
			used[to] = true
		}
		require.Len(t, used, 7)
	}
}

// A client that has not come for longer than the affinity lasts is a new one.
func TestAffinityExpires(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	c := casts[0]
	vip := at(c.vip, 80)
	s := Service{Name: "web", Frontends: []Frontend{{Addr: vip}}, Affinity: time.Second}
	for port := range uint16(64) {
		s.Backends = append(s.Backends, Backend{Addr: at(c.green, 8000+port)})
	}
	require.NoError(t, r.bal.SetService(s))
	seen := map[netip.AddrPort]bool{}
	for visit := range uint16(4) {
		first := r.send("from_endpoint", "blue", tcp(at(c.blue, 40000+visit), vip, packet.SYN)).ends()[1]
		require.Equal(t, first, r.send("from_endpoint", "blue", tcp(at(c.blue, 41000+visit), vip, packet.SYN)).ends()[1])
		seen[first] = true
		time.Sleep(1100 * time.Millisecond)
	}
	require.Greater(t, len(seen), 1) // the same four times by chance: once in 262144
}

// A datagram flow whose backend is purged goes to another with its next datagram.
func TestPurgedFlowsGoElsewhere(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{}, func(t *testing.T, r *rig, c cast) {
		r.bal.cfg.Flows = r.flows
		vip, client := at(c.vip, 80), at(c.blue, 40000)
		one, two := at(c.green, 8080), at(c.green, 8081)
		require.NoError(t, r.bal.SetService(Service{Name: "dns", Frontends: []Frontend{{Addr: vip, Protocol: UDP}}, Backends: []Backend{{Addr: one}, {Addr: two}}}))
		was := r.send("from_endpoint", "blue", udp(client, vip)).ends()[1]
		r.send("from_endpoint", "green", udp(was, client))
		require.Equal(t, was, r.send("from_endpoint", "blue", udp(client, vip)).ends()[1])
		done, err := r.bal.RemoveBackend("dns", was, Purge)
		require.NoError(t, err)
		require.Equal(t, Touched{Flows: 1}, done)
		now := r.send("from_endpoint", "blue", udp(client, vip)).ends()[1]
		require.NotEqual(t, was, now)
		require.Contains(t, []netip.AddrPort{one, two}, now)
		require.Equal(t, [2]netip.AddrPort{vip, client}, r.send("from_endpoint", "green", udp(now, client)).ends())
	})
}

// A service that does not fit into one of the tables leaves all as it was, and
// what ran before goes on running.
func TestEachTableFull(t *testing.T) {
	t.Parallel()
	c := casts[0]
	for name, row := range map[string]struct {
		cfg    Config
		change func(i int, s *Service)
	}{
		"backends": {Config{Backends: 3}, func(i int, s *Service) {
			s.Backends = append(s.Backends, Backend{Addr: at(c.green, uint16(9000+i))})
		}},
		"places of backends": {Config{Backends: 2}, func(int, *Service) {}},
		"frontends":          {Config{Frontends: 2}, func(int, *Service) {}},
		"source ranges": {Config{Frontends: 16}, func(i int, s *Service) {
			for j := range 20 {
				s.SourceRanges = append(s.SourceRanges, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(i), byte(j)}), 32))
			}
		}},
		"Maglev tables": {Config{Maglevs: 1, MaglevSize: 31}, func(_ int, s *Service) { s.Algorithm = Maglev }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, row.cfg)
			var err error
			var before [7]int
			vip := func(i int) netip.AddrPort { return at(netip.AddrFrom4([4]byte{10, 96, 1, byte(i)}), 80) }
			i := 0
			for ; i < 20 && err == nil; i++ {
				before = countRows(t, r.bal)
				s := Service{Name: fmt.Sprint(i), Frontends: []Frontend{{Addr: vip(i)}}, Backends: []Backend{{Addr: at(c.green, 8080)}, {Addr: at(c.green, 8081)}}}
				row.change(i, &s)
				err = r.bal.SetService(s)
			}
			require.ErrorIs(t, err, unix.E2BIG)
			require.Greater(t, i, 1, "the first fits")
			require.Equal(t, before, countRows(t, r.bal))
			for j := range i - 1 {
				require.Equal(t, c.green, r.send("from_endpoint", "blue", tcp(at(c.blue, uint16(40000+j)), vip(j), packet.SYN)).ends()[1].Addr())
			}
			_, err = r.bal.Sync(nil)
			require.NoError(t, err)
			require.Zero(t, countRows(t, r.bal))
		})
	}
}

// A node's address comes and another goes: the ports of services follow.
func TestNodeAddrsChange(t *testing.T) {
	t.Parallel()
	first, second := at(a("192.0.2.1"), 30080), at(a("192.0.2.2"), 30080)
	pins := netnstest.NewLab(t).PinDir()
	b := newBal(t, Config{Config: maps.Config{Pins: pins}, NodeAddrs: []netip.Addr{first.Addr()}})
	defer func() { require.NoError(t, b.Remove()) }()
	s := Service{Name: "web", Frontends: []Frontend{{Addr: at(netip.IPv4Unspecified(), 30080), Type: NodePort}}, Backends: []Backend{{Addr: at(a("10.0.0.1"), 80)}}}
	require.NoError(t, b.SetService(s))
	require.NoError(t, b.SetService(Service{Name: "other", Frontends: []Frontend{{Addr: at(a("192.0.2.3"), 30080), Type: ExternalIP}}, Backends: s.Backends}))
	is := func(at netip.AddrPort) bool {
		_, err := b.tables.frontends.Lookup(frontendKey(at, TCP))
		return err == nil
	}
	require.True(t, is(first))
	require.NoError(t, b.SetNodeAddrs([]netip.Addr{first.Addr(), second.Addr()}))
	require.True(t, is(first) && is(second))
	require.NoError(t, b.SetNodeAddrs([]netip.Addr{second.Addr()}))
	require.True(t, !is(first) && is(second))
	_, err := b.tables.frontends.Lookup(addrKey(wire.Addr(first.Addr())))
	require.ErrorIs(t, err, ebpf.ErrKeyNotExist, "its address is no one of services any more")

	// Where another service is, this one can not be, and stays where it was.
	err = b.SetNodeAddrs([]netip.Addr{a("192.0.2.3")})
	require.ErrorIs(t, err, os.ErrExist)
	require.ErrorContains(t, err, `service "web": frontend 192.0.2.3:30080/TCP belongs to service "other"`)
	require.True(t, is(second))
	require.NoError(t, b.DeleteService("other"))
	require.NoError(t, b.SetNodeAddrs([]netip.Addr{a("192.0.2.3")}), "the next call does the rest")
	require.True(t, !is(second) && is(at(a("192.0.2.3"), 30080)))
	require.ErrorIs(t, b.SetNodeAddrs([]netip.Addr{{}}), os.ErrInvalid)
	opened, err := Open(pins)
	require.NoError(t, err)
	defer opened.Close()
	require.ErrorIs(t, opened.SetNodeAddrs(nil), os.ErrInvalid)
	require.NoError(t, b.Close())
	require.ErrorIs(t, b.SetNodeAddrs(nil), os.ErrClosed)
}
