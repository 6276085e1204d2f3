// SPDX-License-Identifier: Apache-2.0

package ticks

import (
	"math/big"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The values of CONFIG_HZ that Linux offers on some architecture.
var possibleHZ = []int64{24, 32, 48, 64, 100, 128, 200, 250, 256, 300, 500, 512, 1000, 1024, 1200}

func TestClockKnowsEveryHZ(t *testing.T) {
	t.Parallel()
	for _, hz := range possibleHZ {
		// TICK_NSEC of the kernel.
		c, err := newClock(time.Duration((1_000_000_000 + hz/2) / hz))
		require.NoError(t, err)
		assert.EqualValues(t, hz, c.hz)
	}
	for _, bad := range []time.Duration{0, 1, -time.Millisecond, time.Second, 99 * time.Microsecond} {
		_, err := newClock(bad)
		require.ErrorContains(t, err, "ticks per second")
	}
}

// Ticks and times against arithmetic without a limit, at uptimes of 0 to 5
// years, which wrap the counter many times.
func TestClockAgainstASlowTwin(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	second := big.NewInt(int64(time.Second))
	for _, hz := range possibleHZ {
		c := Clock{uint64(hz)}
		for range 3000 {
			d := time.Duration(rng.Int64N(int64(7*24*time.Hour) + 1))
			if rng.IntN(3) == 0 {
				d = time.Duration(rng.Int64N(int64(3 * time.Second)))
			}
			want, rest := new(big.Int).DivMod(new(big.Int).Mul(big.NewInt(int64(d)), big.NewInt(hz)), second, new(big.Int))
			if rest.Sign() > 0 {
				want.Add(want, big.NewInt(1))
			}
			require.Equal(t, want.Uint64(), uint64(c.Of(d)), "%s at %d Hz", d, hz)

			uptime := time.Duration(rng.Int64N(int64(5*365*24*time.Hour) + 1))
			now := uint64(1)<<32 - uint64(300*hz) + uint64(uptime.Seconds()*float64(hz)) // jiffies begin 5 minutes before they wrap
			back := rng.Uint64N(1<<32 - Ahead + 1)
			got := c.Since(uint32(now), uint32(now-back))
			exact := new(big.Int).Div(new(big.Int).Mul(new(big.Int).SetUint64(back), second), big.NewInt(hz))
			require.Equal(t, exact.Int64(), int64(got), "%d ticks at %d Hz after %s", back, hz, uptime)
			require.Zero(t, c.Since(uint32(now), uint32(now)+uint32(rng.IntN(Ahead))), "used while it is looked at")
		}
		assert.Zero(t, c.Of(0))
		assert.EqualValues(t, 1, c.Of(1), "nothing lives shorter than asked")
		assert.EqualValues(t, hz, c.Of(time.Second))
		assert.EqualValues(t, hz+1, c.Of(time.Second+1))
		assert.Less(t, uint64(c.Of(7*24*time.Hour)), uint64(1<<32-Ahead))
	}
}
