// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/maps"
)

func candidates(rnd *rand.Rand, n int, weighted bool) []candidate {
	all := make([]candidate, n)
	for i := range all {
		all[i] = candidate{
			id: uint32(1000 + i), weight: 1,
			addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}), 8080),
		}
		if i%3 == 0 {
			all[i].addr = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)}), uint16(i+1))
		}
		if weighted {
			all[i].weight = 1 + rnd.Uint32N(100)
		}
	}
	return all
}

// slowMaglev is the paper's procedure word by word: whole permutations, and
// turns handed out by exact fractions.
func slowMaglev(all []candidate, size, seed uint32) []uint32 {
	order := slices.Clone(all)
	slices.SortFunc(order, func(a, b candidate) int { return a.addr.Compare(b.addr) })
	permutation := make([][]uint32, len(order))
	heaviest := uint64(0)
	for i, c := range order {
		offset, skip := maglevHash(c.addr, seed)
		for j := range uint64(size) {
			permutation[i] = append(permutation[i], uint32((uint64(offset%size)+j*uint64(skip%(size-1)+1))%uint64(size)))
		}
		heaviest = max(heaviest, uint64(c.weight))
	}
	next, turns := make([]int, len(order)), make([]uint64, len(order))
	table := map[uint32]uint32{}
	for round := uint64(1); ; round++ {
		for i, c := range order {
			// After so many rounds it is due this many turns.
			if due := round * uint64(c.weight) / heaviest; due == turns[i] {
				continue
			}
			turns[i]++
			for {
				at := permutation[i][next[i]]
				next[i]++
				if _, taken := table[at]; !taken {
					table[at] = c.id
					break
				}
			}
			if len(table) == int(size) {
				out := make([]uint32, size)
				for at, id := range table {
					out[at] = id
				}
				return out
			}
		}
	}
}

func TestMaglevAgainstTheSlowTwin(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, size := range []uint32{2, 3, 5, 7, 31, 251, 1021, 4093} {
		for _, n := range []int{1, 2, 3, 7, 40} {
			for _, weighted := range []bool{false, true} {
				seed := rnd.Uint32()
				all := candidates(rnd, n, weighted)
				want := slowMaglev(all, size, seed)
				require.Equal(t, want, maglevTable(all, size, seed), "%d of %d, weighted %t", n, size, weighted)
				rnd.Shuffle(n, func(i, j int) { all[i], all[j] = all[j], all[i] })
				require.Equal(t, want, maglevTable(all, size, seed), "in another order")
			}
		}
	}
	require.Nil(t, maglevTable(nil, 251, 0))
}

// A table that other nodes have made must be ours too, in all releases.
func TestMaglevPinned(t *testing.T) {
	t.Parallel()
	var all []candidate
	for i := range 3 {
		all = append(all, candidate{id: uint32(i + 1), addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 80), weight: uint32(i + 1)})
	}
	require.Equal(t, "[2 1 3 2 3 3 3 2 1 1 1 2 2 3 3 2 3 3 3 2 2 2 3 3 3 3 3 2 3 3 1]", fmt.Sprint(maglevTable(all, 31, 7)))
}

func shares(table []uint32) map[uint32]int {
	out := map[uint32]int{}
	for _, id := range table {
		out[id]++
	}
	return out
}

func TestMaglevShares(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, weighted := range []bool{false, true} {
		all := candidates(rnd, 50, weighted)
		total := 0
		for _, c := range all {
			total += int(c.weight)
		}
		got := shares(maglevTable(all, 16381, 1))
		for _, c := range all {
			want := float64(c.weight) / float64(total) * 16381
			require.InDelta(t, want, got[c.id], 2+want*0.02, "weight %d of %d", c.weight, total)
		}
	}
}

// When a backend goes, its own slots must change hands, 1/n of all. The paper
// measures a few percent of the others with them at 100 slots a backend.
func TestMaglevDisruption(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(5, 6))
	const size, n = 16381, 100
	all := candidates(rnd, n, false)
	before := maglevTable(all, size, 9)
	worst := 0.0
	for gone := range n {
		after := maglevTable(slices.Delete(slices.Clone(all), gone, gone+1), size, 9)
		moved := 0
		for i := range before {
			if before[i] != after[i] && before[i] != all[gone].id {
				moved++
			}
		}
		worst = max(worst, float64(moved)/size)
	}
	t.Logf("besides the 1%% of the backend that went, at most %.2f%% of the slots moved", 100*worst)
	require.Less(t, worst, 0.03)
}

func TestIsPrime(t *testing.T) {
	t.Parallel()
	sieve := make([]bool, 70000) // true: composite
	for i := 2; i < len(sieve); i++ {
		for j := 2 * i; j < len(sieve); j += i {
			sieve[j] = true
		}
		require.Equal(t, !sieve[i], isPrime(uint32(i)), i)
	}
	require.False(t, isPrime(0))
	require.False(t, isPrime(1))
	require.True(t, isPrime(4294967291))
}

func BenchmarkMaglev(b *testing.B) {
	rnd := rand.New(rand.NewPCG(7, 8))
	for _, weighted := range []bool{false, true} {
		all := candidates(rnd, 100, weighted)
		b.Run(fmt.Sprintf("slots=65537/backends=100/weighted=%t", weighted), func(b *testing.B) {
			for b.Loop() {
				maglevTable(all, 65537, 1)
			}
		})
	}
}

// What a tool reads is what was made, of each policy.
func TestMaglevTables(t *testing.T) {
	t.Parallel()
	pins := netnstest.NewLab(t).PinDir()
	b := newBal(t, Config{Config: maps.Config{Pins: pins}, MaglevSize: 251, MaglevSeed: 7, Node: redNode})
	defer func() { require.NoError(t, b.Remove()) }()
	here, away := at(a("10.200.0.1"), 80), at(a("10.200.0.2"), 80)
	s := Service{
		Name: "web", Algorithm: Maglev, Internal: Local, External: Local,
		Frontends: []Frontend{
			{Addr: at(a("10.96.0.1"), 80), Protocol: TCP, Type: ClusterIP}, {Addr: at(a("192.0.2.1"), 80), Protocol: UDP, Type: ExternalIP},
			{Addr: at(a("10.96.0.1"), 81), Protocol: TCP, Type: ClusterIP},
		},
		Backends: []Backend{{Addr: here, Node: redNode}, {Addr: away, Weight: 2}},
	}
	require.NoError(t, b.SetService(web(0, 3)))
	require.NoError(t, b.SetService(s))
	opened, err := Open(pins)
	require.NoError(t, err)
	defer opened.Close()
	all, err := opened.Services()
	require.NoError(t, err)
	require.Equal(t, "web", all[1].Name)
	got, err := opened.MaglevTables(all[1].ID)
	require.NoError(t, err)
	slots := func(list ...candidate) (out []netip.AddrPort) {
		for _, id := range maglevTable(list, 251, 7) {
			out = append(out, list[id-1].addr)
		}
		return out
	}
	one, two := candidate{1, here, 1}, candidate{2, away, 2}
	require.Equal(t, []MaglevTable{
		{Frontends: []Frontend{s.Frontends[0], s.Frontends[2]}, Outside: []Frontend{s.Frontends[1]}, Slots: slots(one)},
		{Frontends: []Frontend{s.Frontends[1]}, Slots: slots(one, two)},
	}, got)
	for _, id := range []uint32{0, all[0].ID, 99} {
		_, err = opened.MaglevTables(id)
		require.ErrorIs(t, err, os.ErrNotExist)
	}
}
