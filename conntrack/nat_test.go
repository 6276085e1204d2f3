// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"iter"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/node"
	"github.com/godatapath/datapath/maps"
)

func TestNATDefaults(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct{ have, want NAT }{
		"zero":             {NAT{}, NAT{Unmasqueraded: 1024, FirstPort: 1024, LastPort: 29999, PortHints: 64}},
		"own":              {NAT{true, 1, 5, 5, 1}, NAT{true, 1, 5, 5, 1}},
		"first only":       {NAT{FirstPort: 2000}, NAT{Unmasqueraded: 1024, FirstPort: 2000, LastPort: 29999, PortHints: 64}},
		"first beyond":     {NAT{FirstPort: 40000}, NAT{Unmasqueraded: 1024, FirstPort: 40000, LastPort: 40000, PortHints: 64}},
		"last only":        {NAT{LastPort: 65535}, NAT{Unmasqueraded: 1024, FirstPort: 1024, LastPort: 65535, PortHints: 64}},
		"hints rounded up": {NAT{PortHints: 65}, NAT{Unmasqueraded: 1024, FirstPort: 1024, LastPort: 29999, PortHints: 128}},
		"the most":         {NAT{Unmasqueraded: 1 << 24, PortHints: 1 << 16, FirstPort: 1, LastPort: 65535}, NAT{Unmasqueraded: 1 << 24, PortHints: 1 << 16, FirstPort: 1, LastPort: 65535}},
	} {
		given := row.have
		got, err := Config{NAT: &given}.withDefaults()
		require.NoError(t, err, name)
		assert.Equal(t, &row.want, got.NAT, name)
		assert.Equal(t, row.have, given, "%s: what the caller has is his", name)
		again, err := got.withDefaults()
		require.NoError(t, err, name)
		assert.Equal(t, got, again, name)
	}
	assert.Equal(t, 28976, NAT{FirstPort: 1024, LastPort: 29999}.ports())
}

func TestNATBad(t *testing.T) {
	t.Parallel()
	for want, n := range map[string]NAT{
		"NAT: ports 2000 to 1999: the range is empty":       {FirstPort: 2000, LastPort: 1999},
		"NAT: ports 1024 to 1023: the range is empty":       {LastPort: 1023},
		"NAT.Unmasqueraded is -1, want 1 to 16777216":       {Unmasqueraded: -1},
		"NAT.Unmasqueraded is 16777217, want 1 to 16777216": {Unmasqueraded: 1<<24 + 1},
		"NAT.PortHints is -1, want 1 to 65536":              {PortHints: -1},
		"NAT.PortHints is 65537, want 1 to 65536":           {PortHints: 1<<16 + 1},
	} {
		_, err := New(Config{Flows: 16, NAT: &n})
		require.ErrorContains(t, err, "make the flow table: "+want)
		require.ErrorIs(t, err, os.ErrInvalid, want)
	}
}

// What the programs are told of it.
func TestNATParts(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		nat        NAT
		masquerade bool
		settings   map[string]any
	}{
		"masquerade": {NAT{Masquerade: true, FirstPort: 2000, LastPort: 2063, PortHints: 3}, true, map[string]any{
			"with_nat": uint8(1), "with_translation": uint8(1), "nat_first": uint16(2000), "nat_count": uint32(64), "nat_mask": uint32(3), "with_masquerade": uint8(1),
		}},
		"for services": {NAT{FirstPort: 1, LastPort: 65535}, false, map[string]any{
			"with_nat": uint8(1), "with_translation": uint8(1), "nat_first": uint16(1), "nat_count": uint32(65535), "nat_mask": uint32(63),
		}},
	} {
		table := newTable(t, Config{Flows: 16, NAT: &row.nat})
		parts := table.DatapathParts()
		for k, v := range row.settings {
			assert.Equal(t, v, parts.Settings[k], "%s: %s", name, k)
		}
		_, ok := parts.Settings["with_masquerade"]
		assert.Equal(t, row.masquerade, ok, name)
		for _, m := range []string{unmasqueradedTable, natHintsTable, natEventsTable} {
			require.NotNil(t, parts.Maps[m], "%s: %s", name, m)
		}
		assert.EqualValues(t, row.settings["nat_mask"], parts.Maps[natHintsTable].MaxEntries()-1)
		assert.NotNil(t, parts.Bind)
	}
	without := newTable(t, Config{Flows: 16}).DatapathParts()
	assert.NotContains(t, without.Settings, "with_nat")
	assert.NotContains(t, without.Maps, natHintsTable)
}

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func sorted(t testing.TB, all iter.Seq2[netip.Prefix, error]) (out []string) {
	t.Helper()
	for p, err := range all {
		require.NoError(t, err)
		out = append(out, p.String())
	}
	slices.Sort(out)
	return out
}

// The set is set whole; who runs is told of a change and of nothing else.
func TestSetUnmasqueraded(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{Flows: 64, NAT: &NAT{Masquerade: true, Unmasqueraded: 4}})
	bumps := 0
	r.table.nat.epoch.Bind(func() error { bumps++; return nil })
	set := func(told int, want []string, texts ...string) {
		t.Helper()
		before := bumps
		require.NoError(t, r.table.SetUnmasqueraded(prefixes(texts...)))
		assert.Equal(t, told, bumps-before, "%v", texts)
		assert.Equal(t, want, sorted(t, r.table.Unmasqueraded()))
	}
	set(0, nil)
	set(1, []string{"10.0.0.0/8"}, "10.0.0.0/8")
	set(0, []string{"10.0.0.0/8"}, "10.0.0.0/8")
	set(0, []string{"10.0.0.0/8"}, "10.0.0.0/8", "10.0.0.0/8")
	set(0, []string{"10.0.0.0/8"}, "::ffff:10.0.0.0/104")
	overlapping := []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "2001:db8::/32"}
	set(1, overlapping, "2001:db8::/32", "10.1.0.0/16", "10.0.0.0/8", "10.1.2.3/32")
	set(0, overlapping, overlapping...)
	set(1, []string{"0.0.0.0/0", "2000::/3"}, "0.0.0.0/0", "2000::/3")
	set(1, nil)
	set(0, nil)

	set(1, []string{"10.0.0.0/8"}, "10.0.0.0/8")
	before := bumps
	for what, bad := range map[string]netip.Prefix{
		"the prefix is missing or invalid":     {},
		"prefix 10.1.2.3/8: has host bits":     netip.MustParsePrefix("10.1.2.3/8"),
		"mixes IPv4-mapped and IPv6 addresses": netip.MustParsePrefix("::ffff:0:0/90"),
		"prefix ::/0: covers IPv4 too":         netip.MustParsePrefix("::/0"),
		"prefix 2001:db8::1/32: has host bits": netip.MustParsePrefix("2001:db8::1/32"),
	} {
		err := r.table.SetUnmasqueraded([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), bad})
		require.ErrorContains(t, err, "set the unmasqueraded prefixes: ")
		require.ErrorContains(t, err, what)
		require.ErrorIs(t, err, os.ErrInvalid, what)
	}
	assert.Equal(t, []string{"10.0.0.0/8"}, sorted(t, r.table.Unmasqueraded()), "nothing has been set by halves")
	err := r.table.SetUnmasqueraded(prefixes("10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16"))
	require.ErrorIs(t, err, unix.E2BIG, "more than fit")
	assert.Equal(t, []string{"10.0.0.0/8"}, sorted(t, r.table.Unmasqueraded()))
	assert.Equal(t, before, bumps)

	// Breaking out early is safe, and so is a closed table.
	for range r.table.Unmasqueraded() {
		break
	}
	require.NoError(t, r.table.Close())
	require.ErrorIs(t, r.table.SetUnmasqueraded(nil), os.ErrClosed)
	for _, err := range r.table.Unmasqueraded() {
		require.ErrorIs(t, err, os.ErrClosed)
	}
	_, err = r.table.NATStats()
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = r.table.PortUse()
	require.ErrorIs(t, err, os.ErrClosed)
}

// A change ends the epoch of the node whose programs have the table.
func TestSetUnmasqueradedEndsTheEpoch(t *testing.T) {
	t.Parallel()
	dir := pins(t)
	table := newTable(t, Config{Config: maps.Config{Pins: dir}, Flows: 64, NAT: &NAT{}})
	state, err := node.New(dir)
	require.NoError(t, err)
	defer state.Close()
	epoch := func() uint32 {
		s, err := state.Get()
		require.NoError(t, err)
		return s.Epoch
	}
	first := epoch()
	require.NoError(t, table.SetUnmasqueraded(prefixes("10.0.0.0/8")))
	second := epoch()
	assert.NotEqual(t, first, second)
	require.NoError(t, table.SetUnmasqueraded(prefixes("10.0.0.0/8")))
	assert.Equal(t, second, epoch())

	// So does one that a tool makes.
	tool, err := Open(dir)
	require.NoError(t, err)
	defer tool.Close()
	require.NoError(t, tool.SetUnmasqueraded(prefixes("10.0.0.0/8")), "it can not know whether that has been told")
	third := epoch()
	require.NoError(t, tool.SetUnmasqueraded(nil))
	assert.NotEqual(t, third, epoch())
	assert.Empty(t, sorted(t, table.Unmasqueraded()))
	require.NoError(t, table.Remove())
}

// A table without NAT says so.
func TestWithoutNAT(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 64})
	require.ErrorIs(t, table.SetUnmasqueraded(nil), os.ErrInvalid)
	require.ErrorContains(t, table.SetUnmasqueraded(nil), "made without Config.NAT")
	_, err := table.NATStats()
	require.ErrorIs(t, err, os.ErrInvalid)
	assert.Empty(t, sorted(t, table.Unmasqueraded()))
	use, err := table.PortUse()
	require.NoError(t, err)
	assert.Empty(t, use)
}

// Counters of all CPUs make one sum, by how many ports were tried.
func TestNATStats(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 64, NAT: &NAT{}})
	got, err := table.NATStats()
	require.NoError(t, err)
	assert.Equal(t, NATStats{Tries: make([]uint64, 8)}, got)
	cpus := ebpf.MustPossibleCPU()
	for event := range uint32(bpf.TableNatEventNAT_EVENT_COUNT) {
		perCPU := make([]uint64, cpus)
		for i := range perCPU {
			perCPU[i] = uint64(event+1) * uint64(i+1)
		}
		require.NoError(t, table.nat.events.Set(event, perCPU))
	}
	all := uint64(cpus * (cpus + 1) / 2)
	got, err = table.NATStats()
	require.NoError(t, err)
	assert.Equal(t, NATStats{
		Kept: 9 * all, Exhausted: 10 * all, Found: (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8) * all,
		Tries: []uint64{all, 2 * all, 3 * all, 4 * all, 5 * all, 6 * all, 7 * all, 8 * all},
	}, got)
}

// Ports are counted by address, destination and protocol: those of the node, not
// those that a client got for want of its own, nor the source of who asks itself.
func TestPortUse(t *testing.T) {
	t.Parallel()
	table := newTable(t, Config{Flows: 64, NAT: &NAT{}})
	flow := func(p Protocol, src, dst, replySrc, replyDst string) {
		original, reply := tuple(p, src, dst), tuple(p, replySrc, replyDst)
		f, back := entry(t, table, 0, stageNew, seenPacket), entry(t, table, 0, 0, seenPacket)
		f.Peer, back.Peer, back.Flags = keyOf(reply), keyOf(original), flagReply
		require.NoError(t, table.flows.Set(keyOf(original), f))
		require.NoError(t, table.flows.Set(keyOf(reply), back))
	}
	flow(TCP, "10.0.0.1:1000", "198.51.100.7:80", "198.51.100.7:80", "192.0.2.1:1000")
	flow(TCP, "10.0.0.2:1000", "198.51.100.7:80", "198.51.100.7:80", "192.0.2.1:2000")
	flow(TCP, "10.0.0.3:1000", "198.51.100.7:80", "198.51.100.7:80", "192.0.2.2:1000")
	flow(UDP, "10.0.0.1:1000", "198.51.100.7:80", "198.51.100.7:80", "192.0.2.1:1000")
	flow(TCP, "10.0.0.1:1001", "198.51.100.7:81", "198.51.100.7:81", "192.0.2.1:1001")
	flow(TCP, "10.0.0.1:1002", "10.96.0.1:80", "198.51.100.7:80", "192.0.2.1:1002") // by a service
	flow(TCP, "[fd00::1]:1000", "[2001:db8::7]:80", "[2001:db8::7]:80", "[2001:db8::1]:1000")
	flow(TCP, "10.0.0.1:1003", "10.0.0.2:80", "10.0.0.2:80", "10.0.0.1:1003")              // as itself
	flow(TCP, "10.0.0.1:1004", "10.96.0.1:80", "10.0.0.2:80", "10.0.0.1:1004")             // a service's
	flow(TCP, "198.51.100.9:1000", "192.0.2.1:30080", "10.0.0.2:80", "198.51.100.9:50000") // a client whose port another had
	flow(TCP, "10.0.0.1:1005", "10.96.0.1:80", "10.0.0.1:80", "169.254.42.1:1005")         // to itself
	use, err := table.PortUse()
	require.NoError(t, err)
	at := netip.MustParseAddrPort
	assert.ElementsMatch(t, []PortUse{
		{netip.MustParseAddr("192.0.2.1"), at("198.51.100.7:80"), TCP, 3},
		{netip.MustParseAddr("192.0.2.2"), at("198.51.100.7:80"), TCP, 1},
		{netip.MustParseAddr("192.0.2.1"), at("198.51.100.7:80"), UDP, 1},
		{netip.MustParseAddr("192.0.2.1"), at("198.51.100.7:81"), TCP, 1},
		{netip.MustParseAddr("2001:db8::1"), at("[2001:db8::7]:80"), TCP, 1},
	}, use)
}

// What is pinned outlives its process, and tools find it.
func TestNATIsAdopted(t *testing.T) {
	t.Parallel()
	dir := pins(t)
	cfg := Config{Config: maps.Config{Pins: dir}, Flows: 64, NAT: &NAT{Masquerade: true, Unmasqueraded: 8, PortHints: 4}}
	first := newTable(t, cfg)
	require.NoError(t, first.SetUnmasqueraded(prefixes("10.0.0.0/8", "2001:db8::/32")))
	var hints bpf.TableNatPorts
	hints.Used[5] = 0xf0
	require.NoError(t, first.nat.hints.Set(2, hints))
	events := make([]uint64, ebpf.MustPossibleCPU())
	events[0] = 5
	require.NoError(t, first.nat.events.Set(uint32(bpf.TableNatEventNAT_KEPT), events))
	was := pinned(t, dir)
	for _, name := range []string{unmasqueradedTable, natHintsTable, natEventsTable} {
		assert.Contains(t, was, name)
	}
	require.NoError(t, first.Close())

	check := func(table *Table) {
		t.Helper()
		assert.Equal(t, []string{"10.0.0.0/8", "2001:db8::/32"}, sorted(t, table.Unmasqueraded()))
		stats, err := table.NATStats()
		require.NoError(t, err)
		assert.EqualValues(t, 5, stats.Kept)
		_, err = table.PortUse()
		require.NoError(t, err)
	}
	tool, err := Open(dir)
	require.NoError(t, err)
	check(tool)
	assert.NotContains(t, tool.DatapathParts().Maps, natHintsTable, "it is no block")
	assert.Empty(t, tool.DatapathParts().Settings)
	require.NoError(t, tool.Close())

	second := newTable(t, cfg)
	check(second)
	got, err := second.nat.hints.Lookup(2)
	require.NoError(t, err)
	assert.Equal(t, hints, got)
	assert.Equal(t, was, pinned(t, dir))

	// Other sizes: refused, or taken over.
	other := cfg
	other.NAT = &NAT{Masquerade: true, Unmasqueraded: 16, PortHints: 8}
	var mismatch *maps.IncompatibleError
	_, err = New(other)
	require.ErrorAs(t, err, &mismatch)
	assert.Equal(t, unmasqueradedTable, mismatch.Table)
	other.OnMismatch = maps.Migrate
	larger := newTable(t, other)
	check(larger)
	assert.Equal(t, 16, larger.nat.prefixes.Capacity())
	other.NAT = &NAT{Masquerade: true, Unmasqueraded: 2, PortHints: 2}
	smaller := newTable(t, other)
	check(smaller)
	assert.Equal(t, 2, smaller.nat.hints.Capacity(), "what is forgotten of them was a hint")

	require.NoError(t, smaller.Remove())
	assert.Empty(t, pinned(t, dir))
	_, err = Open(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// One prefix more than fits: all is as it was.
func TestPrefixesThatDoNotFit(t *testing.T) {
	t.Parallel()
	dir := pins(t)
	cfg := Config{Config: maps.Config{Pins: dir}, Flows: 64, NAT: &NAT{Unmasqueraded: 8}}
	first := newTable(t, cfg)
	require.NoError(t, first.SetUnmasqueraded(prefixes("10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16")))
	other := cfg
	other.OnMismatch, other.Flows, other.NAT = maps.Migrate, 128, &NAT{Unmasqueraded: 2}
	_, err := New(other)
	require.ErrorIs(t, err, unix.E2BIG)
	again, err := New(cfg)
	require.NoError(t, err, "the flows are where they were")
	assert.Equal(t, 128, again.flows.Capacity())
	assert.Len(t, sorted(t, again.Unmasqueraded()), 3)
	require.NoError(t, again.Remove())
}

// A constructor that fails leaves nothing, and a table without NAT takes away what
// an earlier one with NAT has left.
func TestNATLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := pins(t)
	foreign, err := maps.New(maps.Spec[uint32, uint32]{Map: &ebpf.MapSpec{Name: natEventsTable, Type: ebpf.Hash, MaxEntries: 1}}, maps.Config{Pins: dir})
	require.NoError(t, err)
	cfg := Config{Config: maps.Config{Pins: dir}, Flows: 16, NAT: &NAT{}}
	_, err = New(cfg)
	require.ErrorIs(t, err, ebpf.ErrMapIncompatible)
	assert.Equal(t, []string{natEventsTable}, pinned(t, dir))
	require.NoError(t, foreign.Remove())

	require.NoError(t, newTable(t, cfg).Close())
	cfg.NAT = nil
	without := newTable(t, cfg)
	require.NoError(t, without.Remove())
	assert.Empty(t, pinned(t, dir))
}
