// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
)

func newBal(t testing.TB, cfg Config) *Balancer {
	t.Helper()
	b, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, b.Close()) })
	return b
}

// web is the n-th of many services, with that many backends.
func web(n, backends int) Service {
	s := Service{
		Name:      fmt.Sprintf("ns/web-%d", n),
		Frontends: []Frontend{{Addr: at(netip.AddrFrom4([4]byte{10, 100, byte(n >> 8), byte(n)}), uint16(80+n>>16))}},
	}
	for i := range backends {
		s.Backends = append(s.Backends, Backend{Addr: at(netip.AddrFrom4([4]byte{10, 200, byte(n * backends >> 8), byte(n*backends + i)}), uint16(8000+n*backends>>16))})
	}
	return s
}

func TestServiceBadInput(t *testing.T) {
	t.Parallel()
	b := newBal(t, Config{})
	good := func() Service {
		return Service{
			Name: "web", Frontends: []Frontend{{Addr: netip.MustParseAddrPort("10.96.0.1:80")}},
			Backends: []Backend{{Addr: netip.MustParseAddrPort("10.244.1.10:8080")}},
		}
	}
	require.NoError(t, b.SetService(good()))
	before := countRows(t, b)
	for name, row := range map[string]struct {
		change func(*Service)
		text   string
	}{
		"no name":          {func(s *Service) { s.Name = "" }, "its name has 0 bytes"},
		"a long name":      {func(s *Service) { s.Name = strings.Repeat("x", 128) }, "its name has 128 bytes, want 1 to 127"},
		"no frontend":      {func(s *Service) { s.Frontends = nil }, "it has no frontend"},
		"direct at random": {func(s *Service) { s.Direct = true }, "Direct takes Algorithm Maglev"},
		"a NodePort below": {func(s *Service) {
			s.Frontends[0] = Frontend{Addr: netip.MustParseAddrPort("0.0.0.0:29999"), Type: NodePort}
		}, "a NodePort is 30000 to 32767 here"},
		"a NodePort above": {func(s *Service) {
			s.Frontends[0] = Frontend{Addr: netip.MustParseAddrPort("172.16.16.11:32768"), Type: NodePort}
		}, "a NodePort is 30000 to 32767 here"},
		"frontend port 0":      {func(s *Service) { s.Frontends[0].Addr = netip.MustParseAddrPort("10.96.0.1:0") }, "its port is 0"},
		"an invalid frontend":  {func(s *Service) { s.Frontends[0].Addr = netip.AddrPortFrom(netip.Addr{}, 80) }, "frontend"},
		"a wildcard ClusterIP": {func(s *Service) { s.Frontends[0].Addr = netip.MustParseAddrPort("0.0.0.0:80") }, "frontend 0.0.0.0:80/TCP"},
		"a protocol":           {func(s *Service) { s.Frontends[0].Protocol = 1 }, "its protocol is 1, want TCP, UDP or SCTP"},
		"a type":               {func(s *Service) { s.Frontends[0].Type = 9 }, "its type is 9"},
		"a frontend twice":     {func(s *Service) { s.Frontends = append(s.Frontends, s.Frontends[0]) }, "it comes twice"},
		"backend port 0":       {func(s *Service) { s.Backends[0].Addr = netip.MustParseAddrPort("10.244.1.10:0") }, "backend 10.244.1.10:0: its port is 0"},
		"a backend twice":      {func(s *Service) { s.Backends = append(s.Backends, s.Backends[0]) }, "backend 10.244.1.10:8080: it comes twice"},
		"mixed families":       {func(s *Service) { s.Backends[0].Addr = netip.MustParseAddrPort("[fd00::1]:80") }, "no translation between them"},
		"mixed frontends": {func(s *Service) {
			s.Frontends = append(s.Frontends, Frontend{Addr: netip.MustParseAddrPort("[fd00::1]:80")})
		}, "the families are mixed"},
		"a negative weight":           {func(s *Service) { s.Backends[0].Weight = -1 }, "its weight is -1"},
		"a great weight":              {func(s *Service) { s.Backends[0].Weight = 65536 }, "its weight is 65536, want 1 to 65535"},
		"a state":                     {func(s *Service) { s.Backends[0].State = Draining }, "its state is draining"},
		"a long zone":                 {func(s *Service) { s.Backends[0].Zone = strings.Repeat("z", 33) }, "its zone has 33 bytes"},
		"a node":                      {func(s *Service) { s.Backends[0].Node = netip.IPv4Unspecified() }, "its node"},
		"a negative affinity":         {func(s *Service) { s.Affinity = -time.Second }, "Affinity is -1s"},
		"half a second":               {func(s *Service) { s.Affinity = time.Second / 2 }, "want whole seconds"},
		"a long affinity":             {func(s *Service) { s.Affinity = 25 * time.Hour }, "up to 24h0m0s"},
		"an algorithm":                {func(s *Service) { s.Algorithm = 7 }, "the algorithm is Algorithm(7)"},
		"a policy":                    {func(s *Service) { s.Internal = 7 }, "a traffic policy that does not exist"},
		"local, but where":            {func(s *Service) { s.External = Local }, "set Config.Node"},
		"no backend":                  {func(s *Service) { s.NoBackend = 7 }, "NoBackend is 7"},
		"a removal":                   {func(s *Service) { s.OnRemove = 9 }, "OnRemove is 0x9"},
		"a range with host bits":      {func(s *Service) { s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")} }, "has host bits"},
		"SCTP to another port":        {func(s *Service) { s.Frontends[0].Protocol = SCTP }, "the port of SCTP can not be translated, want 80"},
		"a multicast backend":         {func(s *Service) { s.Backends[0].Addr = netip.MustParseAddrPort("224.0.0.1:80") }, "backend 224.0.0.1:80"},
		"a range of the other family": {func(s *Service) { s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("fd00::/8")} }, "it is not of the frontends' family"},
		"a name with a zero byte":     {func(s *Service) { s.Name = "web\x00" }, "its name has a zero byte"},
		"a zone with a zero byte":     {func(s *Service) { s.Backends[0].Zone = "a\x00b" }, "none of them zero"},
		"a frontend at the hairpin":   {func(s *Service) { s.Frontends[0].Addr = at(defaultHairpin[0], 80) }, "the address of Config.Hairpin"},
		"a backend at the hairpin":    {func(s *Service) { s.Backends[0].Addr = at(defaultHairpin[0], 80) }, "the address of Config.Hairpin"},
		"a weight without a slot": {func(s *Service) {
			s.Algorithm = Maglev
			s.Backends = append(s.Backends, Backend{Addr: at(a("10.244.1.11"), 80), Weight: 65535})
		}, "backend 10.244.1.10:8080 gets none of the 16381 slots"},
		"a backend with a zone id": {func(s *Service) { s.Backends[0].Addr = netip.MustParseAddrPort("[fe80::1%eth0]:80") }, "zone"},
	} {
		t.Run(name, func(t *testing.T) {
			s := good()
			row.change(&s)
			err := b.SetService(s)
			require.ErrorIs(t, err, os.ErrInvalid)
			require.ErrorContains(t, err, row.text)
			_, err = b.Sync([]Service{good(), s})
			require.ErrorIs(t, err, os.ErrInvalid)
			require.Equal(t, before, countRows(t, b), "what ran before goes on running")
		})
	}
	other := good()
	other.Name = "other"
	err := b.SetService(other)
	require.ErrorIs(t, err, os.ErrExist)
	require.ErrorContains(t, err, `set service "other": frontend 10.96.0.1:80/TCP belongs to service "web"`)
	_, err = b.Sync([]Service{good(), other})
	require.ErrorIs(t, err, os.ErrInvalid)
	require.ErrorContains(t, err, `is one of service "web" too`)
	require.Equal(t, before, countRows(t, b))

	for text, cfg := range map[string]Config{
		"Frontends is -1":      {Frontends: -1},
		"MaglevSize is 4":      {MaglevSize: 4},
		"MaglevSize is 131072": {MaglevSize: 131072},
		"FirstNodePort is 9 and LastNodePort 8: the range is empty": {FirstNodePort: 9, LastNodePort: 8},
		"Node":                 {Node: netip.IPv4Unspecified()},
		"NodeAddrs":            {NodeAddrs: []netip.Addr{{}}},
		"Hairpin: address ::1": {Hairpin: []netip.Addr{netip.IPv6Loopback()}},
		"Backends is 16777217": {Backends: 1<<24 + 1},
	} {
		_, err := New(cfg)
		require.ErrorIs(t, err, os.ErrInvalid, text)
		require.ErrorContains(t, err, text)
	}

	small := newBal(t, Config{MaglevSize: 31})
	many := web(1, 32)
	many.Algorithm = Maglev
	err = small.SetService(many)
	require.ErrorIs(t, err, os.ErrInvalid)
	require.ErrorContains(t, err, "32 backends in a Maglev table of 31 slots")
	require.Zero(t, countRows(t, small))
	many.Backends = many.Backends[:31]
	require.NoError(t, small.SetService(many))
}

// countRows counts the rows of each table.
func countRows(t testing.TB, b *Balancer) [7]int {
	t.Helper()
	r, err := b.contents()
	require.NoError(t, err)
	return [7]int{len(r.backends), len(r.members), len(r.ranges), len(r.slots), len(r.maglevs), len(r.infos), len(r.frontends)}
}

// What was set and deleted leaves nothing.
func TestTablesAreCleared(t *testing.T) {
	t.Parallel()
	b := newBal(t, Config{MaglevSize: 31})
	for _, algorithm := range []Algorithm{Random, Maglev} {
		s := web(1, 5)
		s.Algorithm, s.SourceRanges = algorithm, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		s.Frontends = append(s.Frontends, Frontend{Addr: netip.MustParseAddrPort("10.96.0.9:1"), Type: LoadBalancer})
		for n := range 4 {
			s.Backends = s.Backends[:5-n]
			require.NoError(t, b.SetService(s))
			slots, maglevs := 5-n, 0
			if algorithm == Maglev {
				slots, maglevs = 0, 1
			}
			require.Equal(t, [7]int{5 - n, 5 - n, 1, slots, maglevs, 1, 4}, countRows(t, b), "%s, %d backends", algorithm, 5-n)
		}
		require.NoError(t, b.DeleteService(s.Name))
		require.NoError(t, b.DeleteService(s.Name))
		require.Equal(t, [7]int{}, countRows(t, b))
	}
	// A backend that services share stays until the last of them goes.
	x, y := web(1, 1), web(2, 1)
	y.Backends = x.Backends
	require.NoError(t, b.SetService(x))
	require.NoError(t, b.SetService(y))
	require.Equal(t, [7]int{1, 2, 0, 2, 0, 2, 4}, countRows(t, b))
	require.NoError(t, b.DeleteService(x.Name))
	require.Equal(t, [7]int{1, 1, 0, 1, 0, 1, 2}, countRows(t, b))
}

func TestSync(t *testing.T) {
	t.Parallel()
	b := newBal(t, Config{})
	var all []Service
	for n := range 3000 {
		all = append(all, web(n, 3))
	}
	done, err := b.Sync(all)
	require.NoError(t, err)
	require.Equal(t, maps.Changes{Set: 3000}, done)
	done, err = b.Sync(all)
	require.NoError(t, err)
	require.Equal(t, maps.Changes{}, done)
	got, err := b.Services()
	require.NoError(t, err)
	require.Len(t, got, 3000)

	// Some change, some go, some come, and two trade their frontends.
	all[0].Frontends, all[1].Frontends = all[1].Frontends, all[0].Frontends
	all[2].Backends = all[2].Backends[:1]
	all = append(all[:2900:2900], web(5000, 2))
	done, err = b.Sync(all)
	require.NoError(t, err)
	require.Equal(t, maps.Changes{Set: 4, Deleted: 100}, done)
	got, err = b.Services()
	require.NoError(t, err)
	require.Len(t, got, 2901)
	done, err = b.Sync(nil)
	require.NoError(t, err)
	require.Equal(t, 2901, done.Deleted)
	require.Equal(t, [7]int{}, countRows(t, b))
}

// Tables that are full: whole services fit or do not, and the error names those
// that do not.
func TestSyncIntoFullTables(t *testing.T) {
	t.Parallel()
	b := newBal(t, Config{Frontends: 64, Backends: 24})
	var all []Service
	for n := range 10 {
		all = append(all, web(n, 3))
	}
	done, err := b.Sync(all)
	require.ErrorIs(t, err, unix.E2BIG)
	require.Equal(t, maps.Changes{Set: 8}, done, "24 backends fit")
	got, listErr := b.Services()
	require.NoError(t, listErr)
	require.Len(t, got, 8)
	set := map[string]bool{}
	for _, s := range got {
		set[s.Name] = true
		require.Len(t, s.Backends, 3)
	}
	for _, s := range all {
		if !set[s.Name] {
			require.ErrorContains(t, err, fmt.Sprintf("service %q", s.Name))
		}
	}
	require.Equal(t, [7]int{24, 24, 0, 24, 0, 8, 16}, countRows(t, b))
	// One that is set alone, and does not fit, changes nothing.
	big := web(20, 2)
	require.ErrorIs(t, b.SetService(big), unix.E2BIG)
	require.Equal(t, [7]int{24, 24, 0, 24, 0, 8, 16}, countRows(t, b))
	require.NoError(t, b.DeleteService(got[0].Name))
	require.NoError(t, b.SetService(big))
}

// Pinned services go on in the next process, with their identifiers.
func TestServicesAreAdopted(t *testing.T) {
	t.Parallel()
	pins := netnstest.NewLab(t).PinDir()
	cfg := Config{Config: maps.Config{Pins: pins}, MaglevSize: 31, Node: a("172.16.16.11"), NodeAddrs: []netip.Addr{a("172.16.16.11"), a("fd00:16::11")}}
	_, err := Open(pins)
	require.ErrorIs(t, err, os.ErrNotExist)
	first, err := New(cfg)
	require.NoError(t, err)
	s := web(1, 3)
	s.Backends[0].State, s.Backends[1].Weight, s.Backends[1].Zone, s.Backends[2].Node = Terminating, 7, "zone-1", cfg.Node
	s.Affinity, s.SourceRanges, s.DenySources, s.NoBackend, s.External = 10*time.Second, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, true, Drop, Local
	s.OnRemove = Drain | DestroySockets
	m := web(2, 2)
	m.Algorithm = Maglev
	n := Service{Name: "node", Frontends: []Frontend{{Addr: netip.MustParseAddrPort("0.0.0.0:30000"), Type: NodePort, Protocol: UDP}}, Backends: m.Backends}
	for _, s := range []Service{s, m, n} {
		require.NoError(t, first.SetService(s))
	}
	before, err := first.Services()
	require.NoError(t, err)
	rows := countRows(t, first)
	require.NoError(t, first.Close())

	tool, err := Open(pins)
	require.NoError(t, err)
	seen, err := tool.Services()
	require.NoError(t, err)
	want := append([]Status{}, before...)
	require.Equal(t, "node", want[0].Name)
	require.Equal(t, want, seen)
	require.ErrorIs(t, tool.SetService(s), os.ErrInvalid, "it is for looking")
	require.NoError(t, tool.Close())

	second, err := New(cfg)
	require.NoError(t, err)
	defer func() { assert.NoError(t, second.Remove()) }()
	again, err := second.Services()
	require.NoError(t, err)
	require.Equal(t, want, again)
	require.Equal(t, rows, countRows(t, second))
	// New identifiers are none of the old.
	require.NoError(t, second.SetService(web(3, 1)))
	require.NoError(t, second.SetService(n))
	after, err := second.Services()
	require.NoError(t, err)
	ids := map[uint32]string{}
	for _, s := range after {
		require.Empty(t, ids[s.ID])
		ids[s.ID] = s.Name
	}
	for _, s := range before {
		require.Equal(t, s.Name, ids[s.ID], "it keeps its own")
	}
	_, err = second.Sync(nil)
	require.NoError(t, err)
	require.Equal(t, [7]int{}, countRows(t, second))
}

// What a process that was killed has left half-made is taken away.
func TestStrayRowsAreTakenAway(t *testing.T) {
	t.Parallel()
	pins := netnstest.NewLab(t).PinDir()
	cfg := Config{Config: maps.Config{Pins: pins}, MaglevSize: 31}
	b, err := New(cfg)
	require.NoError(t, err)
	require.NoError(t, b.SetService(web(1, 3)))
	rows := countRows(t, b)
	tables := b.tables
	require.NoError(t, tables.backends.Set(77, backendOf(at(a("10.1.1.1"), 1))))
	require.NoError(t, tables.members.Set(memberKey(99, at(a("10.1.1.1"), 1)), memberOf(Backend{State: Active, Weight: 1}, 77)))
	require.NoError(t, tables.slots.Set(bpf.TableSlotKey{Set: 500, Index: 1}, bpf.TableSlot{First: 77}))
	require.NoError(t, tables.ranges.Set(rangeKey(99, netip.MustParsePrefix("10.0.0.0/8")), 1))
	require.NoError(t, tables.frontends.Set(frontendKey(at(a("10.96.9.9"), 1), TCP), bpf.TableFrontend{Service: 99, Set: 500, Count: 2}))
	require.NoError(t, tables.frontends.Set(addrKey(frontendKey(at(a("10.96.9.9"), 1), TCP).Addr), bpf.TableFrontend{Type: 6}))
	require.NoError(t, b.putMaglev(501, make([]uint32, 31)))
	// Two owners of one identifier: the second is not believed.
	info := infoOf(Service{Name: "ns/web-1"})
	require.NoError(t, tables.infos.Set(1234, info))
	require.NoError(t, b.Close())

	b, err = New(cfg)
	require.NoError(t, err)
	defer func() { assert.NoError(t, b.Remove()) }()
	have := countRows(t, b)
	if have[6] == 0 { // of the two of one name, the one without rows was met first
		require.Equal(t, [7]int{5: 1}, have)
	} else {
		require.Equal(t, rows, have)
	}
	require.NoError(t, b.SetService(web(1, 3)))
	require.Equal(t, rows, countRows(t, b))
	require.GreaterOrEqual(t, b.lastSet, uint32(2))
	all, err := filepath.Glob(filepath.Join(pins, "*"))
	require.NoError(t, err)
	require.NotEmpty(t, all)
}

// BenchmarkSync sets many services from nothing, and tells what one takes of the
// kernel's memory, as the kernel says of its tables (since 6.4).
func BenchmarkSync(b *testing.B) {
	const services = 10000
	var all []Service
	for n := range services {
		all = append(all, web(n, 3))
	}
	held := func(bal *Balancer) (sum uint64) {
		for _, m := range bal.tables.ebpf() {
			info, err := m.Info()
			require.NoError(b, err)
			size, _ := info.Memlock() // none: an empty table that grows
			sum += size
		}
		return sum
	}
	for b.Loop() {
		b.StopTimer()
		bal, err := New(Config{})
		require.NoError(b, err)
		before := held(bal)
		b.StartTimer()
		_, err = bal.Sync(all)
		require.NoError(b, err)
		b.StopTimer()
		b.ReportMetric(float64(held(bal)-before)/services, "B/service")
		require.NoError(b, bal.Close())
		b.StartTimer()
	}
}

// BenchmarkChange changes one service among many.
func BenchmarkChange(b *testing.B) {
	for _, present := range []int{1, 10_000, 100_000} {
		b.Run(fmt.Sprintf("services=%d", present), func(b *testing.B) {
			bal := newBal(b, Config{Frontends: 131072, Backends: 524288})
			var all []Service
			for n := range present {
				all = append(all, web(n, 3))
			}
			_, err := bal.Sync(all)
			require.NoError(b, err)
			s, i := web(0, 3), 0
			for b.Loop() {
				i++
				s.Backends[0].Weight = 1 + i%2
				require.NoError(b, bal.SetService(s))
			}
		})
	}
}

func TestServicesNeedTheFlowTable(t *testing.T) {
	t.Parallel()
	_, err := programs.Load(programs.Config{}, newBal(t, Config{}))
	require.ErrorIs(t, err, os.ErrInvalid)
	require.ErrorContains(t, err, "block services: it needs the flow table")
}
