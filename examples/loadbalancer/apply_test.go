// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/lb"
)

func TestWhatHasChanged(t *testing.T) {
	t.Parallel()
	back := func(n int, state lb.State, weight int) lb.Backend {
		return lb.Backend{Addr: netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:80", n)), State: state, Weight: weight}
	}
	service := func(name string, backends ...lb.Backend) lb.Status {
		return lb.Status{Service: lb.Service{Name: name, Backends: backends}}
	}
	one, two := back(1, lb.Active, 1), back(2, lb.Active, 1)
	slow := service("slow", one)
	slow.Affinity = time.Second
	moved := service("slow", one)
	moved.Frontends = []lb.Frontend{{Addr: netip.MustParseAddrPort("203.0.113.1:80")}}
	var many []lb.Status
	for i := range 9 {
		many = append(many, service(fmt.Sprintf("s%d", i)))
	}
	for _, test := range []struct {
		before, after []lb.Status
		want          string
	}{
		{nil, nil, "nothing has changed"},
		{[]lb.Status{service("a", one)}, []lb.Status{service("a", one)}, "nothing has changed"},
		{nil, []lb.Status{service("a", one), service("b", one, two)}, "a is new (1 backend), b is new (2 backends)"},
		{[]lb.Status{service("a", one), service("b")}, []lb.Status{service("b")}, "a is gone"},
		{[]lb.Status{service("a", one, two)}, []lb.Status{service("a", two, back(3, lb.Active, 1))}, "a (192.0.2.3:80 is new, 192.0.2.1:80 is gone)"},
		{[]lb.Status{service("a", one, two)}, []lb.Status{service("a", back(1, lb.Draining, 1), back(2, lb.Active, 7))}, "a (192.0.2.1:80 is draining, 192.0.2.2:80 has weight 7)"},
		{[]lb.Status{service("slow", one)}, []lb.Status{slow}, "slow (settings)"},
		{[]lb.Status{slow}, []lb.Status{moved}, "slow (frontends, settings)"},
		{nil, many, "s0 is new (0 backends), s1 is new (0 backends), s2 is new (0 backends), s3 is new (0 backends), s4 is new (0 backends), s5 is new (0 backends), and 3 more"},
	} {
		require.Equal(t, test.want, difference(test.before, test.after))
	}
}

func TestWhatTheLibraryDoesNotKnow(t *testing.T) {
	t.Parallel()
	four := netip.MustParseAddr("192.0.2.1")
	b := &balancer{uplinks: []uplink{{devices.Link{Name: "eth0"}, []netip.Addr{four}}}, own: []netip.Addr{four, netip.MustParseAddr("198.51.100.1")}}
	service := func(front, back string) lb.Service {
		return lb.Service{
			Name:      front,
			Frontends: []lb.Frontend{{Addr: netip.MustParseAddrPort(front)}},
			Backends:  []lb.Backend{{Addr: netip.MustParseAddrPort(back)}},
		}
	}
	require.NoError(t, b.check([]lb.Service{service("192.0.2.1:80", "192.0.2.2:80"), {Name: "bare"}}))
	require.EqualError(t, b.check([]lb.Service{service("203.0.113.1:80", "198.51.100.1:80"), service("[2001:db8::1]:80", "[2001:db8::2]:80")}),
		"service \"203.0.113.1:80\": backend 198.51.100.1:80 is at this machine, and must be at another one\n"+
			"service \"[2001:db8::1]:80\": no -device has an address of IPv6")
}

func TestSources(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ all, want []string }{
		{nil, nil},
		{[]string{"169.254.1.1/16", "fe80::1/64", "127.0.0.1/8"}, nil},
		{[]string{"192.0.2.1/24", "192.0.2.2/24", "fe80::1/64"}, []string{"192.0.2.1"}},
		{[]string{"203.0.113.1/32", "192.0.2.1/24", "fe80::1/64", "2001:db8::2/128", "2001:db8::1/64"}, []string{"192.0.2.1", "2001:db8::1"}},
		{[]string{"203.0.113.1/32", "203.0.113.2/32", "10.0.0.1/31"}, []string{"10.0.0.1"}},
		{[]string{"203.0.113.1/32", "203.0.113.2/32", "fd00::1/128"}, []string{"203.0.113.1", "fd00::1"}},
	} {
		var all []netip.Prefix
		for _, p := range test.all {
			all = append(all, netip.MustParsePrefix(p))
		}
		var got []string
		for _, a := range sources(all) {
			got = append(got, a.String())
		}
		require.Equal(t, test.want, got, "%v", test.all)
	}
}
