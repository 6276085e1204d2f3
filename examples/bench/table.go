// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"text/tabwriter"
)

// So much is measured at least before a ratio says more than what else the machine
// was doing.
const (
	enoughRounds  = 3
	enoughSeconds = 0.5
)

// writeTable prints the report for people.
func writeTable(w io.Writer, rep *report) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s, both ends on CPU %d of %d, %s\n", rep.Family, rep.CPU, rep.CPUs, rep.terms())
	for _, m := range rep.Measures {
		fmt.Fprintf(&b, "\n%s (%s, %s)\n", m.Title, m.Unit, m.better())
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
		if rep.Rounds == 1 {
			fmt.Fprintf(t, "\tmeasured once\t× veth\t× kernel vxlan\t\n")
		} else {
			fmt.Fprintf(t, "\tmedian\tmin\tmax\t× veth\t× kernel vxlan\t\n")
		}
		for _, c := range m.Contestants {
			// Right-aligned cells, all but the first.
			if rep.Rounds == 1 {
				fmt.Fprintf(t, "%-28s\t%.2f\t%.2f\t%s\t\n", c.Title, c.Median, c.ToVeth, ratio(c.ToVXLAN))
				continue
			}
			fmt.Fprintf(t, "%-28s\t%.2f\t%.2f\t%.2f\t%.2f\t%s\t\n", c.Title, c.Median, c.Min, c.Max, c.ToVeth, ratio(c.ToVXLAN))
		}
		t.Flush()
	}
	if len(rep.Targets) > 0 {
		fmt.Fprintf(&b, "\nTargets\n")
		if rep.Rounds < enoughRounds || rep.Seconds < enoughSeconds {
			fmt.Fprintf(&b, "  (too short to judge by: that takes %d rounds of %gs)\n", enoughRounds, enoughSeconds)
		}
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, g := range rep.Targets {
			verdict := "met"
			if !g.Met {
				verdict = "missed"
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\t%.3f\t%s\n", g.Measure, g.Contestant, g.wish(), g.Ratio, verdict)
		}
		t.Flush()
	}
	_, err := w.Write(b.Bytes())
	return err
}

// ratio is one that need not be known.
func ratio(r float64) string {
	if r == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", r)
}

func (m measure) better() string {
	if m.Higher {
		return "higher is better"
	}
	return "lower is better"
}

// terms says under what conditions was measured.
func (rep *report) terms() string {
	times := fmt.Sprintf("median of %d rounds of %gs taken in turns", rep.Rounds, rep.Seconds)
	if rep.Rounds == 1 {
		times = fmt.Sprintf("one measurement of %gs each", rep.Seconds)
	}
	return fmt.Sprintf("%s, nodes joined by a %s, Linux %s %s", times, rep.Underlay, rep.Kernel, rep.Arch)
}
