// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"iter"
	gomaps "maps"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/node"
	"github.com/godatapath/datapath/internal/undo"
	"github.com/godatapath/datapath/internal/wire"
	"github.com/godatapath/datapath/maps"
)

// Defaults of [NAT].
const (
	// DefaultFirstPort and DefaultLastPort keep away from the ports that Linux takes
	// for the node's own connections (ip_local_port_range, 32768 and up) and from
	// those of NodePorts in Kubernetes (30000 and up): none of them is ever told
	// from a flow's by luck.
	DefaultFirstPort     = 1024
	DefaultLastPort      = 29999
	DefaultUnmasqueraded = 1024
	DefaultPortHints     = 64
	unmasqueradedTable   = bpf.TableMapUnmasqueraded
	natHintsTable        = bpf.TableMapNatHints
	natRangeTable        = bpf.TableMapNatRange
	natEventsTable       = bpf.TableMapNatEvents
	longestSearch        = 128 // tries; PORT_TRIES
)

// NAT describes how flows leave in the node's name. A flow that does gets a port
// of the node: its own, if that is in the range and free, else one of the range at
// random. Free is what no other flow with the same destination has, no socket of
// the node is reached by, no service is at and the overlay does not use.
type NAT struct {
	// Masquerade gives what endpoints send out of the node an address of the uplink
	// that it leaves by, see programs.Datapath.AttachDevice. Without it only the
	// packets of services to backends on other nodes get an address of the node.
	Masquerade bool
	// Unmasqueraded is how many prefixes [Table.SetUnmasqueraded] can hold; 0:
	// [DefaultUnmasqueraded].
	Unmasqueraded int
	// FirstPort and LastPort are the range; 0: [DefaultFirstPort] and
	// [DefaultLastPort]. A range that has ports of ip_local_port_range in it can
	// meet those of the node's own connections that begin later.
	FirstPort, LastPort uint16
	// PortHints is how many destinations have hints of their own about which ports
	// are free, 8 KiB each, rounded up to a power of two; 0: [DefaultPortHints].
	// More destinations than that share them: a search may take longer then.
	PortHints int
}

func (n NAT) withDefaults() (NAT, error) {
	if n.FirstPort == 0 {
		n.FirstPort = DefaultFirstPort
	}
	if n.LastPort == 0 {
		n.LastPort = max(DefaultLastPort, n.FirstPort)
	}
	if n.LastPort < n.FirstPort {
		return n, invalid.Errorf("NAT: ports %d to %d: the range is empty", n.FirstPort, n.LastPort)
	}
	if n.Unmasqueraded == 0 {
		n.Unmasqueraded = DefaultUnmasqueraded
	}
	if n.Unmasqueraded < 1 || n.Unmasqueraded > 1<<24 {
		return n, invalid.Errorf("NAT.Unmasqueraded is %d, want 1 to %d", n.Unmasqueraded, 1<<24)
	}
	if n.PortHints == 0 {
		n.PortHints = DefaultPortHints
	}
	if n.PortHints < 1 || n.PortHints > 1<<16 {
		return n, invalid.Errorf("NAT.PortHints is %d, want 1 to %d", n.PortHints, 1<<16)
	}
	n.PortHints = 1 << bits.Len(uint(n.PortHints-1))
	return n, nil
}

func (n NAT) ports() int { return int(n.LastPort) - int(n.FirstPort) + 1 }

// nat is what a table has for NAT.
type nat struct {
	prefixes *maps.Map[bpf.TablePrefixKey, uint32]
	hints    *maps.Map[uint32, bpf.TableNatPorts]
	events   *maps.Map[uint32, []uint64]
	ports    *maps.Map[uint32, bpf.TableNatRange]
	epoch    *node.Epoch
}

func (t *Table) makeNAT(u *undo.Stack, spec *ebpf.CollectionSpec) (err error) {
	if t.cfg.NAT == nil {
		return nil
	}
	n := &nat{epoch: node.NewEpoch(t.cfg.Pins)}
	t.nat = n
	if n.prefixes, err = table[bpf.TablePrefixKey, uint32](u, spec.Maps[unmasqueradedTable], t.cfg.NAT.Unmasqueraded, t.cfg, nil); err != nil {
		return err
	}
	if n.hints, err = table[uint32, bpf.TableNatPorts](u, spec.Maps[natHintsTable], t.cfg.NAT.PortHints, t.cfg, func(_, _ *ebpf.Map) error { return nil }); err != nil {
		return err
	}
	if n.events, err = table[uint32, []uint64](u, spec.Maps[natEventsTable], 0, t.cfg, nil); err != nil {
		return err
	}
	if n.ports, err = table[uint32, bpf.TableNatRange](u, spec.Maps[natRangeTable], 0, t.cfg, nil); err != nil {
		return err
	}
	return n.ports.Set(0, bpf.TableNatRange{First: t.cfg.NAT.FirstPort, Last: t.cfg.NAT.LastPort})
}

// openNAT opens what a pinned table has for NAT, if it has it.
func (t *Table) openNAT(pins string, spec *ebpf.CollectionSpec) (err error) {
	n := &nat{epoch: node.NewEpoch(pins)}
	n.prefixes, err = maps.OpenSpec(filepath.Join(pins, unmasqueradedTable), maps.Spec[bpf.TablePrefixKey, uint32]{Map: spec.Maps[unmasqueradedTable], Schema: schema})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	t.nat = n
	if n.events, err = maps.OpenSpec(filepath.Join(pins, natEventsTable), maps.Spec[uint32, []uint64]{Map: spec.Maps[natEventsTable], Schema: schema}); err != nil {
		return err
	}
	n.ports, err = maps.OpenSpec(filepath.Join(pins, natRangeTable), maps.Spec[uint32, bpf.TableNatRange]{Map: spec.Maps[natRangeTable], Schema: schema})
	return err
}

// prefixesFit refuses pinned prefixes that are too many, before anything is replaced.
func prefixesFit(spec *ebpf.CollectionSpec, cfg Config) error {
	if cfg.NAT == nil || cfg.Pins == "" || cfg.OnMismatch != maps.Migrate {
		return nil
	}
	old, err := maps.OpenSpec(filepath.Join(cfg.Pins, unmasqueradedTable), maps.Spec[bpf.TablePrefixKey, uint32]{Map: spec.Maps[unmasqueradedTable].Copy(), Schema: schema})
	if err != nil {
		return nil // there is none, or making it tells what is wrong with it
	}
	defer old.Close()
	n, err := old.Len()
	if err == nil && n > cfg.NAT.Unmasqueraded {
		err = fmt.Errorf("%d prefixes do not fit NAT.Unmasqueraded, which is %d: %w", n, cfg.NAT.Unmasqueraded, unix.E2BIG)
	}
	if err != nil {
		return fmt.Errorf("make table %s: %w", unmasqueradedTable, err)
	}
	return nil
}

// removeLeftNAT takes away the pins of an earlier table with NAT.
func removeLeftNAT(pins string) error {
	if pins == "" {
		return nil
	}
	var errs []error
	for _, name := range []string{natRangeTable, natEventsTable, natHintsTable, unmasqueradedTable} {
		if err := os.Remove(filepath.Join(pins, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (n *nat) close() error {
	if n == nil {
		return nil
	}
	var errs []error
	if n.ports != nil {
		errs = append(errs, n.ports.Close())
	}
	if n.events != nil {
		errs = append(errs, n.events.Close())
	}
	if n.hints != nil {
		errs = append(errs, n.hints.Close())
	}
	if n.prefixes != nil {
		errs = append(errs, n.prefixes.Close())
	}
	return errors.Join(errs...)
}

func (n *nat) remove() error {
	if n == nil {
		return nil
	}
	return errors.Join(n.ports.Remove(), n.events.Remove(), n.hints.Remove(), n.prefixes.Remove())
}

// natSettings are load-time constants of all programs that touch flows.
func (t *Table) natSettings() map[string]any {
	n := t.cfg.NAT
	if n == nil {
		return nil
	}
	out := map[string]any{
		"with_nat": uint8(1), "with_translation": uint8(1), "nat_first": n.FirstPort, "nat_count": uint32(n.ports()), "nat_mask": uint32(n.PortHints - 1),
	}
	if n.Masquerade {
		out["with_masquerade"] = uint8(1)
	}
	return out
}

// SetUnmasqueraded sets the prefixes whose hosts see the endpoints' own addresses:
// those that are routed natively, other nodes, whatever must know who asks. All
// others see the node's. Flows that are there begin anew where that has changed
// for them. Prefixes may overlap.
func (t *Table) SetUnmasqueraded(prefixes []netip.Prefix) error {
	if t.nat == nil {
		return invalid.Errorf("set the unmasqueraded prefixes: the flow table was made without Config.NAT")
	}
	want := map[bpf.TablePrefixKey]uint32{}
	for _, p := range prefixes {
		p, err := wire.CheckPrefix(p)
		if err != nil {
			return fmt.Errorf("set the unmasqueraded prefixes: %w", err)
		}
		want[wire.PrefixKey(p)] = 0
	}
	changed, err := t.nat.prefixes.Sync(gomaps.All(want))
	if err != nil {
		err = fmt.Errorf("set the unmasqueraded prefixes: %w", err)
		if changed != (maps.Changes{}) {
			err = errors.Join(err, t.nat.epoch.Changed()) // some have
		}
		return err
	}
	if changed == (maps.Changes{}) {
		return t.nat.epoch.Unchanged()
	}
	return t.nat.epoch.Changed()
}

// Unmasqueraded lists what SetUnmasqueraded has set, in no order.
func (t *Table) Unmasqueraded() iter.Seq2[netip.Prefix, error] {
	return func(yield func(netip.Prefix, error) bool) {
		if t.nat == nil {
			return
		}
		for e, err := range t.nat.prefixes.All() {
			if err != nil {
				yield(netip.Prefix{}, fmt.Errorf("list the unmasqueraded prefixes: %w", err))
				return
			}
			if !yield(wire.GoPrefix(e.Key), nil) {
				return
			}
		}
	}
}

// NATStats counts the searches for a port since the table was made.
type NATStats struct {
	Kept      uint64 // flows that kept their own
	Found     uint64 // flows that got another one
	Exhausted uint64 // packets that were dropped because no port was found in as many tries as are made
	// Tries tells how many ports were tried for the flows of Found: element i counts
	// those with 2^i to 2^(i+1)-1 tries. No more than 128 are made.
	Tries []uint64
}

// NATStats is os.ErrInvalid if the table was made without Config.NAT.
func (t *Table) NATStats() (NATStats, error) {
	if t.nat == nil {
		return NATStats{}, invalid.Errorf("count the searches for a port: the flow table was made without Config.NAT")
	}
	var out NATStats
	all := map[bpf.TableNatEvent]uint64{}
	for e, err := range t.nat.events.All() {
		if err != nil {
			return NATStats{}, fmt.Errorf("count the searches for a port: %w", err)
		}
		for _, n := range e.Value {
			all[bpf.TableNatEvent(e.Key)] += n
		}
	}
	out.Kept, out.Exhausted = all[bpf.TableNatEventNAT_KEPT], all[bpf.TableNatEventNAT_EXHAUSTED]
	for i := range bits.Len(longestSearch) {
		n := all[bpf.TableNatEvent(int(bpf.TableNatEventNAT_TRIES)+i)]
		out.Tries = append(out.Tries, n)
		out.Found += n
	}
	return out, nil
}

// PortRange is the first and the last port that a flow may get, NAT.FirstPort and
// LastPort of who made the table; os.ErrInvalid if it was made without Config.NAT.
func (t *Table) PortRange() (first, last uint16, err error) {
	if t.nat == nil {
		return 0, 0, invalid.Errorf("read the range of ports: the flow table was made without Config.NAT")
	}
	r, err := t.nat.ports.Lookup(0)
	if err != nil {
		return 0, 0, fmt.Errorf("read the range of ports: %w", err)
	}
	return r.First, r.Last, nil
}

// PortUse is how many ports of an address flows to one destination have.
type PortUse struct {
	Source      netip.Addr // of the node
	Destination netip.AddrPort
	Protocol    Protocol
	Ports       int
}

// PortUse counts the ports that flows have which leave in the node's name, in one
// pass over the table. A destination can have as many as the range of [NAT] is
// long, and as many again from another address of the node.
func (t *Table) PortUse() ([]PortUse, error) {
	type key struct {
		source netip.Addr
		to     netip.AddrPort
		proto  Protocol
	}
	counted := map[key]int{}
	for f, err := range t.All() {
		if err != nil {
			return nil, err
		}
		if from := f.Original.Src.Addr(); f.Reply.Dst.Addr() != from && f.Reply.Src.Addr() != from {
			counted[key{f.Reply.Dst.Addr(), f.Reply.Src, f.Original.Protocol}]++
		}
	}
	out := make([]PortUse, 0, len(counted))
	for k, n := range counted {
		out = append(out, PortUse{k.source, k.to, k.proto, n})
	}
	return out, nil
}
