// SPDX-License-Identifier: Apache-2.0

package show

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/godatapath/datapath/conntrack"
)

// NATFlow is a flow that goes on in the node's name. The port of an ICMP echo is
// its identifier.
type NATFlow struct {
	Protocol string     `json:"protocol"`
	Src      netip.Addr `json:"src"` // who began it: an endpoint, or somebody outside who asks a service
	SrcPort  uint16     `json:"srcPort"`
	As       netip.Addr `json:"as"` // of the node: whom the destination sees
	AsPort   uint16     `json:"asPort"`
	Dst      netip.Addr `json:"dst"` // where it goes to: of a service, the backend
	DstPort  uint16     `json:"dstPort"`
	Through  string     `json:"through,omitempty"` // addr:port of the service that was asked
	State    string     `json:"state"`
	Idle     float64    `json:"idleSeconds"`
}

// NATFlows reads the flows that go on in the node's name and match, in the order
// of their addresses. A nil match is all of them.
func NATFlows(t *conntrack.Table, match func(conntrack.Flow) bool) ([]NATFlow, error) {
	all, err := Flows(t, func(f conntrack.Flow) bool { return inNodesName(f) && (match == nil || match(f)) })
	if err != nil {
		return nil, err
	}
	out := []NATFlow{}
	for _, f := range all {
		n := NATFlow{
			Protocol: f.Protocol, Src: f.Src, SrcPort: f.SrcPort, As: f.Reply.Dst, AsPort: f.Reply.DstPort,
			Dst: f.Reply.Src, DstPort: f.Reply.SrcPort, State: f.State, Idle: f.Idle,
		}
		if asked := netip.AddrPortFrom(f.Dst, f.DstPort); asked != netip.AddrPortFrom(n.Dst, n.DstPort) {
			n.Through = asked.String()
		}
		out = append(out, n)
	}
	return out, nil
}

// inNodesName tells it from what an endpoint asks itself through a service: that
// does not leave, and what it goes on with is no address of the node.
func inNodesName(f conntrack.Flow) bool {
	return f.IsSourceTranslated() && f.Original.Src.Addr() != f.Reply.Src.Addr()
}

// NATFlowsHeading is the row above those of [NATFlowRows].
var NATFlowsHeading = Row{"PROTOCOL", "FROM", "AS", "TO", "STATE", "IDLE"}

// NATFlowRows has a row for each flow. Who has asked a service is shown with it.
func NATFlowRows(all []NATFlow) []Row {
	var rows []Row
	for _, f := range all {
		to := port(f.Protocol, f.Dst, f.DstPort)
		if f.Through != "" {
			to += " through " + f.Through
		}
		rows = append(rows, Row{f.Protocol, port(f.Protocol, f.Src, f.SrcPort), port(f.Protocol, f.As, f.AsPort), to, f.State, ago(f.Idle)})
	}
	return rows
}

// port is an address with what the protocol has beside it.
func port(protocol string, a netip.Addr, port uint16) string {
	if port == 0 {
		return a.String()
	}
	if isEcho(protocol) {
		return fmt.Sprintf("%s echo %d", a, port)
	}
	return netip.AddrPortFrom(a, port).String()
}

func isEcho(protocol string) bool {
	return protocol == conntrack.ICMP.String() || protocol == conntrack.ICMPv6.String()
}

// NATStats counts the searches for a port of the node.
type NATStats struct {
	Kept      uint64  `json:"kept"`      // flows that kept the port that they came with
	Found     uint64  `json:"found"`     // flows that got another one
	Exhausted uint64  `json:"exhausted"` // packets that were dropped because none was found
	Tries     []Tries `json:"tries"`     // how many it took for the flows of Found
}

// Tries is how many flows got their port in so many tries.
type Tries struct {
	From  int    `json:"from"`
	To    int    `json:"to"`
	Flows uint64 `json:"flows"`
}

// NAT reads the numbers. Of a table without NAT it is os.ErrInvalid.
func NAT(t *conntrack.Table) (NATStats, error) {
	s, err := t.NATStats()
	if err != nil {
		return NATStats{}, err
	}
	out := NATStats{Kept: s.Kept, Found: s.Found, Exhausted: s.Exhausted, Tries: []Tries{}}
	for i, n := range s.Tries {
		one := Tries{1 << i, 1<<(i+1) - 1, n}
		if i == len(s.Tries)-1 {
			one.To = one.From // the last try that is made
		}
		out.Tries = append(out.Tries, one)
	}
	return out, nil
}

// Row is the numbers but for the tries.
func (s NATStats) Row() Row {
	return Row{fmt.Sprintf("kept=%d", s.Kept), fmt.Sprintf("found=%d", s.Found), fmt.Sprintf("exhausted=%d", s.Exhausted)}
}

// NATLegend explains the numbers of [NATStats].
var NATLegend = []string{
	"kept: flows that leave with the port they came with; found: with another one of the node's",
	"exhausted: packets dropped because no port was free in as many tries as are made",
}

// TriesHeading is the row above those of [NATStats.TriesRows].
var TriesHeading = Row{"TRIES", "FLOWS"}

// TriesRows has a row for each number of tries, up to the most that it took. There
// is none if no flow had to look for a port.
func (s NATStats) TriesRows() []Row {
	var rows []Row
	last := 0
	for i, t := range s.Tries {
		tries := strconv.Itoa(t.From)
		if t.To > t.From {
			tries = fmt.Sprintf("%d-%d", t.From, t.To)
		}
		rows = append(rows, Row{tries, strconv.FormatUint(t.Flows, 10)})
		if t.Flows > 0 {
			last = i + 1
		}
	}
	return rows[:last]
}

// PortUse is how many ports of a node's address flows to one destination have.
type PortUse struct {
	As       netip.Addr `json:"as"`
	Dst      netip.Addr `json:"dst"`
	DstPort  uint16     `json:"dstPort"`
	Protocol string     `json:"protocol"`
	Ports    int        `json:"ports"`
	Of       int        `json:"of,omitempty"` // how many there are, if that is known
}

// allPorts are the ports, or identifiers, that there are.
const allPorts = 1 << 16

// PortUses reads them, the most used first. ports is how many the range has that
// flows get one of; 0: not known.
func PortUses(t *conntrack.Table, ports int) ([]PortUse, error) {
	all, err := t.PortUse()
	if err != nil {
		return nil, err
	}
	out := []PortUse{}
	for _, u := range all {
		one := PortUse{As: u.Source, Dst: u.Destination.Addr(), DstPort: u.Destination.Port(), Protocol: u.Protocol.String(), Ports: u.Ports, Of: ports}
		if u.Protocol != conntrack.TCP && u.Protocol != conntrack.UDP {
			one.Of = allPorts // each can stay as it is
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b PortUse) int {
		return cmp.Or(cmp.Compare(b.Ports, a.Ports), a.As.Compare(b.As), a.Dst.Compare(b.Dst), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.DstPort, b.DstPort))
	})
	return out, nil
}

// PortUsesHeading is the row above those of [PortUseRows].
var PortUsesHeading = Row{"AS", "TO", "PROTOCOL", "PORTS", "OF", "SHARE"}

// PortUseRows has a row for each destination.
func PortUseRows(all []PortUse) []Row {
	var rows []Row
	for _, u := range all {
		of, share := "?", "?"
		if u.Of > 0 {
			of, share = strconv.Itoa(u.Of), fmt.Sprintf("%.2f%%", 100*float64(u.Ports)/float64(u.Of))
		}
		rows = append(rows, Row{u.As.String(), port("", u.Dst, u.DstPort), u.Protocol, strconv.Itoa(u.Ports), of, share})
	}
	return rows
}
