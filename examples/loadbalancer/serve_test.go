// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/programs"
)

// office is a network where all hosts are on one segment, but for one behind a
// router. The balancer has one device.
type office struct {
	t                   *testing.T
	name                string
	near, far, balancer *netnstest.Host
	backends            []*netnstest.Host
	vips                [2]netip.Addr // on the balancer's device
	file                string
}

const officePort = 9000

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{t: t, name: newName(t), file: filepath.Join(t.TempDir(), "services.json")}
	// newName comes first, so that its check comes last.
	lab := netnstest.New(t, netnstest.Config{NamePrefix: o.name + "-"})
	o.near, o.far, o.balancer = lab.Node("near"), lab.Outside("far"), lab.Node("balancer")
	o.vips = [2]netip.Addr{netip.MustParseAddr("192.0.2.80"), netip.MustParseAddr("2001:db8:3::80")}
	for _, a := range o.vips {
		p := netip.PrefixFrom(a, a.BitLen()).String()
		o.balancer.AddAddr("eth0", p)
		o.near.RouteDevice(p, "eth0") // it asks for its neighbour
		lab.Router().RouteDevice(p, "nodes")
	}
	for _, name := range []string{"one", "two"} {
		h := lab.Node(name)
		for _, a := range []netip.Addr{h.Addr4(), h.Addr6()} {
			h.Echo(netip.AddrPortFrom(a, officePort))
		}
		o.backends = append(o.backends, h)
	}
	return o
}

// service is one with these backends.
func (o *office) service(family int, backends ...*netnstest.Host) Service {
	front := netip.AddrPortFrom(o.vips[family/6], 80).String()
	s := Service{Name: fmt.Sprintf("echo-ipv%d", family), Frontends: []Frontend{{Address: front}, {Address: front, Protocol: "UDP"}}}
	for _, b := range backends {
		a := b.Addr4()
		if family == 6 {
			a = b.Addr6()
		}
		s.Backends = append(s.Backends, Backend{Address: netip.AddrPortFrom(a, officePort).String()})
	}
	return s
}

func (o *office) write(all ...Service) {
	o.t.Helper()
	require.NoError(o.t, writeFile(o.file, all))
}

// running is a balancer in a process of its own.
type running struct {
	cmd   *exec.Cmd // killed before long, so that a test that waits for it fails
	lines *bufio.Scanner
	errs  *bufio.Scanner
}

func (o *office) start(args ...string) *running {
	o.t.Helper()
	args = append([]string{"-config", o.file, "-device", "eth0", "-netns", o.name + "-balancer", "-name", o.name}, args...)
	r := &running{cmd: program(o.t, "root", args...)}
	out, err := r.cmd.StdoutPipe()
	require.NoError(o.t, err)
	errs, err := r.cmd.StderrPipe()
	require.NoError(o.t, err)
	r.lines, r.errs = bufio.NewScanner(out), bufio.NewScanner(errs)
	require.NoError(o.t, r.cmd.Start())
	impatience := time.AfterFunc(time.Minute, func() { _ = r.cmd.Process.Kill() })
	o.t.Cleanup(func() {
		impatience.Stop()
		_ = r.cmd.Process.Kill()
	})
	return r
}

// until reads lines up to the one that begins so.
func (o *office) until(lines *bufio.Scanner, prefix string) string {
	o.t.Helper()
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), prefix) {
			return lines.Text()
		}
	}
	require.Fail(o.t, "no line begins with "+prefix)
	return ""
}

func (o *office) end(r *running) {
	o.t.Helper()
	require.NoError(o.t, r.cmd.Process.Signal(unix.SIGTERM))
	require.False(o.t, r.errs.Scan(), r.errs.Text())
	require.NoError(o.t, r.cmd.Wait())
}

func (o *office) programs() int {
	o.t.Helper()
	l, err := devices.FindLink(o.balancer.Namespace(), "eth0")
	require.NoError(o.t, err)
	hooks, err := programs.Hooks(o.balancer.Namespace(), l.Index)
	require.NoError(o.t, err)
	return len(hooks[0].Programs) + len(hooks[1].Programs)
}

// ask asks both families by TCP and UDP.
func (o *office) ask(from *netnstest.Host) {
	o.t.Helper()
	for _, a := range o.vips {
		to := netip.AddrPortFrom(a, 80)
		_, err := from.ProbeTCP(to, 100_000)
		require.NoError(o.t, err)
		_, err = from.ProbeUDP(to, 1000)
		require.NoError(o.t, err)
	}
}

func TestOneDevice(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.write(o.service(4, o.backends...), o.service(6, o.backends...))
	o.balancer.Echo(netip.AddrPortFrom(o.vips[0], 81)) // a server of the machine itself
	r := o.start()
	require.Equal(t, fmt.Sprintf("Balancing 2 services on eth0 (%s, %s) until Ctrl-C.", o.balancer.Addr4(), o.balancer.Addr6()), o.until(r.lines, "Balancing"))
	require.Equal(t, 1, o.programs())
	for range 5 {
		o.ask(o.near)
		o.ask(o.far)
	}
	_, err := o.near.ProbeTCP(netip.AddrPortFrom(o.vips[0], 81), 10)
	require.NoError(t, err, "other ports of the machine stay what they are")

	// A change is followed.
	conn := o.hold()
	o.write(o.service(4, o.backends[1]), o.service(6, o.backends...))
	require.Equal(t, fmt.Sprintf("services.json: echo-ipv4 (%s:%d is gone)", o.backends[0].Addr4(), officePort), o.until(r.lines, "services.json"))
	require.ErrorIs(t, converse(t.Context(), conn), unix.ECONNRESET)
	o.ask(o.near)

	// What is wrong is told, and changes nothing.
	own := o.service(4, o.balancer)
	own.Name = "own"
	o.write(own)
	require.Equal(t, fmt.Sprintf(`loadbalancer: services.json: service "own": backend %s:%d is at this machine, and must be at another one; what runs goes on`,
		o.balancer.Addr4(), officePort), o.until(r.errs, "loadbalancer"))
	require.NoError(t, os.Remove(o.file))
	require.Equal(t, "loadbalancer: open "+o.file+": no such file or directory; what runs goes on", o.until(r.errs, "loadbalancer"))
	two := o.service(4, o.backends...)
	two.Frontends[1].Address = "[::1]:80"
	o.write(two)
	require.Regexp(t, `^loadbalancer: services\.json: sync the services: service "echo-ipv4": frontend .*; what runs goes on$`, o.until(r.errs, "loadbalancer"))
	o.ask(o.near)

	require.NoError(t, r.cmd.Process.Signal(unix.SIGUSR1))
	for _, title := range []string{"Services", "Connections", "Source ports for them", "What became of the packets"} {
		o.until(r.lines, title)
	}
	o.until(r.lines, "  dropped: backend gone")
	o.end(r)
	require.Zero(t, o.programs())
}

// hold makes a connection that goes to the first backend of IPv4.
func (o *office) hold() net.Conn {
	o.t.Helper()
	to := netip.AddrPortFrom(o.vips[0], 80)
	for range 50 {
		conn, err := o.near.DialTCP(to)
		require.NoError(o.t, err)
		require.NoError(o.t, converse(o.t.Context(), conn))
		if o.asked(0) {
			o.t.Cleanup(func() { conn.Close() })
			return conn
		}
		require.NoError(o.t, conn.Close())
	}
	require.Fail(o.t, "the first backend was not chosen")
	return nil
}

// asked tells whether a backend has a connection that is not closed.
func (o *office) asked(n int) bool {
	o.t.Helper()
	found := false
	require.NoError(o.t, o.backends[n].Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/tcp")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 3 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", officePort)) && f[3] == "01" {
				found = true
			}
		}
		return nil
	}))
	return found
}

// What the file says beside addresses is what happens.
func TestSettings(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	s := o.service(4, o.backends...)
	s.Frontends[0].Address, s.Frontends[0].Type = "0.0.0.0:30080", "NodePort"
	s.Frontends[1].Address, s.Frontends[1].Type = "0.0.0.0:30080", "NodePort"
	s.Algorithm, s.AffinitySeconds = "maglev", 60
	s.SourceRanges, s.DenySources = []string{o.far.Addr4().String() + "/32"}, true
	drained := o.service(6, o.backends...)
	drained.OnRemove = "drain"
	o.write(s, drained)
	r := o.start()
	o.until(r.lines, "Balancing")
	for _, a := range []netip.Addr{o.vips[0], o.balancer.Addr4()} {
		to := netip.AddrPortFrom(a, 30080)
		_, err := o.near.ProbeTCP(to, 1000)
		require.NoError(t, err)
		_, err = o.near.ProbeUDP(to, 8000)
		require.NoError(t, err, "in fragments")
		_, err = o.far.ProbeTCP(to, 1000)
		require.Error(t, err, "it is denied")
	}
	conn, err := o.far.DialTCP(netip.AddrPortFrom(o.vips[1], 80))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, converse(t.Context(), conn))
	drained.Backends = []Backend{}
	o.write(s, drained)
	require.Contains(t, o.until(r.lines, "services.json"), "]:9000 is draining")
	require.NoError(t, converse(t.Context(), conn), "it may end in peace")
	_, err = o.far.DialTCP(netip.AddrPortFrom(o.vips[1], 80))
	require.ErrorIs(t, err, unix.ECONNREFUSED, "there is nobody for new ones")
	o.end(r)
}

// One that was killed goes on, and the next takes over.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.write(o.service(4, o.backends...), o.service(6, o.backends...))
	r := o.start()
	o.until(r.lines, "Balancing")
	conn := o.hold()
	require.NoError(t, r.cmd.Process.Kill())
	require.Error(t, r.cmd.Wait())
	require.NoError(t, converse(t.Context(), conn), "nobody is there who could end it")
	o.ask(o.far)

	// One that can not take over leaves all as it was.
	require.NoError(t, os.WriteFile(o.file, []byte("[{}]"), 0o600))
	var errs bytes.Buffer
	require.Equal(t, 1, run(t.Context(), []string{"-config", o.file, "-device", "eth0", "-netns", o.name + "-balancer", "-name", o.name}, &errs, &errs))
	require.Equal(t, "loadbalancer: services.json: service 1 of the list: name: it is missing\n", errs.String())
	require.NoError(t, converse(t.Context(), conn))

	o.write(o.service(4, o.backends...), o.service(6, o.backends[1]))
	r = o.start("-flows", "1000")
	require.Equal(t, "One that was killed has left its programs at work: they are taken over, with all connections.", o.until(r.lines, "One"))
	o.until(r.lines, "Balancing")
	require.Equal(t, 1, o.programs())
	require.NoError(t, converse(t.Context(), conn))
	o.ask(o.near)
	o.end(r)
	require.Zero(t, o.programs())
}

// The pins of one that was killed are of no use in another namespace.
func TestKilledElsewhere(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.write(o.service(4, o.backends...))
	r := o.start()
	o.until(r.lines, "Balancing")
	require.NoError(t, r.cmd.Process.Kill())
	require.Error(t, r.cmd.Wait())
	r = o.start("-netns", "/run/netns/"+o.name+"-near")
	require.True(t, r.lines.Scan())
	require.Contains(t, r.lines.Text(), "Balancing 1 service on eth0 ("+o.near.Addr4().String())
	require.Zero(t, o.programs())
	o.end(r)
}

func TestPins(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.write(o.service(4, o.backends...))
	dir := filepath.Join(t.TempDir(), o.name)
	pins := filepath.Join(dir, "pins")
	r := o.start("-pins", pins)
	o.until(r.lines, "Balancing")
	require.Contains(t, o.until(r.lines, "  sudo go run"), "-pins "+pins+" service list")
	state, err := programs.ReadNode(pins)
	require.NoError(t, err)
	cookie, err := o.balancer.Namespace().Cookie()
	require.NoError(t, err)
	require.Equal(t, cookie, state.NetnsCookie)
	require.NoDirExists(t, filepath.Join(cluster.DefaultDir, o.name))

	// Nobody else gets the folder, nor one on the same filesystem.
	for at, want := range map[string]string{
		pins:                        fmt.Sprintf("another one has %s.lock (process %d)", pins, r.cmd.Process.Pid),
		filepath.Join(pins, "more"): "is on a bpf filesystem already: choose a folder where one can be mounted",
	} {
		var errs bytes.Buffer
		require.Equal(t, 1, run(t.Context(), []string{"-config", o.file, "-device", "eth0", "-netns", o.name + "-balancer", "-pins", at}, &errs, &errs))
		require.Contains(t, errs.String(), want)
	}
	o.end(r)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

// A bpf filesystem of somebody else stays as it is.
func TestForeignPins(t *testing.T) {
	t.Parallel()
	lab := netnstest.New(t, netnstest.Config{})
	pins := lab.PinDir()
	var errs bytes.Buffer
	require.Equal(t, 1, run(t.Context(), []string{"-config", "services.json", "-device", "lo", "-pins", pins}, &errs, &errs))
	require.Equal(t, "loadbalancer: "+pins+" is a bpf filesystem that is none of ours: choose another folder\n", errs.String())
	require.NoFileExists(t, pins+".lock")
	require.DirExists(t, pins)
}

func TestWhatCanNotStart(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.write(o.service(4, o.balancer))
	for args, want := range map[string]string{
		"-device eth9": "device eth9: file does not exist",
		"-device lo":   "device lo has no address that packets could leave it with",
		"-device eth0": fmt.Sprintf("services.json: service %q: backend %s:%d is at this machine", "echo-ipv4", o.balancer.Addr4(), officePort),
		"-device eth0 -config /nowhere/services.json": "open /nowhere/services.json: no such file",
		"-device eth0 -netns " + o.name + "-nobody":   "no such file or directory",
	} {
		var out, errs bytes.Buffer
		all := append([]string{"-config", o.file, "-netns", o.name + "-balancer", "-name", o.name}, strings.Fields(args)...)
		require.Equal(t, 1, run(t.Context(), all, &out, &errs), args)
		require.Empty(t, out.String(), args)
		require.Contains(t, errs.String(), want, args)
		require.Zero(t, o.programs(), args)
	}
}

// A device that did not forward, on a machine that did, does now; one that has its
// addresses by router advertisements keeps them.
func TestForward(t *testing.T) {
	t.Parallel()
	lab := netnstest.New(t, netnstest.Config{})
	h, other := lab.Host("host", "192.0.2.1/24", "2001:db8::1/64"), lab.Host("other", "192.0.2.2/24", "2001:db8::2/64")
	lab.Wire(h, other)
	ns, dev := h.Namespace(), h.Device()
	value := func(family devices.Family, device, name string) int {
		v, err := devices.ReadSysctl(ns, devices.Sysctl{Family: family, Device: device, Name: name})
		require.NoError(t, err)
		return v
	}
	require.NoError(t, devices.EnsureSysctls(ns,
		devices.Sysctl{Family: devices.IPv6, Device: dev, Name: "accept_ra", Value: 1},
		devices.Sysctl{Family: devices.IPv4, Name: "ip_forward", Value: 1},
		devices.Sysctl{Family: devices.IPv4, Device: dev, Name: "forwarding", Value: 0}))
	require.NoError(t, forward(ns, []string{dev}))
	require.Equal(t, 1, value(devices.IPv4, dev, "forwarding"))
	require.Equal(t, 1, value(devices.IPv6, dev, "forwarding"))
	require.Equal(t, 2, value(devices.IPv6, dev, "accept_ra"))

	// Who forwards already does not listen, and is not to begin.
	require.NoError(t, devices.EnsureSysctls(ns, devices.Sysctl{Family: devices.IPv6, Device: dev, Name: "accept_ra", Value: 1}))
	require.NoError(t, forward(ns, []string{dev}))
	require.Equal(t, 1, value(devices.IPv6, dev, "accept_ra"))
}

// Between a client that is far away and its file's change there is the time of two
// looks; a file that changes all the time is followed all the same.
func TestManyChanges(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.write(o.service(4, o.backends...))
	r := o.start()
	o.until(r.lines, "Balancing")
	deadline := time.Now().Add(2 * time.Second)
	for n := 0; time.Now().Before(deadline); n++ {
		o.write(o.service(4, o.backends[n%2]))
		require.NoError(t, os.WriteFile(o.file+"~", []byte("[{"), 0o600))
		time.Sleep(37 * time.Millisecond)
	}
	o.write(o.service(4, o.backends...), o.service(6, o.backends...))
	for !strings.Contains(o.until(r.lines, "services.json"), "echo-ipv6 is new (2 backends)") {
	}
	o.ask(o.near)
	o.end(r)
}
