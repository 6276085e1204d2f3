// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/names"
	"github.com/godatapath/datapath/internal/wire"
)

// Protocol is a transport by its number in the IP header.
type Protocol uint8

// The transports that are tracked.
const (
	ICMP   Protocol = unix.IPPROTO_ICMP
	TCP    Protocol = unix.IPPROTO_TCP
	UDP    Protocol = unix.IPPROTO_UDP
	ICMPv6 Protocol = unix.IPPROTO_ICMPV6
	SCTP   Protocol = unix.IPPROTO_SCTP
)

// String names the transport.
func (p Protocol) String() string {
	switch p {
	case ICMP:
		return "ICMP"
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case ICMPv6:
		return "ICMPv6"
	case SCTP:
		return "SCTP"
	default:
		return fmt.Sprintf("protocol %d", uint8(p))
	}
}

// ParseProtocol is the reverse of String, in any case.
func ParseProtocol(s string) (Protocol, error) {
	for _, p := range []Protocol{ICMP, TCP, UDP, ICMPv6, SCTP} {
		if equalFold(s, p.String()) {
			return p, nil
		}
	}
	return 0, invalid.Errorf("protocol %q: want TCP, UDP, ICMP, ICMPv6 or SCTP", s)
}

func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i]|0x20 != b[i]|0x20 {
			return false
		}
	}
	return true
}

// Tuple is the two ends of a flow as the packets of one direction show them.
// For ICMP echo the port of the side that asked is the identifier, the other is
// 0.
type Tuple struct {
	Src, Dst netip.AddrPort
	Protocol Protocol
}

// check says what is wrong with a tuple that no packet can have.
func (t Tuple) check() error {
	for _, a := range []netip.Addr{t.Src.Addr(), t.Dst.Addr()} {
		switch {
		case !a.IsValid():
			return invalid.Errorf("an address is missing or invalid")
		case a.Zone() != "":
			return invalid.Errorf("address %s: a zone has no meaning here", a)
		}
	}
	if t.Src.Addr().Unmap().Is4() != t.Dst.Addr().Unmap().Is4() {
		return invalid.Errorf("the addresses are of two families")
	}
	return nil
}

// String is the usual arrow.
func (t Tuple) String() string { return fmt.Sprintf("%s %s -> %s", t.Protocol, t.Src, t.Dst) }

// State is how far a flow has come.
type State uint8

const (
	// StateNew: the originator has not answered a reply yet. Such a flow may be
	// pushed out by newer ones.
	StateNew State = iota + 1
	// StateEstablished: it has, and only time ends the flow.
	StateEstablished
	// StateClosing: both sides have finished, or one has broken off.
	StateClosing
)

// String names the state.
func (s State) String() string {
	switch s {
	case StateNew:
		return "new"
	case StateEstablished:
		return "established"
	case StateClosing:
		return "closing"
	default:
		return fmt.Sprintf("State(%d)", uint8(s))
	}
}

// Counters are those of one direction.
type Counters struct{ Packets, Bytes uint64 }

// Verdict is what is done with the packets of one direction.
type Verdict struct {
	Action    string     // "to endpoint", "to overlay", "to device", "to host", "pass"; "" if not judged yet
	ArrivesOn int        // ifindex that the packets must have arrived on; 0: they come from the stack
	SendsTo   int        // ifindex
	VNI       uint32     // sent with; or that they must arrive with
	Node      netip.Addr // the other end of the overlay; to a device, the next hop
}

// Flow is one connection.
type Flow struct {
	// Original is as the originator's packets arrive, Reply as the replies
	// arrive. Without translation one is the reverse of the other.
	Original, Reply Tuple
	State           State
	Sent, Received  Counters // by the originator
	// Age is the time since the first packet, Idle since the last one of either
	// direction, to a tick of the kernel. They wrap with 32 bits of ticks: after
	// 49 days where there are 1,000 a second.
	Age, Idle     time.Duration
	Forward, Back Verdict
}

// IsSourceTranslated tells whether the flow goes on with another source than it
// came with: in the node's name, or through a service to itself.
func (f Flow) IsSourceTranslated() bool {
	return f.Original.Src != f.Reply.Dst
}

// Lookup returns the flow that packets of this tuple belong to, in either
// direction; ebpf.ErrKeyNotExist if there is none.
func (t *Table) Lookup(tuple Tuple) (Flow, error) {
	if err := tuple.check(); err != nil {
		return Flow{}, fmt.Errorf("look up flow %s: %w", tuple, err)
	}
	key := keyOf(tuple)
	f, err := t.flows.Lookup(key)
	if err != nil {
		return Flow{}, fmt.Errorf("look up flow %s: %w", tuple, err)
	}
	view, err := t.view()
	if err != nil {
		return Flow{}, err
	}
	other, err := t.flows.Lookup(f.Peer)
	if isOriginal(f) {
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return Flow{}, fmt.Errorf("look up the reply of flow %s: %w", tuple, err)
		}
		return view.flow(t, key, f, other), nil
	}
	if err != nil {
		return Flow{}, fmt.Errorf("look up flow %s: %w", tuple, err)
	}
	return view.flow(t, f.Peer, other, f), nil
}

// All walks over the flows, in no order. A flow that is there all the time is
// met exactly once.
func (t *Table) All() iter.Seq2[Flow, error] { return t.Filter(Filter{}) }

// Filter walks over the flows that match. The two entries of a flow are joined
// as they come, which takes memory for those whose other half is yet to come:
// up to 170 bytes for each flow of the table.
func (t *Table) Filter(want Filter) iter.Seq2[Flow, error] {
	return func(yield func(Flow, error) bool) {
		view, err := t.view()
		if err != nil {
			yield(Flow{}, err)
			return
		}
		half := map[bpf.TableTuple]bpf.TableFlow{}
		for e, err := range t.flows.All() {
			if err != nil {
				yield(Flow{}, err)
				return
			}
			original, key := isOriginal(e.Value), e.Key
			if !original {
				key = e.Value.Peer
			}
			if !want.Match(tupleOf(key)) {
				continue
			}
			other, ok := half[e.Value.Peer]
			if !ok || isOriginal(other) == original {
				half[e.Key] = e.Value
				continue
			}
			delete(half, e.Value.Peer)
			f, reply := e.Value, other
			if !original {
				f, reply = other, e.Value
			}
			if !yield(view.flow(t, key, f, reply), nil) {
				return
			}
		}
		for key, f := range half {
			// The reply's entry has gone, or it stands alone and tells no flow.
			if isOriginal(f) && !yield(view.flow(t, key, f, bpf.TableFlow{}), nil) {
				return
			}
		}
	}
}

func isOriginal(f bpf.TableFlow) bool { return f.Flags&uint8(bpf.TableFlowFlagFLOW_REPLY) == 0 }

// Flush forgets the flows that match, both entries of each, with what is left
// of broken ones, and returns how many flows. A packet that comes later starts a
// new flow.
func (t *Table) Flush(want Filter) (int, error) {
	return t.flush(func(original, _ bpf.TableTuple) bool { return want.Match(tupleOf(original)) })
}

// flush forgets what matches by the tuples of both directions.
func (t *Table) flush(match func(original, reply bpf.TableTuple) bool) (int, error) {
	var keys []bpf.TableTuple
	n := 0
	for e, err := range t.flows.All() {
		if err != nil {
			return 0, fmt.Errorf("flush the flow table: %w", err)
		}
		original, reply := e.Key, e.Value.Peer
		if !isOriginal(e.Value) {
			original, reply = reply, original
		}
		if !match(original, reply) {
			continue
		}
		keys = append(keys, e.Key)
		if isOriginal(e.Value) {
			n++
		}
	}
	if _, err := t.flows.DeleteAll(keys); err != nil {
		return 0, fmt.Errorf("flush the flow table: %w", err)
	}
	return n, nil
}

// view is what is needed to tell entries: the time and the names.
type view struct {
	now     uint32
	actions map[uint32]string
}

func (t *Table) view() (view, error) {
	now, err := t.now()
	if err != nil {
		return view{}, err
	}
	actions, err := names.Of("action", "ACTION")
	return view{now: now, actions: actions}, err
}

// flow tells a flow by its two entries. The reply's is zero if it is missing.
func (v view) flow(t *Table, key bpf.TableTuple, f, reply bpf.TableFlow) Flow {
	idle := t.clock.Since(v.now, f.LastSeen)
	if reply.Created != 0 {
		idle = min(idle, t.clock.Since(v.now, reply.LastSeen))
	}
	return Flow{
		Original: tupleOf(key),
		Reply:    tupleOf(f.Peer),
		State:    stateOf(f, reply),
		Sent:     Counters{f.Packets, f.Bytes},
		Received: Counters{reply.Packets, reply.Bytes},
		Age:      t.clock.Since(v.now, f.Created),
		Idle:     idle,
		Forward:  v.verdict(f),
		Back:     v.verdict(reply),
	}
}

func (v view) verdict(f bpf.TableFlow) Verdict {
	if f.Judged == 0 {
		return Verdict{}
	}
	return Verdict{
		Action:    v.actions[uint32(f.Verdict.Action)],
		ArrivesOn: int(f.Verdict.Iif),
		SendsTo:   int(f.Verdict.Oif),
		VNI:       f.Verdict.Vni,
		Node:      wire.GoAddr(f.Verdict.Remote),
	}
}

func stateOf(f, reply bpf.TableFlow) State {
	any, both := f.Seen|reply.Seen, f.Seen&reply.Seen
	switch {
	case any&uint8(bpf.TableFlowSeenSEEN_RST) != 0, both&uint8(bpf.TableFlowSeenSEEN_FIN) != 0:
		return StateClosing
	case f.Stage == uint32(bpf.TableFlowStageFLOW_CONFIRMED):
		return StateEstablished
	default:
		return StateNew
	}
}

func tupleOf(k bpf.TableTuple) Tuple {
	return Tuple{
		Src:      netip.AddrPortFrom(wire.GoAddr(k.Saddr), wire.GoPort(k.Sport)),
		Dst:      netip.AddrPortFrom(wire.GoAddr(k.Daddr), wire.GoPort(k.Dport)),
		Protocol: Protocol(k.Protocol),
	}
}

func keyOf(t Tuple) bpf.TableTuple {
	return bpf.TableTuple{
		Saddr: wire.Addr(t.Src.Addr()), Daddr: wire.Addr(t.Dst.Addr()),
		Sport: wire.Port(t.Src.Port()), Dport: wire.Port(t.Dst.Port()),
		Protocol: uint8(t.Protocol),
	}
}
