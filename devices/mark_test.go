// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A process can be killed at any moment. So a device of ours is marked before
// anything else is done to it, or it could not be told from one in use by
// somebody else.
func TestDevicesAreMarkedFirst(t *testing.T) {
	t.Parallel()
	ns, workload := newNS(t), newNS(t)
	var s *nl.NetlinkSocket
	require.NoError(t, ns.Do(func() error {
		var err error
		s, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
		return err
	}))
	defer s.Close()
	wait := unix.NsecToTimeval(int64(100 * time.Millisecond))
	require.NoError(t, s.SetReceiveTimeout(&wait))

	_, err := EnsureHostPair(ns, HostPair{Addrs: both})
	require.NoError(t, err)
	_, err = EnsureVXLAN(ns, VXLAN{})
	require.NoError(t, err)
	pod, err := EnsureEndpoint(ns, blue(workload))
	require.NoError(t, err)

	aliases := map[string]string{"dp_host": hostPairAlias, "dp_vxlan": vxlanAlias, pod.Name: endpointAlias("blue")}
	marked, up := make(map[string]bool), make(map[string]bool)
	for {
		messages, _, err := s.Receive()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		require.NoError(t, err)
		for _, m := range messages {
			l, err := netlink.LinkDeserialize(nil, m.Data)
			require.NoError(t, err)
			a := l.Attrs()
			if aliases[a.Name] == "" {
				continue
			}
			marked[a.Name] = marked[a.Name] || a.Alias == aliases[a.Name]
			if a.RawFlags&(unix.IFF_UP|unix.IFF_NOARP) != 0 {
				up[a.Name] = true
				require.True(t, marked[a.Name], "%s is set up before it is marked", a.Name)
			}
		}
	}
	require.Len(t, up, len(aliases), "all of them were watched")
}
