// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/examples/internal/show"
	"github.com/godatapath/datapath/lb"
	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
	"github.com/godatapath/datapath/tunnel"
)

// status is a node at a glance. What the node does not have is null.
type status struct {
	Netns       string          `json:"netns"`              // path of the node's namespace; "" if it was not found
	NetnsCookie uint64          `json:"netnsCookie"`        // 0: the kernel has none
	Epoch       uint32          `json:"epoch"`              // changes with each change that can alter a decision
	Endpoints   *int            `json:"endpoints"`          // how many
	Prefixes    *int            `json:"prefixes"`           // of other nodes, how many
	Services    *int            `json:"services,omitempty"` // how many; absent if the node has no such table
	Flows       *show.FlowStats `json:"flows"`
	NAT         *show.NATStats  `json:"nat,omitempty"` // absent if no flow leaves in the node's name
	Drops       []drop          `json:"drops"`         // by reason
	Hooks       []hook          `json:"hooks"`         // null if the namespace was not found

	behind map[int]string // an endpoint's address by the ifindex of its device
}

type drop struct {
	Reason  string `json:"reason"`
	Packets uint64 `json:"packets"`
}

func readStatus(o options, pins string) (printed, error) {
	state, err := programs.ReadNode(pins)
	if err != nil {
		return nil, absent("running datapath", pins, err)
	}
	ns, missing := findNamespace(o.netns, state.NetnsCookie)
	if missing != nil && o.netns != "" {
		return nil, missing // the wrong one was named
	}
	defer ns.Close()
	s := &status{NetnsCookie: state.NetnsCookie, Epoch: state.Epoch}
	if err := s.readTables(pins); err != nil {
		return nil, err
	}
	if missing != nil {
		return s, missing
	}
	s.Netns = ns.Path()
	if s.Hooks, err = readHooks(pins, ns, s.behind); err != nil {
		return s, err
	}
	return s, nil
}

// readTables counts what is in the tables that the node has.
func (s *status) readTables(pins string) error {
	var errs []error
	read := func(open func() error) {
		if err := open(); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	read(func() error {
		t, err := maps.OpenEndpoints(pins)
		if err != nil {
			return err
		}
		defer t.Close()
		all, err := show.Endpoints(t)
		n := len(all)
		s.Endpoints, s.behind = &n, map[int]string{}
		for _, e := range all {
			s.behind[e.Ifindex] = e.Addresses[0].String()
		}
		return err
	})
	read(func() error {
		t, err := tunnel.Open(pins)
		if err != nil {
			return err
		}
		defer t.Close()
		all, err := show.Peers(t)
		n := len(all)
		s.Prefixes = &n
		return err
	})
	read(func() error {
		t, err := lb.Open(pins)
		if err != nil {
			return err
		}
		defer t.Close()
		all, err := t.Services()
		n := len(all)
		s.Services = &n
		return err
	})
	read(func() error {
		t, err := conntrack.Open(pins)
		if err != nil {
			return err
		}
		defer t.Close()
		stats, err := show.Stats(t)
		s.Flows = &stats
		if err != nil {
			return err
		}
		nat, err := show.NAT(t)
		if errors.Is(err, os.ErrInvalid) {
			return nil // it was made without
		}
		s.NAT = &nat
		return err
	})
	read(func() error {
		t, err := maps.OpenMetrics(pins)
		if err != nil {
			return err
		}
		defer t.Close()
		all, err := show.Metrics(t)
		s.Drops = drops(all)
		return err
	})
	return errors.Join(errs...)
}

// drops sums the drops of all programs, by reason.
func drops(all []show.Metric) []drop {
	out := []drop{}
	for _, m := range all {
		if !m.Dropped {
			continue
		}
		at := slices.IndexFunc(out, func(d drop) bool { return d.Reason == m.Outcome })
		if at < 0 {
			at, out = len(out), append(out, drop{Reason: m.Outcome})
		}
		out[at].Packets += m.Packets
	}
	return out
}

func (s *status) print(w io.Writer, indent string) error {
	rows := []show.Row{{"namespace", s.namespace()}, {"epoch", fmt.Sprint(s.Epoch)}}
	add := func(name, format string, args ...any) {
		rows = append(rows, show.Row{name, fmt.Sprintf(format, args...)})
	}
	if s.Endpoints != nil {
		add("endpoints", "%d", *s.Endpoints)
	}
	if s.Prefixes != nil {
		add("tunnel", "%d prefixes of other nodes", *s.Prefixes)
	}
	if s.Services != nil {
		add("services", "%d", *s.Services)
	}
	if f := s.Flows; f != nil {
		add("flows", "%d: %d new, %d established, %d closing", f.Flows(), f.New, f.Established, f.Closing)
		add("", "%d of %d entries in use, %.2f%%", f.Entries, f.Capacity, 100*f.Fill)
		add("", "created %d, confirmed %d, evicted %d, reused %d, ended %d, fragments not remembered %d", f.Created, f.Confirmed, f.Evicted, f.Reused, f.Ended, f.FragmentsNotRemembered)
		add("", "insert errors %s", f.Errors())
	}
	if n := s.NAT; n != nil {
		add("nat", "ports kept %d, found %d, exhausted %d", n.Kept, n.Found, n.Exhausted)
	}
	if s.Drops != nil {
		add("drops", "%s", s.dropped())
	}
	if err := show.Write(w, indent, rows); err != nil {
		return err
	}
	return printHooks(w, indent, s.Hooks)
}

func (s *status) namespace() string {
	if s.Netns == "" {
		return fmt.Sprintf("not found (cookie %d)", s.NetnsCookie)
	}
	return fmt.Sprintf("%s (cookie %d)", s.Netns, s.NetnsCookie)
}

func (s *status) dropped() string {
	if len(s.Drops) == 0 {
		return "none"
	}
	var parts []string
	for _, d := range s.Drops {
		parts = append(parts, fmt.Sprintf("%s %d", d.Reason, d.Packets))
	}
	return strings.Join(parts, ", ")
}
