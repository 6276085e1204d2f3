// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/godatapath/datapath/internal/block"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/node"
	"github.com/godatapath/datapath/internal/wire"
	"github.com/godatapath/datapath/maps"
)

const (
	peersTable  = bpf.TableMapPeers
	peersSchema = 1
)

// Defaults of [Config].
const (
	DefaultPort = 8472 // the port of the Linux kernel and of Cilium; IANA's is 4789
	DefaultMax  = 16384

	leastMTU  = 576     // what every IPv4 host must take (RFC 791)
	mostPeers = 1 << 24 // some gigabytes of kernel memory
)

// Foreign says what becomes of an overlay packet from a node that does not have
// the prefix of its source, or with a VNI that is not an identity.
type Foreign uint8

const (
	// ForeignDrop drops it, with a reason: nobody else uses the device.
	ForeignDrop Foreign = iota
	// ForeignPass leaves it to the next program and the stack, for others that
	// use the same overlay device.
	ForeignPass
)

// Config describes the overlay of a node.
type Config struct {
	maps.Config
	// Port is the UDP port of the overlay device, 0: [DefaultPort]. Endpoints
	// can not send to this port of any node.
	Port uint16
	// MTU is the longest IP packet that fits the overlay, in bytes:
	// devices.OverlayMTU of the underlay's. 0: 1450, or 1430 with IPv6; for an
	// underlay of 1500.
	MTU int
	// IPv6 says that the nodes reach one another over IPv6.
	IPv6 bool
	// Node is the node's own address in the underlay, of the family that IPv6
	// says: peers may send to it through the overlay. With it, packets of the
	// overlay take short cuts at the uplinks that programs.Datapath.AttachDevice has:
	// those that leave get their outer header from the program and not from the
	// overlay device, and those that come in lose it there. The zero Addr means that
	// it is not known, and the device does it all.
	Node netip.Addr
	// SourceFirst and SourceLast are the source ports of packets that take the short
	// cut, one for each flow; 0: 32768 and 60999. The device has its own:
	// devices.VXLAN.SourcePorts.
	SourceFirst, SourceLast uint16
	// UDPChecksum makes outer packets carry a checksum. Without it they have
	// none (RFC 6935 for IPv6), which middleboxes may dislike. Those with one do not
	// take the short cut.
	UDPChecksum bool
	// Foreign is what to do with packets that no peer can have sent.
	Foreign Foreign
	// Max is the number of prefixes that fit; 0: [DefaultMax].
	Max int
}

// Peer is a prefix and the node that has it.
type Peer struct {
	// Prefix is without host bits. The longest one that matches counts.
	Prefix netip.Prefix
	// Node is the address of the node in the underlay, of Config's family.
	Node netip.Addr
	// VNI to send with; 0: the sender's identity, which is what a peer of
	// ours expects.
	VNI uint32
}

// Peers is the table of the other nodes: which prefix is where. It may be used
// by several goroutines, and by several processes when it is pinned, as long as
// one of them writes.
type Peers struct {
	cfg    Config
	mu     sync.Mutex
	table  *maps.Map[bpf.TablePrefixKey, bpf.TablePeer]
	change *node.Epoch
}

// New makes the peers table, or adopts the pinned one. A pinned one of another
// Max is a [*maps.IncompatibleError], unless Config.OnMismatch is maps.Replace,
// for an empty one, or maps.Migrate, which copies the peers: more than fit are
// unix.E2BIG, and what is pinned stays as it was. A setting that can not be used
// is os.ErrInvalid.
func New(cfg Config) (*Peers, error) {
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	if cfg.Max == 0 {
		cfg.Max = DefaultMax
	}
	if cfg.MTU == 0 {
		cfg.MTU = 1450
		if cfg.IPv6 {
			cfg.MTU = 1430
		}
	}
	if cfg.SourceFirst == 0 {
		cfg.SourceFirst = 32768
	}
	if cfg.SourceLast == 0 {
		cfg.SourceLast = max(60999, cfg.SourceFirst)
	}
	if cfg.SourceLast < cfg.SourceFirst {
		return nil, invalid.Errorf("make the peers table: source ports %d to %d: the range is empty", cfg.SourceFirst, cfg.SourceLast)
	}
	if cfg.MTU < leastMTU || cfg.MTU > 65535 {
		return nil, invalid.Errorf("make the peers table: MTU is %d, want %d to 65535", cfg.MTU, leastMTU)
	}
	if cfg.Max < 0 || cfg.Max > mostPeers {
		return nil, invalid.Errorf("make the peers table: Max is %d, want 1 to %d", cfg.Max, mostPeers)
	}
	if cfg.Foreign > ForeignPass {
		return nil, invalid.Errorf("make the peers table: Foreign is %d, want ForeignDrop or ForeignPass", cfg.Foreign)
	}
	if cfg.Node != (netip.Addr{}) {
		node, err := wire.CheckAddr(cfg.Node)
		if err == nil && node.Is6() != cfg.IPv6 {
			err = invalid.Errorf("address %s is not of the underlay's family: set Config.IPv6 to %t", node, node.Is6())
		}
		if err != nil {
			return nil, fmt.Errorf("make the peers table: Node: %w", err)
		}
		cfg.Node = node
	}
	spec, err := tableSpec()
	if err != nil {
		return nil, err
	}
	spec.Map.MaxEntries = uint32(cfg.Max)
	p := &Peers{cfg: cfg, change: node.NewEpoch(cfg.Pins)}
	if p.table, err = maps.New(spec, cfg.Config); err != nil {
		return nil, err
	}
	return p, nil
}

// Open opens the peers table that is pinned in the folder pins: for tools. An
// absent one answers os.ErrNotExist, one of another schema or layout
// [*maps.IncompatibleError]. What it returns is no block, since the table does
// not tell the settings; so it takes nodes of both families.
func Open(pins string) (*Peers, error) {
	spec, err := tableSpec()
	if err != nil {
		return nil, err
	}
	table, err := maps.OpenSpec(filepath.Join(pins, peersTable), spec)
	if err != nil {
		return nil, err
	}
	return &Peers{table: table, change: node.NewEpoch(pins)}, nil
}

// tableSpec is the table as the compiled objects describe it.
func tableSpec() (maps.Spec[bpf.TablePrefixKey, bpf.TablePeer], error) {
	spec, err := bpf.LoadTable()
	if err != nil {
		return maps.Spec[bpf.TablePrefixKey, bpf.TablePeer]{}, fmt.Errorf("read the tables object: %w", err)
	}
	return maps.Spec[bpf.TablePrefixKey, bpf.TablePeer]{Map: spec.Maps[peersTable], Schema: peersSchema}, nil
}

func (p *Peers) entry(peer Peer) (bpf.TablePrefixKey, bpf.TablePeer, error) {
	var v bpf.TablePeer
	prefix, err := wire.CheckPrefix(peer.Prefix)
	if err != nil {
		return bpf.TablePrefixKey{}, v, err
	}
	addr, err := wire.CheckAddr(peer.Node)
	if err != nil {
		return bpf.TablePrefixKey{}, v, fmt.Errorf("prefix %s: node: %w", prefix, err)
	}
	if p.cfg.Port != 0 && addr.Is6() != p.cfg.IPv6 {
		return bpf.TablePrefixKey{}, v, invalid.Errorf("prefix %s: node %s is not of the underlay's family: set Config.IPv6 to %t", prefix, addr, addr.Is6())
	}
	key := wire.PrefixKey(prefix)
	v.Node, v.Prefixlen = wire.Addr(addr), key.Prefixlen
	if peer.VNI != 0 {
		if !maps.Identity(peer.VNI).Valid() {
			return bpf.TablePrefixKey{}, v, invalid.Errorf("prefix %s: VNI %d is not an identity", prefix, peer.VNI)
		}
		v.Vni, v.Flags = peer.VNI, uint32(bpf.TablePeerFlagPEER_FIXED_VNI)
	}
	return key, v, nil
}

// Set adds a prefix, or moves it to another node. Established flows follow with
// their next packet. A full table is unix.E2BIG. Setting what is there already
// disturbs nothing.
func (p *Peers) Set(peer Peer) error {
	key, value, err := p.entry(peer)
	if err != nil {
		return fmt.Errorf("set a peer: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// The longest match need not be this prefix, but then its length differs.
	if have, err := p.table.Lookup(key); err == nil && have == value {
		return p.change.Unchanged()
	}
	if err := p.table.Set(key, value); err != nil {
		return fmt.Errorf("set peer %s: %w", peer.Prefix, err)
	}
	return p.change.Changed()
}

// Delete takes a prefix away. Nil if it is not there.
func (p *Peers) Delete(prefix netip.Prefix) error {
	prefix, err := wire.CheckPrefix(prefix)
	if err != nil {
		return fmt.Errorf("delete a peer: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n, err := p.table.DeleteAll([]bpf.TablePrefixKey{wire.PrefixKey(prefix)})
	if err != nil {
		return fmt.Errorf("delete peer %s: %w", prefix, err)
	}
	if n == 0 {
		return p.change.Unchanged()
	}
	return p.change.Changed()
}

// Sync makes the table hold exactly these prefixes. All are checked before the
// first is written, and the error names each that is wrong: among them one that
// comes twice with different nodes. More prefixes than fit are unix.E2BIG. What
// is new is there before what is old goes, as far as there is room for both.
// What is right already is not written.
func (p *Peers) Sync(all []Peer) (maps.Changes, error) {
	want := make(map[bpf.TablePrefixKey]bpf.TablePeer, len(all))
	var errs []error
	for _, peer := range all {
		key, value, err := p.entry(peer)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if other, ok := want[key]; ok && other != value {
			errs = append(errs, invalid.Errorf("prefix %s: comes twice, by node %s with VNI %d and by node %s with VNI %d",
				peer.Prefix, wire.GoAddr(other.Node), other.Vni, peer.Node, peer.VNI))
		}
		want[key] = value
	}
	if err := errors.Join(errs...); err != nil {
		return maps.Changes{}, fmt.Errorf("sync the peers: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	changes, err := p.table.Sync(func(yield func(bpf.TablePrefixKey, bpf.TablePeer) bool) {
		for k, v := range want {
			if !yield(k, v) {
				return
			}
		}
	})
	if err != nil {
		err = fmt.Errorf("sync the peers: %w", err)
	}
	if changes.Set+changes.Deleted > 0 {
		return changes, errors.Join(err, p.change.Changed())
	}
	return changes, errors.Join(err, p.change.Unchanged())
}

// All walks over the prefixes, in no order. A prefix that is there all the time
// is met exactly once.
func (p *Peers) All() iter.Seq2[Peer, error] {
	return func(yield func(Peer, error) bool) {
		for e, err := range p.table.All() {
			if err != nil {
				yield(Peer{}, err)
				return
			}
			peer := Peer{Prefix: wire.GoPrefix(e.Key), Node: wire.GoAddr(e.Value.Node)}
			if e.Value.Flags&uint32(bpf.TablePeerFlagPEER_FIXED_VNI) != 0 {
				peer.VNI = e.Value.Vni
			}
			if !yield(peer, nil) {
				return
			}
		}
	}
}

// Lookup returns the node that has the address, by the longest prefix that
// covers it; ebpf.ErrKeyNotExist if none has.
func (p *Peers) Lookup(addr netip.Addr) (netip.Addr, error) {
	addr, err := wire.CheckAddr(addr)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("look up a peer: %w", err)
	}
	v, err := p.table.Lookup(bpf.TablePrefixKey{Prefixlen: 128, Addr: wire.Addr(addr)})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("look up the peer of %s: %w", addr, err)
	}
	return wire.GoAddr(v.Node), nil
}

// MTU returns the longest IP packet that fits the overlay, in bytes; 0 for a
// table that [Open] has opened.
func (p *Peers) MTU() int { return p.cfg.MTU }

// Close drops our handle; a pinned table stays, and so do the programs that
// use it. Idempotent.
func (p *Peers) Close() error { return p.table.Close() }

// Remove takes the pin away and closes.
func (p *Peers) Remove() error { return p.table.Remove() }

// DatapathParts makes the table a block of programs.Load.
func (p *Peers) DatapathParts() block.Parts {
	parts := block.Parts{
		Name: "peers",
		Maps: map[string]*ebpf.Map{peersTable: p.table.EBPF()},
		Settings: map[string]any{
			"with_overlay":         uint8(1),
			"overlay_ipv6":         flag(p.cfg.IPv6),
			"overlay_checksum":     flag(p.cfg.UDPChecksum),
			"overlay_pass_foreign": flag(p.cfg.Foreign == ForeignPass),
			"overlay_mtu":          uint16(p.cfg.MTU),
			"overlay_port":         p.cfg.Port,
			"overlay_source_first": p.cfg.SourceFirst,
			"overlay_source_count": uint32(p.cfg.SourceLast) - uint32(p.cfg.SourceFirst) + 1,
		},
		Bind: p.change.Bind,
	}
	if p.cfg.Node.IsValid() {
		parts.Settings["overlay_node"] = wire.Addr(p.cfg.Node)
	}
	return parts
}

func flag(on bool) uint8 {
	if on {
		return 1
	}
	return 0
}
