// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/godatapath/datapath/examples/internal/cluster"
)

// probeAll makes all probes, prints each as soon as it is over and tells how
// many failed.
func probeAll(ctx context.Context, c *cluster.Cluster, out io.Writer) (failed int, err error) {
	p := newPlanner()
	defer func() {
		if e := p.close(); e != nil {
			err = errors.Join(err, e)
		}
	}()
	if err := p.plan(c); err != nil {
		return 0, err
	}
	if len(p.rows) == 0 {
		fmt.Fprintln(out, "\nWithout endpoints there is nothing to probe.")
		return 0, nil
	}
	var widths [3]int
	for _, r := range p.rows {
		for i, cell := range r.labels() {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	label := func(cells [3]string) string {
		b := " "
		for i, cell := range cells {
			b += " " + cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+1)
		}
		return b
	}
	fmt.Fprintf(out, "\n%s %7s %13s\n", label([3]string{}), "IPv4", "IPv6")
	if c.NoSockets != nil {
		fmt.Fprintf(out, "  Services are not there for sockets: %v\n", c.NoSockets)
	}
	start, made := time.Now(), 0
	for i, r := range p.rows {
		if i > 0 && p.rows[i-1].node != r.node {
			fmt.Fprintln(out)
		}
		fmt.Fprint(out, label(r.labels()))
		reasons := ""
		for _, family := range bothFamilies {
			if !slices.Contains(r.families, family) {
				fmt.Fprintf(out, " %7s", "-")
				if family == 4 {
					fmt.Fprintf(out, " %6s", "")
				}
				continue
			}
			took, err := r.probe(ctx, family)
			if ctx.Err() != nil {
				fmt.Fprintln(out)
				return failed, ctx.Err()
			}
			made++
			if err != nil {
				failed++
				reasons += fmt.Sprintf("  IPv%d: %v", family, err)
				fmt.Fprintf(out, " %7s FAILED", "")
				continue
			}
			result := "ok"
			if family == 4 {
				result = "ok    " // as wide as FAILED
			}
			fmt.Fprintf(out, " %7s %s", spell(took), result)
		}
		fmt.Fprintln(out, reasons)
	}
	result := "all ok"
	if failed > 0 {
		result = fmt.Sprintf("%d FAILED", failed)
	}
	fmt.Fprintf(out, "\n  %s in %s: %s\n", count(made, "probe"), spell(time.Since(start)), result)
	return failed, nil
}

// row is a probe in one family or in both.
type row struct {
	node                     string // that the question comes from
	relation, from, to, what string
	families                 []int
	probe                    func(ctx context.Context, family int) (time.Duration, error)
}

func (r row) labels() [3]string {
	return [3]string{r.relation, r.from + " -> " + r.to, r.what}
}

// place is an address in a namespace.
type place struct {
	netns string
	addr  netip.Addr
}
