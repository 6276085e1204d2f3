// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/examples/internal/show"
)

// showTables prints the tables of all nodes, as dpctl prints those of one.
func showTables(c *cluster.Cluster, out io.Writer) error {
	var endpoints, peers, flows, metrics []show.Row
	for _, n := range c.Nodes {
		e, err := show.Endpoints(n.Table)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		p, err := show.Peers(n.Peers)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		f, err := show.Stats(n.Flows)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		m, err := show.Metrics(n.Metrics)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		endpoints = append(endpoints, show.Under(n.Name, show.EndpointRows(e))...)
		peers = append(peers, show.Under(n.Name, show.PeerRows(p))...)
		flows = append(flows, show.Under(n.Name, []show.Row{f.Row()})...)
		metrics = append(metrics, show.Under(n.Name, show.MetricRows(m))...)
	}
	if len(metrics) > 0 {
		heading := append(show.Row{"NODE"}, show.MetricsHeading...)
		metrics = append([]show.Row{heading}, metrics...)
	}
	for _, t := range []struct {
		title  string
		rows   []show.Row
		legend []string
	}{
		{"Endpoints", endpoints, nil},
		{"Tunnel: which prefix is on which node", peers, show.PeersLegend},
		{"Connection tracking", flows, show.FlowsLegend},
		{"What became of the packets", metrics, show.MetricsLegend},
	} {
		fmt.Fprintf(out, "\n%s\n", t.title)
		if err := show.Write(out, "  ", t.rows); err != nil {
			return err
		}
		if len(t.rows) == 0 {
			continue
		}
		for _, line := range t.legend {
			fmt.Fprintf(out, "  * %s\n", line)
		}
	}
	return nil
}
