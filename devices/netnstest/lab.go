// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"runtime/pprof"
	"sync"
	"testing"

	"github.com/godatapath/datapath/devices"
	"golang.org/x/sys/unix"
)

// Config is how a Lab differs from the usual one. The zero Config is the usual
// one.
type Config struct {
	// Underlay4 and Underlay6 are the subnets that the nodes share. Default:
	// 172.16.16.0/24 and fd00:16::/64. The first address of each is the
	// router's; the first node has the eleventh.
	Underlay4, Underlay6 netip.Prefix
	// Outside4 and Outside6 are the subnets of the outside hosts, numbered the
	// same way. Default: 203.0.113.0/24 and 2001:db8:113::/64.
	Outside4, Outside6 netip.Prefix
	// MTU is that of every device the lab makes, in bytes, at least 1280.
	// Default: 1500.
	MTU int
	// NamePrefix gives every namespace the name NamePrefix + host name in
	// /run/netns, so that "ip netns exec" reaches it while the test runs. With the
	// number of the process in it, names of test processes that run beside one
	// another cannot clash.
	// Default: the namespaces have no names and cannot clash.
	NamePrefix string
	// PcapDir is the folder for the captures of a failed test; it is made.
	// Default: the artifact folder of the test under "go test -artifacts", else
	// "netnstest" in the folder for temporary files. The log of the test names
	// the file.
	PcapDir string
}

// Lab is a small network of namespaces for one test. It and all that it made
// end with the test, and the test fails if something of it is left.
//
// The methods that build the network stop the test on an error and are for the
// goroutine of the test. Those that make traffic return errors and are safe
// for concurrent use.
type Lab struct {
	t   testing.TB
	cfg Config
	// id labels the goroutines that the test starts from here on.
	id     string
	over   chan struct{} // closed when the lab is being taken apart
	before census

	mu       sync.Mutex
	hosts    []*Host
	router   *Host
	nodes    int
	outsides int
	pinDir   string
	// pinsAtFirst are the names that the kernel put there.
	pinsAtFirst map[string]bool
	ends        []func()
}

// NewLab is New with the zero [Config].
func NewLab(t testing.TB) *Lab {
	t.Helper()
	return New(t, Config{})
}

// New makes an empty lab that ends with the test t. Without the capabilities
// NET_ADMIN, NET_RAW and SYS_ADMIN the test fails at once: a lab never skips,
// since a skipped test proves nothing.
func New(t testing.TB, cfg Config) *Lab {
	t.Helper()
	cfg, err := cfg.withDefaults()
	if err != nil {
		t.Fatalf("netnstest: make a lab: %v", err)
	}
	if err := privileged(); err != nil {
		t.Fatalf("netnstest: make a lab: %v", err)
	}
	before, err := takeCensus()
	if err != nil {
		t.Fatalf("netnstest: make a lab: %v", err)
	}
	l := &Lab{t: t, cfg: cfg, id: rand.Text(), over: make(chan struct{}), before: before}
	// Goroutines inherit the labels of the one that starts them, which tells
	// those of this test from those of its parallel neighbours.
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels(labelKey, l.id)))
	l.start(l.exists)
	t.Cleanup(l.end)
	return l
}

func (c Config) withDefaults() (Config, error) {
	for _, p := range []struct {
		name   string
		prefix *netip.Prefix
		value  string
		is4    bool
	}{
		{"Underlay4", &c.Underlay4, "172.16.16.0/24", true},
		{"Underlay6", &c.Underlay6, "fd00:16::/64", false},
		{"Outside4", &c.Outside4, "203.0.113.0/24", true},
		{"Outside6", &c.Outside6, "2001:db8:113::/64", false},
	} {
		if *p.prefix == (netip.Prefix{}) {
			*p.prefix = netip.MustParsePrefix(p.value)
		}
		switch {
		case !p.prefix.IsValid() || p.prefix.Addr().Is4() != p.is4:
			return c, fmt.Errorf("Config.%s: %v is not a prefix of that family", p.name, *p.prefix)
		case *p.prefix != p.prefix.Masked():
			return c, fmt.Errorf("Config.%s: %v has host bits, use %v", p.name, *p.prefix, p.prefix.Masked())
		case p.prefix.Addr().BitLen()-p.prefix.Bits() < 5:
			return c, fmt.Errorf("Config.%s: %v is too small, 5 host bits are needed", p.name, *p.prefix)
		}
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.MTU < 1280 || c.MTU > 65535 {
		return c, fmt.Errorf("Config.MTU: %d is not between 1280 and 65535", c.MTU)
	}
	return c, nil
}

// privileged looks at the capabilities of the calling thread.
func privileged() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read the capabilities: %w", err)
	}
	for _, c := range []struct {
		name string
		bit  uint
	}{{"NET_ADMIN", unix.CAP_NET_ADMIN}, {"NET_RAW", unix.CAP_NET_RAW}, {"SYS_ADMIN", unix.CAP_SYS_ADMIN}} {
		if data[0].Effective>>c.bit&1 == 0 {
			return fmt.Errorf("the capability %s is missing: run the test as root, for example with \"go test -exec sudo\"", c.name)
		}
	}
	return nil
}

// atEnd registers fn to run at the end of the lab, last registered first.
func (l *Lab) atEnd(fn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ends = append(l.ends, fn)
}

// end takes the lab apart and looks for leaks.
func (l *Lab) end() {
	// What runs from here on is the lab's and not the test's.
	pprof.SetGoroutineLabels(context.Background())
	close(l.over)
	defer stopCollector()()
	for {
		l.mu.Lock()
		n := len(l.ends)
		if n == 0 {
			l.mu.Unlock()
			break
		}
		fn := l.ends[n-1]
		l.ends = l.ends[:n-1]
		l.mu.Unlock()
		fn()
	}
	leaks := l.removePins()
	for _, h := range l.hosts {
		if err := h.remove(); err != nil {
			leaks = append(leaks, err.Error())
		}
	}
	leaks = append(leaks, l.leaks()...)
	for _, h := range l.hosts {
		h.forget()
	}
	for _, leak := range leaks {
		if l.t.Failed() {
			// A test that stopped half-way could not clean up.
			l.t.Logf("netnstest: left behind: %s", leak)
			continue
		}
		defer l.t.Errorf("netnstest: left behind: %s", leak)
	}
}

// Host makes a namespace with nothing but a loopback device. The addresses,
// each with its prefix length ("192.0.2.1/24"), go onto the first device that
// [Lab.Wire] gives it. Names are unique in a lab.
//
// Its settings are the same on every machine: no forwarding, no reverse path
// filter, no duplicate address detection, no limit on the rate of ICMP errors.
func (l *Lab) Host(name string, cidrs ...string) *Host {
	l.t.Helper()
	var prefixes []netip.Prefix
	for _, c := range cidrs {
		p, err := netip.ParsePrefix(c)
		if err != nil {
			l.t.Fatalf("netnstest: make host %s: address %q: %v", name, c, err)
		}
		prefixes = append(prefixes, p)
	}
	h, err := l.newHost(name)
	if err != nil {
		l.t.Fatalf("netnstest: make host %s: %v", name, err)
	}
	h.pending = prefixes
	h.addrs = addrsOf(prefixes)
	return h
}

// Wire joins two hosts by a veth and returns the names of its ends, in a and
// in b: eth0 for the first of a host, then eth1 and so on. Both are up. The
// first wire of a host carries the addresses it was made with; see
// [Host.AddAddr] for the others.
func (l *Lab) Wire(a, b *Host) (deviceA, deviceB string) {
	l.t.Helper()
	nameA := a.takeDeviceName()
	nameB := b.takeDeviceName()
	if err := l.wire(a, nameA, b, nameB); err != nil {
		l.t.Fatalf("netnstest: wire %s to %s: %v", a.name, b.name, err)
	}
	for _, end := range []struct {
		host   *Host
		device string
	}{{a, nameA}, {b, nameB}} {
		if err := end.host.adopt(end.device); err != nil {
			l.t.Fatalf("netnstest: wire %s to %s: %v", a.name, b.name, err)
		}
	}
	if err := settleHosts(a, b); err != nil {
		l.t.Fatalf("netnstest: wire %s to %s: %v", a.name, b.name, err)
	}
	return nameA, nameB
}

func (l *Lab) newHost(name string) (*Host, error) {
	if name == "" {
		return nil, errors.New("the name is empty")
	}
	for _, h := range l.hosts {
		if h.name == name {
			return nil, errors.New("the lab has a host of that name already")
		}
	}
	var ns devices.Namespace
	var err error
	if l.cfg.NamePrefix == "" {
		ns, err = devices.NewNamespace()
	} else {
		ns, err = devices.NewNamed(l.cfg.NamePrefix + name)
	}
	if err != nil {
		return nil, err
	}
	h := &Host{lab: l, name: name, ns: ns, fd: -1}
	if l.cfg.NamePrefix != "" {
		h.nsName = l.cfg.NamePrefix + name
	}
	l.mu.Lock()
	l.hosts = append(l.hosts, h) // from here on the end of the lab removes it
	l.mu.Unlock()
	return h, h.prepare()
}
