// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// settleHosts waits until what was asked of the kernel has happened. A device that
// is up drops what it is given until the kernel's link watch has noticed its
// carrier, and an IPv6 address hears no neighbour before it has joined its
// multicast group; both happen a little after the request.
func settleHosts(hosts ...*Host) error {
	for _, h := range hosts {
		var waiting string
		for pause, deadline := 100*time.Microsecond, time.Now().Add(3*time.Second); ; pause = min(2*pause, 5*time.Millisecond) {
			var err error
			if waiting, err = h.unsettled(); err != nil {
				return fmt.Errorf("look whether the devices of %s are ready: %w", h.name, err)
			}
			if waiting == "" || time.Now().After(deadline) {
				break
			}
			time.Sleep(pause)
		}
		if waiting != "" {
			return fmt.Errorf("%s of %s did not become ready in 3s: %w", waiting, h.name, os.ErrDeadlineExceeded)
		}
	}
	return nil
}

// unsettled names a device that is not ready yet, or "".
func (h *Host) unsettled() (string, error) {
	waiting := ""
	err := h.netlink(func(nl *netlink.Handle) error {
		links, err := nl.LinkList()
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			waiting = "a device" // ask again
			return nil
		}
		if err != nil {
			return fmt.Errorf("list the links: %w", err)
		}
		groups, err := os.ReadFile("/proc/thread-self/net/igmp6")
		if err != nil {
			return err
		}
		for _, link := range links {
			a := link.Attrs()
			if link.Type() == "veth" && a.RawFlags&unix.IFF_LOWER_UP != 0 && a.OperState != netlink.OperUp {
				waiting = a.Name
				return nil
			}
			if a.Flags&net.FlagUp == 0 || link.Type() != "veth" && link.Type() != "bridge" {
				continue
			}
			addrs, err := nl.AddrList(link, netlink.FAMILY_V6)
			if errors.Is(err, netlink.ErrDumpInterrupted) {
				waiting = a.Name
				return nil
			}
			if err != nil {
				return fmt.Errorf("list the addresses of %s: %w", a.Name, err)
			}
			for _, addr := range addrs {
				if !joined(string(groups), a.Index, addr.IP) {
					waiting = a.Name
					return nil
				}
			}
		}
		return nil
	})
	return waiting, err
}

// joined tells whether a device listens to the solicited-node group of an
// address (RFC 4291 section 2.7.1), by the text of /proc/net/igmp6.
func joined(groups string, index int, ip net.IP) bool {
	group := append(net.ParseIP("ff02::1:ff00:0")[:13:13], ip.To16()[13:]...)
	want := hex.EncodeToString(group)
	for line := range strings.Lines(groups) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == fmt.Sprint(index) && f[2] == want {
			return true
		}
	}
	return false
}
