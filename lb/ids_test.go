// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestIDs(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	a := newIDs(time.Hour)
	a.now = func() time.Time { return now }
	take := func() uint32 {
		t.Helper()
		id, err := a.take()
		require.NoError(t, err)
		return id
	}
	require.True(t, a.adopt(7))
	require.False(t, a.adopt(7), "two owners")
	require.False(t, a.adopt(0))
	require.EqualValues(t, 8, take())
	a.giveBack(8)
	a.giveBack(8)
	require.EqualValues(t, 9, take(), "not the one that was given back just now")

	// At the end of the numbers it begins anew, past those in use and at rest.
	require.True(t, a.adopt(1))
	a.next = 1<<32 - 1
	require.Equal(t, ^uint32(0), take())
	require.EqualValues(t, 2, take())
	a.next = 7
	require.EqualValues(t, 10, take(), "7 and 9 are in use, 8 rests")
	now = now.Add(time.Hour)
	a.next = 7
	require.EqualValues(t, 8, take(), "it has rested")
}

func TestIDsAreNeverShared(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	now := time.Unix(1000, 0)
	a := newIDs(time.Minute)
	a.now = func() time.Time { return now }
	a.next = 1<<32 - 500
	held, freed := map[uint32]bool{}, map[uint32]time.Time{}
	for range 20000 {
		now = now.Add(time.Second)
		if len(held) > 0 && rnd.IntN(2) == 0 {
			for id := range held {
				delete(held, id)
				freed[id] = now
				a.giveBack(id)
				break
			}
			continue
		}
		if rnd.IntN(50) == 0 {
			a.next = -rnd.Uint32N(500) // come round often
		}
		id, err := a.take()
		require.NoError(t, err)
		require.NotZero(t, id)
		require.False(t, held[id])
		if at, ok := freed[id]; ok {
			require.GreaterOrEqual(t, now.Sub(at), time.Minute)
		}
		held[id] = true
	}
}
