// SPDX-License-Identifier: Apache-2.0

package show

import (
	"io"
	"strings"
	"unicode/utf8"
)

// Row is one line, by cells. Cells of the same place are aligned over all rows.
type Row []string

// Write writes rows with aligned columns, each line behind indent. Columns of
// numbers are aligned to the right. Two blanks separate columns, one is enough
// between two of the form name=value. No row at all is "(none)".
func Write(w io.Writer, indent string, rows []Row) error {
	if len(rows) == 0 {
		_, err := io.WriteString(w, indent+"(none)\n")
		return err
	}
	columns := measure(rows)
	var b strings.Builder
	for _, r := range rows {
		b.WriteString(indent)
		line := strings.Builder{}
		for i, cell := range r {
			fill := strings.Repeat(" ", columns[i].width-utf8.RuneCountInString(cell))
			if columns[i].number {
				line.WriteString(fill + cell)
			} else {
				line.WriteString(cell + fill)
			}
			if i+1 < len(r) && columns[i].pair && columns[i+1].pair {
				line.WriteString(" ")
			} else {
				line.WriteString("  ")
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

type column struct {
	width  int
	number bool // digits in all rows but the first, which may be a heading
	pair   bool // name=value in all rows
}

func measure(rows []Row) []column {
	var columns []column
	for n, r := range rows {
		for i, cell := range r {
			if i == len(columns) {
				columns = append(columns, column{number: len(rows) > 1, pair: true})
			}
			c := &columns[i]
			c.width = max(c.width, utf8.RuneCountInString(cell))
			c.number = c.number && (n == 0 || isNumber(cell))
			c.pair = c.pair && (cell == "" || isPair(cell))
		}
	}
	return columns
}

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func isPair(s string) bool {
	name, _, ok := strings.Cut(s, "=")
	return ok && !strings.Contains(name, " ")
}

// Under puts a cell before each row, for example the name of the node.
func Under(name string, rows []Row) []Row {
	out := make([]Row, 0, len(rows))
	for _, r := range rows {
		out = append(out, append(Row{name}, r...))
	}
	return out
}
