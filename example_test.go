// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
	"github.com/godatapath/datapath/tunnel"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }

// A node of an overlay, composed from blocks, and an endpoint that answers.
func Example_node() {
	node, err := devices.NewNamespace() // in an agent: devices.CurrentNamespace()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer node.Close()
	pins, err := os.MkdirTemp("", "datapath-example-") // in an agent: a folder of its own in /run
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := run(context.Background(), node, pins); err != nil {
		fmt.Println(err)
	}
	// What is pinned outlives run, as it outlives a process. Without its pins it ends.
	if err := errors.Join(maps.UnmountBPFFS(pins), os.Remove(pins)); err != nil {
		fmt.Println(err)
	}
	// Output:
	// 10.244.1.10 identity 37483
	// 10.244.2.0/24 is on 172.16.16.121
	// blue says hello
}

func run(ctx context.Context, node devices.Namespace, pins string) error {
	gateway := netip.MustParseAddr("10.244.1.1")

	// What the kernel needs around the programs.
	if err := devices.EnsureForwarding(node, devices.Forwarding{}); err != nil {
		return err
	}
	host, err := devices.EnsureHostPair(node, devices.HostPair{Addrs: []netip.Addr{gateway}})
	if err != nil {
		return err
	}
	vxlan, err := devices.EnsureVXLAN(node, devices.VXLAN{MTU: 1450})
	if err != nil {
		return err
	}

	// The tables. What is passed to Load is on, what is not is no code at all. With
	// pins they outlive the process, the next one adopts them, and dpctl shows them.
	if err := maps.MountBPFFS(pins); err != nil {
		return err
	}
	pinned := maps.Config{Pins: pins}
	endpoints, err := maps.NewEndpoints(maps.EndpointsConfig{Config: pinned})
	if err != nil {
		return err
	}
	defer endpoints.Close()
	metrics, err := maps.NewMetrics(pinned)
	if err != nil {
		return err
	}
	defer metrics.Close()
	flows, err := conntrack.New(conntrack.Config{Config: pinned})
	if err != nil {
		return err
	}
	defer flows.Close()
	peers, err := tunnel.New(tunnel.Config{Config: pinned, MTU: vxlan.MTU})
	if err != nil {
		return err
	}
	defer peers.Close()
	settings := programs.Config{Namespace: node, Gateways: []netip.Addr{gateway}, Pins: pins}
	dp, err := programs.Load(settings, endpoints, metrics, flows, peers)
	if err != nil {
		return err
	}
	defer dp.Close() // the programs go on; Remove would take them off
	if err := dp.AttachHost(host); err != nil {
		return err
	}
	if err := dp.AttachOverlay(vxlan); err != nil {
		return err
	}
	// What the node itself sends to its endpoints, answers too, goes down the host pair.
	err = devices.EnsureRoute(node, devices.Route{
		Prefix: netip.MustParsePrefix("10.244.1.0/24"), Dev: devices.DefaultHostName, Via: gateway, MTU: vxlan.MTU,
	})
	if err != nil {
		return err
	}

	// An endpoint: its link is held until the program is there.
	pod, err := devices.NewNamespace() // the workload's, from the container runtime
	if err != nil {
		return err
	}
	defer pod.Close()
	veth, err := devices.EnsureEndpoint(node, devices.Endpoint{
		Name: "blue", Namespace: pod, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.10")},
		Gateways: []netip.Addr{gateway}, RouteMTU: vxlan.MTU, Hold: true,
	})
	if err != nil {
		return err
	}
	err = endpoints.Set(maps.Endpoint{
		ID: 1, Identity: 37483, Ifindex: veth.Index, Addrs: veth.EndpointAddrs, MAC: veth.PeerMAC, NodeMAC: veth.MAC,
	})
	if err != nil {
		return err
	}
	if err := dp.AttachEndpoint(veth); err != nil { // from now on, and not before, traffic reaches it
		return err
	}
	if err := devices.SetLinkUp(node, veth.Link); err != nil {
		return err
	}

	// The other nodes, as they come and go.
	err = peers.Set(tunnel.Peer{Prefix: netip.MustParsePrefix("10.244.2.0/24"), Node: netip.MustParseAddr("172.16.16.121")})
	if err != nil {
		return err
	}

	for ep, err := range endpoints.All() {
		if err != nil {
			return err
		}
		fmt.Println(ep.Addrs[0], "identity", ep.Identity)
	}
	for p, err := range peers.All() {
		if err != nil {
			return err
		}
		fmt.Println(p.Prefix, "is on", p.Node)
	}
	answer, err := ask(node, pod, netip.MustParseAddrPort("10.244.1.10:7"), "hello")
	if err != nil {
		return err
	}
	fmt.Println("blue says", answer)

	ctx, cancel := context.WithTimeout(ctx, 10*time.Millisecond) // an agent would not
	defer cancel()
	return flows.Run(ctx) // expires idle flows until ctx ends
}

// An integration test with the fixture.
func TestFixture(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	client := lab.Host("client", "192.0.2.1/24")
	server := lab.Host("server", "192.0.2.2/24")
	lab.Wire(client, server)
	server.Echo(netip.MustParseAddrPort("192.0.2.2:8080"))

	conn, err := client.DialTCP(netip.MustParseAddrPort("192.0.2.2:8080"))
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("hello"))
	require.NoError(t, err)
	answer := make([]byte, 5)
	_, err = conn.Read(answer)
	require.NoError(t, err)
	require.Equal(t, "hello", string(answer))
}

// A program of your own before ours, on the device of an endpoint. This one is
// assembled in Go, so it needs no compiler; examples/custom has one in C.
func Example_program() {
	if err := count(); err != nil {
		fmt.Println(err)
	}
	// Output:
	// 1. count_ipv4
	// 2. from_endpoint
	// it has counted 3 packets
}

func count() error {
	node, err := devices.NewNamespace()
	if err != nil {
		return err
	}
	defer node.Close()
	pod, err := devices.NewNamespace()
	if err != nil {
		return err
	}
	defer pod.Close()

	// The smallest node: it has endpoints, and neither flows nor an overlay.
	gateway := netip.MustParseAddr("10.244.1.1")
	if err := devices.EnsureForwarding(node, devices.Forwarding{}); err != nil {
		return err
	}
	host, err := devices.EnsureHostPair(node, devices.HostPair{Addrs: []netip.Addr{gateway}})
	if err != nil {
		return err
	}
	endpoints, err := maps.NewEndpoints(maps.EndpointsConfig{})
	if err != nil {
		return err
	}
	defer endpoints.Close()
	dp, err := programs.Load(programs.Config{Namespace: node, Gateways: []netip.Addr{gateway}}, endpoints)
	if err != nil {
		return err
	}
	defer dp.Close()
	if err := dp.AttachHost(host); err != nil {
		return err
	}
	err = devices.EnsureRoute(node, devices.Route{
		Prefix: netip.MustParsePrefix("10.244.1.0/24"), Dev: devices.DefaultHostName, Via: gateway,
	})
	if err != nil {
		return err
	}
	veth, err := devices.EnsureEndpoint(node, devices.Endpoint{
		Name: "blue", Namespace: pod, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.10")},
		Gateways: []netip.Addr{gateway}, Hold: true,
	})
	if err != nil {
		return err
	}
	err = endpoints.Set(maps.Endpoint{
		ID: 1, Identity: 37483, Ifindex: veth.Index, Addrs: veth.EndpointAddrs, MAC: veth.PeerMAC, NodeMAC: veth.MAC,
	})
	if err != nil {
		return err
	}
	if err := dp.AttachEndpoint(veth); err != nil {
		return err
	}

	// Yours: a table, and a program that counts the IPv4 packets in it.
	table, err := maps.New(maps.Spec[uint32, uint64]{Map: &ebpf.MapSpec{
		Name: "packets", Type: ebpf.Array, MaxEntries: 1,
	}}, maps.Config{})
	if err != nil {
		return err
	}
	defer table.Close()
	const protocol, ethIPv4, tcxNext = 16, 0x0800, -1 // skb->protocol is at 16
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "count_ipv4", Type: ebpf.SchedCLS, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R0, asm.R1, protocol, asm.Word),
			asm.HostTo(asm.BE, asm.R0, asm.Half),
			asm.JNE.Imm(asm.R0, ethIPv4, "next"),
			asm.LoadMapValue(asm.R1, table.EBPF().FD(), 0),
			asm.Mov.Imm(asm.R2, 1),
			asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, 0),
			asm.Mov.Imm(asm.R0, tcxNext).WithSymbol("next"), // to the next program on the hook
			asm.Return(),
		},
	})
	if err != nil {
		return err
	}
	defer program.Close()
	a, err := programs.AttachProgram(programs.Attach{
		Program: program, Namespace: node, Ifindex: veth.Index, Direction: programs.Ingress, Order: link.Head(),
	})
	if err != nil {
		return err
	}
	defer a.Close()

	hooks, err := programs.Hooks(node, veth.Index)
	if err != nil {
		return err
	}
	for i, p := range hooks[0].Programs {
		fmt.Printf("%d. %s\n", i+1, p.Name)
	}
	if err := devices.SetLinkUp(node, veth.Link); err != nil {
		return err
	}
	for range 3 {
		if _, err := ask(pod, node, netip.AddrPortFrom(gateway, 7), "hello"); err != nil {
			return err
		}
	}
	packets, err := table.Lookup(0)
	if err != nil {
		return err
	}
	fmt.Println("it has counted", packets, "packets")
	return nil
}

// ask sends a word from one namespace to another, which sends it back.
func ask(from, to devices.Namespace, at netip.AddrPort, word string) (string, error) {
	var server, client *net.UDPConn
	err := to.Do(func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return "", err
	}
	defer server.Close()
	err = from.Do(func() (err error) {
		client, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return "", err
	}
	defer client.Close()
	deadline := time.Now().Add(5 * time.Second)
	if err := errors.Join(server.SetDeadline(deadline), client.SetDeadline(deadline)); err != nil {
		return "", err
	}
	if _, err := client.Write([]byte(word)); err != nil {
		return "", err
	}
	buf := make([]byte, 100)
	n, asker, err := server.ReadFromUDPAddrPort(buf)
	if err != nil {
		return "", err
	}
	if _, err := server.WriteToUDPAddrPort(buf[:n], asker); err != nil {
		return "", err
	}
	n, err = client.Read(buf)
	return string(buf[:n]), err
}

// What README.md shows is here, and so it is run: line by line, but for what is
// done about errors.
func TestReadmeShowsTheExamples(t *testing.T) {
	t.Parallel()
	lines := func(file string) []string {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var out []string
		for line := range strings.Lines(string(text)) {
			line, _, _ = strings.Cut(line, " // ")
			line = strings.TrimPrefix(strings.TrimSpace(line), "if ")
			if strings.HasPrefix(line, "// ") {
				line = ""
			}
			line = strings.TrimSuffix(line, "; err != nil {")
			out = append(out, strings.Replace(line, ":=", "=", 1))
		}
		return out
	}
	here, inGo, shown := lines("example_test.go"), false, 0
	for _, line := range lines("README.md") {
		switch {
		case strings.HasPrefix(line, "```"):
			inGo = line == "```go"
		case inGo && line != "":
			shown++
			require.True(t, slices.Contains(here, line), "not in example_test.go: %s", line)
		}
	}
	require.Greater(t, shown, 20)
}
