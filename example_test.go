// SPDX-License-Identifier: Apache-2.0

package datapath_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
	"github.com/godatapath/datapath/tunnel"
)

// A node of an overlay, composed from blocks.
func Example_node() {
	node, err := devices.NewNamespace() // in an agent: devices.CurrentNamespace()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer node.Close()
	if err := run(context.Background(), node); err != nil {
		fmt.Println(err)
	}
	// Output:
	// 10.244.1.10 identity 37483
	// 10.244.2.0/24 is on 172.16.16.121
}

func run(ctx context.Context, node devices.Namespace) error {
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

	// The tables. What is passed to Load is on, what is not is no code at all.
	endpoints, err := maps.NewEndpoints(maps.EndpointsConfig{})
	if err != nil {
		return err
	}
	defer endpoints.Close()
	flows, err := conntrack.New(conntrack.Config{})
	if err != nil {
		return err
	}
	defer flows.Close()
	peers, err := tunnel.New(tunnel.Config{MTU: vxlan.MTU})
	if err != nil {
		return err
	}
	defer peers.Close()
	dp, err := programs.Load(programs.Config{Namespace: node, Gateways: []netip.Addr{gateway}}, endpoints, flows, peers)
	if err != nil {
		return err
	}
	defer dp.Close() // takes the programs off; with Config.Pins they would go on
	if err := dp.AttachHost(host); err != nil {
		return err
	}
	if err := dp.AttachOverlay(vxlan); err != nil {
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
	ctx, cancel := context.WithTimeout(ctx, 10*time.Millisecond) // an agent would not
	defer cancel()
	return flows.Run(ctx) // expires idle flows until ctx ends
}

// An integration test with the fixture.
func TestFixture(t *testing.T) {
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

// A program of your own in front of ours. It is compiled and run in
// examples/custom.
func Example_program() {
	attach := func(ctx context.Context, node devices.Namespace, veth devices.EndpointLink) (*programs.Attachment, error) {
		spec, err := programs.Compile(ctx, programs.CompileConfig{Path: "dns_count.c"})
		if err != nil {
			return nil, err // with clang's message
		}
		var objects struct {
			Count *ebpf.Program `ebpf:"dns_count"`
		}
		if err := spec.LoadAndAssign(&objects, nil); err != nil {
			return nil, err // with the verifier's message
		}
		return programs.AttachProgram(programs.Attach{
			Program:   nil, // objects.DNSCount
			Namespace: node, Ifindex: veth.Index, Direction: programs.Ingress, Order: link.Head(),
		})
	}
	_ = attach
}
