// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	dpmaps "github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
)

func endpointAt(id uint32, ifindex int, addrs ...netip.Addr) dpmaps.Endpoint {
	return dpmaps.Endpoint{
		ID: id, Identity: 300, Ifindex: ifindex, Addrs: addrs,
		MAC: net.HardwareAddr(blueMAC[:]), NodeMAC: net.HardwareAddr(nodeMAC[:]),
	}
}

// A second attach that fails must not take the checks off a device that is in
// use, nor leave half of them on one that was bare.
func TestAttachEndpointThatFails(t *testing.T) {
	t.Parallel()
	ns, ifindex := bench(t)
	bare := vethIn(t, ns, "bare", 0)
	cfg := programs.Config{Namespace: ns, Pins: netnstest.NewLab(t).PinDir()}
	endpoints := made[*dpmaps.Endpoints](t)(dpmaps.NewEndpoints(dpmaps.EndpointsConfig{Max: 16}))
	require.NoError(t, endpoints.Set(endpointAt(1, ifindex, blue4)))
	require.NoError(t, endpoints.Set(endpointAt(2, bare, green4)))
	first, err := programs.Load(cfg, endpoints)
	require.NoError(t, err)
	require.NoError(t, first.AttachEndpoint(devices.Link{Index: ifindex}))
	require.NoError(t, first.Close())

	// The next process wants one more program, and something is in the way of its pin.
	cfg.EndpointRoutes = true
	second, err := programs.Load(cfg, endpoints)
	require.NoError(t, err)
	defer func() { assert.NoError(t, second.Remove()) }()
	inTheWay := []string{}
	for _, i := range []int{ifindex, bare} {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
		require.NoError(t, err)
		path := filepath.Join(cfg.Pins, "links", "to_endpoint-"+strconv.Itoa(i))
		require.NoError(t, m.Pin(path))
		require.NoError(t, m.Close())
		inTheWay = append(inTheWay, path)
	}
	for _, attach := range []func(programs.Link) error{second.AttachEndpoint, second.PrepareEndpoint} {
		require.Error(t, attach(devices.Link{Index: ifindex}))
		require.Equal(t, []string{"from_endpoint"}, namesOn(t, ns, ifindex, programs.Ingress), "it goes on")
		require.Error(t, attach(devices.Link{Index: bare}))
		require.Empty(t, on(t, ns, bare, programs.Ingress))
	}
	for _, path := range inTheWay {
		require.NoError(t, os.Remove(path))
	}
	for _, i := range []int{ifindex, bare} {
		require.NoError(t, second.AttachEndpoint(devices.Link{Index: i}))
		require.Equal(t, []string{"from_endpoint"}, namesOn(t, ns, i, programs.Ingress))
		require.Equal(t, []string{"to_endpoint"}, namesOn(t, ns, i, programs.Egress))
	}
}

// Devices vanish with their namespaces, and nobody calls DetachEndpoint: what
// they have left must not keep others out.
func TestVanishedEndpointsMakeRoom(t *testing.T) {
	t.Parallel()
	ns, _ := bench(t)
	cfg := programs.Config{Namespace: ns, Pins: netnstest.NewLab(t).PinDir()}
	endpoints := made[*dpmaps.Endpoints](t)(dpmaps.NewEndpoints(dpmaps.EndpointsConfig{Max: 2}))
	dp, err := programs.Load(cfg, endpoints)
	require.NoError(t, err)
	come := func(dp *programs.Datapath, name string, id uint32, addr netip.Addr) int {
		t.Helper()
		ifindex := vethIn(t, ns, name, 0)
		require.NoError(t, endpoints.Set(endpointAt(id, ifindex, addr)))
		require.NoError(t, dp.AttachEndpoint(devices.Link{Index: ifindex}))
		return ifindex
	}
	links := func() []string {
		entries, err := os.ReadDir(filepath.Join(cfg.Pins, "links"))
		require.NoError(t, err)
		names := []string{}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	for range 3 {
		come(dp, "one", 1, blue4)
		come(dp, "two", 2, green4)
		removeLink(t, ns, "one")
		removeLink(t, ns, "two")
		_, err := endpoints.Sync(nil)
		require.NoError(t, err)
	}
	stays := come(dp, "three", 3, blue4)
	require.NoError(t, dp.Close())

	dp, err = programs.Load(cfg, endpoints)
	require.NoError(t, err)
	defer func() { assert.NoError(t, dp.Remove()) }()
	require.Equal(t, []string{"from_endpoint-" + strconv.Itoa(stays)}, links(), "a load clears the pins of devices that are gone")
	n := 0
	var key, id uint32
	for all := programs.TablesForTest(dp)["endpoint_attached"].Iterate(); all.Next(&key, &id); {
		require.EqualValues(t, stays, key)
		n++
	}
	require.Equal(t, 1, n)
}

func TestAttachEndpointOfAFamilyThatTheNodeHasNot(t *testing.T) {
	t.Parallel()
	ns, ifindex := bench(t)
	for _, row := range []struct {
		name     string
		gateways []netip.Addr
		addrs    []netip.Addr
		err      string
	}{
		{"IPv6 on a node of IPv4", []netip.Addr{gate4}, []netip.Addr{blue4, blue6}, "address fd00:244:1::10, and the node no gateway of that family"},
		{"IPv4 on a node of IPv6", []netip.Addr{gate6}, []netip.Addr{blue4}, "address 10.244.1.10, and the node no gateway of that family"},
		{"both", []netip.Addr{gate4, gate6}, []netip.Addr{blue4, blue6}, ""},
		{"without any gateway the caller knows", nil, []netip.Addr{blue4, blue6}, ""},
	} {
		endpoints := made[*dpmaps.Endpoints](t)(dpmaps.NewEndpoints(dpmaps.EndpointsConfig{Max: 2}))
		require.NoError(t, endpoints.Set(endpointAt(1, ifindex, row.addrs...)))
		dp, err := programs.Load(programs.Config{Namespace: ns, Gateways: row.gateways}, endpoints)
		require.NoError(t, err)
		err = dp.AttachEndpoint(devices.Link{Index: ifindex})
		if row.err == "" {
			require.NoError(t, err, row.name)
		} else {
			require.ErrorIs(t, err, unix.EAFNOSUPPORT, row.name)
			require.ErrorContains(t, err, row.err, row.name)
			require.Empty(t, on(t, ns, ifindex, programs.Ingress), row.name)
		}
		require.NoError(t, dp.Close())
	}
}

func TestAttachWithoutTheBlock(t *testing.T) {
	t.Parallel()
	ns, ifindex := bench(t)
	dp, err := programs.Load(programs.Config{Namespace: ns})
	require.NoError(t, err)
	defer func() { assert.NoError(t, dp.Close()) }()
	l := devices.Link{Index: ifindex}
	for text, attach := range map[string]func(programs.Link) error{
		"without a peers block":                               dp.AttachOverlay,
		"without a flow table":                                func(l programs.Link) error { return dp.AttachDevice(l) },
		"attach an endpoint: the datapath was loaded without": dp.AttachEndpoint, "prepare an endpoint: the datapath was loaded without": dp.PrepareEndpoint,
	} {
		require.ErrorContains(t, attach(l), text)
	}
	require.Empty(t, on(t, ns, ifindex, programs.Ingress))
	for _, name := range []string{"from_endpoint", "to_endpoint", "from_overlay", "from_device"} {
		require.Nil(t, dp.Program(name), "%s is of no use and not loaded", name)
	}
}

// The port that endpoints are kept from must be the overlay's.
func TestAttachOverlayOfAnotherPort(t *testing.T) {
	t.Parallel()
	ns, ifindex := bench(t)
	dp, err := programs.Load(programs.Config{Namespace: ns}, onePeers(t))
	require.NoError(t, err)
	defer func() { assert.NoError(t, dp.Close()) }()
	l := devices.VXLANLink{Link: devices.Link{Index: ifindex}, Port: 4789}
	err = dp.AttachOverlay(l)
	require.ErrorIs(t, err, os.ErrInvalid)
	require.ErrorContains(t, err, "the device has port 4789 and the peers block 8472")
	require.Empty(t, on(t, ns, ifindex, programs.Ingress))
	l.Port = 8472
	require.NoError(t, dp.AttachOverlay(l))
}
