// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	bpflink "github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/programs"
)

func TestHooks(t *testing.T) {
	t.Parallel()
	ns, ifindex := bench(t)
	hooks, err := programs.Hooks(ns, ifindex)
	require.NoError(t, err)
	require.Equal(t, []programs.HookStatus{
		{Ifindex: ifindex, Device: "bench", Direction: programs.Ingress},
		{Ifindex: ifindex, Device: "bench", Direction: programs.Egress},
	}, hooks, "a device without programs")

	p := passing(t, "a_name_of_15_by")
	attachNow(t, programs.Attach{Program: p, Namespace: ns, Ifindex: ifindex, Direction: programs.Egress})
	hooks, err = programs.Hooks(ns, ifindex)
	require.NoError(t, err)
	info, err := p.Info()
	require.NoError(t, err)
	require.Empty(t, hooks[0].Programs)
	require.Len(t, hooks[1].Programs, 1)
	got := hooks[1].Programs[0]
	require.NotZero(t, got.LinkID)
	require.Equal(t, programs.AttachedProgram{ID: idOf(t, p), LinkID: got.LinkID, Name: "a_name_of_15_by", Tag: info.Tag}, got)

	// A program that was attached without a link, as older tools do.
	other := passing(t, "no_link")
	require.NoError(t, ns.Do(func() error {
		return bpflink.RawAttachProgram(bpflink.RawAttachProgramOptions{
			Target: ifindex, Program: other, Attach: ebpf.AttachTCXIngress, Anchor: bpflink.Head(),
		})
	}))
	require.Equal(t, programs.AttachedProgram{ID: idOf(t, other), Name: "no_link", Tag: on(t, ns, ifindex, programs.Ingress)[0].Tag},
		on(t, ns, ifindex, programs.Ingress)[0])

	_, err = programs.Hooks(ns, ifindex+1000)
	require.ErrorIs(t, err, unix.ENODEV)
	require.ErrorContains(t, err, "list the programs of interface")
	_, err = programs.Hooks(ns, 0)
	require.Error(t, err)
}

func TestReadStatus(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	ns, host := bench(t)
	overlay, gone := vethIn(t, ns, "over", 0), vethIn(t, ns, "gone", 0)
	cfg := programs.Config{Namespace: ns, Pins: lab.PinDir()}
	_, err := programs.ReadStatus(cfg.Pins, ns)
	require.ErrorIs(t, err, os.ErrNotExist, "no node has been here")
	_, err = programs.ReadNode(cfg.Pins)
	require.ErrorIs(t, err, os.ErrNotExist)

	dp, err := programs.Load(cfg, onePeers(t))
	require.NoError(t, err)
	defer func() { assert.NoError(t, dp.Remove()) }()
	status, err := programs.ReadStatus(cfg.Pins, ns)
	require.NoError(t, err)
	cookie, err := ns.Cookie()
	require.NoError(t, err)
	require.Equal(t, cookie, status.NetnsCookie)
	require.Equal(t, programs.Status{Epoch: status.Epoch, NetnsCookie: cookie}, status, "nothing is attached")

	mac := []byte{2, 0, 0, 0, 0, 1}
	require.NoError(t, dp.AttachHost(devices.HostLinks{Host: devices.Link{Index: 77, MAC: mac}, Net: devices.Link{Index: host}}))
	require.NoError(t, dp.AttachOverlay(devices.Link{Index: gone}))
	require.NoError(t, dp.AttachOverlay(devices.Link{Index: overlay}))
	before := passing(t, "before")
	attachNow(t, programs.Attach{
		Program: before, Namespace: ns, Ifindex: overlay, Direction: programs.Ingress, Order: bpflink.BeforeProgram(dp.Program("from_overlay")),
	})
	attachNow(t, programs.Attach{Program: passing(t, "egress"), Namespace: ns, Ifindex: host, Direction: programs.Egress})
	removeLink(t, ns, "gone")

	status, err = programs.ReadStatus(cfg.Pins, ns)
	require.NoError(t, err)
	require.Equal(t, 77, status.HostIfindex)
	require.Equal(t, overlay, status.OverlayIfindex)
	type row struct {
		ifindex   int
		device    string
		direction programs.Direction
		names     []string
		pins      []string
	}
	var rows []row
	for _, h := range status.Hooks {
		r := row{ifindex: h.Ifindex, device: h.Device, direction: h.Direction}
		for _, p := range h.Programs {
			r.names = append(r.names, p.Name)
			pin := ""
			if p.Pin != "" {
				require.FileExists(t, p.Pin)
				pin = filepath.Base(filepath.Dir(p.Pin))
			}
			r.pins = append(r.pins, pin)
		}
		rows = append(rows, r)
	}
	require.Equal(t, []row{
		{0, "", 0, rows[0].names, []string{"links"}}, // of the device that is gone
		{host, "bench", programs.Ingress, []string{"from_host"}, []string{"links"}},
		{host, "bench", programs.Egress, []string{"egress"}, []string{""}},
		{overlay, "over", programs.Ingress, []string{"before", "from_overlay"}, []string{"", "links"}},
	}, rows)

	alone, err := programs.ReadNode(cfg.Pins)
	require.NoError(t, err)
	require.Empty(t, alone.Hooks)
	status.Hooks = nil
	require.Equal(t, status, alone)

	epoch := status.Epoch
	require.NoError(t, dp.Bump())
	alone, err = programs.ReadNode(cfg.Pins)
	require.NoError(t, err)
	require.Equal(t, epoch+1, alone.Epoch)
}
