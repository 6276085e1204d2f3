package programs_test

import (
	"testing"
	"github.com/vishvananda/netlink"
	"github.com/godatapath/datapath/internal/bpf"
)

func TestZZ(t *testing.T) {
	r := newUplinkRig(t, masquerading())
	r.netlink(func(h *netlink.Handle) error {
		ls, _ := h.LinkList()
		for _, l := range ls { t.Log(l.Attrs().Name, l.Attrs().Index, l.Attrs().MTU, l.Attrs().Flags, l.Attrs().OperState) }
		rs, _ := h.RouteList(nil, 0)
		for _, l := range rs { t.Log(l) }
		return nil
	})
	f := families[0]
	r.inject(fromBlue, udp(f.blue, f.world, 5000, 53))
	var k bpf.TableTuple
	var v bpf.TableFlow
	it := r.table("flows").Iterate()
	for it.Next(&k, &v) { t.Logf("%+v", v.Verdict) }
}
