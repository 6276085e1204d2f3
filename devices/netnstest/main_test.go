// SPDX-License-Identifier: Apache-2.0

package netnstest_test

import (
	"net/netip"
	"os"
	"testing"

	"github.com/godatapath/datapath/devices/netnstest"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(asLeaver); what != "" {
		os.Exit(leave(what))
	}
	os.Exit(netnstest.Main(m))
}

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// at is an address with a port.
func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
