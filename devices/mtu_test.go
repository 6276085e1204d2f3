// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOverlayMTU(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		underlay int
		ipv6     bool
		want     int // 0 is an error
	}{
		{1500, false, 1450},
		{1500, true, 1430},
		{9001, false, 8951},
		{118, false, 68},
		{117, false, 0},
		{67, false, 0},
		{1280, true, 1210},
		{1279, true, 0},
		{65535, false, 65485},
		{65535, true, 65465},
		{65536, false, 0},
		{0, false, 0},
		{-1, true, 0},
	} {
		got, err := OverlayMTU(row.underlay, row.ipv6)
		assert.Equal(t, row.want, got, "%+v", row)
		if row.want == 0 {
			requireInput(t, err, "underlay MTU")
			continue
		}
		require.NoError(t, err)
		back, err := UnderlayMTU(got, row.ipv6)
		require.NoError(t, err)
		assert.Equal(t, row.underlay, back, "%+v", row)
	}
}

func TestUnderlayMTU(t *testing.T) {
	t.Parallel()
	// An underlay of IPv6 can not be smaller than IPv6 allows.
	got, err := UnderlayMTU(68, true)
	require.NoError(t, err)
	require.Equal(t, 1280, got)
	for _, bad := range []int{-1, 0, 67, 65486, 65536} {
		_, err := UnderlayMTU(bad, false)
		requireInput(t, err, "overlay MTU")
	}
	_, err = UnderlayMTU(65466, true)
	requireInput(t, err, "overlay MTU")
}
