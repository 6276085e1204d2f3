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
		if n.Peers != nil {
			p, err := show.Peers(n.Peers)
			if err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
			peers = append(peers, show.Under(n.Name, show.PeerRows(p))...)
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
		flows = append(flows, show.Under(n.Name, []show.Row{f.Row()})...)
		metrics = append(metrics, show.Under(n.Name, show.MetricRows(m))...)
	}
	if len(metrics) > 0 {
		heading := append(show.Row{"NODE"}, show.MetricsHeading...)
		metrics = append([]show.Row{heading}, metrics...)
	}
	type table struct {
		title  string
		rows   []show.Row
		legend []string
	}
	var services []table
	if n := c.Nodes[0]; n.Services != nil {
		rows, legend, err := serviceRows(n)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		services = []table{{"Services, the same on every node", rows, legend}}
	}
	for _, t := range append([]table{
		{"Endpoints", endpoints, nil},
		{"Tunnel: which prefix is on which node", peers, show.PeersLegend},
		{"Connection tracking", flows, show.FlowsLegend},
		{"What became of the packets", metrics, show.MetricsLegend},
	}, services...) {
		if len(t.rows) == 0 {
			continue
		}
		fmt.Fprintf(out, "\n%s\n", t.title)
		if err := show.Write(out, "  ", t.rows); err != nil {
			return err
		}
		for _, line := range t.legend {
			fmt.Fprintf(out, "  * %s\n", line)
		}
	}
	return nil
}

// mostServices is how many are printed.
const mostServices = 6

func serviceRows(n *cluster.Node) (rows []show.Row, legend []string, err error) {
	all, err := show.Services(n.Services)
	if err != nil {
		return nil, nil, err
	}
	if left := len(all) - mostServices; left > 0 {
		all = all[:mostServices]
		legend = []string{fmt.Sprintf("and %s more, as dpctl service list shows", count(left, "service"))}
	}
	return append([]show.Row{show.ServicesHeading}, show.ServiceRows(all)...), legend, nil
}
