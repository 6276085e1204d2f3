// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A write reaches the namespace of the thread and no other: not that of the
// process, and not that of a neighbour.
func TestSysctlsAreOfOneNamespace(t *testing.T) {
	t.Parallel()
	a, b := newNS(t), newNS(t)
	key := Sysctl{Family: IPv4, Device: "lo", Name: "rp_filter"}
	other, err := ReadSysctl(b, key)
	require.NoError(t, err)
	home, err := ReadSysctl(Namespace{}, key)
	require.NoError(t, err)
	for _, value := range []int{1, 2, 0} {
		key.Value = value
		require.NoError(t, EnsureSysctls(a, key))
		require.Equal(t, value, sysctl(t, a, IPv4, "lo", "rp_filter"))
		require.Equal(t, other, sysctl(t, b, IPv4, "lo", "rp_filter"))
		require.Equal(t, home, sysctl(t, Namespace{}, IPv4, "lo", "rp_filter"))
	}
}

func TestSysctlsAreAllOrNothing(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	before := sysctl(t, ns, IPv4, "lo", "rp_filter")
	err := EnsureSysctls(ns,
		Sysctl{IPv4, "lo", "rp_filter", before + 1},
		Sysctl{IPv4, "absent", "rp_filter", 1},
	)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "net/ipv4/conf/absent/rp_filter")
	require.Equal(t, before, sysctl(t, ns, IPv4, "lo", "rp_filter"))

	// The kernel refuses the value.
	err = EnsureSysctls(ns, Sysctl{IPv4, "lo", "rp_filter", before + 1}, Sysctl{IPv4, "", "ip_default_ttl", 1000})
	require.Error(t, err)
	require.ErrorContains(t, err, "net/ipv4/ip_default_ttl=1000")
	require.Equal(t, before, sysctl(t, ns, IPv4, "lo", "rp_filter"))
}

func TestSysctlBadInput(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	for field, bad := range map[string][]Sysctl{
		"sysctl family": {{}, {Family: "../ipv4", Name: "ip_forward"}},
		"sysctl device": {{IPv4, "../all", "rp_filter", 0}, {IPv4, "sixteen-bytes-xx", "rp_filter", 0}, {Core, "lo", "somaxconn", 0}},
		"sysctl name":   {{IPv4, "all", "", 0}, {IPv4, "all", "../rp_filter", 0}, {IPv4, "all", "Rp", 0}, {IPv6, "", "icmp//ratelimit", 0}, {IPv6, "", "/icmp", 0}, {IPv6, "", "icmp/", 0}},
	} {
		for _, s := range bad {
			requireInput(t, EnsureSysctls(ns, s), field)
			_, err := ReadSysctl(ns, s)
			requireInput(t, err, field)
		}
	}
	require.Equal(t, "net/ipv4/conf/eth0.7/rp_filter=2", Sysctl{IPv4, "eth0.7", "rp_filter", 2}.String())
	require.Equal(t, "net/core/somaxconn=9", Sysctl{Core, "", "somaxconn", 9}.String())
}

func TestEffectiveRPFilter(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	for all := range 3 {
		for dev := range 3 {
			require.NoError(t, EnsureSysctls(ns, Sysctl{IPv4, "all", "rp_filter", all}, Sysctl{IPv4, "lo", "rp_filter", dev}))
			got, err := EffectiveRPFilter(ns, "lo")
			require.NoError(t, err)
			require.Equal(t, max(all, dev), got, "all "+strconv.Itoa(all)+" lo "+strconv.Itoa(dev))
		}
	}
	_, err := EffectiveRPFilter(ns, "absent")
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = EffectiveRPFilter(ns, "a/b")
	requireInput(t, err, "device name")
}

func TestForwarding(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	addVeth(t, ns, "eth0", "eth1")
	require.NoError(t, EnsureSysctls(ns,
		Sysctl{IPv4, "", "ip_forward", 0}, Sysctl{IPv6, "all", "forwarding", 0},
		Sysctl{IPv4, "all", "rp_filter", 1}, Sysctl{IPv4, "eth0", "rp_filter", 2},
	))
	want := Forwarding{Devices: []string{"eth0"}, AcceptRA: []string{"eth1"}}
	for range 2 {
		require.NoError(t, EnsureForwarding(ns, want))
		assert.Equal(t, 1, sysctl(t, ns, IPv4, "", "ip_forward"))
		assert.Equal(t, 1, sysctl(t, ns, IPv6, "all", "forwarding"))
		assert.Equal(t, 0, sysctl(t, ns, IPv4, "all", "send_redirects"))
		assert.Equal(t, 0, sysctl(t, ns, IPv4, "eth0", "send_redirects"))
		assert.Equal(t, 2, sysctl(t, ns, IPv6, "eth1", "accept_ra"))
		effective, err := EffectiveRPFilter(ns, "eth0")
		require.NoError(t, err)
		assert.Equal(t, 1, effective, "nobody beside the node speaks as an endpoint of it")
	}
	asymmetric := want
	asymmetric.Asymmetric = true
	require.NoError(t, EnsureForwarding(ns, asymmetric))
	effective, err := EffectiveRPFilter(ns, "eth0")
	require.NoError(t, err)
	assert.Zero(t, effective)
	// Drift, as a settings daemon makes it.
	require.NoError(t, EnsureSysctls(ns, Sysctl{IPv4, "all", "rp_filter", 2}))
	require.NoError(t, EnsureForwarding(ns, want))
	assert.Zero(t, sysctl(t, ns, IPv4, "all", "rp_filter"))

	before := sysctl(t, newNS(t), IPv4, "", "ip_forward")
	fresh := newNS(t)
	require.ErrorIs(t, EnsureForwarding(fresh, Forwarding{Devices: []string{"absent"}}), os.ErrNotExist)
	require.Equal(t, before, sysctl(t, fresh, IPv4, "", "ip_forward"))
	requireInput(t, EnsureForwarding(fresh, Forwarding{AcceptRA: []string{"a/b"}}), "device name")
}
