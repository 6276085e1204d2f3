// SPDX-License-Identifier: Apache-2.0

package show

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/godatapath/datapath/tunnel"
)

// Peer is a prefix that another node has.
type Peer struct {
	Prefix netip.Prefix `json:"prefix"`
	Node   netip.Addr   `json:"node"`
	VNI    uint32       `json:"vni"` // 0: the identity of who sends
}

// Peers reads the peers table, in the order of the prefixes.
func Peers(t *tunnel.Peers) ([]Peer, error) {
	out := []Peer{}
	for p, err := range t.All() {
		if err != nil {
			return nil, err
		}
		out = append(out, Peer{Prefix: p.Prefix, Node: p.Node, VNI: p.VNI})
	}
	slices.SortFunc(out, func(a, b Peer) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return out, nil
}

// PeersLegend explains the rows of [PeerRows].
var PeersLegend = []string{
	"vni=identity: packets carry the identity of the endpoint that sends them",
}

// PeerRows has a row for each prefix.
func PeerRows(all []Peer) []Row {
	var rows []Row
	for _, p := range all {
		vni := "vni=identity" // of whoever sends
		if p.VNI != 0 {
			vni = fmt.Sprintf("vni=%d", p.VNI)
		}
		rows = append(rows, Row{p.Prefix.String(), p.Node.String(), vni})
	}
	return rows
}
