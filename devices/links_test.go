// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

func TestListAndFindLinks(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	addVeth(t, ns, "a", "b")
	with(t, ns, change("b", func(c conn, l netlink.Link) error {
		if err := c.ensureAddrs(l, addrs("fd00::1", "10.0.0.1"), false); err != nil {
			return err
		}
		return c.reshape(l, shape{mtu: 1400})
	}))
	all, err := ListLinks(ns)
	require.NoError(t, err)
	require.Len(t, all, 3)
	require.Equal(t, "lo", all[0].Name)
	require.Equal(t, "device", all[0].Kind)
	require.Less(t, all[1].Index, all[2].Index)

	b := find(t, ns, "b")
	require.Contains(t, all, b)
	require.Equal(t, "veth", b.Kind)
	require.Equal(t, 1400, b.MTU)
	require.False(t, b.Up)
	require.Len(t, b.MAC, 6)
	require.Equal(t, "[10.0.0.1/32 fd00::1/128]", fmt.Sprint(b.Addrs))
	require.Empty(t, find(t, ns, "a").Addrs, "addresses of one device are not those of another")
}

func TestFindLinkAbsent(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	_, err := FindLink(ns, "absent")
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "absent")
	_, err = FindLink(ns, "sixteen-bytes-xx")
	requireInput(t, err, "device name")

	// The kernel also finds a device by its other names. It is not the one.
	addVeth(t, ns, "a", "b")
	with(t, ns, change("a", func(c conn, l netlink.Link) error { return c.LinkAddAltName(l, "dp_host") }))
	_, err = FindLink(ns, "dp_host")
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = EnsureHostPair(ns, HostPair{Addrs: addrs("10.0.0.1")})
	require.ErrorIs(t, err, ErrForeign)
	requireNothingLeft(t, ns, "a", "b")
}

func TestRemoveLinkIsGuarded(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	l := addVeth(t, ns, "a", "b")
	require.NoError(t, RemoveLink(ns, l))
	requireNothingLeft(t, ns)
	require.NoError(t, RemoveLink(ns, l), "removing what is absent")

	// The name has a new owner, as with a workload that is made anew.
	other := addVeth(t, ns, "a", "b")
	require.NotEqual(t, l.Index, other.Index)
	require.ErrorIs(t, RemoveLink(ns, l), ErrForeign)
	require.ErrorIs(t, SetLinkUp(ns, l), ErrForeign)
	require.Equal(t, other, find(t, ns, "a"))

	// The ifindex has another name.
	with(t, ns, change("a", func(c conn, l netlink.Link) error { return c.rename(l, "c") }))
	require.ErrorIs(t, RemoveLink(ns, other), ErrForeign)
	requireNothingLeft(t, ns, "b", "c")

	requireInput(t, RemoveLink(ns, Link{Name: "c"}), "ifindex")
	requireInput(t, RemoveLink(ns, Link{Index: 2}), "device name")
	require.ErrorIs(t, SetLinkUp(ns, Link{Index: 999, Name: "absent"}), os.ErrNotExist)
	require.NoError(t, SetLinkUp(ns, find(t, ns, "c")))
	require.True(t, find(t, ns, "c").Up)
}

// A list that is read while devices come and go is whole and without error,
// though single reads are interrupted, which this test waits to see.
func TestListLinksUnderChurn(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	const stay = 60
	for i := range stay {
		addVeth(t, ns, fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i))
	}
	stop := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		_ = withConn(ns, func(c conn) error {
			for {
				select {
				case <-stop:
					return nil
				default:
				}
				attrs := netlink.NewLinkAttrs()
				attrs.Name = "churn0"
				veth := netlink.NewVeth(attrs)
				veth.PeerName = "churn1"
				if c.LinkAdd(veth) == nil {
					_ = c.LinkDel(veth)
				}
			}
		})
	})
	defer group.Wait()
	defer close(stop)
	interrupted := 0
	for round := 0; round < 2000 && (round < 50 || interrupted < 3); round++ {
		with(t, ns, func(c conn) error {
			_, err := c.LinkList()
			if errors.Is(err, netlink.ErrDumpInterrupted) {
				interrupted++
				return nil
			}
			return err
		})
		all, err := ListLinks(ns)
		require.NoError(t, err)
		seen := make(map[string]bool)
		for _, l := range all {
			seen[l.Name] = true
		}
		for i := range stay {
			require.True(t, seen[fmt.Sprintf("a%d", i)] && seen[fmt.Sprintf("b%d", i)], "pair %d is missing", i)
		}
	}
	require.NotZero(t, interrupted, "no read was interrupted, so nothing was tested")
}
