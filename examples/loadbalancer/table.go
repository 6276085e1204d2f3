// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

var bothFamilies = []int{4, 6}

// row is a question that is asked in both families.
type row struct {
	what string
	ask  func(ctx context.Context, family int) (time.Duration, error)
}

// table prints the rows as they are answered.
type table struct {
	out            io.Writer
	asked, failed  int
	started        time.Time
	headingPrinted bool
}

const whatWidth = 52

// print asks and prints rows under a title.
func (t *table) print(ctx context.Context, title string, rows []row) error {
	if !t.headingPrinted {
		fmt.Fprintf(t.out, "\n  %-*s %9s %13s\n", whatWidth, "", "IPv4", "IPv6")
		t.headingPrinted, t.started = true, time.Now()
	} else {
		fmt.Fprintln(t.out)
	}
	fmt.Fprintf(t.out, "  %s\n", title)
	for _, r := range rows {
		fmt.Fprintf(t.out, "    %-*s", whatWidth-2, r.what)
		reasons := ""
		for _, family := range bothFamilies {
			took, err := r.ask(ctx, family)
			if ctx.Err() != nil {
				fmt.Fprintln(t.out)
				return ctx.Err()
			}
			t.asked++
			if err != nil {
				t.failed++
				reasons += fmt.Sprintf("  IPv%d: %v", family, err)
				fmt.Fprintf(t.out, " %7s FAILED", "")
				continue
			}
			result := "ok"
			if family == 4 {
				result = "ok    " // as wide as FAILED
			}
			fmt.Fprintf(t.out, " %7s %s", spell(took), result)
		}
		fmt.Fprintln(t.out, strings.TrimRight(reasons, "\n"))
	}
	return nil
}

// sum says how it went.
func (t *table) sum() {
	result := "all ok"
	if t.failed > 0 {
		result = fmt.Sprintf("%d FAILED", t.failed)
	}
	fmt.Fprintf(t.out, "\n  %s in %s: %s\n", count(t.asked, "probe"), spell(time.Since(t.started)), result)
}

// spell writes a short time with three digits.
func spell(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1e3)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}
