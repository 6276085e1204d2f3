// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/examples/internal/show"
)

type table struct {
	title  string
	rows   []show.Row
	legend []string
}

// showTables prints the tables of all nodes, as dpctl prints those of one. What no
// node has is not there.
func showTables(c *cluster.Cluster, out io.Writer) error {
	endpoints := table{title: "Endpoints"}
	peers := table{title: "Tunnel: which prefix is on which node", legend: show.PeersLegend}
	flows := table{title: "Connection tracking", legend: show.FlowsLegend}
	nat := table{title: "Ports of the node, for what leaves in its name", legend: show.NATLegend}
	metrics := table{title: "What became of the packets", legend: show.MetricsLegend}
	overlay := false
	for _, n := range c.Nodes {
		e, err := show.Endpoints(n.Table)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		endpoints.rows = append(endpoints.rows, show.Under(n.Name, show.EndpointRows(e))...)
		if n.Peers != nil {
			overlay = true
			p, err := show.Peers(n.Peers)
			if err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
			peers.rows = append(peers.rows, show.Under(n.Name, show.PeerRows(p))...)
		}
		f, err := show.Stats(n.Flows)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		flows.rows = append(flows.rows, show.Under(n.Name, []show.Row{f.Row()})...)
		ports, err := show.NAT(n.Flows)
		if err == nil {
			nat.rows = append(nat.rows, show.Under(n.Name, []show.Row{ports.Row()})...)
		} else if !errors.Is(err, os.ErrInvalid) { // it has none
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		m, err := show.Metrics(n.Metrics)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		metrics.rows = append(metrics.rows, show.Under(n.Name, show.MetricRows(m))...)
	}
	if len(metrics.rows) > 0 {
		heading := append(show.Row{"NODE"}, show.MetricsHeading...)
		metrics.rows = append([]show.Row{heading}, metrics.rows...)
	}
	all := []table{endpoints}
	if overlay {
		all = append(all, peers)
	}
	all = append(all, flows)
	if len(nat.rows) > 0 {
		all = append(all, nat)
	}
	all = append(all, metrics)
	if n := c.Nodes[0]; n.Services != nil {
		rows, legend, err := serviceRows(n)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		all = append(all, table{"Services, the same on every node", rows, legend})
	}
	for _, t := range all {
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
