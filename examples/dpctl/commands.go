// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/examples/internal/show"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
	"github.com/godatapath/datapath/tunnel"
)

// printed is what a command has read: JSON by its fields, rows by print.
type printed interface {
	print(w io.Writer, indent string) error
}

type command struct {
	name string
	// read may return both: what it could read, and what it could not.
	read func(o options, pins string) (printed, error)
}

var commands = []command{
	{"endpoint list", listEndpoints},
	{"tunnel list", listPeers},
	{"ct list", listFlows},
	{"nat list", listNAT},
	{"nat ports", listPorts},
	{"service list", listServices},
	{"service backends", listBackends},
	{"service maglev", listMaglev},
	{"metrics list", listMetrics},
	{"status", readStatus},
}

type (
	endpoints []show.Endpoint
	peers     []show.Peer
	flows     []show.Flow
	services  []show.Service
	backends  []show.Backend
	maglevs   []show.Maglev
	metrics   []show.Metric
)

func (e endpoints) print(w io.Writer, indent string) error {
	return show.Write(w, indent, show.EndpointRows(e))
}

func (p peers) print(w io.Writer, indent string) error {
	return show.Write(w, indent, show.PeerRows(p))
}

func (f flows) print(w io.Writer, indent string) error {
	return show.Write(w, indent, show.FlowRows(f))
}

func (s services) print(w io.Writer, indent string) error {
	return show.Write(w, indent, under(show.ServicesHeading, show.ServiceRows(s)))
}

func (b backends) print(w io.Writer, indent string) error {
	return show.Write(w, indent, under(show.BackendsHeading, show.BackendRows(b)))
}

func (m maglevs) print(w io.Writer, indent string) error {
	return show.Write(w, indent, under(show.MaglevsHeading, show.MaglevRows(m)))
}

// under puts a heading above rows, if there are any.
func under(heading show.Row, rows []show.Row) []show.Row {
	if len(rows) == 0 {
		return nil
	}
	return append([]show.Row{heading}, rows...)
}

func (m metrics) print(w io.Writer, indent string) error {
	return show.Write(w, indent, under(show.MetricsHeading, show.MetricRows(m)))
}

func listEndpoints(_ options, pins string) (printed, error) {
	t, err := maps.OpenEndpoints(pins)
	if err != nil {
		return nil, absent("endpoint table", pins, err)
	}
	defer t.Close()
	all, err := show.Endpoints(t)
	if err != nil {
		return nil, err
	}
	return endpoints(all), nil
}

func listPeers(_ options, pins string) (printed, error) {
	t, err := tunnel.Open(pins)
	if errors.Is(err, os.ErrNotExist) {
		if _, running := programs.ReadNode(pins); running == nil {
			return nil, fmt.Errorf("no tunnel is pinned in %s: the node reaches the endpoints of others by its routes", pins)
		}
	}
	if err != nil {
		return nil, absent("tunnel", pins, err)
	}
	defer t.Close()
	all, err := show.Peers(t)
	if err != nil {
		return nil, err
	}
	return peers(all), nil
}

func listFlows(o options, pins string) (printed, error) {
	t, err := conntrack.Open(pins)
	if err != nil {
		return nil, absent("flow table", pins, err)
	}
	defer t.Close()
	all, err := show.Flows(t, o.match)
	if err != nil {
		return nil, err
	}
	return flows(all), nil
}

func listServices(_ options, pins string) (printed, error) {
	all, err := readServices(pins)
	if err != nil {
		return nil, err
	}
	return services(all), nil
}

func listBackends(_ options, pins string) (printed, error) {
	all, err := readServices(pins)
	if err != nil {
		return nil, err
	}
	return backends(show.Backends(all)), nil
}

func listMaglev(o options, pins string) (printed, error) {
	t, err := lb.Open(pins)
	if err != nil {
		return nil, absent("service table", pins, err)
	}
	defer t.Close()
	all, err := show.Maglevs(t, o.id)
	if err != nil {
		return nil, err
	}
	return maglevs(all), nil
}

func readServices(pins string) ([]show.Service, error) {
	t, err := lb.Open(pins)
	if err != nil {
		return nil, absent("service table", pins, err)
	}
	defer t.Close()
	return show.Services(t)
}

func listMetrics(_ options, pins string) (printed, error) {
	t, err := maps.OpenMetrics(pins)
	if err != nil {
		return nil, absent("metrics table", pins, err)
	}
	defer t.Close()
	all, err := show.Metrics(t)
	if err != nil {
		return nil, err
	}
	return metrics(all), nil
}

// absent says that a node does not have a table, which need not be a fault: a
// datapath is loaded with the blocks that its owner wants.
func absent(what, pins string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("no %s is pinned in %s", what, pins)
	}
	return err
}
