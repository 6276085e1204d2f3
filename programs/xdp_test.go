// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
	goUnsafe "unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
)

// wireLab is a balancer with one uplink: the client and the backend are both beyond
// it, in the namespace of the wire's other end.
type wireLab struct {
	t         testing.TB
	node, far devices.Namespace
	uplink    devices.Link // of the node
	farEnd    devices.Link
	metrics   *maps.Metrics
	flows     *conntrack.Table
	dp        *programs.Datapath
}

type wireCast struct{ client, node, backend netip.Addr }

var wireCasts = map[string]wireCast{
	"IPv4": {addr("172.16.16.20"), addr("172.16.16.11"), addr("172.16.16.30")},
	"IPv6": {addr("fd00:16::20"), addr("fd00:16::11"), addr("fd00:16::30")},
}

func newWireLab(t testing.TB) *wireLab {
	t.Helper()
	l := &wireLab{t: t}
	for _, ns := range []*devices.Namespace{&l.node, &l.far} {
		var err error
		*ns, err = devices.NewNamespace()
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, ns.Close()) })
		require.NoError(t, devices.EnsureSysctls(*ns, devices.Sysctl{Family: devices.IPv6, Device: devices.DefaultDevices, Name: "accept_dad", Value: 0}))
	}
	var far *os.File
	require.NoError(t, l.far.Do(func() (err error) {
		far, err = os.Open("/proc/thread-self/ns/net")
		return err
	}))
	defer far.Close()
	inNetlink(t, l.node, func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		v := netlink.NewVeth(attrs)
		v.PeerName, v.PeerNamespace = "eth0", netlink.NsFd(far.Fd())
		return h.LinkAdd(v)
	})
	l.uplink = l.setUp(l.node, "172.16.16.11/24", "fd00:16::11/64")
	l.farEnd = l.setUp(l.far, "172.16.16.20/24", "fd00:16::20/64", "172.16.16.30/24", "fd00:16::30/64")
	require.NoError(t, devices.EnsureForwarding(l.node, devices.Forwarding{}))

	var err error
	l.metrics, err = maps.NewMetrics(maps.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.metrics.Close()) })
	l.flows, err = conntrack.New(conntrack.Config{NAT: &conntrack.NAT{}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.flows.Close()) })
	services, err := lb.New(lb.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, services.Close()) })
	var own []netip.Addr
	for name, c := range wireCasts {
		own = append(own, c.node)
		for _, p := range []lb.Protocol{lb.TCP, lb.UDP} {
			require.NoError(t, services.SetService(lb.Service{
				Name:      name + p.String(),
				Frontends: []lb.Frontend{{Addr: netip.AddrPortFrom(c.node, 30080), Type: lb.NodePort, Protocol: p}},
				Backends:  []lb.Backend{{Addr: netip.AddrPortFrom(c.backend, 8080)}},
			}))
		}
	}
	l.dp, err = programs.Load(programs.Config{Namespace: l.node, XDP: true}, l.metrics, l.flows, services)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.dp.Close()) })
	require.NoError(t, l.dp.SetNodeAddrs(own...))
	require.NoError(t, l.dp.AttachDevice(l.uplink, own...))
	return l
}

func inNetlink(t testing.TB, ns devices.Namespace, fn func(*netlink.Handle) error) {
	t.Helper()
	require.NoError(t, ns.Do(func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	}))
}

// setUp brings one end of the wire up. What it sends has its checksums, and what a
// driver sends is taken there.
func (l *wireLab) setUp(ns devices.Namespace, addrs ...string) devices.Link {
	l.t.Helper()
	inNetlink(l.t, ns, func(h *netlink.Handle) error {
		dev, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := h.AddrAdd(dev, addr); err != nil {
				return err
			}
		}
		if err := h.LinkSetUp(dev); err != nil {
			return err
		}
		if err := setOffload("eth0", unix.ETHTOOL_STXCSUM, 0); err != nil {
			return err
		}
		return setOffload("eth0", unix.ETHTOOL_SGRO, 1)
	})
	link, err := devices.FindLink(ns, "eth0")
	require.NoError(l.t, err)
	return link
}

// setOffload switches an offload of a device, as ethtool -K does.
func setOffload(name string, command, on uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{command, on}
	var request struct {
		name [unix.IFNAMSIZ]byte
		data goUnsafe.Pointer
		_    [16]byte
	}
	copy(request.name[:], name)
	request.data = goUnsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(goUnsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("ethtool of %s: %w", name, errno)
	}
	return nil
}

func (l *wireLab) packets(program, outcome string) uint64 {
	l.t.Helper()
	for m, err := range l.metrics.All() {
		require.NoError(l.t, err)
		if m.Program == program && m.Outcome == outcome {
			return m.Packets
		}
	}
	return 0
}

// talk asks the service of a family and the backend answers, twenty times over one
// connection.
func (l *wireLab) talk(network string, c wireCast) {
	l.t.Helper()
	require.NoError(l.t, l.far.Do(func() error {
		backend := netip.AddrPortFrom(c.backend, 8080)
		dialer := net.Dialer{Timeout: 3 * time.Second}
		if network == "tcp" {
			server, err := net.Listen("tcp", backend.String())
			if err != nil {
				return err
			}
			defer server.Close()
			go func() {
				if conn, err := server.Accept(); err == nil {
					_, _ = io.Copy(conn, conn)
					conn.Close()
				}
			}()
			dialer.LocalAddr = &net.TCPAddr{IP: c.client.AsSlice()}
		} else {
			server, err := net.ListenPacket("udp", backend.String())
			if err != nil {
				return err
			}
			defer server.Close()
			go func() {
				for buf := make([]byte, 1500); ; {
					n, from, err := server.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = server.WriteTo(buf[:n], from)
				}
			}()
			dialer.LocalAddr = &net.UDPAddr{IP: c.client.AsSlice()}
		}
		conn, err := dialer.Dial(network, netip.AddrPortFrom(c.node, 30080).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		for i := range 20 {
			text := fmt.Sprintf("question %2d", i)
			if _, err := io.WriteString(conn, text); err != nil {
				return err
			}
			buf := make([]byte, len(text))
			if _, err := io.ReadFull(conn, buf); err != nil {
				return fmt.Errorf("answer %d: %w", i, err)
			}
			if string(buf) != text {
				return fmt.Errorf("answer %d is %q", i, buf)
			}
		}
		return nil
	}))
}

// The driver's short cut carries what from_device would, in both directions, and
// is off again when it is detached.
func TestXDP(t *testing.T) {
	l := newWireLab(t)
	require.ErrorContains(t, l.dp.AttachXDP(link{l.uplink.Index + 1000}), "call AttachDevice first")
	require.NoError(t, l.dp.AttachXDP(l.uplink))
	require.NoError(t, l.dp.AttachXDP(l.uplink))
	l.take(xdpProgram(t, asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()})) // XDP_PASS
	for name, c := range wireCasts {
		for _, network := range []string{"tcp", "udp"} {
			l.talk(network, c) // the kernel finds out where the backend is
			before, slow := l.packets("xdp", "to device"), l.packets("from device", "to device")
			l.talk(network, c)
			require.GreaterOrEqual(t, l.packets("xdp", "to device")-before, uint64(2*20-4), "%s by %s", name, network)
			require.Greater(t, l.packets("from device", "to device"), slow, "the verdicts are made there")
		}
	}
	for f, err := range l.flows.All() {
		require.NoError(t, err)
		require.GreaterOrEqual(t, f.Sent.Packets, uint64(20), "they are counted wherever they pass: %s", f.Original)
		require.GreaterOrEqual(t, f.Received.Packets, uint64(20))
	}
	require.NoError(t, l.dp.DetachXDP(l.uplink))
	require.NoError(t, l.dp.DetachXDP(l.uplink))
	before := l.packets("xdp", "to device")
	l.talk("tcp", wireCasts["IPv4"])
	require.Equal(t, before, l.packets("xdp", "to device"))
}

func xdpProgram(t testing.TB, insns asm.Instructions) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: insns})
	require.NoError(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

// take puts a program of XDP on the far end: without one a veth does not wake up
// for what the driver of the other end sends.
func (l *wireLab) take(p *ebpf.Program) {
	l.t.Helper()
	at, err := programs.AttachProgram(programs.Attach{Program: p, Namespace: l.far, Ifindex: l.farEnd.Index, Direction: programs.XDP})
	require.NoError(l.t, err)
	l.t.Cleanup(func() { require.NoError(l.t, at.Close()) })
}

// A driver without XDP says so, and the device goes on as before.
func TestXDPOfADriverWithoutIt(t *testing.T) {
	l := newWireLab(t)
	inNetlink(t, l.node, func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "bridge"
		return h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	})
	bridge, err := devices.FindLink(l.node, "bridge")
	require.NoError(t, err)
	require.NoError(t, l.dp.AttachDevice(bridge))
	require.ErrorIs(t, l.dp.AttachXDP(bridge), ebpf.ErrNotSupported)
	l.talk("tcp", wireCasts["IPv4"])
	require.NoError(t, l.dp.DetachDevice(bridge))
	require.ErrorContains(t, l.dp.AttachXDP(bridge), "call AttachDevice first")

	without, err := programs.Load(programs.Config{Namespace: l.node}, l.flows)
	require.NoError(t, err)
	defer without.Close()
	require.ErrorContains(t, without.AttachXDP(l.uplink), "set Config.XDP")
}

// BenchmarkXDP is how many packets a second one CPU takes from a device to a NodePort
// and sends on to a backend on another machine: by from_device, and by the driver.
func BenchmarkXDP(b *testing.B) {
	l := newWireLab(b)
	c := wireCasts["IPv4"]
	var macs [2]packet.MAC
	for i, ns := range []devices.Namespace{l.node, l.far} {
		inNetlink(b, ns, func(h *netlink.Handle) error {
			dev, err := h.LinkByName("eth0")
			if err == nil {
				copy(macs[i][:], dev.Attrs().HardwareAddr)
			}
			return err
		})
	}
	frame := packet.Build(packet.Ethernet{Dst: macs[0], Src: macs[1]},
		packet.IPv4{Src: c.client, Dst: c.node, TTL: 64}, packet.UDP{SrcPort: 5000, DstPort: 30080}, packet.Payload(make([]byte, 18)))
	inNetlink(b, l.node, func(h *netlink.Handle) error {
		return h.NeighSet(&netlink.Neigh{LinkIndex: l.uplink.Index, State: netlink.NUD_PERMANENT, IP: c.backend.AsSlice(), HardwareAddr: macs[1][:]})
	})
	// What comes back is counted and dropped by the driver of the far end, and what
	// that sends goes from there into the wire.
	count, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	require.NoError(b, err)
	b.Cleanup(func() { count.Close() })
	sink := xdpProgram(b, asm.Instructions{
		asm.LoadMapValue(asm.R1, count.FD(), 0), asm.Mov.Imm(asm.R2, 1), asm.StoreXAdd(asm.R1, asm.R2, asm.DWord), asm.Mov.Imm(asm.R0, 1), asm.Return(),
	})
	// The pages of the frames come again as they were left.
	anew, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(frame)), MaxEntries: 1})
	require.NoError(b, err)
	b.Cleanup(func() { anew.Close() })
	require.NoError(b, anew.Put(uint32(0), frame))
	source := xdpProgram(b, asm.Instructions{
		asm.Mov.Imm(asm.R2, 0), asm.LoadMapValue(asm.R3, anew.FD(), 0), asm.Mov.Imm(asm.R4, int32(len(frame))), asm.FnXdpStoreBytes.Call(),
		asm.Mov.Imm(asm.R1, int32(l.farEnd.Index)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
	})
	l.take(sink)
	send := func(n int) (rate float64) {
		require.NoError(b, l.far.Do(func() error {
			var before, after uint64
			if err := count.Lookup(uint32(0), &before); err != nil {
				return err
			}
			start := time.Now()
			if _, err := source.Run(&ebpf.RunOptions{Data: frame, Repeat: uint32(n), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES}); err != nil {
				return err
			}
			took := time.Since(start)
			err := count.Lookup(uint32(0), &after)
			rate = float64(after-before) / took.Seconds()
			return err
		}))
		return rate
	}
	for b.Loop() {
		var rates [2][]float64
		for range 7 {
			for i, on := range []bool{false, true} {
				if on {
					require.NoError(b, l.dp.AttachXDP(l.uplink))
				}
				send(1000)
				rates[i] = append(rates[i], send(300_000))
				if on {
					require.NoError(b, l.dp.DetachXDP(l.uplink))
				}
			}
		}
		tcx, driver := median(rates[0]), median(rates[1])
		fmt.Fprintf(os.Stdout, "\nNodePort to a backend on another machine, packets a second: from_device %.0f, XDP %.0f, ratio %.2f (target 1.5)\n", tcx, driver, driver/tcx)
		b.ReportMetric(driver/tcx, "ratio")
	}
}

// A load without XDP takes off what an earlier one has left.
func TestXDPIsGivenUp(t *testing.T) {
	ns, ifindex := bench(t)
	pins := netnstest.NewLab(t).PinDir()
	flows := made[*conntrack.Table](t)(conntrack.New(conntrack.Config{Flows: 64, Unconfirmed: 32}))
	up := link{ifindex}
	for _, with := range []bool{true, false} {
		dp, err := programs.Load(programs.Config{Namespace: ns, Pins: pins, XDP: with}, flows)
		require.NoError(t, err)
		require.NoError(t, dp.AttachDevice(up))
		if with {
			require.NoError(t, dp.AttachXDP(up))
			require.NoError(t, dp.AttachDevice(up), "again: it stays")
		}
		inNetlink(t, ns, func(h *netlink.Handle) error {
			l, err := h.LinkByIndex(ifindex)
			if err == nil {
				require.Equal(t, with, l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached)
			}
			return err
		})
		if with {
			require.NoError(t, dp.Close())
		} else {
			require.NoError(t, dp.Remove())
		}
	}
}
