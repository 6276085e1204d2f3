// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/godatapath/datapath/examples/internal/show"
)

// report prints the tables of a balancer, as dpctl prints those of a node.
func report(out io.Writer, b *balancer) error {
	services, err := show.Services(b.services)
	if err != nil {
		return err
	}
	flows, err := show.Stats(b.flows)
	if err != nil {
		return err
	}
	nat, err := show.NAT(b.flows)
	if err != nil {
		return err
	}
	metrics, err := show.Metrics(b.metrics)
	if err != nil {
		return err
	}
	for _, t := range []struct {
		title   string
		heading show.Row
		rows    []show.Row
		legend  []string
	}{
		{"Services", show.ServicesHeading, show.ServiceRows(services), nil},
		{"Connections", nil, []show.Row{flows.Row()}, show.FlowsLegend},
		{"Source ports for them", nil, []show.Row{nat.Row()}, show.NATLegend},
		{"What became of the packets", show.MetricsHeading, show.MetricRows(metrics), nil},
	} {
		rows := t.rows
		if t.heading != nil && len(rows) > 0 {
			rows = append([]show.Row{t.heading}, rows...)
		}
		fmt.Fprintf(out, "\n%s\n", t.title)
		if err := show.Write(out, "  ", rows); err != nil {
			return err
		}
		for _, line := range t.legend {
			fmt.Fprintf(out, "  * %s\n", line)
		}
	}
	return nil
}
