// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/wire"
)

// Protocol is a transport by its number in the IP header.
type Protocol uint8

// The transports of services. SCTP's checksum covers its ports in a way that
// can not be followed, so there a frontend and its backends have one port.
const (
	TCP  Protocol = unix.IPPROTO_TCP
	UDP  Protocol = unix.IPPROTO_UDP
	SCTP Protocol = unix.IPPROTO_SCTP
)

// String names the transport.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	default:
		return fmt.Sprintf("protocol %d", uint8(p))
	}
}

// FrontendType says what kind of address a frontend is at.
type FrontendType uint8

// The types of frontends. The addresses of ClusterIP, ExternalIP and
// LoadBalancer are the services' own: echoes are answered there, and a port that
// no service has is refused. Those of NodePort and HostPort are a node's.
const (
	ClusterIP    = FrontendType(bpf.TableFrontendTypeFRONTEND_CLUSTER_IP) // the default
	NodePort     = FrontendType(bpf.TableFrontendTypeFRONTEND_NODE_PORT)
	ExternalIP   = FrontendType(bpf.TableFrontendTypeFRONTEND_EXTERNAL_IP)
	LoadBalancer = FrontendType(bpf.TableFrontendTypeFRONTEND_LOAD_BALANCER)
	HostPort     = FrontendType(bpf.TableFrontendTypeFRONTEND_HOST_PORT)
)

// String is the type as Kubernetes writes it.
func (t FrontendType) String() string {
	switch t {
	case ClusterIP:
		return "ClusterIP"
	case NodePort:
		return "NodePort"
	case ExternalIP:
		return "ExternalIP"
	case LoadBalancer:
		return "LoadBalancer"
	case HostPort:
		return "HostPort"
	default:
		return fmt.Sprintf("FrontendType(%d)", uint8(t))
	}
}

// ownsAddress tells whether nothing but services is at such an address, unless it
// is the node's.
func (t FrontendType) ownsAddress() bool { return t != NodePort && t != HostPort }

// Frontend is where clients reach a service.
type Frontend struct {
	// Addr is address and port, neither of them zero, but for a NodePort or a
	// HostPort: the unspecified address of a family stands for all of
	// Config.NodeAddrs of that family.
	Addr     netip.AddrPort
	Protocol Protocol     // 0: TCP
	Type     FrontendType // 0: ClusterIP
}

// String is the frontend as in "10.96.0.1:80/TCP".
func (f Frontend) String() string { return fmt.Sprintf("%s/%s", f.Addr, f.Protocol) }

// State is how far a backend may be used.
type State uint8

// The states of a backend. Only an active one gets new flows; if there is none,
// a terminating one does. Established flows go on in every state.
const (
	Active      = State(bpf.TableMemberStateMEMBER_ACTIVE) // the default
	Terminating = State(bpf.TableMemberStateMEMBER_TERMINATING)
	Quarantined = State(bpf.TableMemberStateMEMBER_QUARANTINED)
	Maintenance = State(bpf.TableMemberStateMEMBER_MAINTENANCE)
	// Draining is a backend that was removed with [Drain]. It is told, not set.
	Draining = State(bpf.TableMemberStateMEMBER_DRAINING)
)

// String names the state.
func (s State) String() string {
	switch s {
	case Active:
		return "active"
	case Terminating:
		return "terminating"
	case Quarantined:
		return "quarantined"
	case Maintenance:
		return "maintenance"
	case Draining:
		return "draining"
	default:
		return fmt.Sprintf("State(%d)", uint8(s))
	}
}

// Backend is who serves.
type Backend struct {
	// Addr is of the family of the service's frontends. The address of a node, as a
	// pod in the host's network has it, can be asked from inside and by way of another
	// node; a client from outside that asks this very node is dropped, "no endpoint".
	Addr   netip.AddrPort
	State  State      // 0: Active
	Weight int        // share of the new flows, 1 to 65535; 0: 1
	Node   netip.Addr // of the node that has it, as Config.Node; zero: not told, and not local
	Zone   string     // for tools: the choice does not look at it; up to 32 bytes
}

// Algorithm chooses a backend for a new flow.
type Algorithm uint8

const (
	// Random chooses by weight, anew for each flow.
	Random Algorithm = iota
	// Maglev chooses by the client's tuple, the same on every node, and moves few
	// flows when the backends change.
	Maglev
)

// String names the algorithm.
func (a Algorithm) String() string {
	switch a {
	case Random:
		return "random"
	case Maglev:
		return "maglev"
	default:
		return fmt.Sprintf("Algorithm(%d)", uint8(a))
	}
}

// Policy says which backends a frontend leads to.
type Policy uint8

const (
	// Cluster is all backends.
	Cluster Policy = iota
	// Local is those of this node, see Backend.Node.
	Local
)

// NoBackend says what a client gets if there is nobody to serve it.
type NoBackend uint8

const (
	// Reject tells it at once: a reset, or ICMP port unreachable; ECONNREFUSED to a
	// socket.
	Reject NoBackend = iota
	// Drop leaves it waiting. A socket that is translated can not wait for nothing:
	// its system call fails with EHOSTUNREACH.
	Drop
)

// Removal says what becomes of the flows of a backend that is removed. With Reset
// and Purge, connected sockets that [Balancer.AttachSockets] has translated to it
// are ended too (kernel 6.5), for their packets show nothing of the service: those
// that are remembered (Config.Sockets), in the namespaces that SocketConfig names.
// TCP then has ECONNABORTED; a datagram socket has it once, and EDESTADDRREQ until
// it connects again. They can be joined with [DestroySockets] by or.
type Removal uint8

const (
	// Reset ends them: the next packet of a TCP connection is answered with a
	// reset, and that of any other flow goes to another backend.
	Reset Removal = iota
	// Drain lets them end in peace. It is for a backend that still runs: who gets
	// its address before the flows are over gets their packets.
	Drain
	// Purge forgets them: the next packet of each is that of a new flow.
	Purge
	// DestroySockets ends these sockets with any policy, and it is an error if the
	// kernel can not.
	DestroySockets Removal = 1 << 7
)

func (r Removal) policy() Removal { return r &^ DestroySockets }

// endsSockets tells whether connected sockets end with the backend.
func (r Removal) endsSockets() bool { return r&DestroySockets != 0 || r.policy() != Drain }

// Service is a set of frontends that lead to a set of backends.
type Service struct {
	Name      string // unique; up to 127 bytes, such as "namespace/name:port"
	Frontends []Frontend
	Backends  []Backend
	Algorithm Algorithm
	// Affinity is how long a client stays with the backend that it had last, in
	// whole seconds up to a day, counted from its last new flow; 0: it does not.
	// A client is its address, and for translated sockets the network namespace.
	Affinity time.Duration
	// Internal is for the frontends of type ClusterIP. External is for the others,
	// and for clients from outside only: who asks there from inside, an endpoint or
	// a socket of the node, is not outside, and reaches all backends.
	External, Internal Policy
	// SourceRanges are the clients that are served, or with DenySources those that
	// are not, of the family of the frontends. Empty: all are. They do not concern
	// frontends of type ClusterIP.
	SourceRanges []netip.Prefix
	DenySources  bool
	NoBackend    NoBackend
	// Direct has backends on other nodes answer clients from outside themselves, with
	// the address that was asked, and see the clients' own addresses. The nodes must
	// route the endpoints' packets as they are: through an overlay there is no such
	// way, and these backends are reached and answer as without it. The first packets
	// of a TCP flow and each datagram of UDP that has room for it are longer by 8
	// bytes, of IPv6 by 24, and the network between the nodes must not drop IP
	// options. Frontends of type ClusterIP are not concerned.
	// It takes Algorithm Maglev: the node that is asked sees no answer, so it can tell
	// nobody who goes on from one who forges, and lets such flows go when it is short
	// of room; their next packets must find the same backend.
	Direct bool
	// OnRemove is for backends that a SetService or Sync leaves out, and for all of
	// them when the service goes. Then Drain is Reset: without its frontends no
	// flow can go on.
	OnRemove Removal
}

const (
	maxName     = 127
	maxZone     = 32
	maxWeight   = 65535
	maxBackends = 65536 // of one service
	maxAffinity = 24 * time.Hour
)

// check returns the service in the form in which it is kept: addresses unmapped,
// defaults filled in, lists in order.
func (s Service) check(cfg Config) (Service, error) {
	fail := func(format string, args ...any) (Service, error) {
		return s, invalid.Errorf("service %q: "+format, append([]any{s.Name}, args...)...)
	}
	if s.Name == "" || len(s.Name) > maxName {
		return fail("its name has %d bytes, want 1 to %d", len(s.Name), maxName)
	}
	if strings.ContainsRune(s.Name, 0) {
		return fail("its name has a zero byte")
	}
	if len(s.Frontends) == 0 {
		return fail("it has no frontend")
	}
	if s.Direct && s.Algorithm != Maglev {
		return fail("it is Direct and chooses at random: Direct takes Algorithm Maglev")
	}
	is4 := s.Frontends[0].Addr.Addr().Unmap().Is4()
	s.Frontends = slices.Clone(s.Frontends)
	seen := map[Frontend]bool{}
	sctp := uint16(0)
	for i, f := range s.Frontends {
		f, err := f.check()
		if err != nil {
			return fail("frontend %s: %w", f, err)
		}
		if slices.Contains(cfg.Hairpin, f.Addr.Addr()) {
			return fail("frontend %s: it is at the address of Config.Hairpin", f)
		}
		if f.Addr.Addr().Is4() != is4 {
			return fail("frontend %s: the families are mixed, and there is no translation between them: make a service for each", f)
		}
		if port := f.Addr.Port(); f.Type == NodePort && (port < cfg.FirstNodePort || port > cfg.LastNodePort) {
			return fail("frontend %s: a NodePort is %d to %d here: take one of these, or set Config.FirstNodePort and LastNodePort", f, cfg.FirstNodePort, cfg.LastNodePort)
		}
		at := f
		at.Type = 0
		if seen[at] {
			return fail("frontend %s: it comes twice", f)
		}
		seen[at] = true
		if f.Protocol == SCTP {
			sctp = f.Addr.Port()
		}
		s.Frontends[i] = f
	}
	if len(s.Backends) > maxBackends {
		return fail("%d backends, want up to %d", len(s.Backends), maxBackends)
	}
	s.Backends = slices.Clone(s.Backends)
	if len(s.Backends) == 0 {
		s.Backends = nil
	}
	at := map[netip.AddrPort]bool{}
	for i, b := range s.Backends {
		b, err := b.check()
		if err != nil {
			return fail("backend %s: %w", b.Addr, err)
		}
		switch {
		case b.Addr.Addr().Is4() != is4:
			return fail("backend %s: it is not of the frontends' family, and there is no translation between them", b.Addr)
		case slices.Contains(cfg.Hairpin, b.Addr.Addr()):
			return fail("backend %s: it is at the address of Config.Hairpin", b.Addr)
		case at[b.Addr]:
			return fail("backend %s: it comes twice", b.Addr)
		case sctp != 0 && b.Addr.Port() != sctp:
			return fail("backend %s: the port of SCTP can not be translated, want %d", b.Addr, sctp)
		}
		at[b.Addr] = true
		s.Backends[i] = b
	}
	if s.Algorithm > Maglev {
		return fail("the algorithm is %s, want Random or Maglev", s.Algorithm)
	}
	if s.Affinity < 0 || s.Affinity > maxAffinity || s.Affinity%time.Second != 0 {
		return fail("Affinity is %s, want whole seconds up to %s, or 0 for none", s.Affinity, maxAffinity)
	}
	if s.External > Local || s.Internal > Local {
		return fail("a traffic policy that does not exist: want Cluster or Local")
	}
	if (s.External == Local || s.Internal == Local) && !cfg.Node.IsValid() {
		return fail("a policy of Local, and nobody knows which node this is: set Config.Node")
	}
	if s.NoBackend > Drop {
		return fail("NoBackend is %d, want Reject or Drop", s.NoBackend)
	}
	if s.OnRemove.policy() > Purge {
		return fail("OnRemove is %#x, want Reset, Drain or Purge, with DestroySockets or without", uint8(s.OnRemove))
	}
	s.SourceRanges = slices.Clone(s.SourceRanges)
	for i, p := range s.SourceRanges {
		p, err := wire.CheckPrefix(p)
		if err != nil {
			return fail("source range: %w", err)
		}
		if p.Addr().Is4() != is4 {
			return fail("source range %s: it is not of the frontends' family", p)
		}
		s.SourceRanges[i] = p
	}
	slices.SortFunc(s.Frontends, compareFrontends)
	slices.SortFunc(s.Backends, func(a, b Backend) int { return a.Addr.Compare(b.Addr) })
	slices.SortFunc(s.SourceRanges, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	s.SourceRanges = slices.Compact(s.SourceRanges)
	return s, nil
}

func compareFrontends(a, b Frontend) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Type, b.Type))
}

func (f Frontend) check() (Frontend, error) {
	if f.Protocol == 0 {
		f.Protocol = TCP
	}
	if f.Type == 0 {
		f.Type = ClusterIP
	}
	f.Addr = netip.AddrPortFrom(f.Addr.Addr().Unmap(), f.Addr.Port())
	if f.Protocol != TCP && f.Protocol != UDP && f.Protocol != SCTP {
		return f, fmt.Errorf("its protocol is %d, want TCP, UDP or SCTP", uint8(f.Protocol))
	}
	if f.Type > HostPort {
		return f, fmt.Errorf("its type is %d, want ClusterIP to HostPort", uint8(f.Type))
	}
	if f.Addr.Port() == 0 {
		return f, fmt.Errorf("its port is 0")
	}
	if f.isWildcard() {
		return f, nil
	}
	addr, err := wire.CheckAddr(f.Addr.Addr())
	if err != nil {
		return f, err
	}
	f.Addr = netip.AddrPortFrom(addr, f.Addr.Port())
	return f, nil
}

// isWildcard tells whether the frontend is at all addresses of the node.
func (f Frontend) isWildcard() bool {
	return f.Addr.Addr().IsUnspecified() && !f.Type.ownsAddress()
}

func (b Backend) check() (Backend, error) {
	addr, err := wire.CheckAddr(b.Addr.Addr())
	if err != nil {
		return b, err
	}
	b.Addr = netip.AddrPortFrom(addr, b.Addr.Port())
	if b.State == 0 {
		b.State = Active
	}
	if b.Weight == 0 {
		b.Weight = 1
	}
	switch {
	case b.Addr.Port() == 0:
		return b, fmt.Errorf("its port is 0")
	case b.State > Maintenance:
		return b, fmt.Errorf("its state is %s, want Active to Maintenance", b.State)
	case b.Weight < 0 || b.Weight > maxWeight:
		return b, fmt.Errorf("its weight is %d, want 1 to %d, or 0 for 1", b.Weight, maxWeight)
	case len(b.Zone) > maxZone || strings.ContainsRune(b.Zone, 0):
		return b, fmt.Errorf("its zone has %d bytes, want up to %d, and none of them zero", len(b.Zone), maxZone)
	}
	if b.Node != (netip.Addr{}) {
		if b.Node, err = wire.CheckAddr(b.Node); err != nil {
			return b, fmt.Errorf("its node: %w", err)
		}
	}
	return b, nil
}
