// SPDX-License-Identifier: Apache-2.0

package netnstest_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestTwoHostsWired(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	a := lab.Host("a", "192.0.2.1/24", "2001:db8::1/64")
	b := lab.Host("b", "192.0.2.2/24", "2001:db8::2/64")
	c := lab.Host("c", "198.51.100.3/24")
	assert.Empty(t, a.Device(), "before the first wire")
	deviceA, deviceB := lab.Wire(a, b)
	assert.Equal(t, []string{"eth0", "eth0"}, []string{deviceA, deviceB})
	deviceB, deviceC := lab.Wire(b, c)
	assert.Equal(t, []string{"eth1", "eth0"}, []string{deviceB, deviceC})
	b.AddAddr(deviceB, "198.51.100.2/24")
	assert.Equal(t, "eth0", b.Device(), "the first one stays")
	assert.Equal(t, addr("192.0.2.2"), b.Addr4())
	assert.Equal(t, addr("2001:db8::2"), b.Addr6())
	assert.Equal(t, netip.Addr{}, c.Addr6())

	for _, pair := range []struct {
		from *netnstest.Host
		to   netip.Addr
	}{{a, b.Addr4()}, {a, b.Addr6()}, {b, a.Addr4()}, {b, a.Addr6()}, {c, addr("198.51.100.2")}} {
		reply, err := pair.from.Ping(pair.to, netnstest.PingOptions{})
		require.NoError(t, err)
		assert.Equal(t, pair.to, reply.From)
	}

	// b does not forward until it is told to.
	a.Route("198.51.100.0/24", b)
	c.RouteVia("192.0.2.0/24", addr("198.51.100.2"))
	_, err := a.Ping(c.Addr4(), netnstest.PingOptions{Timeout: 50e6})
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, b.Sysctl(map[string]string{"net/ipv4/ip_forward": "1"}))
	reply, err := a.Ping(c.Addr4(), netnstest.PingOptions{})
	require.NoError(t, err)
	assert.Equal(t, 63, reply.TTL)
}

func TestNodesShareTheUnderlay(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	one, two := lab.Node("one"), lab.Node("two")
	client := lab.Outside("client")
	assert.Equal(t, addr("172.16.16.11"), one.Addr4())
	assert.Equal(t, addr("172.16.16.12"), two.Addr4())
	assert.Equal(t, addr("fd00:16::c"), two.Addr6())
	assert.Equal(t, addr("203.0.113.11"), client.Addr4())
	assert.Equal(t, "eth0", one.Device())
	assert.Equal(t, "router", lab.Router().Name())

	for _, c := range []struct {
		from, to *netnstest.Host
		ttl      int
	}{{one, two, 64}, {two, one, 64}, {one, client, 63}, {client, two, 63}} {
		for _, to := range []netip.Addr{c.to.Addr4(), c.to.Addr6()} {
			reply, err := c.from.Ping(to, netnstest.PingOptions{})
			require.NoError(t, err)
			assert.Equal(t, c.ttl, reply.TTL, "%v to %v", c.from, c.to)
		}
	}
	for _, to := range []netip.Addr{two.Addr4(), two.Addr6()} {
		server := two.Echo(at(to, 0))
		_, err := one.ProbeTCP(server, 1<<20)
		require.NoError(t, err)
		_, err = client.ProbeUDP(server, 1400)
		require.NoError(t, err)
	}
}

func TestLabsDoNotMeet(t *testing.T) {
	t.Parallel()
	one, two := netnstest.NewLab(t), netnstest.NewLab(t)
	a, b := one.Node("same"), two.Node("same")
	assert.Equal(t, a.Addr4(), b.Addr4())
	server := a.Echo(at(a.Addr4(), 80))
	_, err := b.ProbeTCP(server, 1)
	require.ErrorIs(t, err, unix.ECONNREFUSED)
	_, err = a.ProbeTCP(server, 1)
	require.NoError(t, err)
}

func TestConfig(t *testing.T) {
	t.Parallel()
	lab := netnstest.New(t, netnstest.Config{
		Underlay4: netip.MustParsePrefix("10.0.0.0/16"), Underlay6: netip.MustParsePrefix("fd01::/112"),
		Outside4: netip.MustParsePrefix("10.1.0.0/24"), Outside6: netip.MustParsePrefix("fd02::/64"),
		MTU: 9000,
	})
	node, client := lab.Node("node"), lab.Outside("client")
	assert.Equal(t, addr("10.0.0.11"), node.Addr4())
	assert.Equal(t, addr("fd02::b"), client.Addr6())
	_, err := node.Ping(client.Addr4(), netnstest.PingOptions{Size: 8972, DontFragment: true})
	require.NoError(t, err)
	_, err = node.Ping(client.Addr6(), netnstest.PingOptions{Size: 8953, DontFragment: true})
	require.ErrorIs(t, err, unix.EMSGSIZE)
}

func TestNamedNamespaces(t *testing.T) {
	t.Parallel()
	prefix := fmt.Sprintf("netnstest-named-%d-", os.Getpid())
	path := filepath.Join(devices.NamespaceDir, prefix+"one")
	t.Run("lab", func(t *testing.T) {
		lab := netnstest.New(t, netnstest.Config{NamePrefix: prefix})
		h := lab.Host("one")
		assert.Equal(t, path, h.Namespace().Path())
		assert.FileExists(t, path)
	})
	assert.NoFileExists(t, path, "names end with the lab")
}

func TestBadInputStopsTheTest(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab
	p := netip.MustParsePrefix
	for want, fn := range map[string]func(tb *fakeTB){
		"Config.Underlay4: 10.0.0.1/16 has host bits, use 10.0.0.0/16": func(tb *fakeTB) {
			netnstest.New(tb, netnstest.Config{Underlay4: p("10.0.0.1/16")})
		},
		"Config.Outside6: 10.0.0.0/16 is not a prefix of that family": func(tb *fakeTB) {
			netnstest.New(tb, netnstest.Config{Outside6: p("10.0.0.0/16")})
		},
		"Config.Outside4: 10.0.0.0/28 is too small":           func(tb *fakeTB) { netnstest.New(tb, netnstest.Config{Outside4: p("10.0.0.0/28")}) },
		"Config.MTU: 1000":                                    func(tb *fakeTB) { netnstest.New(tb, netnstest.Config{MTU: 1000}) },
		"make host : the name is empty":                       func(tb *fakeTB) { lab(tb).Host("") },
		"has a host of that name":                             func(tb *fakeTB) { l := lab(tb); l.Host("a"); l.Host("a") },
		`address "10.0.0.1"`:                                  func(tb *fakeTB) { lab(tb).Host("a", "10.0.0.1") },
		`add address "x" to a`:                                func(tb *fakeTB) { lab(tb).Host("a").AddAddr("lo", "x") },
		`find device "nix" of a`:                              func(tb *fakeTB) { lab(tb).Host("a").AddAddr("nix", "10.0.0.1/8") },
		`capture nix of a: route ip+net: no such network int`: func(tb *fakeTB) { lab(tb).Host("a").Capture("nix") },
		"route of a: netip.ParsePrefix":                       func(tb *fakeTB) { l := lab(tb); l.Host("a").Route("x", l.Host("b")) },
		"b has no address of that family in a subnet of a":    func(tb *fakeTB) { l := lab(tb); l.Host("a").Route("10.0.0.0/8", l.Host("b")) },
		"route 10.0.0.0/8 of a":                               func(tb *fakeTB) { lab(tb).Host("a").RouteVia("10.0.0.0/8", addr("192.0.2.1")) },
		"route 10.0.0.0/8 of b":                               func(tb *fakeTB) { lab(tb).Host("b").RouteDevice("10.0.0.0/8", "nix") },
		"echo: listen tcp 192.0.2.1:80 on a":                  func(tb *fakeTB) { lab(tb).Host("a").Echo(addrPort("192.0.2.1:80")) },
		"LossConfig.To is required":                           func(tb *fakeTB) { l := lab(tb); l.LossMeter(l.Host("a"), l.Host("b"), netip.AddrPort{}, 0) },
		"LossConfig.Client and Server":                        func(tb *fakeTB) { lab(tb).LossMeter(nil, nil, addrPort("192.0.2.1:80"), 0) },
		"LossConfig.Rate: -1":                                 func(tb *fakeTB) { l := lab(tb); a := l.Host("a"); l.LossMeter(a, a, addrPort("127.0.0.1:80"), -1) },
		"LossConfig.Size: 9": func(tb *fakeTB) {
			l := lab(tb)
			a := l.Host("a")
			l.LossMeterWith(netnstest.LossConfig{Client: a, Server: a, To: addrPort("127.0.0.1:80"), Size: 9})
		},
		"join endpoint e to n":                 func(tb *fakeTB) { lab(tb).Node("n").Endpoint("e") },
		"x is not joined to a node by the lab": func(tb *fakeTB) { n := lab(tb).Node("n"); n.ForwardByKernel(n.EndpointNamespace("x")) },
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			tb := fatal(fn)
			require.Len(t, tb.errors, 1, "%s %v", tb.said(), tb.logs)
			assert.Contains(t, tb.said(), want)
			assert.Empty(t, tb.logs, "a test that is stopped half-way leaves nothing")
		})
	}
}

func TestWithoutPrivilegesTheTestFails(t *testing.T) {
	t.Parallel()
	tb := fatal(func(tb *fakeTB) {
		// Capabilities are a thread's. This one ends with the goroutine.
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if !assert.NoError(t, unix.Capset(&header, &none[0])) {
			return
		}
		netnstest.NewLab(tb)
	})
	assert.False(t, tb.skipped, "a skip would be no proof")
	assert.Contains(t, tb.said(), "the capability NET_ADMIN is missing: run the test as root")
}

func TestRunIsInside(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	h := lab.Host("h", "192.0.2.1/24")
	inside := func() string {
		var link string
		require.NoError(t, h.Do(func() error {
			var err error
			link, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		}))
		return link
	}()
	for range 20 {
		h.Run(t, "inside", func(t *testing.T) {
			link, err := os.Readlink("/proc/thread-self/ns/net")
			require.NoError(t, err)
			require.Equal(t, inside, link)
			require.NotEqual(t, unix.Getpid(), unix.Gettid(), "the first thread never moves")
		})
		link, err := os.Readlink("/proc/thread-self/ns/net")
		require.NoError(t, err)
		require.NotEqual(t, inside, link, "the caller stays outside")
	}
	// No thread that took part may run anybody else.
	links := make(chan string)
	for range 50 {
		go func() {
			link, _ := os.Readlink("/proc/thread-self/ns/net")
			links <- link
		}()
	}
	for range 50 {
		assert.NotEqual(t, inside, <-links)
	}
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	node := lab.Node("node")
	e := node.Endpoint("blue", addr("10.42.1.10"), addr("fd42:1::10"))
	assert.Equal(t, "eth0", e.Device())
	assert.NotZero(t, e.Link().Index)
	index, err := node.Index(e.Link().Name)
	require.NoError(t, err)
	assert.Equal(t, e.Link().Index, index, "the link is on the node")
	mac, err := e.MAC("")
	require.NoError(t, err)
	assert.Equal(t, e.Link().PeerMAC, mac)
	_, err = e.Ping(node.Addr4(), netnstest.PingOptions{Timeout: 50e6})
	require.Error(t, err, "nobody answers for the gateway yet")

	node.ForwardByKernel(e)
	for _, to := range []netip.Addr{node.Addr4(), node.Addr6(), addr("10.42.1.1"), addr("fd42:1::1")} {
		_, err = e.Ping(to, netnstest.PingOptions{})
		require.NoError(t, err)
	}

	bare := node.EndpointNamespace("green", addr("10.42.1.11"))
	link, err := devices.EnsureEndpoint(node.Namespace(), devices.Endpoint{
		Name: "green", Namespace: bare.Namespace(), Addrs: []netip.Addr{bare.Addr4()},
	})
	require.NoError(t, err)
	assert.Equal(t, bare.Device(), link.PeerName)
	assert.Zero(t, bare.Link())

	wide := node.EndpointWith(devices.Endpoint{Name: "wide", PeerName: "net1", MTU: 9000, Addrs: []netip.Addr{addr("10.42.1.12")}})
	assert.Equal(t, "net1", wide.Device())
	assert.Equal(t, 9000, wide.Link().MTU)
}

func TestSetMTUAndLink(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	a, b := lab.Host("a", "192.0.2.1/24", "2001:db8::1/64"), lab.Host("b", "192.0.2.2/24", "2001:db8::2/64")
	lab.Wire(a, b)
	require.NoError(t, a.SetMTU("", 1300))
	_, err := a.Ping(b.Addr4(), netnstest.PingOptions{Size: 1400, DontFragment: true})
	require.ErrorIs(t, err, unix.EMSGSIZE)
	require.ErrorContains(t, err, "1300")
	require.NoError(t, a.SetLink("", false))
	_, err = a.Ping(b.Addr4(), netnstest.PingOptions{Timeout: 50e6})
	require.ErrorIs(t, err, unix.ENETUNREACH)
	require.NoError(t, a.SetLink("", true))
	for _, to := range []netip.Addr{b.Addr4(), b.Addr6()} {
		_, err = a.Ping(to, netnstest.PingOptions{})
		require.NoError(t, err, "addresses come back")
	}
	assert.ErrorContains(t, a.SetLink("nix", true), `find device "nix" of a`)
	assert.ErrorContains(t, a.SetMTU("", -1), "set the MTU")
	_, err = a.MAC("nix")
	assert.Error(t, err)
	assert.ErrorContains(t, a.Sysctl(map[string]string{"net/ipv4/nix": "1"}), "set net.ipv4.nix of a to 1")
}
