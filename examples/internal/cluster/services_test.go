// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/lb"
)

// serve has a server tell each client its address and port and the client's, and
// repeat what it is sent.
func serve(t *testing.T, ns devices.Namespace, at netip.AddrPort) {
	t.Helper()
	var l net.Listener
	require.NoError(t, ns.Do(func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	}))
	var busy sync.WaitGroup
	var open sync.Map // connections, some of which have lost their client
	t.Cleanup(func() {
		require.NoError(t, l.Close())
		open.Range(func(conn, _ any) bool {
			conn.(net.Conn).Close()
			return true
		})
		busy.Wait()
	})
	busy.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			open.Store(conn, nil)
			busy.Go(func() {
				defer open.Delete(conn)
				defer conn.Close()
				if _, err := fmt.Fprintln(conn, at, conn.RemoteAddr()); err == nil {
					_, _ = io.Copy(conn, conn)
				}
			})
		}
	})
}

// client is a connection, who has answered it, and as whom it is seen there.
type client struct {
	net.Conn
	in     *bufio.Reader
	server netip.AddrPort
	seen   netip.AddrPort
}

func dial(ctx context.Context, ns devices.Namespace, to netip.AddrPort) (client, error) {
	return dialFrom(ctx, ns, netip.AddrPort{}, to)
}

// dialFrom dials from an address and port, which other connections may have too.
// The zero AddrPort leaves the choice to the kernel, port 0 that of the port.
func dialFrom(ctx context.Context, ns devices.Namespace, from, to netip.AddrPort) (c client, err error) {
	d := net.Dialer{Timeout: 3 * time.Second}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(from)
		d.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			return errors.Join(raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			}), err)
		}
	}
	err = ns.Do(func() (err error) {
		c.Conn, err = d.DialContext(ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		return c, err
	}
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return c, errors.Join(err, c.Close())
	}
	c.in = bufio.NewReader(c.Conn)
	line, err := c.in.ReadString('\n')
	if err != nil {
		return c, errors.Join(err, c.Close())
	}
	var server, seen string
	if _, err := fmt.Sscan(line, &server, &seen); err != nil {
		return c, errors.Join(err, c.Close())
	}
	if c.server, err = netip.ParseAddrPort(server); err == nil {
		c.seen, err = netip.ParseAddrPort(seen)
	}
	return c, err
}

// ask sends a word and has it back.
func (c client) ask(word string) error {
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(c, word); err != nil {
		return err
	}
	line, err := c.in.ReadString('\n')
	if err == nil && line != word+"\n" {
		err = fmt.Errorf("%q came back as %q", word, line)
	}
	return err
}

// inCluster starts two nodes of two endpoints, each with servers on some ports.
func inCluster(t *testing.T, name string, ports ...uint16) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), Config{Name: fmt.Sprintf("%s%d", name, os.Getpid()), Nodes: 2, Endpoints: 2, Services: 1})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	for _, n := range c.Nodes {
		for _, e := range n.Endpoints {
			for _, family := range []int{4, 6} {
				for _, port := range ports {
					serve(t, e.Namespace, netip.AddrPortFrom(e.Addr(family), port))
				}
			}
		}
	}
	return c
}

// A policy of Local keeps clients on their node, and refuses them where it has no
// backend; one of Cluster sends them everywhere.
func TestTrafficPolicies(t *testing.T) {
	t.Parallel()
	const port, tries = 9000, 24
	c := inCluster(t, "pol", port)
	for _, family := range []int{4, 6} {
		vip := netip.MustParseAddr(map[int]string{4: "10.98.0.1", 6: "fd00:98::1"}[family])
		internal, external := netip.AddrPortFrom(vip, 80), netip.AddrPortFrom(vip, 81)
		set := func(policyInternal, policyExternal lb.Policy, backends ...lb.Backend) {
			for _, n := range c.Nodes {
				require.NoError(t, n.Services.SetService(lb.Service{
					Name:      fmt.Sprint("policies", family),
					Frontends: []lb.Frontend{{Addr: internal}, {Addr: external, Type: lb.ExternalIP}},
					Backends:  backends, Internal: policyInternal, External: policyExternal,
				}))
			}
		}
		var all, ofSecond []lb.Backend
		for _, n := range c.Nodes {
			all = append(all, n.Endpoints[0].Backend(family, port), n.Endpoints[1].Backend(family, port))
		}
		ofSecond = all[2:]
		// servers of connections from an endpoint of a node.
		servers := func(n *Node, to netip.AddrPort) (found []netip.AddrPort) {
			for range tries {
				conn, err := dial(t.Context(), n.Endpoints[0].Namespace, to)
				require.NoError(t, err, "%s to %s", n.Name, to)
				require.NoError(t, conn.Close())
				if !slices.Contains(found, conn.server) {
					found = append(found, conn.server)
				}
			}
			return found
		}
		refused := func(n *Node, to netip.AddrPort) {
			_, err := dial(t.Context(), n.Endpoints[0].Namespace, to)
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
		}
		addrs := func(backends ...lb.Backend) (out []netip.AddrPort) {
			for _, b := range backends {
				out = append(out, b.Addr)
			}
			return out
		}
		first, second := c.Nodes[0], c.Nodes[1]

		set(lb.Local, lb.Cluster, all...)
		require.ElementsMatch(t, addrs(all[:2]...), servers(first, internal))
		require.ElementsMatch(t, addrs(all[2:]...), servers(second, internal))
		require.Greater(t, len(servers(first, external)), 2)

		// External is about clients from outside.
		set(lb.Cluster, lb.Local, all...)
		require.Greater(t, len(servers(first, external)), 2)
		require.Greater(t, len(servers(second, external)), 2)
		require.Greater(t, len(servers(first, internal)), 2)

		set(lb.Local, lb.Cluster, ofSecond...)
		refused(first, internal)
		require.ElementsMatch(t, addrs(ofSecond...), servers(first, external))
		require.ElementsMatch(t, addrs(ofSecond...), servers(second, internal))

		set(lb.Local, lb.Cluster, all...)
		require.ElementsMatch(t, addrs(all[:2]...), servers(first, internal))
	}
}

// The backends of a service change all the time, on this node and across the
// overlay, while clients connect, ask and close: none fails, and who stays
// connected keeps its server.
func TestUpdatesUnderRealConnections(t *testing.T) {
	t.Parallel()
	c := inCluster(t, "upd", 9000, 9001)
	node := c.Nodes[0]
	for _, algorithm := range []lb.Algorithm{lb.Random, lb.Maglev} {
		vip := netip.MustParseAddrPort("10.98.0.2:80")
		s := lb.Service{
			Name: "hammered", Frontends: []lb.Frontend{{Addr: vip}}, Algorithm: algorithm, OnRemove: lb.Drain,
		}
		sets := [2][]lb.Backend{}
		for i := range sets {
			for _, n := range c.Nodes {
				for _, e := range n.Endpoints {
					sets[i] = append(sets[i], e.Backend(4, uint16(9000+i)))
				}
			}
		}
		s.Backends = sets[0]
		require.NoError(t, node.Services.SetService(s))
		var stay []client
		for range 8 {
			conn, err := dial(t.Context(), node.Endpoints[0].Namespace, vip)
			require.NoError(t, err)
			stay = append(stay, conn)
		}

		var updates atomic.Int64
		stop, done := make(chan struct{}), make(chan error, 1)
		go func() {
			for i := 1; ; i++ {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				s := s
				s.Backends = sets[i%2]
				if err := node.Services.SetService(s); err != nil {
					done <- err
					return
				}
				updates.Add(1)
			}
		}()
		conns, seen := 0, map[netip.AddrPort]int{}
		failed := func() error {
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end) || updates.Load() < 100 || conns < 50; conns++ {
				conn, err := dial(t.Context(), node.Endpoints[conns%2].Namespace, vip)
				if err != nil {
					return fmt.Errorf("connect: %w", err)
				}
				for _, word := range []string{"one", "two"} {
					if err := conn.ask(word); err != nil {
						return fmt.Errorf("ask %s: %w", conn.server, err)
					}
				}
				seen[conn.server]++
				if err := conn.Close(); err != nil {
					return err
				}
				one := stay[conns%len(stay)]
				if err := one.ask("still here?"); err != nil {
					return fmt.Errorf("ask %s, connected from the beginning: %w", one.server, err)
				}
			}
			return nil
		}()
		close(stop)
		require.NoError(t, <-done)
		for _, conn := range stay { // while there is a way to tell their servers
			require.NoError(t, conn.Close())
		}
		require.NoError(t, failed, "connection %d, %d updates", conns, updates.Load())
		require.Greater(t, len(seen), 4, "%v", seen)
		t.Logf("%s: %d updates under %d connections to %d servers", algorithm, updates.Load(), conns, len(seen))
		require.NoError(t, node.Services.DeleteService("hammered"))
	}
}
