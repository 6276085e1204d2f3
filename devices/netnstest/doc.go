// SPDX-License-Identifier: Apache-2.0

// Package netnstest gives a test a small network of its own, made of network
// namespaces: hosts, nodes on a common underlay, endpoints on nodes, clients
// outside. What net/http/httptest is to a handler it is to a datapath.
//
//	func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }
//
//	func TestForwarding(t *testing.T) {
//		t.Parallel()
//		lab := netnstest.NewLab(t)
//		client := lab.Host("client", "192.0.2.1/24", "2001:db8::1/64")
//		server := lab.Host("server", "192.0.2.2/24", "2001:db8::2/64")
//		lab.Wire(client, server)
//
//		trace := client.Capture("") // a pcap file, if the test fails
//		at := server.Echo(netip.MustParseAddrPort("192.0.2.2:8080"))
//		_, err := client.ProbeTCP(at, 100)
//		require.NoError(t, err)
//		_, err = trace.Wait(func(f netnstest.Frame) bool {
//			return f.Summary().Dst == at
//		}, time.Second)
//		require.NoError(t, err)
//
//		reply, err := client.Ping(server.Addr6(), netnstest.PingOptions{})
//		require.NoError(t, err)
//		require.Equal(t, 64, reply.TTL)
//
//		meter := lab.LossMeter(client, server, netip.MustParseAddrPort("192.0.2.2:9"), 1000)
//		require.NoError(t, meter.WaitReceived(100, time.Second))
//		// Replace, restart or reload something here.
//		require.Zero(t, meter.Stop().Missing)
//	}
//
// A cluster is [Lab.Node] and [Host.Endpoint]; [Lab.Outside] is a client of the
// world, behind [Lab.Router]. On a node with a VXLAN device an endpoint is
// [Host.EndpointWith], with the MTU of the overlay as RouteMTU, else its large
// packets do not fit, and with Hold, so that nothing passes before the programs
// are attached; then the test sets the link up (devices.SetLinkUp). Any code that takes a [devices.Namespace] takes
// [Host.Namespace]; code that has to be inside goes into [Host.Run].
//
// # Lifetime
//
// All of it ends with the test, in [testing.T.Cleanup]: servers, captures,
// meters, namespaces with their devices. Connections, listeners and whatever
// else the test got a Close for are the test's to close. Then the lab looks
// for what is left and fails the test for it:
//
//   - sockets, threads and descriptors that hold a namespace of the lab;
//   - goroutines that the test started (it labels them: [runtime/pprof] labels
//     of the test's goroutine are replaced);
//   - pins in [Lab.PinDir], and names of the lab's namespaces;
//   - BPF objects, other descriptors, and links in the namespace of the test
//     process, if no other test runs in the process at that moment.
//
// [Main] finds those of parallel tests when all are over, and also names in
// /run/netns and BPF filesystems that a test made and forgot.
//
// A file, a connection or a BPF object that nobody refers to any more is closed
// by Go when its memory is collected. The lab and Main stop the collector before
// they look, so a Close that was forgotten a moment ago is found. What was
// collected before that, while the test or others still ran, is closed and leaves
// no trace: that nothing is reported does not prove that nothing was forgotten.
//
// # Concurrency
//
// Labs do not see one another, so tests that use them can run in parallel. The
// methods that build (those without an error result) are for the goroutine of
// the test and stop it on failure; the others can be called from anywhere. No
// thread of the caller ever moves to another namespace.
//
// # Needs
//
// Linux 5.14, and root or the capabilities NET_ADMIN, NET_RAW and SYS_ADMIN. No
// tool is called. Nothing is ever sent beyond the namespaces of a lab.
package netnstest
