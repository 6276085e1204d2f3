// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/ticks"
	"github.com/godatapath/datapath/internal/wire"
)

// compiled is a service in rows of the tables. Rows that services share, those
// of backends and of addresses, are told by what they are about.
type compiled struct {
	id        uint32
	info      bpf.TableServiceInfo
	frontends map[bpf.TableFrontendKey]bpf.TableFrontend
	slots     map[bpf.TableSlotKey]bpf.TableSlot
	maglevs   map[uint32][]uint32 // set to table
	members   map[bpf.TableMemberKey]bpf.TableMember
	ranges    map[bpf.TableSourceRangeKey]uint32
	addrs     map[bpf.TableAddress]bool // of the frontends; true: one is the services' own
	backends  map[netip.AddrPort]uint32 // their ids
}

// compiler knows what services do not say themselves.
type compiler struct {
	cfg   Config
	clock ticks.Clock
	set   func() uint32               // a new number for a set
	ids   func(netip.AddrPort) uint32 // of a backend
}

func (c *compiler) compile(id uint32, s Service) (*compiled, error) {
	out := &compiled{
		id: id, info: infoOf(s),
		frontends: map[bpf.TableFrontendKey]bpf.TableFrontend{},
		slots:     map[bpf.TableSlotKey]bpf.TableSlot{},
		maglevs:   map[uint32][]uint32{},
		members:   map[bpf.TableMemberKey]bpf.TableMember{},
		ranges:    map[bpf.TableSourceRangeKey]uint32{},
		addrs:     map[bpf.TableAddress]bool{},
		backends:  map[netip.AddrPort]uint32{},
	}
	for _, b := range s.Backends {
		out.backends[b.Addr] = c.ids(b.Addr)
		out.members[memberKey(id, b.Addr)] = memberOf(b, out.backends[b.Addr])
	}
	sets := map[Policy]bpf.TableFrontend{} // what all frontends of a policy have
	withRanges := map[uint32]bool{}        // the sets of those that look at them
	rowOf := func(f Frontend, policy Policy) (bpf.TableFrontend, error) {
		row, ok := sets[policy]
		if !ok {
			var err error
			if row, err = c.choice(out, s, policy); err != nil {
				return row, err
			}
			sets[policy] = row
		}
		row.Type = uint8(f.Type)
		if f.Type == ClusterIP {
			return row, nil
		}
		if len(s.SourceRanges) > 0 {
			row.Flags |= uint16(bpf.TableFrontendFlagFRONTEND_RANGES)
			withRanges[row.Set] = true
		}
		if s.Direct {
			row.Flags |= uint16(bpf.TableFrontendFlagFRONTEND_DIRECT)
		}
		return row, nil
	}
	for _, f := range s.Frontends {
		policy := Cluster // Service.External is for clients from outside
		if f.Type == ClusterIP {
			policy = s.Internal
		}
		row, err := rowOf(f, policy)
		if err != nil {
			return nil, err
		}
		var outside *bpf.TableFrontend
		if f.Type != ClusterIP && s.External != Cluster {
			own, err := rowOf(f, s.External)
			if err != nil {
				return nil, err
			}
			outside = &own
			row.Flags |= uint16(bpf.TableFrontendFlagFRONTEND_SCOPED)
		}
		for _, at := range c.places(f) {
			key := frontendKey(at, f.Protocol)
			out.frontends[key] = row
			if outside != nil {
				key.Scope = uint8(bpf.TableFrontendScopeSCOPE_OUTSIDE)
				out.frontends[key] = *outside
			}
			addr := wire.Addr(at.Addr())
			out.addrs[addr] = out.addrs[addr] || c.ownsAddress(f.Type, at.Addr())
		}
	}
	if len(withRanges) == 0 {
		for _, row := range sets {
			withRanges[row.Set] = true // so that they are known again after a restart
			break
		}
	}
	for set := range withRanges {
		for _, p := range s.SourceRanges {
			out.ranges[rangeKey(set, p)] = 1
		}
	}
	return out, nil
}

// ownsAddress tells whether nothing but services is at an address.
func (c *compiler) ownsAddress(t FrontendType, addr netip.Addr) bool {
	return t.ownsAddress() && !slices.Contains(c.cfg.NodeAddrs, addr)
}

// choice makes the set of a policy and the row that leads to it.
func (c *compiler) choice(out *compiled, s Service, policy Policy) (bpf.TableFrontend, error) {
	row := bpf.TableFrontend{Service: out.id, Set: c.set(), Affinity: c.clock.Of(s.Affinity)}
	if s.NoBackend == Reject {
		row.Flags |= uint16(bpf.TableFrontendFlagFRONTEND_REJECT)
	}
	if s.DenySources {
		row.Flags |= uint16(bpf.TableFrontendFlagFRONTEND_DENY)
	}
	if policy == Local {
		row.Flags |= uint16(bpf.TableFrontendFlagFRONTEND_LOCAL)
	}
	all, state := c.candidates(out, s, policy)
	if state == Terminating {
		row.Flags |= uint16(bpf.TableFrontendFlagFRONTEND_LAST)
	}
	if s.Algorithm == Maglev {
		row.Flags |= uint16(bpf.TableFrontendFlagFRONTEND_MAGLEV)
		if len(all) > c.cfg.MaglevSize {
			return row, invalid.Errorf("%d backends in a Maglev table of %d slots: make Config.MaglevSize a hundred times as large", len(all), c.cfg.MaglevSize)
		}
		if table := maglevTable(all, uint32(c.cfg.MaglevSize), c.cfg.MaglevSeed); table != nil {
			if b := withoutSlot(all, table); b.IsValid() {
				return row, invalid.Errorf("backend %s gets none of the %d slots of the Maglev table: its weight is too small beside the others', or Config.MaglevSize", b, c.cfg.MaglevSize)
			}
			out.maglevs[row.Set] = table
			row.Count = uint32(c.cfg.MaglevSize)
		}
		return row, nil
	}
	for i, s := range aliasTable(all) {
		out.slots[bpf.TableSlotKey{Set: row.Set, Index: uint32(i)}] = bpf.TableSlot{First: s.first, Second: s.second, Below: s.below}
		row.Count++
	}
	return row, nil
}

// withoutSlot is a candidate that a Maglev table does not have; zero: there is
// none.
func withoutSlot(all []candidate, table []uint32) netip.AddrPort {
	has := make(map[uint32]bool, len(all))
	for _, id := range table {
		has[id] = true
	}
	for _, c := range all {
		if !has[c.id] {
			return c.addr
		}
	}
	return netip.AddrPort{}
}

// candidates are the backends that get new flows: the active ones, or if there
// is none those that are about to go. All are of the state.
func (c *compiler) candidates(out *compiled, s Service, policy Policy) (all []candidate, _ State) {
	for _, state := range []State{Active, Terminating} {
		for _, b := range s.Backends {
			if b.State == state && (policy == Cluster || b.Node == c.cfg.Node) {
				all = append(all, candidate{id: out.backends[b.Addr], addr: b.Addr, weight: uint32(b.Weight)})
			}
		}
		if len(all) > 0 {
			return all, state
		}
	}
	return nil, Active
}

// places are the addresses of a frontend on this node. A wildcard has a row of
// its own too: sockets that would be bound to it are kept off by that.
func (c *compiler) places(f Frontend) []netip.AddrPort {
	all := []netip.AddrPort{f.Addr}
	if !f.isWildcard() {
		return all
	}
	for _, a := range c.cfg.NodeAddrs {
		if a.Is4() == f.Addr.Addr().Is4() {
			all = append(all, netip.AddrPortFrom(a, f.Addr.Port()))
		}
	}
	return all
}

func frontendKey(at netip.AddrPort, p Protocol) bpf.TableFrontendKey {
	return bpf.TableFrontendKey{Addr: wire.Addr(at.Addr()), Port: wire.Port(at.Port()), Protocol: uint8(p)}
}

func memberKey(service uint32, at netip.AddrPort) bpf.TableMemberKey {
	return bpf.TableMemberKey{Service: service, Addr: wire.Addr(at.Addr()), Port: wire.Port(at.Port())}
}

func memberOf(b Backend, id uint32) bpf.TableMember {
	m := bpf.TableMember{Backend: id, Weight: uint16(b.Weight), State: uint8(b.State), Node: wire.Addr(b.Node)}
	copy(m.Zone[:], b.Zone)
	return m
}

func backendOf(at netip.AddrPort) bpf.TableBackend {
	return bpf.TableBackend{Addr: wire.Addr(at.Addr()), Port: wire.Port(at.Port())}
}

func rangeKey(set uint32, p netip.Prefix) bpf.TableSourceRangeKey {
	k := wire.PrefixKey(p)
	return bpf.TableSourceRangeKey{Prefixlen: 32 + k.Prefixlen, Set: bigEndian(set), Addr: k.Addr}
}

// bigEndian turns a number into the one that has its bytes in network order: in
// a trie it is compared bit by bit.
func bigEndian(n uint32) uint32 {
	return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, n))
}

func infoOf(s Service) bpf.TableServiceInfo {
	i := bpf.TableServiceInfo{
		AffinitySeconds: uint32(s.Affinity / time.Second), Maglev: uint8(s.Algorithm), ExternalLocal: uint8(s.External),
		InternalLocal: uint8(s.Internal), Reject: 1 - uint8(s.NoBackend), OnRemove: uint8(s.OnRemove),
	}
	if s.DenySources {
		i.Deny = 1
	}
	if s.Direct {
		i.Direct = 1
	}
	copy(i.Name[:], s.Name)
	return i
}

// sets are those that a service's frontends lead to, or that are there for it.
func (c *compiled) sets() map[uint32]bool {
	all := map[uint32]bool{}
	for _, row := range c.frontends {
		all[row.Set] = true
	}
	for k := range c.slots {
		all[k.Set] = true
	}
	for set := range c.maglevs {
		all[set] = true
	}
	return all
}

// isAs tells whether rows are those of another compilation, but for the numbers of
// the sets. Maglev tables are not known well enough.
func (c *compiled) isAs(o *compiled) bool {
	if c.info != o.info || len(c.maglevs)+len(o.maglevs) > 0 || !maps.Equal(c.members, o.members) || !maps.Equal(c.addrs, o.addrs) ||
		!maps.Equal(c.backends, o.backends) || len(c.frontends) != len(o.frontends) || len(c.slots) != len(o.slots) || len(c.ranges) != len(o.ranges) {
		return false
	}
	sets := map[uint32]uint32{}
	for k, row := range c.frontends {
		other, ok := o.frontends[k]
		if !ok {
			return false
		}
		if set, known := sets[row.Set]; known && set != other.Set {
			return false
		}
		sets[row.Set], row.Set = other.Set, other.Set
		if row != other {
			return false
		}
	}
	for k, slot := range c.slots {
		if other, ok := o.slots[bpf.TableSlotKey{Set: sets[k.Set], Index: k.Index}]; !ok || other != slot {
			return false
		}
	}
	for k := range c.ranges {
		k.Set = bigEndian(sets[bigEndian(k.Set)])
		if _, ok := o.ranges[k]; !ok {
			return false
		}
	}
	return true
}
