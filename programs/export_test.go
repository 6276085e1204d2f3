// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"net"

	"github.com/cilium/ebpf"

	"github.com/godatapath/datapath/internal/node"
)

// TablesForTest are the tables that a datapath makes itself.
func TablesForTest(d *Datapath) map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		node.MapName: d.state.Map(), attachedTable: d.attached, uplinksTable: d.uplinks, nodeAddressesTable: d.addresses,
	}
}

// SettingsForTest are the load-time constants that a datapath has of its own.
func SettingsForTest(d *Datapath) (map[string]any, error) { return d.cfg.settings() }

// SetForTest gives a datapath the devices that a packet test only names.
func SetForTest(d *Datapath, host, overlay uint32, mac net.HardwareAddr, attached map[uint32]uint32) {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	must(d.state.SetHost(host, host+100, mac))
	must(d.state.SetOverlay(overlay))
	for ifindex, id := range attached {
		must(d.attached.Put(ifindex, id))
	}
	must(d.state.Bump())
}

// MarkAttached notes an endpoint as attached without the attachment.
func MarkAttached(d *Datapath, ifindex, id uint32) error { return d.attached.Put(ifindex, id) }
