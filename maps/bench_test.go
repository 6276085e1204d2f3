// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var benchSizes = []int{1_000, 100_000}

func benchMap(b *testing.B, n int) *Map[key, value] {
	m := makeMap(b, hashSpec("bench", uint32(n)), Config{})
	done, err := m.SetAll(entries(n, keyOf, valueOf))
	require.NoError(b, err)
	require.Equal(b, n, done)
	return m
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := benchMap(b, n)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, err := m.Lookup(keyOf(i % n)); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

func BenchmarkLookupMiss(b *testing.B) {
	m := benchMap(b, 1000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Lookup(keyOf(-1)); err == nil {
			b.Fatal("found")
		}
	}
}

// BenchmarkLookupEBPF is what cilium/ebpf costs by itself, for comparison.
func BenchmarkLookupEBPF(b *testing.B) {
	m := benchMap(b, 1000)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		k := keyOf(i % 1000)
		var v value
		if err := m.em.Lookup(&k, &v); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkSet(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := benchMap(b, n)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if err := m.Set(keyOf(i%n), valueOf(i)); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

func BenchmarkSetAll(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := benchMap(b, n)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := m.SetAll(entries(n, keyOf, valueOf)); err != nil {
					b.Fatal(err)
				}
			}
			perEntry(b, n)
		})
	}
}

func BenchmarkAll(b *testing.B) {
	for _, n := range append(benchSizes, 1_000_000) {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := benchMap(b, n)
			b.ReportAllocs()
			for b.Loop() {
				count := 0
				for _, err := range m.All() {
					if err != nil {
						b.Fatal(err)
					}
					count++
				}
				if count != n {
					b.Fatal(count)
				}
			}
			perEntry(b, n)
		})
	}
}

func BenchmarkSync(b *testing.B) {
	for _, n := range append(benchSizes, 1_000_000) {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := benchMap(b, n)
			b.ReportAllocs()
			for b.Loop() {
				changes, err := m.Sync(entries(n, keyOf, valueOf))
				if err != nil || changes != (Changes{}) {
					b.Fatal(changes, err)
				}
			}
			perEntry(b, n)
		})
	}
}

func BenchmarkDeleteAll(b *testing.B) {
	const n = 100_000
	m := benchMap(b, n)
	keys := make([]key, n)
	for i := range keys {
		keys[i] = keyOf(i)
	}
	b.ReportAllocs()
	var spent time.Duration
	for b.Loop() {
		start := time.Now()
		if deleted, err := m.DeleteAll(keys); err != nil || deleted != n {
			b.Fatal(deleted, err)
		}
		spent += time.Since(start)
		if _, err := m.SetAll(entries(n, keyOf, valueOf)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N)/n, "ns/delete")
}

// BenchmarkNew is what making, pinning and adopting one table costs.
func BenchmarkNew(b *testing.B) {
	dir := mountedFS(b)
	for b.Loop() {
		for range 2 {
			m, err := New(hashSpec("bench", 16), Config{Pins: dir})
			if err != nil {
				b.Fatal(err)
			}
			defer m.Close()
		}
	}
}

func perEntry(b *testing.B, n int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/entry")
}
