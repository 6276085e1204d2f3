// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"testing"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/packet"
)

func TestPacketSmoke(t *testing.T) {
	t.Parallel()
	eachFamily(t, rigConfig{}, func(t *testing.T, r *rig, f family) {
		syn := tcp(f.blue, f.green, 1000, 80, packet.SYN)
		flow := tupleOf(conntrack.TCP, f.blue, 1000, f.green, 80)
		r.expect(fromBlue, syn, intoGreen(syn, "+"+flow))
		syn = tcp(f.blue, f.red, 1000, 80, packet.SYN)
		flow = tupleOf(conntrack.TCP, f.blue, 1000, f.red, 80)
		r.expect(fromBlue, syn, intoOverlay(syn, blueIdentity, "+"+flow))
		back := tcp(f.red, f.blue, 80, 1000, packet.SYN|packet.ACK)
		r.expect(fromRed, back, intoBlue(back, "~"+flow))
	})
}
