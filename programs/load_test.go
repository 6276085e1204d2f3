// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/internal/block"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/bpffs"
	"github.com/godatapath/datapath/internal/unprivileged"
	dpmaps "github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
	"github.com/godatapath/datapath/tunnel"
)

// closer is a block of any kind.
type closer interface {
	programs.Block
	Close() error
}

// made closes a block with the test.
func made[B closer](t *testing.T) func(B, error) B {
	return func(b B, err error) B {
		t.Helper()
		require.NoError(t, err)
		t.Cleanup(func() { assert.NoError(t, b.Close()) })
		return b
	}
}

// onePeers is a block that lets an overlay be attached.
func onePeers(t *testing.T) *tunnel.Peers {
	t.Helper()
	return made[*tunnel.Peers](t)(tunnel.New(tunnel.Config{Max: 16}))
}

// writeProtected is a flow table that the verifier lets no program write.
type writeProtected struct{ flows *ebpf.Map }

func (w writeProtected) DatapathParts() block.Parts {
	return block.Parts{
		Name: "flows", Maps: map[string]*ebpf.Map{bpf.TableMapFlows: w.flows}, Settings: map[string]any{bpf.FromEndpointVarWithFlows: uint8(1)},
	}
}

// unknownSetting has a setting that no program knows.
type unknownSetting struct{}

func (unknownSetting) DatapathParts() block.Parts {
	return block.Parts{Name: "unknown", Settings: map[string]any{"with_everything": uint8(1)}}
}

func newWriteProtected(t *testing.T) writeProtected {
	t.Helper()
	spec, err := bpf.LoadTable()
	require.NoError(t, err)
	ms := spec.Maps[bpf.TableMapFlows]
	ms.MaxEntries, ms.Flags = 16, ms.Flags|unix.BPF_F_RDONLY_PROG
	m, err := ebpf.NewMap(ms)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, m.Close()) })
	return writeProtected{m}
}

func TestLoadThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	endpoints := made[*dpmaps.Endpoints](t)(dpmaps.NewEndpoints(dpmaps.EndpointsConfig{Max: 16}))
	flows := made[*conntrack.Table](t)(conntrack.New(conntrack.Config{Flows: 1024}))
	closed, err := dpmaps.NewMetrics(dpmaps.Config{})
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	closedPeers, err := tunnel.New(tunnel.Config{MTU: 1450})
	require.NoError(t, err)
	require.NoError(t, closedPeers.Close())
	gone, err := devices.NewNamespace()
	require.NoError(t, err)
	require.NoError(t, gone.Close())

	var verifier *ebpf.VerifierError
	for name, test := range map[string]struct {
		cfg    programs.Config
		blocks []programs.Block
		is     error
		as     any
		text   string
	}{
		"two gateways of one family": {cfg: programs.Config{Gateways: []netip.Addr{gate4, netip.MustParseAddr("10.244.1.2")}},
			text: "gateway 10.244.1.2: a second one of its family"},
		"two IPv6 gateways":           {cfg: programs.Config{Gateways: []netip.Addr{gate6, gate6}}, text: "a second one of its family"},
		"a gateway twice, as mapped":  {cfg: programs.Config{Gateways: []netip.Addr{gate4, netip.AddrFrom16(gate4.As16())}}, text: "gateway"},
		"an invalid gateway":          {cfg: programs.Config{Gateways: []netip.Addr{{}}}, text: "gateway"},
		"a gateway with a zone":       {cfg: programs.Config{Gateways: []netip.Addr{netip.MustParseAddr("fe80::1%eth0")}}, text: "gateway"},
		"a block twice":               {blocks: []programs.Block{endpoints, flows, endpoints}, text: "is given twice"},
		"a nil pointer for a block":   {blocks: []programs.Block{endpoints, (*tunnel.Peers)(nil)}, text: "block 1 is nil"},
		"a nil block":                 {blocks: []programs.Block{endpoints, nil}, text: "block 1 is nil"},
		"a closed block":              {blocks: []programs.Block{endpoints, closed}, is: os.ErrClosed, text: "block metrics: table metrics"},
		"a closed block, the peers":   {blocks: []programs.Block{closedPeers}, is: os.ErrClosed, text: "block peers: table peers"},
		"a setting that nobody knows": {blocks: []programs.Block{unknownSetting{}}, text: "no program knows the setting with_everything"},
		"a namespace that is closed":  {cfg: programs.Config{Namespace: gone}, is: os.ErrClosed, text: "namespace"},
		"what the verifier refuses":   {blocks: []programs.Block{endpoints, newWriteProtected(t)}, as: &verifier, text: "load the datapath: program from_"},
	} {
		t.Run(name, func(t *testing.T) {
			lab := netnstest.NewLab(t)
			pins := filepath.Join(lab.PinDir(), "node")
			require.NoError(t, os.Mkdir(pins, 0o700))
			t.Cleanup(func() { _ = os.RemoveAll(pins) }) // of a failed test: it has said so
			test.cfg.Pins = pins
			dp, err := programs.Load(test.cfg, test.blocks...)
			require.Error(t, err)
			require.Nil(t, dp)
			require.ErrorContains(t, err, test.text)
			if test.is != nil {
				require.ErrorIs(t, err, test.is)
			}
			if test.as != nil {
				require.ErrorAs(t, err, test.as)
			}
			left, err := os.ReadDir(pins)
			require.NoError(t, err)
			require.Empty(t, left, "pins")
		})
	}
	require.NotNil(t, verifier)
	require.Contains(t, fmt.Sprintf("%+v", verifier), "write into map forbidden", "the log is whole")
	require.Greater(t, len(verifier.Log), 10, "the log is whole")
}

// The folders that a load has made go with it.
func TestLoadThatFailsLeavesNoFolder(t *testing.T) {
	t.Parallel()
	dir := netnstest.NewLab(t).PinDir()
	before := pinnedIn(t, dir)
	_, err := programs.Load(programs.Config{Pins: filepath.Join(dir, "a", "b")}, newWriteProtected(t))
	require.Error(t, err)
	require.Equal(t, before, pinnedIn(t, dir))
}

// The owner of the endpoint table has made it larger, or smaller.
func TestLoadWithAnotherSizeOfTheEndpointTable(t *testing.T) {
	t.Parallel()
	ns, ifindex := bench(t)
	cfg := programs.Config{Namespace: ns, Pins: netnstest.NewLab(t).PinDir()}
	for _, size := range []int{16, 32, 8} {
		endpoints, err := dpmaps.NewEndpoints(dpmaps.EndpointsConfig{
			Config: dpmaps.Config{Pins: cfg.Pins, OnMismatch: dpmaps.Migrate}, Max: size,
		})
		require.NoError(t, err)
		require.NoError(t, endpoints.Set(endpointAt(1, ifindex, blue4)))
		dp, err := programs.Load(cfg, endpoints)
		require.NoError(t, err, "%d endpoints", size)
		attached := programs.TablesForTest(dp)["endpoint_attached"]
		require.EqualValues(t, size, attached.MaxEntries())
		var id uint32
		if size != 16 {
			require.NoError(t, attached.Lookup(uint32(ifindex), &id), "it stays open to packets")
		}
		require.NoError(t, dp.AttachEndpoint(devices.Link{Index: ifindex}))
		require.NoError(t, attached.Lookup(uint32(ifindex), &id))
		require.EqualValues(t, 1, id)
		require.NoError(t, dp.Close())
		require.NoError(t, endpoints.Close())
	}
	endpoints, err := dpmaps.NewEndpoints(dpmaps.EndpointsConfig{Config: dpmaps.Config{Pins: cfg.Pins}, Max: 8})
	require.NoError(t, err)
	dp, err := programs.Load(cfg, endpoints)
	require.NoError(t, err)
	require.NoError(t, dp.Remove())
	require.NoError(t, endpoints.Remove())
}

// Who has no right gets told what is needed.
func TestNoPrivilege(t *testing.T) {
	unprivileged.Run(t, func() {
		err := unprivileged.Do(func() error { _, err := programs.Load(programs.Config{}); return err })
		require.ErrorIs(t, err, os.ErrPermission)
		require.ErrorContains(t, err, "CAP_PERFMON")
	})
}

func TestLoadWithPinsElsewhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, pins := range []string{dir, filepath.Join(dir, "not", "yet")} {
		_, err := programs.Load(programs.Config{Pins: pins})
		require.ErrorIs(t, err, bpffs.ErrNone)
		require.ErrorContains(t, err, "load the datapath: folder for pins "+pins)
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

// A failure must not take away what a datapath that runs has pinned.
func TestLoadThatFailsLeavesTheRunningOneAlone(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	ns, ifindex := bench(t)
	cfg := programs.Config{Namespace: ns, Pins: lab.PinDir()}
	running, err := programs.Load(cfg, onePeers(t))
	require.NoError(t, err)
	defer func() { assert.NoError(t, running.Remove()) }()
	require.NoError(t, running.AttachOverlay(devices.Link{Index: ifindex}))
	before := pinnedIn(t, cfg.Pins)
	hook := on(t, ns, ifindex, programs.Ingress)

	_, err = programs.Load(cfg, newWriteProtected(t))
	var verifier *ebpf.VerifierError
	require.ErrorAs(t, err, &verifier)
	require.Equal(t, before, pinnedIn(t, cfg.Pins))
	require.Equal(t, hook, on(t, ns, ifindex, programs.Ingress))
}

// pinnedIn lists the files below a folder.
func pinnedIn(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		all = append(all, path)
		return err
	}))
	return all
}

func TestCloseAndRemove(t *testing.T) {
	t.Parallel()
	ns, ifindex := bench(t)
	overlay := devices.Link{Index: ifindex}

	unpinned, err := programs.Load(programs.Config{Namespace: ns}, onePeers(t))
	require.NoError(t, err)
	require.NoError(t, unpinned.AttachOverlay(overlay))
	require.Equal(t, []string{"from_overlay"}, namesOn(t, ns, ifindex, programs.Ingress))
	require.NoError(t, unpinned.Close())
	require.NoError(t, unpinned.Close(), "once more")
	require.Empty(t, on(t, ns, ifindex, programs.Ingress), "what is not pinned ends")
	require.ErrorIs(t, unpinned.Remove(), os.ErrClosed)
	require.ErrorIs(t, unpinned.AttachOverlay(overlay), os.ErrClosed)
	require.ErrorIs(t, unpinned.SetNodeAddrs(), os.ErrClosed)
	require.ErrorIs(t, unpinned.SetNodeAddrs(netip.MustParseAddr("192.0.2.1")), os.ErrClosed)
	require.ErrorIs(t, unpinned.DetachDevice(overlay), os.ErrClosed)
	require.ErrorIs(t, unpinned.DetachXDP(overlay), os.ErrClosed)

	lab := netnstest.NewLab(t)
	cfg := programs.Config{Namespace: ns, Pins: lab.PinDir()}
	empty := pinnedIn(t, cfg.Pins) // but for what the kernel puts there
	first, err := programs.Load(cfg, onePeers(t))
	require.NoError(t, err)
	require.NotEqual(t, empty, pinnedIn(t, cfg.Pins))
	require.NoError(t, first.AttachOverlay(overlay))
	require.NoError(t, first.Close())
	before := on(t, ns, ifindex, programs.Ingress)
	require.Len(t, before, 1, "what is pinned goes on")

	second, err := programs.Load(cfg, onePeers(t))
	require.NoError(t, err)
	require.NoError(t, second.AttachOverlay(overlay))
	after := on(t, ns, ifindex, programs.Ingress)
	require.Len(t, after, 1)
	require.Equal(t, before[0].LinkID, after[0].LinkID, "taken over in place")
	require.NotEqual(t, before[0].ID, after[0].ID, "with the new program")

	require.NoError(t, second.Remove())
	require.Empty(t, on(t, ns, ifindex, programs.Ingress))
	require.Equal(t, empty, pinnedIn(t, cfg.Pins), "no pin is left")
	require.ErrorIs(t, second.Remove(), os.ErrClosed)
	require.NoError(t, second.Close())
}

// The device goes away under a datapath, and another one gets its number.
func TestAttachAgainAfterTheDeviceWasGone(t *testing.T) {
	t.Parallel()
	for _, pinned := range []bool{false, true} {
		t.Run(fmt.Sprintf("pinned %t", pinned), func(t *testing.T) {
			t.Parallel()
			ns, ifindex := bench(t)
			cfg := programs.Config{Namespace: ns}
			if pinned {
				cfg.Pins = netnstest.NewLab(t).PinDir()
			}
			dp, err := programs.Load(cfg, onePeers(t))
			require.NoError(t, err)
			defer func() { assert.NoError(t, dp.Remove()) }()
			for range 2 {
				require.NoError(t, dp.AttachOverlay(devices.Link{Index: ifindex}))
				require.Equal(t, []string{"from_overlay"}, namesOn(t, ns, ifindex, programs.Ingress))
				removeLink(t, ns, "bench")
				require.ErrorIs(t, dp.AttachOverlay(devices.Link{Index: ifindex}), unix.ENODEV)
				require.Equal(t, ifindex, vethIn(t, ns, "bench", ifindex))
			}
		})
	}
}

// What no block brings is not in the loaded code.
func TestWhatIsOffIsNotThere(t *testing.T) {
	t.Parallel()
	size := func(blocks ...programs.Block) int {
		t.Helper()
		dp, err := programs.Load(programs.Config{Gateways: []netip.Addr{gate4, gate6}}, blocks...)
		require.NoError(t, err)
		defer dp.Close()
		info, err := dp.Program("from_host").Info()
		require.NoError(t, err)
		n, err := info.TranslatedSize()
		require.NoError(t, err)
		return n
	}
	endpoints := made[*dpmaps.Endpoints](t)(dpmaps.NewEndpoints(dpmaps.EndpointsConfig{Max: 16}))
	flows := made[*conntrack.Table](t)(conntrack.New(conntrack.Config{Flows: 1024}))
	all, bare := size(endpoints, flows, onePeers(t)), size()
	require.Less(t, 3*bare, 2*all, "bytes of code without any block, and with all")
	require.Less(t, size(endpoints, flows), all)
	require.Less(t, size(endpoints, onePeers(t)), all)
}
