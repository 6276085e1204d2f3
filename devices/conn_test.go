// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestRetryDumpReadsUntilTheListIsWhole(t *testing.T) {
	t.Parallel()
	calls := 0
	all, err := retryDump(func() ([]int, error) {
		calls++
		switch calls {
		case 1:
			return []int{1}, netlink.ErrDumpInterrupted // what the library does: a part and an error
		case 2:
			return nil, fmt.Errorf("wrapped: %w", unix.EINTR)
		}
		return []int{1, 2, 3}, nil
	})
	require.NoError(t, err)
	require.Equal(t, []int{1, 2, 3}, all)

	other := errors.New("other")
	calls = 0
	all, err = retryDump(func() ([]int, error) { calls++; return []int{1}, other })
	require.ErrorIs(t, err, other)
	require.Nil(t, all)
	require.Equal(t, 1, calls, "other errors are not repeated")

	all, err = retryDump(func() ([]int, error) { return []int{1}, netlink.ErrDumpInterrupted })
	require.ErrorIs(t, err, netlink.ErrDumpInterrupted)
	require.Nil(t, all, "a part of a list is never handed out")
}

func TestCheckAddrs(t *testing.T) {
	t.Parallel()
	for bad, reason := range map[netip.Addr]string{
		{}:                                    "is not set",
		addr("0.0.0.0"):                       "unspecified",
		addr("::"):                            "unspecified",
		addr("::ffff:0.0.0.0"):                "unspecified",
		addr("224.0.0.1"):                     "multicast",
		addr("ff02::1"):                       "multicast",
		addr("127.0.0.1"):                     "loopback",
		addr("::1"):                           "loopback",
		addr("255.255.255.255"):               "broadcast",
		addr("fe80::1%eth0"):                  "zone",
		addr("fd00::1").WithZone("1"):         "zone",
		addr("::ffff:10.0.0.1").WithZone("x"): "zone",
	} {
		_, err := checkAddrs("field", []netip.Addr{bad})
		requireInput(t, err, "field")
		assert.ErrorContains(t, err, reason)
	}
	got, err := checkAddrs("field", addrs("::ffff:10.0.0.1", "fd00::1"))
	require.NoError(t, err)
	require.Equal(t, addrs("10.0.0.1", "fd00::1"), got, "IPv4-mapped addresses are unmapped")

	_, err = checkAddrs("field", addrs("10.0.0.1", "::ffff:10.0.0.2"))
	requireInput(t, err, "field")
	require.ErrorContains(t, err, "second of its family")
	_, err = checkOwnAddrs("field", nil)
	require.ErrorContains(t, err, "is missing")
	_, err = checkOwnAddrs("field", addrs("fe80::1"))
	require.ErrorContains(t, err, "link-local")
}

func TestCheckPrefix(t *testing.T) {
	t.Parallel()
	for bad, reason := range map[netip.Prefix]string{
		{}:                                     "is not valid",
		netip.PrefixFrom(addr("10.0.0.1"), 33): "is not valid",
		prefix("10.0.0.1/24"):                  "the network is 10.0.0.0/24",
		prefix("fd00::1/64"):                   "host bits",
		prefix("224.0.0.0/4"):                  "multicast",
		prefix("ff00::/8"):                     "multicast",
		netip.PrefixFrom(addr("::ffff:10.0.0.0"), 64): "shorter than /96",
	} {
		_, err := checkPrefix("field", bad)
		requireInput(t, err, "field")
		assert.ErrorContains(t, err, reason)
	}
	got, err := checkPrefix("field", netip.PrefixFrom(addr("::ffff:10.0.0.0"), 120))
	require.NoError(t, err)
	require.Equal(t, prefix("10.0.0.0/24"), got)
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		_, err = checkPrefix("field", prefix(all))
		require.NoError(t, err)
	}
}

func TestMAC(t *testing.T) {
	t.Parallel()
	for reason, bad := range map[string]net.HardwareAddr{
		"6 bytes":       {2, 0, 0},
		"is not 6":      {},
		"group address": {3, 0, 0, 0, 0, 1},
		"is zero":       {0, 0, 0, 0, 0, 0},
	} {
		err := checkMAC("field", bad)
		requireInput(t, err, "field")
		assert.ErrorContains(t, err, reason)
	}
	require.NoError(t, checkMAC("field", nil))
	seen := make(map[string]bool)
	for range 1000 {
		mac := orRandom(nil)
		require.NoError(t, checkMAC("field", mac))
		require.Equal(t, byte(2), mac[0]&3, "locally administered and not a group")
		require.False(t, seen[mac.String()])
		seen[mac.String()] = true
	}
}
