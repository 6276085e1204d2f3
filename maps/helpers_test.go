// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"iter"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

type key struct {
	Addr [16]byte
	Port uint16
	Kind uint16
	ID   uint32
}

type value struct {
	Packets uint64
	Bytes   uint64
	MAC     [6]uint8
	Flags   uint16
	Index   uint32
	Pad     uint32
}

type prefix struct {
	Length uint32
	Addr   [4]byte
}

func hashSpec(name string, entries uint32) Spec[key, value] {
	return Spec[key, value]{Map: &ebpf.MapSpec{Name: name, Type: ebpf.Hash, MaxEntries: entries}}
}

func trieSpec(name string, entries uint32) Spec[prefix, uint32] {
	return Spec[prefix, uint32]{Map: &ebpf.MapSpec{Name: name, Type: ebpf.LPMTrie, MaxEntries: entries, Flags: unix.BPF_F_NO_PREALLOC}}
}

func kindSpec[V any](kind ebpf.MapType, entries uint32) Spec[uint32, V] {
	return Spec[uint32, V]{Map: &ebpf.MapSpec{Name: "numbers", Type: kind, MaxEntries: entries}}
}

func makeMap[K, V any](t testing.TB, spec Spec[K, V], cfg Config) *Map[K, V] {
	t.Helper()
	m, err := New(spec, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// bpffs mounts a bpf filesystem for the test alone.
func mountedFS(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bpf")
	require.NoError(t, MountBPFFS(dir))
	t.Cleanup(func() { require.NoError(t, UnmountBPFFS(dir)) })
	return dir
}

func keyOf(i int) key       { return key{ID: uint32(i), Port: uint16(i * 7)} }
func valueOf(i int) value   { return value{Packets: uint64(i), Bytes: uint64(i) * 100} }
func prefixOf(i int) prefix { return prefix{24, [4]byte{10, byte(i >> 8), byte(i), 0}} }
func numberOf(i int) uint32 { return uint32(i) }

func entries[K, V any](n int, k func(int) K, v func(int) V) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		for i := range n {
			if !yield(k(i), v(i)) {
				return
			}
		}
	}
}

// contents reads a table into a Go map and fails if a key comes twice.
func contents[K comparable, V any](t testing.TB, m *Map[K, V]) map[K]V {
	t.Helper()
	all := map[K]V{}
	for e, err := range m.All() {
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := all[e.Key]; twice {
			t.Fatalf("%+v is seen twice", e.Key)
		}
		all[e.Key] = e.Value
	}
	return all
}
