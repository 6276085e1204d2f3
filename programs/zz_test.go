package programs_test

import (
	"testing"
	"github.com/godatapath/datapath/internal/packet"
)

func TestZZ(t *testing.T) {
	c := withPorts(4444, 4444)
	c.flows.Flows, c.flows.Unconfirmed = 64, 8
	r := newUplinkRig(t, c)
	f, o := families[0], outsides["IPv4"]
				for _, x := range []struct {
					from  port
					frame []byte
				}{
					{fromBlue, tcp(f.blue, f.world, 1000, 80, packet.SYN)},
					{fromUp, tcp(f.world, o.node, 80, 4444, packet.SYN|packet.ACK)},
					{fromBlue, tcp(f.blue, f.world, 1000, 80, packet.ACK)},
				} {
					r.inject(x.from, x.frame)
		t.Log(r.flowList())
				}
	r.inject(fromGreen, tcp(f.green, f.world, 1000, 80, packet.SYN))
		t.Log(r.flowList())
}
