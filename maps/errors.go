// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpffs"
)

// ErrNoBPFFS says that a folder for pins is not on a bpf filesystem. Mount one
// there with [MountBPFFS], or choose a folder below /sys/fs/bpf.
var ErrNoBPFFS = bpffs.ErrNone

// IncompatibleError says that a table does not have the layout that is asked
// for: a pinned table of another layout, or a Go type that does not fit its C
// counterpart. errors.Is(err, ebpf.ErrMapIncompatible) holds.
type IncompatibleError struct {
	// Table is the name of the table.
	Table string
	// Path is where the table is pinned; "" if the Go types or the spec are at
	// odds among themselves and no table was opened.
	Path string
	// Differences are never empty. Those of the table itself come first, then
	// the fields of the key, then the fields of the value.
	Differences []Difference
}

// Difference is one property in which two layouts disagree.
type Difference struct {
	// Field is "type", "flags", "max entries", "key size", "value size",
	// "schema", or the path of a field, such as "key.addr" or
	// "value.stats[3].bytes".
	Field string
	// Have is what the existing table has. For Go types that do not fit it is
	// what the Go type has.
	Have string
	// Want is what is asked for. For Go types that do not fit it is what the C
	// type has.
	Want string
}

// Error lists the differences on one line.
func (e *IncompatibleError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s", e.Table)
	if e.Path != "" {
		fmt.Fprintf(&b, " at %s", e.Path)
	}
	b.WriteString(" is incompatible: ")
	for i, d := range e.Differences {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: have %s, want %s", d.Field, d.Have, d.Want)
	}
	return b.String()
}

// Unwrap returns [ebpf.ErrMapIncompatible].
func (e *IncompatibleError) Unwrap() error { return ebpf.ErrMapIncompatible }

// explainPermission adds what to do to an error that says no.
func explainPermission(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w (root or CAP_BPF and CAP_SYS_ADMIN are needed)", err)
	}
	return err
}

// explainWrite turns what the kernel says about a write into words. A trie that
// is full answers ENOSPC where every other kind answers E2BIG; both become
// E2BIG, so that callers test for one value.
func (m *Map[K, V]) explainWrite(err error, key *K) error {
	switch {
	case errors.Is(err, unix.ENOSPC):
		err = fmt.Errorf("%w (%w)", unix.E2BIG, err)
		fallthrough
	case errors.Is(err, unix.E2BIG):
		if isArray(m.em.Type()) {
			return fmt.Errorf("key %+v of table %s is outside its %d entries: %w", *key, m.name, m.em.MaxEntries(), err)
		}
		return fmt.Errorf("key %+v of table %s: the table is full with %d entries, make it larger: %w", *key, m.name, m.em.MaxEntries(), err)
	default:
		return fmt.Errorf("key %+v of table %s: %w", *key, m.name, explainPermission(err))
	}
}
