// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/examples/internal/show"
)

type natFlows []show.NATFlow

func (f natFlows) print(w io.Writer, indent string) error {
	return show.Write(w, indent, under(show.NATFlowsHeading, show.NATFlowRows(f)))
}

// portRange is the ports of the node that flows may get.
type portRange struct {
	First uint16 `json:"firstPort"`
	Last  uint16 `json:"lastPort"`
}

func (r portRange) count() int { return int(r.Last) - int(r.First) + 1 }

// ports is who has how many ports of the node, and how they were found.
type ports struct {
	portRange
	Use []show.PortUse `json:"use"` // the most used first
	show.NATStats
}

func (p ports) print(w io.Writer, indent string) error {
	if err := show.Write(w, indent, under(show.PortUsesHeading, show.PortUseRows(p.Use))); err != nil {
		return err
	}
	which := fmt.Sprintf("range=%d-%d", p.First, p.Last)
	for _, rows := range [][]show.Row{{append(show.Row{which}, p.Row()...)}, under(show.TriesHeading, p.TriesRows())} {
		if len(rows) == 0 {
			continue // no flow had to look for a port
		}
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
		if err := show.Write(w, indent, rows); err != nil {
			return err
		}
	}
	return nil
}

func listNAT(o options, pins string) (printed, error) {
	t, _, err := openNAT(pins)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	all, err := show.NATFlows(t, o.match)
	if err != nil {
		return nil, err
	}
	return natFlows(all), nil
}

func listPorts(_ options, pins string) (printed, error) {
	t, stats, err := openNAT(pins)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	p := ports{NATStats: stats}
	if p.First, p.Last, err = t.PortRange(); err != nil {
		return nil, err
	}
	if p.Use, err = show.PortUses(t, p.count()); err != nil {
		return nil, err
	}
	return p, nil
}

// openNAT opens the flow table of a node that has NAT.
func openNAT(pins string) (*conntrack.Table, show.NATStats, error) {
	t, err := conntrack.Open(pins)
	if err != nil {
		return nil, show.NATStats{}, absent("flow table", pins, err)
	}
	stats, err := show.NAT(t)
	if errors.Is(err, os.ErrInvalid) {
		err = fmt.Errorf("the flow table in %s is without NAT: no flow leaves in the node's name", pins)
	}
	if err != nil {
		return nil, stats, errors.Join(err, t.Close())
	}
	return t, stats, nil
}
