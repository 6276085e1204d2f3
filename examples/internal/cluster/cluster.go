// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/internal/undo"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/tunnel"
)

// DefaultDir holds a folder for each cluster.
const DefaultDir = "/run/datapath"

// Config says what to build.
type Config struct {
	Name      string // prefix of all names; "": dp
	Nodes     int    // 0: 2
	Endpoints int    // on each node; 0: 2, below 0: none
	Services  int    // reached by both families, see [Cluster.Services]; 0: none, and no node balances
	Backends  int    // of each service; 0: 3
	Maglev    bool   // chooses them, and not chance
	Native    bool   // the underlay routes endpoints' packets as they are; there is no overlay
	// StackRouting leaves the way out to each node's stack, without masquerade.
	StackRouting bool
	// EndpointRoutes gives each endpoint a route of its own in its node's stack,
	// past the host pair; with Native.
	EndpointRoutes bool
	// RouteAge is that of programs.Config.
	RouteAge     time.Duration
	Port         uint16 // of the overlay; 0: 8472
	IPv6Underlay bool
	Wire         bool   // join the two nodes by one veth, without a bridge between and without the outside
	UnderlayMTU  int    // 0: 1500
	Dir          string // for the bpf filesystem; "": DefaultDir/NAME
	Flows        conntrack.Config
	Progress     func(format string, args ...any) // nil: silent
}

// The addresses of a cluster: node n has underlay address 10+n, and the
// endpoints of node n have the prefixes 10.244.n.0/24 and fd00:244:n::/64.
const (
	MaxNodes     = 200
	MaxEndpoints = 200 // on each node
	// FirstIdentity is the identity of the first endpoint; each has its own.
	FirstIdentity = 1000
)

var (
	validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	// namespaceOf is what follows "NAME-" in the names of our namespaces: the
	// namespaces of a cluster "dp-2" are none of the cluster "dp".
	namespaceOf = regexp.MustCompile(`^(underlay|node\d+(-ep\d+)?|outside\d*)$`)
)

// Cluster is what was built.
type Cluster struct {
	Name     string
	Nodes    []*Node
	Services []lb.Service // the same on every node: for each two, of IPv4 and of IPv6
	Outside  *Outside     // nil on a wire
	// NoSockets says why the services are not there for sockets; nil if they are,
	// or if there are none.
	NoSockets error

	cfg      Config
	dir      string
	underlay devices.Namespace
	undo     []func() error
	stop     context.CancelFunc
	broken   chan struct{}
}

// Start builds a cluster. What is left of one of the same name that was killed
// is cleared away first; one that is still alive is an error that is
// os.ErrExist. If ctx ends while it builds, it takes everything back and returns
// the context's error. Later ctx ends the expiry of flows only, not the cluster:
// call Close.
func Start(ctx context.Context, cfg Config) (_ *Cluster, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, fmt.Errorf("start the cluster: %w", err)
	}
	c := &Cluster{Name: cfg.Name, cfg: cfg, dir: cfg.Dir}
	ctx, c.stop = context.WithCancel(ctx)
	c.broken = make(chan struct{})
	setBroken := sync.OnceFunc(func() { close(c.broken) })
	var u undo.Stack
	defer u.Run(&err)
	u.Push(c.Close)
	if err := c.claim(); err != nil {
		return nil, fmt.Errorf("start the cluster: %w", err)
	}
	cfg.Progress("underlay")
	if err := c.makeUnderlay(); err != nil {
		return nil, fmt.Errorf("start the cluster: %w", err)
	}
	if !cfg.Wire {
		if err := c.makeOutside(); err != nil {
			return nil, fmt.Errorf("start the cluster: %w", err)
		}
	}
	for i := 1; i <= cfg.Nodes; i++ {
		cfg.Progress("node %d of %d", i, cfg.Nodes)
		if err := c.addNode(ctx, i); err != nil {
			return nil, fmt.Errorf("start the cluster: node %d: %w", i, err)
		}
	}
	if cfg.Services > 0 {
		cfg.Progress("services")
		c.planServices()
	}
	for _, n := range c.Nodes {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("start the cluster: %w", err)
		}
		if n.Services != nil {
			if _, err := n.Services.Sync(c.Services); err != nil {
				return nil, fmt.Errorf("start the cluster: %s: %w", n.Name, err)
			}
		}
		if err := n.knowPeers(c.Nodes); err != nil {
			return nil, fmt.Errorf("start the cluster: %s: %w", n.Name, err)
		}
		n.expire(ctx, setBroken)
	}
	return c, nil
}

// Check tells what is wrong with the Config, as Start would.
func (cfg Config) Check() error {
	_, err := cfg.withDefaults()
	return err
}

func (cfg Config) withDefaults() (Config, error) {
	if cfg.Name == "" {
		cfg.Name = "dp"
	}
	if !validName.MatchString(cfg.Name) {
		return cfg, fmt.Errorf("name %q: want letters, digits, '-', '_' and '.', a letter or digit first, at most 64", cfg.Name)
	}
	if cfg.Nodes == 0 {
		cfg.Nodes = 2
	}
	if cfg.Endpoints == 0 {
		cfg.Endpoints = 2
	}
	cfg.Endpoints = max(cfg.Endpoints, 0)
	if cfg.Nodes < 1 || cfg.Nodes > MaxNodes {
		return cfg, fmt.Errorf("%d nodes: want 1 to %d", cfg.Nodes, MaxNodes)
	}
	if cfg.Wire && cfg.Nodes != 2 {
		return cfg, fmt.Errorf("%d nodes on one wire: want 2", cfg.Nodes)
	}
	if cfg.Endpoints > MaxEndpoints {
		return cfg, fmt.Errorf("%d endpoints on a node: want up to %d", cfg.Endpoints, MaxEndpoints)
	}
	if cfg.EndpointRoutes && !cfg.Native {
		return cfg, errors.New("routes to endpoints are for a cluster that is routed natively")
	}
	if cfg.Backends == 0 {
		cfg.Backends = 3
	}
	if err := cfg.checkServices(); err != nil {
		return cfg, err
	}
	if cfg.Port == 0 {
		cfg.Port = tunnel.DefaultPort
	}
	if cfg.UnderlayMTU == 0 {
		cfg.UnderlayMTU = devices.DefaultMTU
	}
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(DefaultDir, cfg.Name)
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string, ...any) {}
	}
	return cfg, nil
}

// push notes how to take back a step.
func (c *Cluster) push(step func() error) { c.undo = append(c.undo, step) }

// Broken is closed when a node can no longer expire idle flows. The cluster
// works on, and Close tells why.
func (c *Cluster) Broken() <-chan struct{} { return c.broken }

// Close takes everything away again, the last first. Idempotent.
func (c *Cluster) Close() error {
	c.stop()
	var errs []error
	for len(c.undo) > 0 {
		step := c.undo[len(c.undo)-1]
		c.undo = c.undo[:len(c.undo)-1]
		errs = append(errs, step())
	}
	return errors.Join(errs...)
}

// claim takes the name, clears what a killed cluster of that name has left, and
// mounts the bpf filesystem.
func (c *Cluster) claim() error {
	release, err := lock(c.dir)
	if held := (*heldError)(nil); errors.As(err, &held) {
		held.name = c.Name
		return held
	}
	if err != nil {
		return fmt.Errorf("take the folder of the cluster: %w", err)
	}
	c.push(release)
	bpf := filepath.Join(c.dir, "bpf")
	if err := c.clear(bpf); err != nil {
		return fmt.Errorf("clear away what an earlier cluster has left: %w", err)
	}
	if err := maps.MountBPFFS(bpf); err != nil {
		return err
	}
	c.push(func() error { return errors.Join(maps.UnmountBPFFS(bpf), os.Remove(bpf)) })
	if c.cfg.Services > 0 {
		return c.mountCgroups()
	}
	return nil
}

// clear removes the namespaces of that name, the bpf filesystem with all pins and
// the cgroups.
func (c *Cluster) clear(bpf string) error {
	left, err := filepath.Glob(filepath.Join(devices.NamespaceDir, c.Name+"-*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range left {
		name := filepath.Base(path)
		if namespaceOf.MatchString(strings.TrimPrefix(name, c.Name+"-")) {
			errs = append(errs, devices.RemoveNamed(name))
		}
	}
	errs = append(errs, maps.UnmountBPFFS(bpf))
	if err := os.Remove(bpf); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	errs = append(errs, c.clearCgroups())
	return errors.Join(errs...)
}

// namespace makes a named namespace that ends with the cluster.
func (c *Cluster) namespace(name string) (devices.Namespace, error) {
	ns, err := devices.NewNamed(c.Name + "-" + name)
	if err != nil {
		return ns, err
	}
	c.push(func() error { return errors.Join(devices.RemoveNamed(c.Name+"-"+name), ns.Close()) })
	// The link-local address of a device that has just come up would be kept back
	// for a second and more, and with it all questions for neighbours.
	dad := devices.Sysctl{Family: devices.IPv6, Device: devices.DefaultDevices, Name: "accept_dad", Value: 0}
	if err := devices.EnsureSysctls(ns, dad); err != nil {
		return ns, err
	}
	return ns, nil
}

// Endpoints lists the endpoints of all nodes.
func (c *Cluster) Endpoints() []*Endpoint {
	var out []*Endpoint
	for _, n := range c.Nodes {
		out = append(out, n.Endpoints...)
	}
	return out
}

func addr(format string, args ...any) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf(format, args...))
}

func prefix(format string, args ...any) netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf(format, args...))
}
