// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"net/netip"
	"slices"
	"time"

	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/wire"
	"github.com/godatapath/datapath/maps"
)

// Defaults of [Config].
const (
	DefaultFrontends  = 65536
	DefaultBackends   = 65536
	DefaultClients    = 65536
	DefaultSockets    = 65536
	DefaultMaglevSize = 16381
	DefaultMaglevs    = 4096
	// DefaultFirstNodePort and DefaultLastNodePort are the range of Kubernetes.
	DefaultFirstNodePort = 30000
	DefaultLastNodePort  = 32767
)

// Config describes the services of a node. The zero Config works, for packets and
// for sockets.
type Config struct {
	// Config is where the tables are pinned. Those that can not be adopted, of other
	// sizes or another layout, are a [*maps.IncompatibleError]; with maps.Replace all
	// of them are made anew, without services, and programs that run go on with the
	// old ones until they are loaded and attached again.
	maps.Config
	// Frontends is how many of them fit, and as many services; 0:
	// [DefaultFrontends]. A service takes kernel memory when it is there: with one
	// frontend and three backends of its own about 1.3 KiB.
	Frontends int
	// Backends is how many different ones fit; 0: [DefaultBackends]. Of the places
	// that services have for them, four times as many do: a service that is
	// changed needs its old and its new ones for a moment.
	Backends int
	// Clients is how many clients are remembered for session affinity; 0:
	// [DefaultClients]. Those that have not come for longest are forgotten first.
	Clients int
	// Sockets is how many connected sockets are remembered with what they were
	// told to connect to, and how many destinations of datagram sockets that are not
	// connected; 0: [DefaultSockets]. A connected one beyond it sees its backend as
	// its peer, and does not end with it. Of the others those that have not sent for
	// longest are forgotten. The room is taken at once, some 200 bytes for both.
	Sockets int
	// MaglevSize is the number of slots of a Maglev table, a prime up to 131071,
	// best of at least a hundred times the backends of the largest such service; the
	// same on all nodes; 0: [DefaultMaglevSize]. A table takes eight bytes a slot. A
	// service of which a backend gets no slot is os.ErrInvalid.
	MaglevSize int
	// MaglevSeed makes tables different between clusters; the same on all nodes.
	MaglevSeed uint32
	// Maglevs is how many services may use Maglev; 0: [DefaultMaglevs]. Changing
	// one makes the kernel wait for an RCU grace period, some milliseconds.
	Maglevs int
	// Node is this node, as Backend.Node names it, for the policy Local.
	Node netip.Addr
	// NodeAddrs are the node's own addresses: where wildcard NodePorts are.
	NodeAddrs []netip.Addr
	// FirstNodePort and LastNodePort are the range of the ports of NodePorts; 0:
	// [DefaultFirstNodePort] and [DefaultLastNodePort]. One outside of it is
	// os.ErrInvalid: it could be what a program of the node listens at. A HostPort is
	// at any port.
	FirstNodePort, LastNodePort uint16
	// Hairpin are the sources, one of a family, that an endpoint sees when it
	// reaches itself through a service. Nobody else may have them. The default is
	// 169.254.42.1 and fd00:42:42::1.
	Hairpin []netip.Addr
	// Flows is the flow table of the same node, a conntrack.Table: to purge flows,
	// and to count those that a removal touches. nil: nothing is counted, and
	// [Purge] is [Reset].
	Flows Flows
	// DrainTimeout is how long a backend that was removed with [Drain] is kept for
	// its flows at most; 0: 6 h, as long as a silent connection is remembered. What
	// is left of them then ends as with [Reset]. A flow counts until it has expired.
	DrainTimeout time.Duration
	// SweepInterval is the time between two passes of [Balancer.Run]; 0: 10 s.
	SweepInterval time.Duration
}

// Flows is what is asked of a flow table. Zero ports and addresses match any.
type Flows interface {
	// FlushTranslated deletes the flows of a protocol to a frontend that are
	// translated to a backend, and returns how many there were.
	FlushTranslated(protocol uint8, frontend, backend netip.AddrPort) (int, error)
	// CountTranslated counts them.
	CountTranslated(protocol uint8, frontend, backend netip.AddrPort) (int, error)
}

var defaultHairpin = [2]netip.Addr{netip.AddrFrom4([4]byte{169, 254, 42, 1}), netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x42, 0, 0x42, 15: 1})}

func (c Config) withDefaults() (Config, error) {
	for _, f := range []struct {
		name string
		at   *int
		def  int
		most int
	}{
		{"Frontends", &c.Frontends, DefaultFrontends, 1 << 24},
		{"Backends", &c.Backends, DefaultBackends, 1 << 24},
		{"Clients", &c.Clients, DefaultClients, 1 << 26},
		{"Sockets", &c.Sockets, DefaultSockets, 1 << 26},
		{"MaglevSize", &c.MaglevSize, DefaultMaglevSize, 131071},
		{"Maglevs", &c.Maglevs, DefaultMaglevs, 1 << 20},
	} {
		if *f.at == 0 {
			*f.at = f.def
		}
		if *f.at < 1 || *f.at > f.most {
			return c, invalid.Errorf("%s is %d, want 1 to %d", f.name, *f.at, f.most)
		}
	}
	if c.DrainTimeout == 0 {
		c.DrainTimeout = 6 * time.Hour
	}
	if c.SweepInterval == 0 {
		c.SweepInterval = 10 * time.Second
	}
	if c.DrainTimeout < 0 || c.SweepInterval < 0 {
		return c, invalid.Errorf("DrainTimeout is %s and SweepInterval %s, want more than 0", c.DrainTimeout, c.SweepInterval)
	}
	if c.FirstNodePort == 0 {
		c.FirstNodePort = DefaultFirstNodePort
	}
	if c.LastNodePort == 0 {
		c.LastNodePort = max(DefaultLastNodePort, c.FirstNodePort)
	}
	if c.LastNodePort < c.FirstNodePort {
		return c, invalid.Errorf("FirstNodePort is %d and LastNodePort %d: the range is empty", c.FirstNodePort, c.LastNodePort)
	}
	if !isPrime(uint32(c.MaglevSize)) {
		return c, invalid.Errorf("MaglevSize is %d, which is no prime", c.MaglevSize)
	}
	var err error
	if c.Node != (netip.Addr{}) {
		if c.Node, err = wire.CheckAddr(c.Node); err != nil {
			return c, invalid.Errorf("Node: %w", err)
		}
	}
	c.NodeAddrs = slices.Clone(c.NodeAddrs)
	for i, a := range c.NodeAddrs {
		if c.NodeAddrs[i], err = wire.CheckAddr(a); err != nil {
			return c, invalid.Errorf("NodeAddrs: %w", err)
		}
	}
	hairpin := defaultHairpin
	for _, a := range c.Hairpin {
		a = a.Unmap()
		if !a.IsValid() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return c, invalid.Errorf("Hairpin: address %s can not be a source", a)
		}
		if a.Is4() {
			hairpin[0] = a
		} else {
			hairpin[1] = a
		}
	}
	c.Hairpin = hairpin[:]
	return c, nil
}
