// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"bufio"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// BenchmarkEndpointMemory is the kernel memory that an endpoint costs beyond
// its devices: table entries are there from the start, what comes is the
// attachment. All slab and page memory of the kernel is counted, so the rest of
// the machine is in it too: read it on a quiet one.
func BenchmarkEndpointMemory(b *testing.B) {
	const n = 500
	for b.Loop() {
		r := newRig(b, rigConfig{})
		require.NoError(b, r.endpoints.Delete(greenIfindex))
		require.NoError(b, r.endpoints.Delete(blueIfindex))
		links := veths(b, r.ns, n)
		runtime.GC()
		before := kernelMemory(b)
		for i, l := range links {
			require.NoError(b, r.endpoints.Set(numbered(i, l)))
			require.NoError(b, r.dp.AttachEndpoint(link{l.Index}))
		}
		b.ReportMetric(float64(kernelMemory(b)-before)/n, "B/endpoint")
	}
}

// kernelMemory is what the kernel holds for itself, in bytes.
func kernelMemory(t testing.TB) int64 {
	t.Helper()
	f, err := os.Open("/proc/meminfo")
	require.NoError(t, err)
	defer f.Close()
	var sum int64
	for s := bufio.NewScanner(f); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), ":")
		switch name {
		case "Slab", "KernelStack", "Percpu", "VmallocUsed":
			kb, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			require.NoError(t, err)
			sum += kb << 10
		}
	}
	return sum
}
