// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
)

// One service is changed to and fro under connections that open: each sees one
// of the two states, never neither.
func TestUpdatesUnderConnections(t *testing.T) {
	t.Parallel()
	c := casts[0]
	backends := func(ports ...uint16) (all []Backend) {
		for _, p := range ports {
			all = append(all, Backend{Addr: at(c.green, p)})
		}
		return all
	}
	both := func(one, two State) []Backend {
		return []Backend{{Addr: at(c.green, 1), State: one}, {Addr: at(c.green, 2), State: two}}
	}
	only := func(who netip.Addr) []netip.Prefix { return []netip.Prefix{netip.PrefixFrom(who, 32)} }
	for name, sides := range map[string][2]Service{
		"other backends":            {{Backends: backends(1, 2, 3, 4)}, {Backends: backends(5, 6, 7, 8)}},
		"other backends, draining":  {{Backends: backends(1), OnRemove: Drain}, {Backends: backends(2), OnRemove: Drain}},
		"maintenance":               {{Backends: both(Active, Maintenance)}, {Backends: both(Maintenance, Active)}},
		"terminating":               {{Backends: both(Active, Terminating)}, {Backends: both(Quarantined, Terminating)}},
		"other backends, by client": {{Backends: backends(1, 2), Affinity: time.Hour}, {Backends: backends(3, 4), Affinity: time.Hour}},
		"ranges that both let in": {
			{Backends: backends(1), SourceRanges: only(c.blue)}, {Backends: backends(1), SourceRanges: only(c.green), DenySources: true},
		},
	} {
		for _, algorithm := range []Algorithm{Random, Maglev} {
			t.Run(name+", "+algorithm.String(), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, Config{MaglevSize: 31})
				vip := at(c.vip, 80)
				sides := sides // of this subtest alone
				for i := range sides {
					sides[i].Name, sides[i].Algorithm, sides[i].Frontends = "web", algorithm, []Frontend{{Addr: vip, Type: LoadBalancer}}
				}
				require.NoError(t, r.bal.SetService(sides[0]))
				var updates atomic.Int64
				stop, done := make(chan struct{}), make(chan error, 1)
				go func() {
					for i := 1; ; i++ {
						select {
						case <-stop:
							done <- nil
							return
						default:
						}
						if err := r.bal.SetService(sides[i%2]); err != nil {
							done <- err
							return
						}
						updates.Add(1)
					}
				}()
				conns, drops := 0, map[string]uint64{}
				for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end) || updates.Load() < 20; conns++ {
					out := r.send("from_endpoint", "blue", tcp(at(c.blue, uint16(conns)), vip, packet.SYN))
					if out.verdict != redirected {
						for reason, n := range out.counted {
							drops[reason] += n
						}
					}
				}
				close(stop)
				require.NoError(t, <-done)
				require.Empty(t, drops, "%d updates under %d connections", updates.Load(), conns)
				require.Greater(t, updates.Load(), int64(10))
			})
		}
	}
}

// Flows go as the service says, whichever way their backend is lost.
func TestEveryRemovalPurges(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*Balancer, Service) error{
		"SetService":      func(b *Balancer, s Service) error { return b.SetService(s) },
		"Sync":            func(b *Balancer, s Service) error { _, err := b.Sync([]Service{s}); return err },
		"Sync of nothing": func(b *Balancer, _ Service) error { _, err := b.Sync(nil); return err },
		"DeleteService":   func(b *Balancer, s Service) error { return b.DeleteService(s.Name) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, Config{})
			r.bal.cfg.Flows = r.flows
			c := casts[0]
			vip, one, two := at(c.vip, 80), at(c.green, 8080), at(c.green, 8081)
			s := Service{Name: "web", Frontends: []Frontend{{Addr: vip}}, Backends: []Backend{{Addr: one}}, OnRemove: Purge}
			require.NoError(t, r.bal.SetService(s))
			require.Equal(t, one, r.send("from_endpoint", "blue", tcp(at(c.blue, 40000), vip, packet.SYN)).ends()[1])
			s.Backends = []Backend{{Addr: two}}
			require.NoError(t, lose(r.bal, s))
			n, err := r.flows.CountTranslated(uint8(TCP), vip, one)
			require.NoError(t, err)
			require.Zero(t, n)
		})
	}
}

// What is remembered of clients is what they have asked themselves.
func TestForgedClientsAreNotRemembered(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{Clients: 64}, func(t *testing.T, r *rig, c cast) {
		vip, closed := at(c.vip, 80), at(c.vip, 81)
		s := Service{Name: "web", Frontends: []Frontend{{Addr: vip}}, Affinity: time.Hour}
		for port := range uint16(16) {
			s.Backends = append(s.Backends, Backend{Addr: at(c.green, 8000+port)})
		}
		require.NoError(t, r.bal.SetService(s))
		s.Name, s.Frontends = "closed", []Frontend{{Addr: closed, Type: LoadBalancer}}
		s.SourceRanges = []netip.Prefix{netip.PrefixFrom(c.green, c.green.BitLen())}
		require.NoError(t, r.bal.SetService(s))
		for range 20 {
			for _, forged := range []netip.Addr{c.blue, c.red, c.gate} {
				out := r.send("from_endpoint", "green", tcp(at(forged, 40000), vip, packet.SYN))
				require.Equal(t, map[string]uint64{"spoofed source": 1}, out.counted)
			}
			require.Equal(t, map[string]uint64{"source range": 1},
				r.send("from_endpoint", "blue", tcp(at(c.blue, 40000), closed, packet.SYN)).counted)
		}
		n, err := r.bal.tables.affinities.Len()
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

// A client that has come by a frontend which leads everywhere stays on the node by
// one that leads to this node only; and where only backends are left that are
// about to go, it stays with the one that it has.
func TestAffinityKeepsToThePolicy(t *testing.T) {
	t.Parallel()
	here := a("172.16.16.11")
	eachCast(t, Config{Node: here}, func(t *testing.T, r *rig, c cast) {
		inside, everywhere := at(c.vip, 80), at(c.vip, 81)
		local, remote := at(c.green, 8080), at(c.red, 8080)
		s := Service{
			Name: "web", Frontends: []Frontend{{Addr: inside}, {Addr: everywhere, Type: LoadBalancer}}, Internal: Local, External: Local,
			Affinity: time.Hour, Backends: []Backend{{Addr: local, Node: here}, {Addr: remote, Node: redNode}},
		}
		for port := uint16(1); ; port++ { // until the choice is the other node's
			require.NoError(t, r.bal.SetService(s))
			if r.send("from_endpoint", "blue", tcp(at(c.blue, port), everywhere, packet.SYN)).ends()[1] == remote {
				break
			}
			require.NoError(t, r.bal.DeleteService("web"))
		}
		for port := uint16(0); port < 20; port++ {
			require.Equal(t, local, r.send("from_endpoint", "blue", tcp(at(c.blue, 50000+port), inside, packet.SYN)).ends()[1])
			require.Equal(t, remote, r.send("from_endpoint", "blue", tcp(at(c.blue, 51000+port), everywhere, packet.SYN)).ends()[1])
		}

		s = Service{Name: "last", Frontends: []Frontend{{Addr: at(c.vip, 90)}}, Affinity: time.Hour}
		for port := range uint16(8) {
			s.Backends = append(s.Backends, Backend{Addr: at(c.green, 8000+port), State: Terminating})
		}
		require.NoError(t, r.bal.SetService(s))
		first := r.send("from_endpoint", "blue", tcp(at(c.blue, 52000), at(c.vip, 90), packet.SYN)).ends()[1]
		for port := uint16(1); port < 20; port++ {
			require.Equal(t, first, r.send("from_endpoint", "blue", tcp(at(c.blue, 52000+port), at(c.vip, 90), packet.SYN)).ends()[1])
		}
		// Not when there is an active one.
		s.Backends = append(s.Backends, Backend{Addr: at(c.green, 9000)})
		require.NoError(t, r.bal.SetService(s))
		require.Equal(t, at(c.green, 9000), r.send("from_endpoint", "blue", tcp(at(c.blue, 53000), at(c.vip, 90), packet.SYN)).ends()[1])
	})
}

// A service that comes to an address where flows are: connections stay, and the
// flows of its own backend too.
func TestServiceComesToWhereFlowsAre(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{}, func(t *testing.T, r *rig, c cast) {
		was, other := at(c.green, 8080), at(c.green, 9000)
		r.send("from_endpoint", "blue", tcp(at(c.blue, 40000), was, packet.SYN))
		r.send("from_endpoint", "blue", udp(at(c.blue, 40000), was))
		set := func(backends ...Backend) {
			require.NoError(t, r.bal.SetService(Service{
				Name: "web", Frontends: []Frontend{{Addr: was, Type: HostPort}, {Addr: was, Type: HostPort, Protocol: UDP}}, Backends: backends,
			}))
		}
		set(Backend{Addr: was}, Backend{Addr: other})
		for range 20 {
			require.NoError(t, r.dp.Bump())
			require.Equal(t, was, r.send("from_endpoint", "blue", tcp(at(c.blue, 40000), was, packet.ACK)).ends()[1])
			require.Equal(t, was, r.send("from_endpoint", "blue", udp(at(c.blue, 40000), was)).ends()[1])
		}
		set(Backend{Addr: other})
		require.Equal(t, was, r.send("from_endpoint", "blue", tcp(at(c.blue, 40000), was, packet.ACK)).ends()[1])
		require.Equal(t, other, r.send("from_endpoint", "blue", udp(at(c.blue, 40000), was)).ends()[1])
	})
}

// Nobody outside speaks as a service: the answers to him would not go by it.
func TestServiceAddressesAreNoSources(t *testing.T) {
	t.Parallel()
	eachCast(t, Config{}, func(t *testing.T, r *rig, c cast) {
		vip := at(c.vip, 80)
		require.NoError(t, r.bal.SetService(service("web", vip, at(c.green, 8080))))
		for _, from := range []netip.AddrPort{vip, at(c.vip, 81), at(c.hairpin, 80)} {
			out := r.send("from_host", "net", udp(from, at(c.blue, 40000)))
			require.Equal(t, map[string]uint64{"spoofed source": 1}, out.counted, "%s", from)
		}
		_, err := r.flows.Lookup(conntrack.Tuple{Src: vip, Dst: at(c.blue, 40000), Protocol: conntrack.UDP})
		require.Error(t, err)
		require.Equal(t, at(c.green, 8080), r.send("from_endpoint", "blue", udp(at(c.blue, 40000), vip)).ends()[1])
	})
}
