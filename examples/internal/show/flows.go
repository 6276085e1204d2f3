// SPDX-License-Identifier: Apache-2.0

package show

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/godatapath/datapath/conntrack"
)

// Flow is a connection, as its originator sees it.
type Flow struct {
	Tuple
	Reply    Tuple    `json:"reply"` // as the answers arrive; without translation the reverse
	State    string   `json:"state"`
	Idle     float64  `json:"idleSeconds"`
	Age      float64  `json:"ageSeconds"`
	Sent     Counters `json:"sent"`     // by the originator
	Received Counters `json:"received"` // by the originator
	Forward  Verdict  `json:"forward"`  // what is done with the originator's packets
	Back     Verdict  `json:"back"`     // and with the answers
}

// Tuple is the two ends of a flow. An ICMP echo has its identifier as the port
// of the side that asks, and 0 as the other.
type Tuple struct {
	Protocol string     `json:"protocol"`
	Src      netip.Addr `json:"src"`
	SrcPort  uint16     `json:"srcPort"`
	Dst      netip.Addr `json:"dst"`
	DstPort  uint16     `json:"dstPort"`
}

// Counters are those of one direction.
type Counters struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Verdict is what is done with the packets of one direction.
type Verdict struct {
	Action    string `json:"action"`         // "" if no packet of this direction has come yet
	ArrivesOn int    `json:"arrivesOn"`      // ifindex
	SendsTo   int    `json:"sendsTo"`        // ifindex
	VNI       uint32 `json:"vni,omitempty"`  // sent with; or that they must have when they arrive
	Node      string `json:"node,omitempty"` // the other end of the overlay; to a device without a VNI, the next hop
}

// Flows reads the flows that match, in the order of their addresses. A nil match
// is all of them.
func Flows(t *conntrack.Table, match func(conntrack.Flow) bool) ([]Flow, error) {
	out := []Flow{}
	for f, err := range t.All() {
		if err != nil {
			return nil, err
		}
		if match != nil && !match(f) {
			continue
		}
		out = append(out, Flow{
			Tuple: tuple(f.Original), Reply: tuple(f.Reply), State: f.State.String(),
			Idle: f.Idle.Seconds(), Age: f.Age.Seconds(),
			Sent: Counters(f.Sent), Received: Counters(f.Received),
			Forward: verdict(f.Forward), Back: verdict(f.Back),
		})
	}
	slices.SortFunc(out, func(a, b Flow) int { return a.Tuple.compare(b.Tuple) })
	// Iteration may meet a flow twice while the table changes.
	return slices.CompactFunc(out, func(a, b Flow) bool { return a.Tuple == b.Tuple }), nil
}

func tuple(t conntrack.Tuple) Tuple {
	return Tuple{Protocol: t.Protocol.String(), Src: t.Src.Addr(), SrcPort: t.Src.Port(), Dst: t.Dst.Addr(), DstPort: t.Dst.Port()}
}

func verdict(v conntrack.Verdict) Verdict {
	out := Verdict{Action: v.Action, ArrivesOn: v.ArrivesOn, SendsTo: v.SendsTo, VNI: v.VNI}
	if v.Node.IsValid() && !v.Node.IsUnspecified() {
		out.Node = v.Node.String()
	}
	return out
}

func (t Tuple) compare(o Tuple) int {
	return cmp.Or(t.Src.Compare(o.Src), t.Dst.Compare(o.Dst), cmp.Compare(t.Protocol, o.Protocol),
		cmp.Compare(t.DstPort, o.DstPort), cmp.Compare(t.SrcPort, o.SrcPort))
}

func (t Tuple) turned() Tuple { return Tuple{t.Protocol, t.Dst, t.DstPort, t.Src, t.SrcPort} }

// String is "SRC -> DST", with what the protocol has beside the addresses.
func (t Tuple) String() string {
	switch {
	case isEcho(t.Protocol):
		return fmt.Sprintf("%s -> %s echo %d", t.Src, t.Dst, max(t.SrcPort, t.DstPort))
	case t.SrcPort == 0 && t.DstPort == 0:
		return fmt.Sprintf("%s -> %s", t.Src, t.Dst)
	}
	return fmt.Sprintf("%s -> %s", netip.AddrPortFrom(t.Src, t.SrcPort), netip.AddrPortFrom(t.Dst, t.DstPort))
}

// String is what an operator asks: where does it go?
func (v Verdict) String() string {
	switch v.Action {
	case "":
		return ""
	case "to overlay":
		return fmt.Sprintf("to overlay %s vni=%d", v.Node, v.VNI)
	case "to endpoint":
		return fmt.Sprintf("to endpoint ifindex=%d", v.SendsTo)
	case "to device":
		to := fmt.Sprintf("to device ifindex=%d", v.SendsTo)
		if v.Node != "" && v.VNI == 0 {
			to += " via " + v.Node
		}
		return to
	}
	return v.Action
}

// FlowRows has a row for each flow. Sent and received are packets/bytes. Where the
// originator's packets go on under another tuple, as those to a service and those
// that leave in the node's name, that one stands behind what is done with them.
func FlowRows(all []Flow) []Row {
	var rows []Row
	for _, f := range all {
		fate := f.Forward.String()
		if sent := f.Reply.turned(); sent != f.Tuple {
			fate = strings.TrimSpace(fmt.Sprintf("%s as %s", fate, sent))
		}
		if back := f.Back.String(); back != "" {
			fate += ", replies " + back
		}
		rows = append(rows, Row{
			f.Protocol, f.Tuple.String(), f.State, "idle=" + ago(f.Idle), "age=" + ago(f.Age),
			fmt.Sprintf("sent=%d/%d", f.Sent.Packets, f.Sent.Bytes), fmt.Sprintf("received=%d/%d", f.Received.Packets, f.Received.Bytes),
			fate,
		})
	}
	return rows
}

func ago(seconds float64) string {
	return (time.Duration(seconds) * time.Second).String()
}
