// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"html"
)

// The chart's measures, in pixels.
const (
	chartWidth  = 760
	chartMargin = 24
	labelWidth  = 150 // left of the bars
	valueWidth  = 150 // right of the longest bar
	barHeight   = 16
	barGap      = 8
	groupHead   = 44 // title above the bars
	headHeight  = 64
	footHeight  = 36
)

// chartStyle has colours for bright and for dark pages. The chart brings its
// own background, so it can be read on both even where only one is known.
const chartStyle = `
  text { font-family: system-ui, sans-serif; font-size: 13px; fill: #1f2328; }
  .head { font-size: 17px; font-weight: 600; }
  .group { font-weight: 600; }
  .soft { fill: #59636e; font-size: 12px; }
  .page { fill: #ffffff; }
  .peer { fill: #a9b4bf; }
  .ours { fill: #1f6feb; }
  .spread { stroke: #1f2328; stroke-width: 1.5; }
  .limit { stroke: #8c959f; stroke-dasharray: 3 3; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .soft { fill: #9198a1; }
    .page { fill: #0d1117; }
    .peer { fill: #5b6773; }
    .ours { fill: #4493f8; }
    .spread { stroke: #e6edf3; }
    .limit { stroke: #6e7681; }
  }
`

// chart draws the report as an SVG document: for each measure one bar per
// contestant, with the spread of the rounds as a line across its end.
func chart(rep *report) []byte {
	height := headHeight + footHeight
	for _, m := range rep.Measures {
		height += groupHead + len(m.Contestants)*(barHeight+barGap) + barGap
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" aria-label="Traffic benchmark">`+"\n",
		chartWidth, height, chartWidth, height)
	fmt.Fprintf(&b, "<style>%s</style>\n", chartStyle)
	fmt.Fprintf(&b, `<rect class="page" width="%d" height="%d" rx="6"/>`+"\n", chartWidth, height)
	label(&b, "head", chartMargin, 32, "start", "Traffic, both ends on one CPU")
	label(&b, "soft", chartMargin, 52, "start", rep.Family+", "+rep.terms())
	y := headHeight
	for _, m := range rep.Measures {
		y = group(&b, m, y)
	}
	foot := "× is the ratio to two namespaces joined by a veth"
	if rep.Rounds > 1 {
		foot += "; the thin line is the spread of the rounds"
	}
	label(&b, "soft", chartMargin, height-16, "start", foot)
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// group draws one measure from y downwards and returns where it ends.
func group(b *bytes.Buffer, m results, y int) int {
	label(b, "group", chartMargin, y+26, "start", m.Title)
	label(b, "soft", chartWidth-chartMargin, y+26, "end", m.Unit+", "+m.better())
	y += groupHead
	longest := 0.0
	for _, c := range m.Contestants {
		longest = max(longest, c.Max)
	}
	left := chartMargin + labelWidth
	scale := float64(chartWidth-chartMargin-valueWidth-left) / longest
	at := func(v float64) float64 { return float64(left) + v*scale }

	limit := at(m.of(nameVeth).Median)
	fmt.Fprintf(b, `<line class="limit" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/>`+"\n",
		limit, y-4, limit, y+len(m.Contestants)*(barHeight+barGap)-barGap+4)
	for _, c := range m.Contestants {
		class := "peer"
		if c.ours {
			class = "ours"
		}
		middle := float64(y) + barHeight/2.0
		label(b, "", left-10, y+barHeight-3, "end", c.Title)
		fmt.Fprintf(b, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d" rx="2"/>`+"\n", class, left, y, c.Median*scale, barHeight)
		fmt.Fprintf(b, `<line class="spread" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`+"\n", at(c.Min), middle, at(c.Max), middle)
		label(b, "", int(at(c.Max))+8, y+barHeight-3, "start", fmt.Sprintf("%.1f %s  (%.2f×)", c.Median, m.Unit, c.ToVeth))
		y += barHeight + barGap
	}
	return y + barGap
}

func label(b *bytes.Buffer, class string, x, y int, anchor, text string) {
	fmt.Fprintf(b, `<text class="%s" x="%d" y="%d" text-anchor="%s">%s</text>`+"\n", class, x, y, anchor, html.EscapeString(text))
}
