// SPDX-License-Identifier: Apache-2.0

package show

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/godatapath/datapath/lb"
)

// Maglev is how new flows to some frontends of a service are spread.
type Maglev struct {
	Frontends []Frontend    `json:"frontends"`
	Slots     int           `json:"slots"`
	Backends  []MaglevShare `json:"backends"` // by address
}

// MaglevShare is how many slots a backend has.
type MaglevShare struct {
	Address netip.AddrPort `json:"address"`
	Slots   int            `json:"slots"`
}

// Maglevs reads the Maglev tables of a service.
func Maglevs(b *lb.Balancer, id uint32) ([]Maglev, error) {
	all, err := b.MaglevTables(id)
	if err != nil {
		return nil, err
	}
	var out []Maglev
	for _, t := range all {
		m := Maglev{Slots: len(t.Slots)}
		for _, f := range t.Frontends {
			m.Frontends = append(m.Frontends, Frontend{Address: f.Addr, Type: f.Type.String(), Protocol: f.Protocol.String()})
		}
		for _, f := range t.Outside {
			m.Frontends = append(m.Frontends, Frontend{Address: f.Addr, Type: f.Type.String() + ", outside", Protocol: f.Protocol.String()})
		}
		shares := map[netip.AddrPort]int{}
		for _, at := range t.Slots {
			shares[at]++
		}
		for at, n := range shares {
			m.Backends = append(m.Backends, MaglevShare{Address: at, Slots: n})
		}
		slices.SortFunc(m.Backends, func(a, b MaglevShare) int { return a.Address.Compare(b.Address) })
		out = append(out, m)
	}
	return out, nil
}

// MaglevsHeading is the row above those of [MaglevRows].
var MaglevsHeading = Row{"Frontend", "Backend", "Slots", "Share"}

// MaglevRows has the backends of each frontend below one another.
func MaglevRows(all []Maglev) []Row {
	var rows []Row
	for _, m := range all {
		for i := range max(len(m.Frontends), len(m.Backends)) {
			row := Row{"", "", "", ""}
			if i < len(m.Frontends) {
				row[0] = fmt.Sprintf("%s/%s", m.Frontends[i].Address, m.Frontends[i].Protocol)
			}
			if i < len(m.Backends) {
				b := m.Backends[i]
				row[1], row[2] = b.Address.String(), strconv.Itoa(b.Slots)
				row[3] = fmt.Sprintf("%.2f%%", 100*float64(b.Slots)/float64(m.Slots))
			}
			rows = append(rows, row)
		}
	}
	return rows
}
