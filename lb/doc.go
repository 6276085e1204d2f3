// SPDX-License-Identifier: Apache-2.0

// Package lb turns the frontends of services into backends, for the packets of
// endpoints and for sockets.
//
//	services, err := lb.New(lb.Config{Flows: flows}) // flows: a conntrack.Table
//	if err != nil {
//		return err
//	}
//	defer services.Close()
//	dp, err := programs.Load(cfg, endpoints, flows, peers, services) // for packets
//	...
//	sockets, err := services.AttachSockets(lb.SocketConfig{Cgroup: "/sys/fs/cgroup"}) // for sockets
//	...
//	defer sockets.Close()
//	go services.Run(ctx) // takes backends away that have drained
//	err = services.SetService(lb.Service{
//		Name:      "default/web:http",
//		Frontends: []lb.Frontend{{Addr: netip.MustParseAddrPort("10.96.0.1:80")}},
//		Backends: []lb.Backend{
//			{Addr: netip.MustParseAddrPort("10.244.1.10:8080")},
//			{Addr: netip.MustParseAddrPort("10.244.2.10:8080"), Weight: 3},
//		},
//	})
//
// A service is set whole. A packet, or a system call, sees it as it was or as it
// is, never a mixture. The choice is made for the first packet of a flow; it
// stands in the flow's entry, and a packet of an established flow costs what one
// to the backend itself costs. After every change each flow is looked at once: one
// whose backend the service has lost is ended, or goes to another, and never
// reaches a stranger who has got its address. Connected sockets that were translated
// to it are ended (kernel 6.5).
//
// Frontends of all types but ClusterIP are there for clients from outside too, at
// the uplinks of programs.Datapath.AttachDevice. A backend on another node sees this
// node as the client (conntrack.NAT), unless the service is Direct.
//
// Sockets can be had alone: they need no flow table and no programs on devices. In
// one client do not mix the two for one service, asking it now by packets, now by
// sockets: to its backend both are connections between the same two addresses, and
// what one has left in TIME_WAIT there is in the way of the other.
//
// # Limits
//
// A socket of MPTCP is not known again: it sees its backend, and is not told when
// that goes. A socket that is not connected and asks two services with one backend
// sees both answers come from the one that it asked last. A reset is told to the
// client with its next packet; one that only listens learns nothing. The port of
// SCTP is not translated, so two services with one backend can not be asked from
// one port.
//
// # Lifetime
//
// With Config.Pins the services outlive the process and the next New adopts them.
// Close drops our handles, Remove takes the pins away; [Sockets] has both too.
// [Open] is for tools.
//
// # Concurrency
//
// All methods may be called by many goroutines at once. Of the processes that
// share pinned tables one writes; any number read.
//
// # Needs
//
// The tables need Linux 5.10, packets 6.6, sockets 5.18 and the end of sockets 6.5,
// with BTF; root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and CAP_SYS_ADMIN for
// pins. What a kernel lacks is ebpf.ErrNotSupported, input that can not be used
// os.ErrInvalid, a frontend of another service os.ErrExist, a full table
// unix.E2BIG.
package lb
