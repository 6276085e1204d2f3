// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"

	"github.com/godatapath/datapath/internal/invalid"
)

// Config is how a table is kept, or all tables of a block. The zero Config is a
// table that lives as long as a descriptor or a program holds it.
type Config struct {
	// Pins is a folder on a bpf filesystem. Table NAME is pinned there as
	// Pins/NAME and found again by the next New. The folder is made if it is
	// absent, the filesystem is not: see [MountBPFFS]. A relative path is taken
	// from the working directory at the time of New. "": not pinned.
	Pins string
	// OnMismatch is what New does when the pinned table has another layout. The
	// default is [Fail].
	OnMismatch Mismatch
}

// Mismatch is the answer to a pinned table of another layout.
type Mismatch uint8

const (
	// Fail leaves the pinned table alone and returns an [*IncompatibleError].
	Fail Mismatch = iota
	// Replace makes an empty table and puts it in the place of the pinned one
	// in one step. Programs that hold the old table go on with it until they
	// are replaced.
	Replace
	// Migrate is Replace with the entries carried over: by [Spec].Migrate or, in
	// a table without one, by copying them if only the number of entries that fit
	// is another. Where there is no way over it is Fail: with another schema, kind
	// or field, and for arrays, whose indexes mean something. More entries than
	// fit are unix.E2BIG, and the pinned table stays as it was; kinds that evict
	// push some out instead. What programs write to the old table from then on is
	// not carried over.
	//
	// So for endpoints, peers and flows Migrate is the way to another size.
	Migrate
)

// String names the answer.
func (m Mismatch) String() string {
	switch m {
	case Fail:
		return "fail"
	case Replace:
		return "replace"
	case Migrate:
		return "migrate"
	default:
		return fmt.Sprintf("Mismatch(%d)", uint8(m))
	}
}

// Spec is the blueprint of a table. It is inert, and New never changes what it
// points to.
//
// K and V are fixed-size types without pointers and without padding, in the
// layout of the C types: what bpf2go generates for C structs with explicit
// padding. V is a slice for the per-CPU kinds, with one element per possible
// CPU. Blank fields (_) are refused in keys, because bytes nobody names are
// bytes nobody sets and such keys never match; in values they are written as
// zeros and ignored in comparisons.
//
// Tables of tables and tables of programs take descriptors and give ids, so
// their values can not be compared: use them through [Map.EBPF].
type Spec[K, V any] struct {
	// Map has the kind, the flags, the number of entries and, normally, the BTF
	// types of key and value. Zero sizes are taken from K and V; without BTF
	// types, types made from K and V describe the table to the kernel and to
	// tools. Map.Contents is written to a new table, never to one that is
	// adopted. Map.Pinning is ignored.
	Map *ebpf.MapSpec
	// Schema is the version of the layout and of the meaning of its fields.
	// Raise it whenever entries written before must not be read as they are. 0
	// is no version. A version needs a kind for which the kernel keeps BTF:
	// hashes, arrays and tries, but not, for example, device maps.
	Schema uint32
	// Migrate carries the entries of old, which has another layout, over to
	// next, which is empty and is not yet seen by anybody. Both are borrowed for
	// the call. If it fails, the pinned table stays as it was and New returns the
	// error. What programs write to old after the call is not seen; a caller
	// who needs that clones old here and copies again after he has replaced the
	// programs. Nil: see [Migrate].
	Migrate func(old, next *ebpf.Map) error
}

// blueprint is a Spec that has been checked and completed.
type blueprint struct {
	spec    *ebpf.MapSpec // ours alone
	fromC   bool          // the BTF types came with the Spec
	schema  uint32
	migrate func(old, next *ebpf.Map) error
	copy    func(old, next *ebpf.Map) error // for tables that differ in their room alone; nil for arrays
	lay     layout
}

func (s Spec[K, V]) check() (blueprint, error) {
	if s.Map == nil {
		return blueprint{}, invalid.Errorf("make a table: Spec.Map is nil")
	}
	spec := s.Map.Copy()
	spec.Pinning = ebpf.PinNone
	name := spec.Name
	if name == "" {
		return blueprint{}, invalid.Errorf("make a table: Spec.Map.Name is empty")
	}
	if strings.ContainsAny(name, "./") {
		return blueprint{}, invalid.Errorf("make table %q: a bpf filesystem allows no dot and no slash in a name", name)
	}
	lay, err := layoutOf[K, V](spec.Type)
	if err != nil {
		return blueprint{}, fmt.Errorf("make table %s: %w", name, err)
	}
	if spec.KeySize == 0 {
		spec.KeySize = uint32(lay.keySize)
	}
	if spec.ValueSize == 0 {
		spec.ValueSize = uint32(lay.valueSize)
	}
	diffs := lay.diffSizes(spec.KeySize, spec.ValueSize)
	diffs = append(diffs, lay.diffTypes(spec.Key, spec.Value)...)
	if len(diffs) > 0 {
		return blueprint{}, fmt.Errorf("make table %s for Go types %T and %T: %w",
			name, *new(K), *new(V), &IncompatibleError{Table: name, Differences: diffs})
	}
	b := blueprint{spec: spec, fromC: spec.Key != nil && spec.Value != nil, schema: s.Schema, migrate: s.Migrate, lay: lay}
	if !b.fromC {
		spec.Key, spec.Value = lay.btfKey(), lay.btfValue()
	}
	completeBTF(spec, s.Schema)
	if !isArray(spec.Type) {
		b.copy = func(old, next *ebpf.Map) error { return copyEntries[K, V](name, lay, old, next) }
	}
	return b, nil
}

// checkRoom finds a table with room for nothing. Only to make one is that wrong:
// tools take the room as it is.
func (b *blueprint) checkRoom() error {
	switch b.spec.Type {
	case ebpf.Hash, ebpf.LRUHash, ebpf.PerCPUHash, ebpf.LRUCPUHash, ebpf.Array, ebpf.PerCPUArray, ebpf.LPMTrie:
		if b.spec.MaxEntries == 0 {
			return invalid.Errorf("make table %s: Spec.Map.MaxEntries is 0, want the number of entries that fit", b.spec.Name)
		}
	}
	return nil
}

// check returns the folder for pins as an absolute path, or "".
func (c Config) check() (string, error) {
	if c.OnMismatch > Migrate {
		return "", invalid.Errorf("make a table: Config.OnMismatch is %s, which does not exist", c.OnMismatch)
	}
	if c.Pins == "" {
		return "", nil
	}
	dir, err := filepath.Abs(c.Pins)
	if err != nil {
		return "", fmt.Errorf("find the folder for pins %s: %w", c.Pins, err)
	}
	return dir, nil
}
