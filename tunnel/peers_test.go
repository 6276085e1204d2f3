// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/node"
	dpmaps "github.com/godatapath/datapath/maps"
)

// rig is a peers table that counts how often it announced a change.
type rig struct {
	*Peers
	t     testing.TB
	bumps int
}

func newRig(t testing.TB, cfg Config) *rig {
	t.Helper()
	p, err := New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	r := &rig{Peers: p, t: t}
	p.DatapathParts().Bind(func() error { r.bumps++; return nil })
	return r
}

func (r *rig) bumped(fn func()) int {
	before := r.bumps
	fn()
	return r.bumps - before
}

func (r *rig) check(want ...Peer) {
	r.t.Helper()
	got := map[netip.Prefix]Peer{}
	for p, err := range r.All() {
		require.NoError(r.t, err)
		require.NotContains(r.t, got, p.Prefix)
		got[p.Prefix] = p
	}
	all := map[netip.Prefix]Peer{}
	for _, p := range want {
		all[p.Prefix] = p
	}
	require.Equal(r.t, all, got)
}

func peer(prefix, node string) Peer {
	return Peer{Prefix: netip.MustParsePrefix(prefix), Node: netip.MustParseAddr(node)}
}

func pins(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bpf")
	require.NoError(t, dpmaps.MountBPFFS(dir))
	t.Cleanup(func() { require.NoError(t, dpmaps.UnmountBPFFS(dir)) })
	return dir
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]Config{
		"MTU is 575":     {MTU: 575},
		"MTU is -1":      {MTU: -1},
		"MTU is 65536":   {MTU: 65536},
		"Max is -1":      {Max: -1},
		"Max is 1677721": {Max: 1<<24 + 1},
		"Foreign is 2":   {Foreign: 2},
	} {
		_, err := New(cfg)
		require.ErrorContains(t, err, "make the peers table: "+want)
		require.ErrorIs(t, err, os.ErrInvalid, want)
	}
	_, err := New(Config{Config: dpmaps.Config{Pins: t.TempDir()}})
	require.ErrorIs(t, err, dpmaps.ErrNoBPFFS)

	for _, c := range []struct {
		cfg  Config
		mtu  int
		want map[string]any
	}{
		{Config{}, 1450, map[string]any{"with_overlay": uint8(1), "overlay_ipv6": uint8(0), "overlay_checksum": uint8(0), "overlay_pass_foreign": uint8(0), "overlay_mtu": uint16(1450), "overlay_source_first": uint16(32768), "overlay_source_count": uint32(28232), "overlay_port": uint16(8472)}},
		{Config{IPv6: true}, 1430, map[string]any{"with_overlay": uint8(1), "overlay_ipv6": uint8(1), "overlay_checksum": uint8(0), "overlay_pass_foreign": uint8(0), "overlay_mtu": uint16(1430), "overlay_source_first": uint16(32768), "overlay_source_count": uint32(28232), "overlay_port": uint16(8472)}},
		{
			Config{Port: 4789, MTU: 65535, UDPChecksum: true, Foreign: ForeignPass, Max: 5}, 65535,
			map[string]any{"with_overlay": uint8(1), "overlay_ipv6": uint8(0), "overlay_checksum": uint8(1), "overlay_pass_foreign": uint8(1), "overlay_mtu": uint16(65535), "overlay_source_first": uint16(32768), "overlay_source_count": uint32(28232), "overlay_port": uint16(4789)},
		},
	} {
		r := newRig(t, c.cfg)
		parts := r.DatapathParts()
		assert.Equal(t, c.want, parts.Settings)
		assert.Equal(t, c.mtu, r.MTU())
		assert.Len(t, parts.Maps, 1)
		assert.Equal(t, max(c.cfg.Max, 0)+map[bool]int{true: DefaultMax}[c.cfg.Max == 0], int(parts.Maps["peers"].MaxEntries()))
	}
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	v4, v6 := newRig(t, Config{}), newRig(t, Config{IPv6: true})
	there := peer("10.9.0.0/16", "172.16.0.9")
	require.NoError(t, v4.Set(there))
	there6 := peer("10.9.0.0/16", "fd00::9")
	require.NoError(t, v6.Set(there6))
	with := func(p Peer, vni uint32) Peer { p.VNI = vni; return p }
	for _, c := range []struct {
		name, want string
		r          *rig
		peer       Peer
	}{
		{"zero", "the prefix is missing or invalid", v4, Peer{}},
		{"33 bits", "the prefix is missing or invalid", v4, Peer{Prefix: netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 33), Node: there.Node}},
		{"host bits", "has host bits, do you mean 10.1.2.0/24?", v4, peer("10.1.2.3/24", "172.16.0.1")},
		{"host bits of 6", "has host bits, do you mean fd00::/64?", v4, peer("fd00::1/64", "172.16.0.1")},
		{"mapped host bits", "has host bits", v4, peer("::ffff:10.1.2.3/120", "172.16.0.1")},
		{"all of IPv6, and so of IPv4", "covers IPv4 too", v4, peer("::/0", "172.16.0.1")},
		{"half of it", "covers IPv4 too", v4, peer("::/64", "172.16.0.1")},
		{"above the mapped", "covers IPv4 too", v4, peer("::/80", "172.16.0.1")},
		{"mixed", "mixes IPv4-mapped and IPv6", v4, peer("::ffff:0:0/95", "172.16.0.1")},
		{"no node", "node: the address is missing", v4, Peer{Prefix: netip.MustParsePrefix("10.1.0.0/16")}},
		{"zone", "node: address fe80::1%eth0: a zone", v6, peer("10.1.0.0/16", "fe80::1%eth0")},
		{"multicast node", "does not name one host", v4, peer("10.1.0.0/16", "224.0.0.1")},
		{"loopback node", "does not name one host", v4, peer("10.1.0.0/16", "127.0.0.1")},
		{"unspecified node", "does not name one host", v4, peer("10.1.0.0/16", "0.0.0.0")},
		{"IPv6 node on IPv4", "set Config.IPv6 to true", v4, peer("10.1.0.0/16", "fd00::1")},
		{"IPv4 node on IPv6", "set Config.IPv6 to false", v6, peer("10.1.0.0/16", "172.16.0.1")},
		{"mapped node on IPv6", "set Config.IPv6 to false", v6, peer("10.1.0.0/16", "::ffff:172.16.0.1")},
		{"VNI between", "VNI 9 is not an identity", v4, with(peer("10.1.0.0/16", "172.16.0.1"), 9)},
		{"VNI 255", "VNI 255 is not an identity", v4, with(peer("10.1.0.0/16", "172.16.0.1"), 255)},
		{"long VNI", "VNI 16777216 is not an identity", v4, with(peer("10.1.0.0/16", "172.16.0.1"), 1<<24)},
	} {
		t.Run(c.name, func(t *testing.T) {
			assert.Equal(t, 0, c.r.bumped(func() {
				err := c.r.Set(c.peer)
				require.ErrorContains(t, err, c.want)
				require.ErrorContains(t, err, "set a peer: ")
				require.ErrorIs(t, err, os.ErrInvalid)
				good := peer("10.77.0.0/16", map[bool]string{false: "172.16.0.7", true: "fd00::7"}[c.r == v6])
				_, err = c.r.Sync([]Peer{good, c.peer})
				require.ErrorContains(t, err, c.want)
				require.ErrorContains(t, err, "sync the peers: ")
				require.ErrorIs(t, err, os.ErrInvalid)
			}))
		})
	}
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("10.9.0.1/16"), netip.MustParsePrefix("::/0")} {
		err := v4.Delete(p)
		require.ErrorContains(t, err, "delete a peer: ")
		require.ErrorIs(t, err, os.ErrInvalid)
	}
	v4.check(there)
	v6.check(there6)
	_, err := v4.Sync([]Peer{
		peer("10.1.0.0/16", "172.16.0.1"), peer("10.1.0.0/16", "172.16.0.2"), peer("10.2.0.1/16", "172.16.0.1"),
	})
	require.ErrorContains(t, err, "prefix 10.1.0.0/16: comes twice")
	require.ErrorIs(t, err, os.ErrInvalid)
	require.ErrorContains(t, err, "10.2.0.1/16: has host bits", "all that is wrong is told at once")
	_, err = v4.Lookup(netip.Addr{})
	require.ErrorContains(t, err, "look up a peer: the address is missing")
	require.ErrorIs(t, err, os.ErrInvalid)
}

func TestLongestPrefixAndAnnouncements(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	wide, narrow, one, six, all := peer("10.0.0.0/8", "172.16.0.1"), peer("10.1.0.0/16", "172.16.0.1"), peer("10.1.2.3/32", "172.16.0.3"), peer("fd00::/16", "172.16.0.6"), peer("0.0.0.0/0", "172.16.0.9")
	for _, p := range []Peer{wide, narrow, one, six, all} {
		assert.Equal(t, 1, r.bumped(func() { require.NoError(t, r.Set(p)) }), "%s, though a longer match may have said the same", p.Prefix)
	}
	r.check(wide, narrow, one, six, all)
	for _, p := range []Peer{wide, narrow, one, six, all, peer("::ffff:10.1.0.0/112", "::ffff:172.16.0.1")} {
		assert.Equal(t, 0, r.bumped(func() { require.NoError(t, r.Set(p)) }), "%s is there already", p.Prefix)
	}
	for addr, want := range map[string]string{
		"10.1.2.3": "172.16.0.3", "10.1.2.4": "172.16.0.1", "10.2.0.0": "172.16.0.1", "11.0.0.0": "172.16.0.9", "fd00:1::1": "172.16.0.6", "::ffff:10.1.2.3": "172.16.0.3",
	} {
		got, err := r.Lookup(netip.MustParseAddr(addr))
		require.NoError(t, err)
		assert.Equal(t, netip.MustParseAddr(want), got, addr)
	}
	_, err := r.Lookup(netip.MustParseAddr("fd01::1"))
	require.ErrorIs(t, err, ebpf.ErrKeyNotExist)

	moved := peer("10.1.0.0/16", "172.16.0.2")
	assert.Equal(t, 1, r.bumped(func() { require.NoError(t, r.Set(moved)) }))
	fixed := moved
	fixed.VNI = 300
	assert.Equal(t, 1, r.bumped(func() { require.NoError(t, r.Set(fixed)) }))
	r.check(wide, fixed, one, six, all)
	assert.Equal(t, 1, r.bumped(func() { require.NoError(t, r.Delete(fixed.Prefix)) }))
	assert.Equal(t, 0, r.bumped(func() { require.NoError(t, r.Delete(fixed.Prefix)) }))
	assert.Equal(t, 0, r.bumped(func() { require.NoError(t, r.Delete(netip.MustParsePrefix("10.1.2.0/24"))) }), "a shorter and a longer one are there, not this")
	r.check(wide, one, six, all)
	for range r.All() {
		break
	}
}

func TestSync(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{Max: 4})
	a, b, c, d := peer("10.1.0.0/16", "172.16.0.1"), peer("10.1.1.0/24", "172.16.0.2"), peer("fd00::/64", "172.16.0.1"), peer("10.4.0.0/16", "172.16.0.4")
	moved := peer("10.1.1.0/24", "172.16.0.1")
	for _, step := range []struct {
		name string
		to   []Peer
		want dpmaps.Changes
	}{
		{"from nothing", []Peer{a, b, c}, dpmaps.Changes{Set: 3}},
		{"nothing to do", []Peer{c, b, a}, dpmaps.Changes{}},
		{"one comes twice, the same", []Peer{c, b, a, a}, dpmaps.Changes{}},
		{"one moves to where the wider one is", []Peer{a, moved, c}, dpmaps.Changes{Set: 1}},
		{"one goes, one comes", []Peer{a, c, d}, dpmaps.Changes{Set: 1, Deleted: 1}},
		{"full", []Peer{a, b, c, d}, dpmaps.Changes{Set: 1}},
		{"full of others", []Peer{peer("10.21.0.0/16", "172.16.0.1"), peer("10.22.0.0/16", "172.16.0.1"), peer("10.23.0.0/16", "172.16.0.1"), peer("fd02::/64", "172.16.0.1")}, dpmaps.Changes{Set: 4, Deleted: 4}},
		{"to nothing", nil, dpmaps.Changes{Deleted: 4}},
	} {
		want := 1
		if step.want == (dpmaps.Changes{}) {
			want = 0
		}
		assert.Equal(t, want, r.bumped(func() {
			got, err := r.Sync(step.to)
			require.NoError(t, err, step.name)
			assert.Equal(t, step.want, got, step.name)
		}), step.name)
		r.check(step.to...)
	}
}

func TestFullTable(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{Max: 2})
	a, b := peer("10.1.0.0/16", "172.16.0.1"), peer("10.2.0.0/16", "172.16.0.2")
	require.NoError(t, r.Set(a))
	require.NoError(t, r.Set(b))
	assert.Equal(t, 0, r.bumped(func() {
		err := r.Set(peer("10.3.0.0/16", "172.16.0.1"))
		require.ErrorIs(t, err, unix.E2BIG)
		require.ErrorContains(t, err, "table peers")
		require.ErrorContains(t, err, "10.3.0.0/16")
		_, err = r.Sync([]Peer{a, b, peer("10.3.0.0/16", "172.16.0.1")})
		require.ErrorIs(t, err, unix.E2BIG)
	}))
	r.check(a, b)
	a.Node = netip.MustParseAddr("172.16.0.7")
	require.NoError(t, r.Set(a), "what is there can still change")
	r.check(a, b)
}

func TestPins(t *testing.T) {
	t.Parallel()
	dir := pins(t)
	_, err := Open(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	cfg := Config{Config: dpmaps.Config{Pins: dir}, Max: 8}
	first := newRig(t, cfg)
	a := peer("10.1.0.0/16", "172.16.0.1")
	require.NoError(t, first.Set(a))
	require.NoError(t, first.Close())
	require.NoError(t, first.Close())
	require.ErrorIs(t, first.Set(a), os.ErrClosed)
	for _, err := range first.All() {
		require.ErrorIs(t, err, os.ErrClosed)
	}

	second := newRig(t, cfg)
	second.check(a)
	tool, err := Open(dir)
	require.NoError(t, err)
	defer tool.Close()
	assert.Zero(t, tool.MTU())
	got, err := tool.Lookup(netip.MustParseAddr("10.1.9.9"))
	require.NoError(t, err)
	assert.Equal(t, a.Node, got)

	var incompatible *dpmaps.IncompatibleError
	_, err = New(Config{Config: cfg.Config, Max: 9})
	require.ErrorAs(t, err, &incompatible)
	assert.Equal(t, []dpmaps.Difference{{Field: "max entries", Have: "8", Want: "9"}}, incompatible.Differences)
	require.NoError(t, second.Remove())

	// A table that an older or newer version of ours has made.
	spec, err := bpf.LoadTable()
	require.NoError(t, err)
	ms := spec.Maps[peersTable]
	ms.MaxEntries = 8
	other, err := dpmaps.New(dpmaps.Spec[bpf.TablePrefixKey, bpf.TablePeer]{Map: ms, Schema: peersSchema + 1}, cfg.Config)
	require.NoError(t, err)
	_, err = New(cfg)
	require.ErrorAs(t, err, &incompatible)
	assert.Equal(t, filepath.Join(dir, peersTable), incompatible.Path)
	assert.Equal(t, "schema", incompatible.Differences[0].Field)
	require.NoError(t, other.Remove())
}

// Where programs run on from an earlier process, their state is found by the
// pins and told of a change, once.
func TestPinnedNodeIsTold(t *testing.T) {
	t.Parallel()
	dir := pins(t)
	p, err := New(Config{Config: dpmaps.Config{Pins: dir}})
	require.NoError(t, err)
	defer func() { require.NoError(t, p.Remove()) }()
	a := peer("10.1.0.0/16", "172.16.0.1")
	require.NoError(t, p.Set(a), "there is no node to tell yet")
	state, err := node.New(dir)
	require.NoError(t, err)
	defer state.Close()
	epoch := func() uint32 {
		s, err := state.Get()
		require.NoError(t, err)
		return s.Epoch
	}
	was := epoch()
	require.NoError(t, p.Set(a))
	assert.Equal(t, was, epoch())
	a.Node = netip.MustParseAddr("172.16.0.2")
	require.NoError(t, p.Set(a))
	assert.Equal(t, was+1, epoch())

	// A process that was killed may have written without telling: the first
	// call of the next one does it, even if it finds nothing to write.
	tool, err := Open(dir)
	require.NoError(t, err)
	defer tool.Close()
	require.NoError(t, tool.Set(a))
	assert.Equal(t, was+2, epoch())
	require.NoError(t, tool.Set(a))
	assert.Equal(t, was+2, epoch())
}

func TestFailedAnnouncementIsRepeated(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	fail := errors.New("not today")
	r.change.Bind(func() error { return fail })
	a := peer("10.1.0.0/16", "172.16.0.1")
	require.ErrorIs(t, r.Set(a), fail)
	require.ErrorIs(t, r.Set(a), fail)
	_, err := r.Sync([]Peer{a})
	require.ErrorIs(t, err, fail)
	fail = nil
	assert.Equal(t, 1, r.bumped(func() { require.NoError(t, r.Set(a)) }))
	assert.Equal(t, 0, r.bumped(func() { require.NoError(t, r.Set(a)) }))
}

// The table against a list that is searched from end to end.
func TestAgainstASlowTwin(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	rng := rand.New(rand.NewPCG(1, 2))
	twin := map[netip.Prefix]netip.Addr{}
	prefix := func() netip.Prefix {
		// Few bits that differ, so that prefixes cover one another.
		if rng.IntN(3) == 0 {
			a := netip.AddrFrom16([16]byte{0xfd, 0, byte(rng.IntN(4)) << 6, 15: byte(rng.IntN(4))})
			return netip.PrefixFrom(a, 8+rng.IntN(121)).Masked()
		}
		a := netip.AddrFrom4([4]byte{10, byte(rng.IntN(4)) << 6, byte(rng.IntN(2)) << 7, byte(rng.IntN(4))})
		return netip.PrefixFrom(a, rng.IntN(33)).Masked()
	}
	addr := func() netip.Addr { return netip.AddrFrom4([4]byte{172, 16, 0, byte(1 + rng.IntN(3))}) }
	for range 3000 {
		p, n := prefix(), addr()
		want := 1
		switch have, there := twin[p]; rng.IntN(4) {
		case 0:
			if !there {
				want = 0
			}
			assert.Equal(t, want, r.bumped(func() { require.NoError(t, r.Delete(p)) }), "delete %s", p)
			delete(twin, p)
		default:
			if there && have == n {
				want = 0
			}
			assert.Equal(t, want, r.bumped(func() { require.NoError(t, r.Set(Peer{Prefix: p, Node: n})) }), "set %s", p)
			twin[p] = n
		}
		ask := prefix().Addr()
		if !ask.IsUnspecified() {
			best := netip.Prefix{}
			for p := range twin {
				if p.Contains(ask) && (!best.IsValid() || p.Bits() > best.Bits()) {
					best = p
				}
			}
			got, err := r.Lookup(ask)
			if best.IsValid() {
				require.NoError(t, err)
				require.Equal(t, twin[best], got, "%s", ask)
			} else {
				require.ErrorIs(t, err, ebpf.ErrKeyNotExist)
			}
		}
	}
	var all []Peer
	for p, n := range twin {
		all = append(all, Peer{Prefix: p, Node: n})
	}
	r.check(all...)
	changes, err := r.Sync(all)
	require.NoError(t, err)
	assert.Zero(t, changes)
	slices.SortFunc(all, func(a, b Peer) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
	changes, err = r.Sync(all[:len(all)/2])
	require.NoError(t, err)
	assert.Equal(t, dpmaps.Changes{Deleted: len(all) - len(all)/2}, changes)
	r.check(all[:len(all)/2]...)
}

// BenchmarkSet sets what is there already, among many.
func BenchmarkSet(b *testing.B) {
	for _, n := range []int{10, 10000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			r := newRig(b, Config{})
			one := func(i int) Peer {
				return Peer{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), Node: netip.AddrFrom4([4]byte{172, 16, 0, 1})}
			}
			for i := range n {
				require.NoError(b, r.Set(one(i)))
			}
			for b.Loop() {
				require.NoError(b, r.Set(one(n/2)))
			}
		})
	}
}

func TestOwnNode(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]Config{
		"of the other family": {Node: netip.MustParseAddr("fd00::1")},
		"IPv4 over IPv6":      {Node: netip.MustParseAddr("192.0.2.1"), IPv6: true},
		"multicast":           {Node: netip.MustParseAddr("224.0.0.1")},
		"zoned":               {Node: netip.MustParseAddr("fe80::1%eth0"), IPv6: true},
	} {
		_, err := New(cfg)
		require.ErrorContains(t, err, "Node", name)
		require.ErrorIs(t, err, os.ErrInvalid, name)
	}
	p, err := New(Config{Node: netip.MustParseAddr("::ffff:192.0.2.1")})
	require.NoError(t, err)
	defer p.Close()
	require.Contains(t, p.DatapathParts().Settings, "overlay_node")
}
