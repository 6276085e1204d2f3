// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/probe"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/tunnel"
)

// prefixesOn are the prefixes that have a route of ours by a device.
func prefixesOn(t *testing.T, n *Node, dev string) (out []netip.Prefix) {
	t.Helper()
	routes, err := devices.ListRoutes(n.Namespace, dev)
	require.NoError(t, err)
	for _, r := range routes {
		out = append(out, r.Prefix)
	}
	return out
}

// Who is in the cluster has a route to his prefixes, by his address in the
// underlay, and sees the endpoints as they are; who goes has neither.
func TestPeersAreRoutes(t *testing.T) {
	t.Parallel()
	c := launch(t, "peers", Config{Native: true, Nodes: 3, Endpoints: 1})
	n, second, third := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	routesTo := func(others ...*Node) (out []devices.Route) {
		for _, other := range others {
			out = append(out,
				devices.Route{Prefix: other.PodCIDRs[0], Via: other.Addrs[0].Addr(), Dev: uplink},
				devices.Route{Prefix: other.PodCIDRs[1], Via: other.Addrs[1].Addr(), Dev: uplink, Metric: 1024})
		}
		return out
	}
	seenAs := func(family int, want netip.Addr) {
		t.Helper()
		there := echo(t, third.Endpoints[0].Namespace, third.Endpoints[0].Addr(family))
		requireSeen(t, n.Endpoints[0].Namespace, there, there.Addr(), want)
	}
	for _, step := range []struct {
		known []*Node
		as    []netip.Addr
	}{
		{c.Nodes, n.Endpoints[0].Addrs},
		{[]*Node{n, second}, []netip.Addr{n.Addrs[0].Addr(), n.Addrs[1].Addr()}}, // by the router, as anybody
		{c.Nodes, n.Endpoints[0].Addrs},
	} {
		require.NoError(t, n.knowPeers(step.known))
		routes, err := devices.ListRoutes(n.Namespace, uplink)
		require.NoError(t, err)
		require.ElementsMatch(t, routesTo(step.known[1:]...), routes)
		for f, family := range families {
			seenAs(family, step.as[f])
			_, err := probe.Ping(t.Context(), n.Endpoints[0].Namespace, second.Endpoints[0].Addr(family), 0)
			require.NoError(t, err)
			_, err = probe.Ping(t.Context(), n.Namespace, third.Endpoints[0].Addr(family), 0)
			require.NoError(t, err)
		}
	}
}

// The same of an overlay: a tunnel, and a route down the host pair.
func TestPeersAreTunnels(t *testing.T) {
	t.Parallel()
	c := launch(t, "tun", Config{Nodes: 3, Endpoints: 1})
	n, second, third := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	require.NoError(t, n.knowPeers([]*Node{n, second}))
	require.ElementsMatch(t, append(append([]netip.Prefix{}, n.PodCIDRs...), second.PodCIDRs...), prefixesOn(t, n, devices.DefaultHostName))
	for _, family := range families {
		_, err := n.Peers.Lookup(third.Endpoints[0].Addr(family))
		require.ErrorIs(t, err, ebpf.ErrKeyNotExist)
		_, err = probe.Ping(t.Context(), n.Endpoints[0].Namespace, second.Endpoints[0].Addr(family), 0)
		require.NoError(t, err)
	}
	require.NoError(t, n.knowPeers(c.Nodes))
	require.Len(t, prefixesOn(t, n, devices.DefaultHostName), 6)
	for _, family := range families {
		_, err := probe.Ping(t.Context(), n.Endpoints[0].Namespace, third.Endpoints[0].Addr(family), 0)
		require.NoError(t, err)
	}
}

// Of two peers with one prefix the more specific one has the address; the same
// prefix twice is an error that changes nothing.
func TestPrefixesOfTwoPeers(t *testing.T) {
	t.Parallel()
	inEachMode(t, "over", Config{Nodes: 3, Endpoints: 1}, func(t *testing.T, c *Cluster) {
		n, second, third := c.Nodes[0], c.Nodes[1], c.Nodes[2]
		moved := second.Endpoints[0]
		for f, family := range families {
			narrow := netip.PrefixFrom(moved.Addrs[f], moved.Addrs[f].BitLen())
			wide := second.PodCIDRs[f]
			if c.cfg.Native {
				way := []netip.Addr{n.Gateway(family), second.Addrs[f].Addr(), moved.Addr(family)}
				trace(t, n.Endpoints[0], moved.Addr(family), way...)
				routes := []devices.Route{{Prefix: wide, Via: second.Addrs[f].Addr()}, {Prefix: narrow, Via: third.Addrs[f].Addr()}}
				require.NoError(t, devices.EnsureRoutes(n.Namespace, uplink, routes))
				require.NoError(t, n.Datapath.Bump())
				// The third node's stack knows the right way, and takes a hop for it.
				trace(t, n.Endpoints[0], moved.Addr(family), way[0], third.Addrs[f].Addr(), way[1], way[2])

				routes = append(routes, devices.Route{Prefix: wide, Via: third.Addrs[f].Addr()})
				have := prefixesOn(t, n, uplink)
				require.ErrorIs(t, devices.SyncRoutes(n.Namespace, uplink, routes), os.ErrInvalid)
				require.Equal(t, have, prefixesOn(t, n, uplink))
			} else {
				peers := []tunnel.Peer{{Prefix: wide, Node: second.Underlay()}, {Prefix: narrow, Node: third.Underlay()}}
				_, err := n.Peers.Sync(peers)
				require.NoError(t, err)
				_, err = probe.Ping(t.Context(), n.Endpoints[0].Namespace, moved.Addr(family), 0)
				require.Error(t, err)
				require.Equal(t, uint64(f+1), drops(t, third, "no endpoint"))

				_, err = n.Peers.Sync(append(peers, tunnel.Peer{Prefix: wide, Node: third.Underlay()}))
				require.ErrorIs(t, err, os.ErrInvalid)
				at, err := n.Peers.Lookup(host(wide, 77))
				require.NoError(t, err)
				require.Equal(t, second.Underlay(), at)
			}
			require.NoError(t, n.knowPeers(c.Nodes))
			_, err := probe.Ping(t.Context(), n.Endpoints[0].Namespace, moved.Addr(family), 0)
			require.NoError(t, err)
		}
	})
}

// everywhere asks from an endpoint for all that it can reach, by its own address.
func everywhere(t *testing.T, c *Cluster, e *Endpoint) {
	t.Helper()
	for _, family := range families {
		for _, other := range c.Endpoints() {
			if other == e {
				continue
			}
			there := echo(t, other.Namespace, other.Addr(family))
			requireSeen(t, e.Namespace, there, there.Addr(), e.Addr(family))
		}
		for _, n := range c.Nodes {
			for _, at := range []netip.Addr{n.Gateway(family), n.Addrs[family/6].Addr()} {
				if c.cfg.Native || n == e.Node || at != n.Addrs[1].Addr() { // no tunnel is told of that one: it is masqueraded
					there := echo(t, n.Namespace, at)
					requireSeen(t, e.Namespace, there, there.Addr(), e.Addr(family))
				}
			}
			_, err := probe.Ping(t.Context(), n.Namespace, e.Addr(family), 0)
			require.NoError(t, err, "%s to %s", n.Name, e.Name)
		}
		there := echo(t, c.Outside.Namespace, c.Outside.TrustedAddr(family))
		requireSeen(t, e.Namespace, there, there.Addr(), e.Addr(family))
		const port = 7000
		serve(t, e.Namespace, netip.AddrPortFrom(e.Addr(family), port))
		for _, from := range []netip.Addr{c.Outside.Addr(family), c.Outside.TrustedAddr(family)} {
			conn, err := dialFrom(t.Context(), c.Outside.Namespace, netip.AddrPortFrom(from, 0), netip.AddrPortFrom(e.Addr(family), port))
			require.NoError(t, err)
			require.Equal(t, from, conn.seen.Addr())
			require.NoError(t, conn.ask("how are you?"))
			require.NoError(t, conn.Close())
		}
	}
}

// Where the stack has the way out, all goes by its routes, and nothing leaves
// past it, nor under another address. Services are there for the outside all the
// same, with backends here and on another node.
func TestStackRouting(t *testing.T) {
	t.Parallel()
	inEachMode(t, "stack", Config{StackRouting: true, Endpoints: 2, Services: 1}, func(t *testing.T, c *Cluster) {
		const port = 31001
		n := c.Nodes[0]
		everywhere(t, c, n.Endpoints[0])
		serveAll(t, c)
		for _, family := range families {
			there := echo(t, c.Outside.Namespace, c.Outside.Addr(family))
			requireSeen(t, n.Endpoints[0].Namespace, there, there.Addr(), n.Endpoints[0].Addr(family))
			trace(t, n.Endpoints[0], c.Outside.Addr(family), n.Gateway(family), Router(family), c.Outside.Addr(family))
		}
		require.Zero(t, outcomes(t, n, "from endpoint", "to device"))
		require.Positive(t, outcomes(t, n, "from endpoint", "to host"))
		for _, family := range families {
			for _, at := range []struct {
				node *Node
				seen netip.Addr
			}{{n, c.Outside.Addr(family)}, {c.Nodes[1], seenFor(n, family)}} {
				setService(t, c, lb.Service{Name: fmt.Sprint("port", family), Frontends: atAll(family, port, lb.NodePort), Backends: backends(family, at.node.Endpoints...)})
				_, seen := visit(t, c, from(c.Outside.Addr(family)), nodePort(n, family, port))
				require.Equal(t, at.seen, seen.Addr(), at.node.Name)
				_, err := probe.UDP(t.Context(), c.Outside.Namespace, nodePort(n, family, port), 1000)
				require.NoError(t, err)
			}
		}
	})
}

// The node's stack has a route to each endpoint, past the host pair.
func TestEndpointRoutes(t *testing.T) {
	t.Parallel()
	for name, stack := range map[string]bool{"ours": false, "stack": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := launch(t, "eproute"+name, Config{Native: true, EndpointRoutes: true, StackRouting: stack})
			for _, n := range c.Nodes {
				for _, e := range n.Endpoints {
					require.ElementsMatch(t, []netip.Prefix{netip.PrefixFrom(e.Addrs[0], 32), netip.PrefixFrom(e.Addrs[1], 128)}, prefixesOn(t, n, e.Link.Name))
				}
			}
			n := c.Nodes[0]
			everywhere(t, c, n.Endpoints[0])
			require.Positive(t, outcomes(t, n, "to endpoint", "pass"))
			require.Zero(t, outcomes(t, n, "from host", "to endpoint"))
		})
	}
}

// The node asks an endpoint for its address where it has a route to its device,
// and has the answer. It is about the endpoint's own address only.
func TestEndpointAnswersItsNode(t *testing.T) {
	t.Parallel()
	c := launch(t, "arp", Config{Native: true, EndpointRoutes: true, Nodes: 1, Endpoints: 1})
	n := c.Nodes[0]
	e := n.Endpoints[0]
	require.NoError(t, withNetlink(n.Namespace, func(nl *netlink.Handle) error {
		return nl.NeighDel(&netlink.Neigh{LinkIndex: e.Link.Index, IP: e.Addr(4).AsSlice()})
	}))
	_, err := probe.Ping(t.Context(), n.Namespace, e.Addr(4), 0)
	require.NoError(t, err)
}

// inNode runs a program in a node's namespace, if the machine has it.
func inNode(t *testing.T, n *Node, input string, name string, args ...string) (out string, there bool) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		return "", false
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	var text, errs strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &text, &errs
	require.NoError(t, n.Namespace.Do(cmd.Start))
	require.NoError(t, cmd.Wait(), errs.String())
	return text.String(), true
}

// tracked are the connections that the kernel's own conntrack has in a node.
func tracked(t *testing.T, n *Node) (out string) {
	t.Helper()
	require.NoError(t, n.Namespace.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
		if errors.Is(err, os.ErrNotExist) { // there is no list in this kernel, or no conntrack at all
			text, err = os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		}
		if errors.Is(err, os.ErrNotExist) || string(text) == "0\n" {
			return nil
		}
		out = string(text)
		return err
	}))
	return out
}

// No rule of netfilter is needed, none is made, and the kernel's conntrack knows
// no connection. Whoever has rules of his own finds that what we forward does not
// meet them.
func TestNothingOfNetfilter(t *testing.T) {
	t.Parallel()
	inEachMode(t, "nf", Config{Services: 1}, func(t *testing.T, c *Cluster) {
		traffic := func() {
			n := c.Nodes[0]
			for _, family := range families {
				for _, other := range []*Endpoint{n.Endpoints[1], c.Nodes[1].Endpoints[0]} {
					there := echo(t, other.Namespace, other.Addr(family))
					requireSeen(t, n.Endpoints[0].Namespace, there, there.Addr(), n.Endpoints[0].Addr(family))
				}
				out := echo(t, c.Outside.Namespace, c.Outside.Addr(family))
				requireSeen(t, n.Endpoints[0].Namespace, out, out.Addr(), n.Addrs[family/6].Addr())
				_, err := probe.Ping(t.Context(), n.Endpoints[0].Namespace, c.Outside.Addr(family), 0)
				require.NoError(t, err)
				for range 6 { // chance takes backends of both nodes
					for _, to := range []netip.AddrPort{nodePort(n, family, NodePort(1)), netip.AddrPortFrom(c.ServiceAt(1, family).Frontends[0].Addr.Addr(), ServicePort)} {
						from := c.Outside.Namespace
						if to.Port() == ServicePort {
							from = n.Endpoints[0].Namespace
						}
						_, err := probe.TCP(t.Context(), from, to, 100)
						require.NoError(t, err, to)
						_, err = probe.UDP(t.Context(), from, to, 100)
						require.NoError(t, err, to)
					}
				}
			}
		}
		for _, family := range families {
			for _, b := range c.ServiceAt(1, family).Backends {
				serveEcho(t, c, b.Addr)
			}
		}
		traffic()
		for _, n := range c.Nodes {
			for _, list := range [][]string{{"nft", "list", "ruleset"}, {"iptables-save"}, {"ip6tables-save"}} {
				out, _ := inNode(t, n, "", list[0], list[1:]...)
				require.Empty(t, out, "%v", list)
			}
			require.Empty(t, tracked(t, n))
		}

		// Rules that make the kernel look at everything, and let nothing be forwarded.
		const rules = `table inet hostile {
	chain forward { type filter hook forward priority 0; policy drop; counter; }
	chain in { type filter hook prerouting priority 0;
		ct state new meta l4proto tcp counter drop
		udp dport != 8472 counter drop
		icmp type { echo-request, echo-reply } counter drop
		icmpv6 type { echo-request, echo-reply } counter drop
	}
	chain out {
		type nat hook postrouting priority 100;
		meta l4proto { tcp, icmp } counter masquerade
	}
}`
		for _, n := range c.Nodes {
			if _, ok := inNode(t, n, rules, "nft", "-f", "-"); !ok {
				t.Log("there is no nft: only that nothing is left is seen")
				return
			}
		}
		traffic()
		for _, n := range c.Nodes {
			for line := range strings.Lines(tracked(t, n)) {
				require.Contains(t, line, "dport=8472", "only the overlay's own packets are seen")
			}
			out, _ := inNode(t, n, "", "nft", "list", "ruleset")
			require.Contains(t, out, "counter packets 0", "the rules are there")
			require.NotRegexp(t, `counter packets [1-9]`, out)
		}
	})
}

// A firewall of the node that knows connections sees both sides of each, where the
// stack has the way.
func TestStackRoutingUnderAFirewall(t *testing.T) {
	t.Parallel()
	const rules = `table inet firewall {
	chain forward {
		type filter hook forward priority 0; policy drop;
		ct state invalid drop
		ct state new,established,related accept
	}
}
`
	inEachMode(t, "wall", Config{StackRouting: true, Endpoints: 1}, func(t *testing.T, c *Cluster) {
		n := c.Nodes[0]
		if _, ok := inNode(t, n, rules, "nft", "-f", "-"); !ok {
			t.Log("there is no nft")
			return
		}
		for _, family := range families {
			there := echo(t, c.Outside.Namespace, c.Outside.TrustedAddr(family))
			requireSeen(t, n.Endpoints[0].Namespace, there, there.Addr(), n.Endpoints[0].Addr(family))
		}
	})
}
