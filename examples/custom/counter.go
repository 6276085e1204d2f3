// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
)

// questions is struct questions of dns_count.c. Wrap checks it against the type
// in the object.
type questions struct {
	UDP uint64 // datagrams
	TCP uint64 // connections
}

// counter is the program on the endpoints of one node, with a table of its own:
// two nodes may use the same interface number.
type counter struct {
	node        node
	program     *ebpf.Program
	table       *maps.Map[uint32, questions]
	attachments []*programs.Attachment
	cookie      uint64          // of the node's namespace: another one has the name after a new start
	endpoints   []maps.Endpoint // as they were when last looked at
}

// startAll starts to count on every node, or on none.
func startAll(nodes []node, spec *ebpf.CollectionSpec) ([]*counter, error) {
	var all []*counter
	for _, n := range nodes {
		c, err := start(n, spec)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", n.name, err), closeAll(all))
		}
		all = append(all, c)
	}
	return all, nil
}

// start loads the program and attaches it before ours.
func start(n node, spec *ebpf.CollectionSpec) (_ *counter, err error) {
	loaded, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load the program: %w", err)
	}
	defer loaded.Close()
	c := &counter{node: n, program: loaded.DetachProgram("dns_count")}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if c.table, err = maps.Wrap[uint32, questions](loaded.Maps["dns_questions"]); err != nil {
		return nil, err
	}
	status, err := programs.ReadStatus(n.pins, n.namespace)
	if err != nil {
		return nil, err
	}
	c.cookie = status.NetnsCookie
	if err := c.look(); err != nil {
		return nil, err
	}
	for _, h := range status.Hooks {
		// What an endpoint sends is met where from_endpoint is. Ours has a pin.
		i := slices.IndexFunc(h.Programs, func(p programs.AttachedProgram) bool { return p.Pin != "" && p.Name == "from_endpoint" })
		if i < 0 || h.Ifindex == 0 {
			continue
		}
		a, err := programs.AttachProgram(programs.Attach{
			Program: c.program, Namespace: n.namespace, Ifindex: h.Ifindex, Direction: programs.Ingress,
			Order: link.BeforeProgramByID(h.Programs[i].ID),
		})
		if err != nil {
			return nil, err
		}
		c.attachments = append(c.attachments, a)
	}
	return c, nil
}

// look reads which endpoints the node has. Once the node is gone it is
// os.ErrNotExist, and what was there last is kept.
func (c *counter) look() error {
	state, err := programs.ReadNode(c.node.pins)
	if err != nil {
		return err
	}
	if state.NetnsCookie != c.cookie {
		return fmt.Errorf("it is another one of that name: %w", os.ErrNotExist)
	}
	table, err := maps.OpenEndpoints(c.node.pins)
	if err != nil {
		return err
	}
	defer table.Close()
	var all []maps.Endpoint
	for e, err := range table.All() {
		if err != nil {
			return err
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b maps.Endpoint) int { return cmp.Compare(a.ID, b.ID) })
	c.endpoints = all
	return nil
}

// Close takes the program off the devices and drops it with its table.
func (c *counter) Close() error {
	err := closeAll(c.attachments)
	if c.table != nil {
		err = errors.Join(err, c.table.Close())
	}
	return errors.Join(err, c.program.Close())
}

// printRows writes a row for every endpoint that was there when last looked at.
func printRows(out io.Writer, counters []*counter) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tENDPOINT\tIFINDEX\tADDRESSES\tDNS/UDP\tDNS/TCP")
	for _, c := range counters {
		if err := c.printRows(w); err != nil {
			return fmt.Errorf("%s: %w", c.node.name, err)
		}
	}
	return w.Flush()
}

func (c *counter) printRows(w io.Writer) error {
	asked := map[uint32]questions{}
	for e, err := range c.table.All() {
		if err != nil {
			return err
		}
		asked[e.Key] = e.Value
	}
	for _, e := range c.endpoints {
		q := asked[uint32(e.Ifindex)]
		addrs := strings.Trim(fmt.Sprint(e.Addrs), "[]")
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%d\t%d\n", c.node.name, e.ID, e.Ifindex, addrs, q.UDP, q.TCP)
	}
	return nil
}
