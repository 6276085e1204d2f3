// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A device whose driver has no XDP does without, and that is told.
func TestWithoutXDP(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	require.NoError(t, o.balancer.Do(func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "bridge"
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		dev, err := h.LinkByName("bridge")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("198.18.0.1/24")
		if err != nil {
			return err
		}
		if err := h.AddrAdd(dev, addr); err != nil {
			return err
		}
		return h.LinkSetUp(dev)
	}))
	o.write(o.service(4, o.backends...))
	r := o.start("-device", "bridge", "-xdp")
	require.Contains(t, o.until(r.errs, "loadbalancer: "), "device bridge goes without XDP")
	o.until(r.lines, "Balancing")
	require.NoError(t, r.cmd.Process.Signal(unix.SIGINT))
	require.NoError(t, r.cmd.Wait())
}
