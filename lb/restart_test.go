// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/maps"
)

// restart closes the services and has a new process adopt them, as it were.
func restart(t *testing.T, b *Balancer, cfg Config) *Balancer {
	t.Helper()
	require.NoError(t, b.Close())
	b, err := New(cfg)
	require.NoError(t, err)
	return b
}

func pinned(t *testing.T) Config {
	return Config{Config: maps.Config{Pins: netnstest.NewLab(t).PinDir()}, MaglevSize: 31}
}

// requireWhole checks that the rows are what a new compilation makes of the
// services, but for the numbers of their sets.
func requireWhole(t *testing.T, b *Balancer) {
	t.Helper()
	found, stray, err := b.read()
	require.NoError(t, err)
	for name, k := range found {
		for f := range k.rows.frontends {
			k.rows.addrs[f.Addr] = b.services[name].rows.addrs[f.Addr]
		}
		want, err := b.compiler().compile(k.rows.id, k.spec)
		require.NoError(t, err)
		require.True(t, k.rows.isAs(want), "%s: %+v, want %+v", name, k.rows, want)
	}
	for key, row := range stray.frontends { // what is left are the addresses
		require.Zero(t, key.Protocol)
		require.Equal(t, b.addrUse[key.Addr].row(), row)
		delete(stray.frontends, key)
	}
	require.Equal(t, newRows(), stray)
}

// A process is killed in the middle of an update, at each of its steps. The next
// one makes the state whole, whichever of the two it is told.
func TestKilledInTheMiddle(t *testing.T) {
	t.Parallel()
	for i := range 14 {
		steps, more := i/2, i%2 == 1
		for _, again := range []string{"the old", "the new"} {
			cfg := pinned(t)
			b, err := New(cfg)
			require.NoError(t, err)
			before, after := web(1, 3), web(1, 3)
			before.Backends = before.Backends[:1]
			after.Backends[0].State, after.Affinity = Quarantined, time.Minute
			if more {
				before.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
				after.Frontends = append(after.Frontends, Frontend{Addr: at(a("192.0.2.9"), 80), Type: LoadBalancer})
			}
			require.NoError(t, b.SetService(before))

			checked, err := after.check(b.cfg)
			require.NoError(t, err)
			c, err := b.changeTo(checked, nil)
			require.NoError(t, err)
			for step, write := range []func(){
				func() {
					for at, id := range c.new.backends {
						require.NoError(t, b.tables.backends.Set(id, backendOf(at)))
					}
				},
				func() { setRows(t, b.tables.members, c.new.members) },
				func() { setRows(t, b.tables.slots, c.new.slots) },
				func() { require.NoError(t, b.tables.infos.Set(c.new.id, c.new.info)) },
				func() {
					for addr := range c.new.addrs {
						require.NoError(t, b.tables.frontends.Set(addrKey(addr), addrUse{1, 1}.row()))
					}
				},
				func() { setRows(t, b.tables.frontends, c.new.frontends) },
			} {
				if step < steps {
					write()
				}
			}
			b = restart(t, b, cfg)
			want := map[string]Service{"the old": before, "the new": after}[again]
			_, err = b.Sync([]Service{want})
			require.NoError(t, err)
			requireWhole(t, b)
			all, err := b.Services()
			require.NoError(t, err)
			require.Len(t, all, 1)
			require.Len(t, all[0].Backends, len(want.Backends), "killed after %d steps, set to %s", steps, again)
			changes, err := b.Sync([]Service{want})
			require.NoError(t, err)
			require.Zero(t, changes)
			require.NoError(t, b.Remove())
		}
	}
}

func setRows[K, V comparable](t *testing.T, m *maps.Map[K, V], rows map[K]V) {
	t.Helper()
	for k, v := range rows {
		require.NoError(t, m.Set(k, v))
	}
}

// What is the same after a restart is not written again; what another Config makes
// of the same service is.
func TestConfigChangesWithARestart(t *testing.T) {
	t.Parallel()
	cfg := pinned(t)
	one, two := a("172.16.16.11"), a("172.16.16.12")
	cfg.Node, cfg.NodeAddrs = one, []netip.Addr{one}
	all := []Service{
		{
			Name: "node", Frontends: []Frontend{{Addr: at(netip.IPv4Unspecified(), 30000), Type: NodePort}, {Addr: at(a("10.96.0.9"), 80)}}, Internal: Local,
			Backends: []Backend{{Addr: at(a("10.200.0.1"), 80), Node: one}, {Addr: at(a("10.200.0.2"), 80), Node: two}},
		},
		web(1, 3),
	}
	b, err := New(cfg)
	require.NoError(t, err)
	_, err = b.Sync(all)
	require.NoError(t, err)

	b = restart(t, b, cfg)
	changes, err := b.Sync(all)
	require.NoError(t, err)
	require.Zero(t, changes)

	cfg.Node, cfg.NodeAddrs = two, []netip.Addr{two}
	b = restart(t, b, cfg)
	changes, err = b.Sync(all)
	require.NoError(t, err)
	require.Equal(t, maps.Changes{Set: 1}, changes)
	requireWhole(t, b)
	rows, err := b.contents()
	require.NoError(t, err)
	require.Contains(t, rows.frontends, frontendKey(at(two, 30000), TCP))
	require.NotContains(t, rows.frontends, frontendKey(at(one, 30000), TCP))

	// Tables of another size are no tables for these programs.
	require.NoError(t, b.Close())
	cfg.MaglevSize = 37
	_, err = New(cfg)
	require.ErrorIs(t, err, os.ErrInvalid)
	require.ErrorContains(t, err, "Config.MaglevSize is 37")
	require.ErrorContains(t, err, "were made with another size")
	cfg.MaglevSize, cfg.Frontends = 31, 1000
	var other *maps.IncompatibleError
	_, err = New(cfg)
	require.ErrorAs(t, err, &other)
	cfg.Frontends = 0
	b, err = New(cfg)
	require.NoError(t, err, "nothing was touched")
	require.Len(t, b.services, 2)
	require.NoError(t, b.Close())

	// All of them or none are replaced.
	for _, change := range []func(){func() { cfg.MaglevSize = 37 }, func() { cfg.Frontends = 1000 }} {
		_, err = os.Stat(cfg.Pins)
		require.NoError(t, err)
		b, err = New(cfg)
		require.NoError(t, err)
		_, err = b.Sync(all)
		require.NoError(t, err)
		old, err := b.tables.members.EBPF().Clone()
		require.NoError(t, err)
		require.NoError(t, b.Close())
		change()
		cfg.OnMismatch = maps.Replace
		b, err = New(cfg)
		require.NoError(t, err)
		require.Zero(t, countRows(t, b))
		n := 0
		var key bpf.TableMemberKey
		var member bpf.TableMember
		for rows := old.Iterate(); rows.Next(&key, &member); n++ {
		}
		require.Equal(t, 5, n, "programs that run have the old ones")
		require.NoError(t, old.Close())
		require.NoError(t, b.Close())
		cfg.OnMismatch = maps.Fail
	}
	cfg.NodeAddrs = nil
	b, err = New(cfg)
	require.NoError(t, err)
	require.NoError(t, b.Remove())
	left, err := os.ReadDir(cfg.Pins)
	require.NoError(t, err)
	for _, file := range left {
		require.Equal(t, ".debug", filepath.Ext(file.Name()), "the kernel's own are left, and nothing else")
	}
}

// Identifiers that something still holds are not given to others, and those that
// two have in the tables are not shared.
func TestIdentifiersAfterARestart(t *testing.T) {
	t.Parallel()
	cfg := pinned(t)
	b, err := New(cfg)
	require.NoError(t, err)
	require.NoError(t, b.SetService(web(1, 2)))
	require.NoError(t, b.SetService(web(2, 2)))
	held := bpf.TableAffinityKey{Service: 50, Kind: uint32(bpf.TableAffinityKindAFFINITY_COOKIE)}
	require.NoError(t, b.tables.affinities.Set(held, bpf.TableAffinity{Backend: 60}))
	require.NoError(t, b.tables.peers.Set(1234, bpf.TableSocketPeer{Service: 70}))
	// A stray set with the last number, a second id of a backend, a second owner of a set.
	require.NoError(t, b.tables.slots.Set(bpf.TableSlotKey{Set: 1<<32 - 1}, bpf.TableSlot{}))
	require.NoError(t, b.tables.backends.Set(61, backendOf(web(1, 2).Backends[0].Addr)))
	one, two := b.services["ns/web-1"].rows, b.services["ns/web-2"].rows
	member := memberKey(two.id, web(1, 2).Backends[0].Addr)
	require.NoError(t, b.tables.members.Set(member, bpf.TableMember{Backend: 61, Weight: 1, State: uint8(Active)}))
	for key, row := range two.frontends {
		for _, own := range one.frontends {
			row.Set = own.Set
		}
		require.NoError(t, b.tables.frontends.Set(key, row))
	}

	b = restart(t, b, cfg)
	_, err = b.Sync([]Service{web(1, 2), web(2, 2), web(3, 2)})
	require.NoError(t, err)
	requireWhole(t, b)
	require.Equal(t, uint32(71), b.services["ns/web-3"].rows.id)
	sets, ids := map[uint32]string{}, map[uint32]netip.AddrPort{}
	for name, k := range b.services {
		for set := range k.rows.sets() {
			assert.Empty(t, sets[set], "%s has set %d too", name, set)
			sets[set] = name
		}
		for at, id := range k.rows.backends {
			if other, ok := ids[id]; ok {
				assert.Equal(t, other, at)
			}
			ids[id] = at
		}
	}
	for _, be := range web(3, 2).Backends {
		assert.Greater(t, b.backendIDs[be.Addr], uint32(61))
	}
	require.NoError(t, b.Remove())
}

// Of two services one takes a frontend over in a Sync in which the other does not
// fit: the list is true, and what is set again is set.
func TestFrontendMovesAlone(t *testing.T) {
	t.Parallel()
	b := newBal(t, Config{Backends: 4})
	x, y := web(1, 2), web(2, 2)
	moving := Frontend{Addr: at(a("10.100.9.9"), 80)}
	y.Frontends = append(y.Frontends, moving)
	_, err := b.Sync([]Service{x, y})
	require.NoError(t, err)
	x2, y2 := x, y
	x2.Frontends = append(append([]Frontend{}, x.Frontends...), moving)
	y2.Frontends = y.Frontends[:1]
	y2.Backends = web(9, 20).Backends
	_, err = b.Sync([]Service{x2, y2})
	require.ErrorContains(t, err, `service "ns/web-2": a table of services is full`)
	all, err := b.Services()
	require.NoError(t, err)
	require.Len(t, all[0].Frontends, 2)
	require.Len(t, all[1].Frontends, 1)
	require.ErrorContains(t, b.SetService(y), `belongs to service "ns/web-1"`)
	_, err = b.Sync([]Service{x, y})
	require.NoError(t, err)
	requireWhole(t, b)
}

// What can not be taken away behind a change does not undo it.
func TestChangeThatLeavesRows(t *testing.T) {
	t.Parallel()
	b := newBal(t, Config{})
	s := web(1, 2)
	s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	require.NoError(t, b.SetService(s))
	require.NoError(t, b.tables.ranges.EBPF().Freeze())
	next := web(1, 3)
	require.Error(t, b.SetService(next), "its old range stays")
	all, err := b.Services()
	require.NoError(t, err)
	require.Len(t, all[0].Backends, 3)
	require.NoError(t, b.SetService(next))
	require.NoError(t, b.DeleteService(s.Name))
	rows := countRows(t, b)
	require.Equal(t, [7]int{2: 1}, rows, "nothing but the range")
	require.Empty(t, b.backendUse)
}

// One who reads takes nothing away.
func TestReaderChangesNothing(t *testing.T) {
	t.Parallel()
	cfg := pinned(t)
	b, err := New(cfg)
	require.NoError(t, err)
	require.NoError(t, b.SetService(web(1, 2)))
	tool, err := Open(cfg.Pins)
	require.NoError(t, err)
	_, sweep := tool.Sweep()
	for name, err := range map[string]error{
		"SetService": tool.SetService(web(2, 1)), "DeleteService": tool.DeleteService("ns/web-1"), "Run": tool.Run(t.Context()),
		"Sweep": sweep, "Remove": tool.Remove(),
	} {
		require.ErrorIs(t, err, os.ErrInvalid, name)
	}
	require.NoError(t, tool.Close())
	require.Equal(t, [7]int{2, 2, 0, 2, 0, 1, 2}, countRows(t, b))
	require.NoError(t, b.Remove())
}
