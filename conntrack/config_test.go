// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/maps"
)

func TestConfigDefaults(t *testing.T) {
	t.Parallel()
	got, err := (Config{}).withDefaults()
	require.NoError(t, err)
	assert.Equal(t, Config{
		Flows: 65536, Unconfirmed: 16384, Fragments: 8192, FragmentTimeout: 30 * time.Second, Interval: 10 * time.Second,
		Timeouts: Timeouts{
			TCPNew: time.Minute, TCPEstablished: 6 * time.Hour, TCPClosing: 10 * time.Second, UDPNew: 30 * time.Second, UDPConfirmed: 3 * time.Minute,
			ICMP: 30 * time.Second, OtherNew: time.Minute, OtherConfirmed: 10 * time.Minute,
		},
	}, got)
	again, err := got.withDefaults()
	require.NoError(t, err)
	assert.Equal(t, got, again)
	own := Config{Flows: 16, Unconfirmed: 8, Fragments: 1, FragmentTimeout: 1, Interval: 1, Timeouts: Timeouts{1, 2, 3, 4, 5, 6, 7, 7 * 24 * time.Hour}}
	got, err = own.withDefaults()
	require.NoError(t, err)
	assert.Equal(t, own, got, "what is set is kept")
}

// A power of two, never less than asked but where that is half of the table.
func TestConfigUnconfirmed(t *testing.T) {
	t.Parallel()
	for flows := 16; flows < 300; flows++ {
		for n := 1; n <= flows/2; n++ {
			got, err := Config{Flows: flows, Unconfirmed: n}.withDefaults()
			require.NoError(t, err)
			u := got.Unconfirmed
			require.Zero(t, u&(u-1), "%d of %d became %d", n, flows, u)
			require.LessOrEqual(t, u, flows/2)
			require.True(t, u >= n && u < 2*n || 2*u > flows/2 && u < n, "%d of %d became %d", n, flows, u)
		}
		got, err := Config{Flows: flows}.withDefaults()
		require.NoError(t, err)
		require.GreaterOrEqual(t, got.Unconfirmed, flows/4)
	}
}

func TestConfigBad(t *testing.T) {
	t.Parallel()
	bad := map[string]Config{
		"Flows is -1":             {Flows: -1},
		"Flows is 15":             {Flows: 15},
		"Flows is 67108865":       {Flows: 1<<26 + 1},
		"Unconfirmed is -1":       {Unconfirmed: -1},
		"Unconfirmed is 51":       {Flows: 100, Unconfirmed: 51},
		"Fragments is -1":         {Fragments: -1},
		"Fragments is 16777217":   {Fragments: 1<<24 + 1},
		"FragmentTimeout is -1ns": {FragmentTimeout: -1},
		"FragmentTimeout is 1h0m": {FragmentTimeout: time.Hour + 1},
		"Interval is -1ns":        {Interval: -1},
	}
	fields := reflect.TypeFor[Timeouts]()
	for i := range fields.NumField() {
		for at, d := range map[string]time.Duration{" is -1ns": -1, " is 168h0m0": 7*24*time.Hour + 1} {
			var c Config
			reflect.ValueOf(&c.Timeouts).Elem().Field(i).SetInt(int64(d))
			bad["Timeouts."+fields.Field(i).Name+at] = c
		}
	}
	for want, cfg := range bad {
		_, err := New(cfg)
		require.ErrorContains(t, err, "make the flow table: "+want)
		require.ErrorIs(t, err, os.ErrInvalid, want)
	}
	_, err := New(Config{Config: maps.Config{Pins: t.TempDir()}})
	require.ErrorIs(t, err, maps.ErrNoBPFFS)
	_, err = New(Config{Config: maps.Config{OnMismatch: 9}})
	require.ErrorIs(t, err, os.ErrInvalid)
}
