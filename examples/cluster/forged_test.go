// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/tunnel"
)

// A cluster meets what none of its parts would send: a workload that writes its
// own frames, a machine beside the nodes, a router that marks congestion.

const (
	forgedPort = 9999 // that the endpoints listen on
	patience   = 5 * time.Second
)

// A workload may leave the checksum to a device and says itself where it is to
// be written. It must not be the source address, or anything else that was
// looked at before.
func TestChecksumWhereNoneBelongs(t *testing.T) {
	t.Parallel()
	c, _ := startCluster(t, cluster.Config{})
	node, evil, green, red := c.Nodes[0], c.Nodes[0].Endpoints[0], c.Nodes[0].Endpoints[1], c.Nodes[1].Endpoints[0]
	writeChecksums(t, node.Namespace, "eth0")
	for _, family := range []int{4, 6} {
		src, dst := evil.Addr(family), red.Addr(family)
		at, back := listen(t, red, family), listen(t, evil, family)
		udp := func(src netip.Addr, payload string, checksum *uint16) []byte {
			return packet.Build(packet.Ethernet{Dst: packet.MAC(evil.Link.MAC), Src: packet.MAC(evil.Link.PeerMAC)},
				ipLayer(src, dst, 0), packet.UDP{SrcPort: forgedPort, DstPort: forgedPort, Checksum: checksum}, packet.Payload(payload))
		}
		l4 := 14 + map[int]int{4: 20, 6: 40}[family]
		honest := func() {
			t.Helper()
			const payload = "where it belongs"
			begun := ^packet.Checksum(pseudoHeader(src, dst, 8+len(payload)))
			sendFrame(t, evil.Namespace, "eth0", udp(src, payload, &begun), l4, 6)
			require.Equal(t, payload+" from "+src.String(), hear(t, at))
		}
		refused := func(what string, frame []byte, start, offset int) {
			t.Helper()
			before := dropsOf(t, node, "bad checksum")
			sendFrame(t, evil.Namespace, "eth0", frame, start, offset)
			require.Eventually(t, func() bool { return dropsOf(t, node, "bad checksum") == before+1 }, patience, time.Millisecond, what)
		}
		all := func() {
			t.Helper()
			if family == 4 {
				refused("the source will be green's", asGreen(udp, src, green.Addr(4)), 28, 0)
			}
			frame := udp(src, "some words more", nil)
			refused("the source address, as far behind the start as it should be", frame, map[int]int{4: 28, 6: 36}[family]-6, 6)
			refused("the port", frame, l4, 2)
			refused("another protocol's place", frame, l4, 16)
			refused("the payload", frame, l4+8, 0)
			refused("the checksum, over more than there belongs", frame, l4-2, 8)
		}
		all() // nothing is known of the flow yet
		for range 3 {
			honest()
			_, err := at.WriteTo([]byte("answer"), back.LocalAddr())
			require.NoError(t, err)
			require.Equal(t, "answer from "+dst.String(), hear(t, back))
		}
		all() // and now it takes the fast path
		honest()
	}
}

// asGreen makes a frame of evil that becomes one of green when the checksum is
// written into the lower half of its source address.
func asGreen(udp func(netip.Addr, string, *uint16) []byte, evil, green netip.Addr) []byte {
	const field, headerChecksum = 28, 24
	none := uint16(0)
	forged, frame := udp(green, "forged\x00\x00", &none), udp(evil, "forged\x00\x00", &none)
	// What is asked for is the sum of all from there on, inverted: the end makes it right.
	want := binary.BigEndian.Uint16(forged[field:])
	filler := uint32(^want) + uint32(packet.Checksum(frame[field:]))
	binary.BigEndian.PutUint16(frame[len(frame)-2:], uint16(filler+filler>>16))
	copy(frame[headerChecksum:], forged[headerChecksum:][:2])
	return frame
}

func pseudoHeader(src, dst netip.Addr, length int) []byte {
	return append(append(src.AsSlice(), dst.AsSlice()...), 0, unix.IPPROTO_UDP, byte(length>>8), byte(length))
}

// A machine on the underlay that is no node can not speak as an endpoint, be it
// of the node that it speaks to or of another one, nor as that node. Without an
// overlay only the underlay itself could tell it from another node.
func TestStrangerOnTheUnderlay(t *testing.T) {
	t.Parallel()
	for _, native := range []bool{false, true} {
		t.Run(modeOf(native), func(t *testing.T) {
			t.Parallel()
			c, segment := startCluster(t, cluster.Config{Native: native})
			node, blue, green, red := c.Nodes[0], c.Nodes[0].Endpoints[0], c.Nodes[0].Endpoints[1], c.Nodes[1].Endpoints[0]
			for _, family := range []int{4, 6} {
				stranger := strangerOf(family)
				toBlue, toRed := listen(t, blue, family), listen(t, red, family)
				send := func(src, dst netip.Addr, payload string) {
					sendToNode1(t, segment, netip.AddrPortFrom(src, forgedPort), netip.AddrPortFrom(dst, forgedPort), payload)
				}
				// The programs say so, or the kernel's own filter does before.
				refused := func() uint64 { return dropsOf(t, node, "spoofed source") + filtered(t, node.Namespace) }
				before, forged := refused(), uint64(0)
				for _, as := range [][2]netip.Addr{
					{green.Addr(family), blue.Addr(family)}, {node.Gateway(family), blue.Addr(family)}, {node.Addrs[family/6].Addr(), blue.Addr(family)},
					{red.Addr(family), blue.Addr(family)}, {green.Addr(family), red.Addr(family)},
				} {
					if !native || forged < 3 {
						send(as[0], as[1], "forged")
						forged++
					}
				}
				require.Eventually(t, func() bool { return refused() == before+forged }, patience, time.Millisecond, "IPv%d", family)

				// Nothing of it has arrived before what is honest.
				fromGreen := listen(t, green, family)
				for _, at := range []*net.UDPConn{toBlue, toRed} {
					_, err := fromGreen.WriteTo([]byte("inside"), at.LocalAddr())
					require.NoError(t, err)
					require.Equal(t, "inside from "+green.Addr(family).String(), hear(t, at))
				}
				send(stranger, blue.Addr(family), "in its own name")
				require.Equal(t, "in its own name from "+stranger.String(), hear(t, toBlue))
			}
		})
	}
}

// The port of the node that an endpoint speaks from is open to the one to whom it
// speaks, at the port where he is, and to nobody else.
func TestStrangerAtAPortOfTheNode(t *testing.T) {
	t.Parallel()
	for _, native := range []bool{false, true} {
		t.Run(modeOf(native), func(t *testing.T) {
			t.Parallel()
			c, segment := startCluster(t, cluster.Config{Native: native})
			node, blue := c.Nodes[0], c.Nodes[0].Endpoints[0]
			for _, family := range []int{4, 6} {
				inside := listen(t, blue, family)
				there := netip.AddrPortFrom(c.Outside.Addr(family), 7777)
				var outside *net.UDPConn
				require.NoError(t, c.Outside.Namespace.Do(func() (err error) {
					outside, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(there))
					return err
				}))
				defer outside.Close()
				_, err := inside.WriteToUDPAddrPort([]byte("question"), there)
				require.NoError(t, err)
				require.Equal(t, "question from "+node.Addrs[family/6].Addr().String(), hear(t, outside))

				flow, err := node.Flows.Lookup(conntrack.Tuple{
					Src: netip.AddrPortFrom(blue.Addr(family), forgedPort), Dst: there, Protocol: conntrack.UDP,
				})
				require.NoError(t, err)
				port := flow.Reply.Dst
				require.Equal(t, netip.AddrPortFrom(node.Addrs[family/6].Addr(), forgedPort), port, "the port is one that flows may get, so it stays")
				before := packetsOf(t, node, "from device", "to endpoint")
				for _, from := range []netip.AddrPort{
					netip.AddrPortFrom(strangerOf(family), there.Port()), netip.AddrPortFrom(there.Addr(), there.Port()+1),
				} {
					sendToNode1(t, segment, from, port, "forged")
				}
				_, err = outside.WriteToUDPAddrPort([]byte("answer"), port)
				require.NoError(t, err)
				require.Equal(t, "answer from "+there.Addr().String(), hear(t, inside))
				require.Equal(t, before+1, packetsOf(t, node, "from device", "to endpoint"))
			}
		})
	}
}

func modeOf(native bool) string {
	if native {
		return "native"
	}
	return "vxlan"
}

// strangerOf is an address of the underlay that no node has.
func strangerOf(family int) netip.Addr {
	return netip.MustParseAddr(map[int]string{4: "172.16.16.200", 6: "fd00:16::200"}[family])
}

// sendToNode1 puts a datagram on the segment as the stranger's machine.
func sendToNode1(t *testing.T, segment devices.Namespace, src, dst netip.AddrPort, payload string) {
	t.Helper()
	sendFrame(t, segment, "node1", packet.Build(packet.Ethernet{Dst: packet.MAC{2, 0, 0, 0, 0, 1}, Src: packet.MAC{2, 6, 6, 6, 6, 6}},
		ipLayer(src.Addr(), dst.Addr(), 0), packet.UDP{SrcPort: src.Port(), DstPort: dst.Port()}, packet.Payload(payload)), -1, 0)
}

// A real TCP says nothing to a segment that acknowledges nothing: whoever forges
// his address must not have a flow by it that lasts for hours.
func TestBlindConfirmOfRealTCP(t *testing.T) {
	t.Parallel()
	const flows = 8
	c, segment := startCluster(t, cluster.Config{})
	node, blue, red := c.Nodes[0], c.Nodes[0].Endpoints[0], c.Nodes[1].Endpoints[0]
	var l net.Listener
	require.NoError(t, blue.Namespace.Do(func() (err error) { l, err = net.Listen("tcp", ":80"); return err }))
	defer l.Close()
	for _, family := range []int{4, 6} {
		at := netip.AddrPortFrom(blue.Addr(family), 80)
		forged := strangerOf(family)
		send := func(sport uint16, flags uint8, seq uint32) {
			sendFrame(t, segment, "node1", packet.Build(packet.Ethernet{Dst: packet.MAC{2, 0, 0, 0, 0, 1}, Src: packet.MAC{2, 6, 6, 6, 6, 6}},
				ipLayer(forged, at.Addr(), 0), packet.TCP{SrcPort: sport, DstPort: 80, Flags: flags, Seq: seq, Window: 1000}), -1, 0)
		}
		each := func(what string, is func(conntrack.Flow) bool) (all []conntrack.Flow) {
			t.Helper()
			for sport := range uint16(flows) {
				flow := conntrack.Tuple{Src: netip.AddrPortFrom(forged, 5000+sport), Dst: at, Protocol: conntrack.TCP}
				var f conntrack.Flow
				require.Eventually(t, func() (ok bool) {
					var err error
					f, err = node.Flows.Lookup(flow)
					return err == nil && is(f)
				}, patience, time.Millisecond, "%s: %s", flow, what)
				all = append(all, f)
			}
			return all
		}
		for sport := range uint16(flows) {
			send(5000+sport, packet.SYN, 1000)
		}
		each("blue has answered", func(f conntrack.Flow) bool { return f.Received.Packets > 0 })
		for sport := range uint16(flows) {
			send(5000+sport, packet.PSH, 1001)
		}
		for _, f := range each("it has come", func(f conntrack.Flow) bool { return f.Sent.Packets == 2 }) {
			require.Equal(t, conntrack.StateNew, f.State, "%+v", f)
		}

		// One who has seen the answer proves it.
		var conn net.Conn
		require.NoError(t, red.Namespace.Do(func() (err error) {
			conn, err = net.DialTimeout("tcp", at.String(), patience)
			return err
		}))
		honest := conntrack.Tuple{Src: conn.LocalAddr().(*net.TCPAddr).AddrPort(), Dst: at, Protocol: conntrack.TCP}
		require.Eventually(t, func() bool {
			f, err := node.Flows.Lookup(honest)
			return err == nil && f.State == conntrack.StateEstablished
		}, patience, time.Millisecond)
		require.NoError(t, conn.Close())
	}
}

// What a router of the underlay says of congestion reaches the receiver, also
// of a flow whose packets take the short cut (RFC 6040).
func TestCongestionOnTheUnderlay(t *testing.T) {
	t.Parallel()
	const notECT, ect0, ect1, ce = 0, 2, 1, 3
	for _, underlay := range []int{4, 6} {
		t.Run(fmt.Sprintf("IPv%d underlay", underlay), func(t *testing.T) {
			t.Parallel()
			c, segment := startCluster(t, cluster.Config{IPv6Underlay: underlay == 6})
			node, blue, red := c.Nodes[1], c.Nodes[0].Endpoints[0], c.Nodes[1].Endpoints[0]
			for _, family := range []int{4, 6} {
				a, b := listen(t, blue, family), listen(t, red, family)
				for range 3 { // until the flow is settled
					for _, way := range [][2]*net.UDPConn{{a, b}, {b, a}} {
						_, err := way[0].WriteTo([]byte("settle"), way[1].LocalAddr())
						require.NoError(t, err)
						require.Contains(t, hear(t, way[1]), "settle")
					}
				}
				none := uint16(0)
				arrives := func(outer, inner uint8) {
					sendFrame(t, segment, "node2", packet.Build(packet.Ethernet{Dst: packet.MAC{2, 0, 0, 0, 0, 2}, Src: packet.MAC{2, 0, 0, 0, 0, 1}},
						ipLayer(c.Nodes[0].Underlay(), node.Underlay(), outer), packet.UDP{SrcPort: 50000, DstPort: tunnel.DefaultPort, Checksum: &none},
						packet.VXLAN{VNI: uint32(blue.Identity)}, packet.Ethernet{},
						ipLayer(blue.Addr(family), red.Addr(family), inner), packet.UDP{SrcPort: forgedPort, DstPort: forgedPort}, packet.Payload("marked")), -1, 0)
				}
				for _, row := range []struct {
					outer, inner, heard uint8
					short               uint64
				}{
					{notECT, notECT, notECT, 1}, {ect0, ect0, ect0, 1}, {ce, ect0, ce, 0}, {ce, ect1, ce, 0}, {ect0, ect0, ect0, 1},
				} {
					before := packetsOf(t, node, "from device", "to endpoint")
					arrives(row.outer, row.inner)
					require.Equal(t, row.heard, hearECN(t, b), "IPv%d: %d outside, %d inside", family, row.outer, row.inner)
					require.Equal(t, row.short, packetsOf(t, node, "from device", "to endpoint")-before, "IPv%d: %d outside, %d inside", family, row.outer, row.inner)
				}
				// The sender would not understand the mark, so the packet is lost.
				arrives(ce, notECT)
				arrives(ect0, ect0)
				require.EqualValues(t, ect0, hearECN(t, b))
			}
		})
	}
}

// startCluster returns a cluster that ends with the test, and the segment that its nodes are on.
func startCluster(t *testing.T, cfg cluster.Config) (*cluster.Cluster, devices.Namespace) {
	t.Helper()
	cfg.Name = newName(t)
	c, err := cluster.Start(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	segment, err := devices.OpenNamed(cfg.Name + "-underlay")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, segment.Close()) })
	return c, segment
}

func ipLayer(src, dst netip.Addr, tos uint8) packet.Layer {
	if src.Is4() {
		return packet.IPv4{Src: src, Dst: dst, TOS: tos}
	}
	return packet.IPv6{Src: src, Dst: dst, TrafficClass: tos}
}

// sendFrame sends a frame out of a device, and leaves a checksum to it: over all
// from start on, to be written offset bytes from there. start < 0: none.
func sendFrame(t *testing.T, ns devices.Namespace, device string, frame []byte, start, offset int) {
	t.Helper()
	require.NoError(t, ns.Do(func() (err error) {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.Close(fd)) }()
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return err
		}
		header := make([]byte, 10) // struct virtio_net_hdr
		if start >= 0 {
			const needsChecksum = 1
			header[0] = needsChecksum
			binary.NativeEndian.PutUint16(header[6:], uint16(start))
			binary.NativeEndian.PutUint16(header[8:], uint16(offset))
		}
		return unix.Sendto(fd, append(header, frame...), 0, &unix.SockaddrLinklayer{Ifindex: dev.Index})
	}))
}

// writeChecksums makes a device like one of a real machine: the checksums that
// are left to it are written, and not left to whoever is at its other end.
func writeChecksums(t *testing.T, ns devices.Namespace, device string) {
	t.Helper()
	require.NoError(t, ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		off := struct{ command, on uint32 }{command: unix.ETHTOOL_STXCSUM}
		request := struct { // struct ifreq
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&off)}
		copy(request.name[:], device)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return errno
		}
		return nil
	}))
}

// listen opens a port of an endpoint that also hears the congestion marks.
func listen(t *testing.T, e *cluster.Endpoint, family int) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	require.NoError(t, e.Namespace.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(e.Addr(family), forgedPort)))
		return err
	}))
	t.Cleanup(func() { c.Close() })
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	level, option := unix.IPPROTO_IP, unix.IP_RECVTOS
	if family == 6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS
	}
	require.NoError(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }))
	require.NoError(t, err)
	return c
}

// hear returns the next datagram, and whom it is from.
func hear(t *testing.T, c *net.UDPConn) string {
	t.Helper()
	b := make([]byte, 2000)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
	n, from, err := c.ReadFromUDPAddrPort(b)
	require.NoError(t, err)
	return fmt.Sprintf("%s from %s", b[:n], from.Addr())
}

// hearECN returns the congestion mark of the next datagram.
func hearECN(t *testing.T, c *net.UDPConn) uint8 {
	t.Helper()
	b, control := make([]byte, 2000), make([]byte, 200)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
	_, n, _, _, err := c.ReadMsgUDP(b, control)
	require.NoError(t, err)
	all, err := unix.ParseSocketControlMessage(control[:n])
	require.NoError(t, err)
	for _, m := range all {
		switch m.Header.Type {
		case unix.IP_TOS:
			return m.Data[0] & 3
		case unix.IPV6_TCLASS:
			return uint8(binary.NativeEndian.Uint32(m.Data)) & 3
		}
	}
	require.Fail(t, "no mark")
	return 0
}

// packetsOf returns what a node has counted of a program.
func packetsOf(t *testing.T, n *cluster.Node, program, outcome string) (packets uint64) {
	t.Helper()
	for m, err := range n.Metrics.All() {
		require.NoError(t, err)
		if m.Program == program && m.Outcome == outcome {
			packets += m.Packets
		}
	}
	return packets
}

func dropsOf(t *testing.T, n *cluster.Node, reason string) uint64 {
	t.Helper()
	return packetsOf(t, n, "from endpoint", reason) + packetsOf(t, n, "from host", reason) + packetsOf(t, n, "from device", reason)
}

// filtered returns how many packets the kernel's reverse path filter has dropped.
func filtered(t *testing.T, ns devices.Namespace) (packets uint64) {
	t.Helper()
	require.NoError(t, ns.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/netstat")
		if err != nil {
			return err
		}
		lines := strings.Split(string(text), "\n") // names above numbers
		for i := 0; i+1 < len(lines); i += 2 {
			names, numbers := strings.Fields(lines[i]), strings.Fields(lines[i+1])
			for j, name := range names {
				if name == "IPReversePathFilter" {
					packets, err = strconv.ParseUint(numbers[j], 10, 64)
					return err
				}
			}
		}
		return errors.New("no counter of the reverse path filter")
	}))
	return packets
}
