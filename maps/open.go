// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpffs"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/undo"
)

// nextSuffix marks the pin of a table that is about to take the place of
// another. No table is named so, because C allows no "-" in a name.
const nextSuffix = "-next"

// maxEntries is the Field of a Difference that is not one of layout.
const maxEntries = "max entries"

// New makes the table of spec. With cfg.Pins it adopts the table that is pinned
// there, with its entries, or pins the new one; several processes that do this at
// once get the same table. A pinned table of another layout is handled as
// cfg.OnMismatch says; by default it is left alone and the error is an
// [*IncompatibleError].
//
// The other errors: a spec, a Config or Go types that can not be used
// (os.ErrInvalid); Go types that do not fit the spec ([*IncompatibleError] too,
// without a Path); no bpf filesystem at cfg.Pins
// ([ErrNoBPFFS]); a schema on a kind that can not carry one
// ([ebpf.ErrNotSupported]); no permission (os.ErrPermission). A New that fails
// leaves nothing behind.
//
// The caller owns the table and ends with Close or Remove.
func New[K, V any](spec Spec[K, V], cfg Config) (_ *Map[K, V], err error) {
	dir, err := cfg.check()
	if err != nil {
		return nil, err
	}
	b, err := spec.check()
	if err != nil {
		return nil, err
	}
	if err := b.checkRoom(); err != nil {
		return nil, err
	}
	var u undo.Stack
	defer u.Run(&err)
	name, path := b.spec.Name, ""
	var em *ebpf.Map
	if dir == "" {
		em, err = b.create()
	} else {
		path = filepath.Join(dir, name)
		em, err = b.adoptOrCreate(dir, cfg.OnMismatch)
	}
	if err != nil {
		return nil, fmt.Errorf("make table %s: %w", name, err)
	}
	u.Push(em.Close)
	return newMap[K, V](em, name, path, b.lay)
}

// Open opens the table that is pinned at path and never makes one: it is for
// tools that read and change what a running datapath has. The sizes of K and V
// are checked, and the layout of their fields if the table has BTF; a
// difference is an [*IncompatibleError]. An absent pin answers
// errors.Is(err, os.ErrNotExist), a path that is on no bpf filesystem
// [ErrNoBPFFS].
//
// What the entries mean is not checked: see [OpenSpec].
//
// The caller owns the table. Close leaves the pin, Remove takes it away.
func Open[K, V any](path string) (*Map[K, V], error) {
	return openPinned[K, V](path, func(*ebpf.Map) ([]Difference, error) { return nil, nil })
}

// OpenSpec is [Open] with a closer look: kind, schema and, if both sides have C
// types, each field by name must be as in spec too. Flags and number of entries
// are the owner's business and may differ.
func OpenSpec[K, V any](path string, spec Spec[K, V]) (*Map[K, V], error) {
	b, err := spec.check()
	if err != nil {
		return nil, err
	}
	return openPinned[K, V](path, func(em *ebpf.Map) ([]Difference, error) {
		all, err := b.differences(em)
		var diffs []Difference
		for _, d := range all {
			if d.Field != "flags" && d.Field != maxEntries {
				diffs = append(diffs, d)
			}
		}
		return diffs, err
	})
}

func openPinned[K, V any](path string, check func(*ebpf.Map) ([]Difference, error)) (_ *Map[K, V], err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open table %s: %w", path, err)
	}
	var u undo.Stack
	defer u.Run(&err)
	em, err := loadPin(path)
	if err != nil {
		return nil, fmt.Errorf("open table: %w", err)
	}
	u.Push(em.Close)
	name := filepath.Base(path)
	diffs, err := check(em)
	if err != nil {
		return nil, fmt.Errorf("open table %s: %w", path, err)
	}
	if len(diffs) > 0 {
		return nil, fmt.Errorf("open table: %w", &IncompatibleError{Table: name, Path: path, Differences: diffs})
	}
	lay, err := fit[K, V](em, name, path)
	if err != nil {
		return nil, fmt.Errorf("open table: %w", err)
	}
	return newMap[K, V](em, name, path, lay)
}

// Wrap makes a typed table of one that the caller has, for example out of a
// collection. The handle is lent: it is duplicated here, the caller may close
// his at any time, and closing ours does not close his. The new Map is not
// pinned, whether theirs is or not. K and V are checked as in [Open].
func Wrap[K, V any](em *ebpf.Map) (_ *Map[K, V], err error) {
	if em == nil {
		return nil, invalid.Errorf("wrap a table: it is nil")
	}
	var u undo.Stack
	defer u.Run(&err)
	own, err := em.Clone()
	if err != nil {
		return nil, fmt.Errorf("wrap table %s: %w", em, err)
	}
	u.Push(own.Close)
	info, err := own.Info()
	if err != nil {
		return nil, fmt.Errorf("wrap table %s: %w", em, err)
	}
	lay, err := fit[K, V](own, info.Name, "")
	if err != nil {
		return nil, fmt.Errorf("wrap table: %w", err)
	}
	return newMap[K, V](own, info.Name, "", lay)
}

// fit checks that K and V are what an existing table holds.
func fit[K, V any](em *ebpf.Map, name, path string) (layout, error) {
	lay, err := layoutOf[K, V](em.Type())
	if err != nil {
		return layout{}, fmt.Errorf("table %s: %w", name, err)
	}
	diffs := lay.diffSizes(em.KeySize(), em.ValueSize())
	if len(diffs) == 0 {
		key, value, err := mapTypes(em)
		if err != nil {
			return layout{}, fmt.Errorf("table %s: %w", name, err)
		}
		diffs = lay.diffTypes(key, value)
	}
	if len(diffs) > 0 {
		return layout{}, fmt.Errorf("Go types %T and %T: %w", *new(K), *new(V), &IncompatibleError{Table: name, Path: path, Differences: diffs})
	}
	return lay, nil
}

// loadPin opens a pin; that it is no bpf filesystem is found out only to
// explain a failure.
func loadPin(path string) (*ebpf.Map, error) {
	em, err := ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		return em, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		if is, e := IsBPFFS(filepath.Dir(path)); e == nil && !is {
			return nil, fmt.Errorf("%s is %w", path, ErrNoBPFFS)
		}
	}
	return nil, fmt.Errorf("%s: %w", path, explainPermission(err))
}

// create makes the table in the kernel.
func (b *blueprint) create() (*ebpf.Map, error) {
	em, err := ebpf.NewMap(b.spec)
	if err != nil {
		return nil, explainPermission(err)
	}
	return em, nil
}

// createPinned makes the table and pins it at path. If path is taken it answers
// errors.Is(err, os.ErrExist).
func (b *blueprint) createPinned(path string) (_ *ebpf.Map, err error) {
	var u undo.Stack
	defer u.Run(&err)
	em, err := b.create()
	if err != nil {
		return nil, err
	}
	u.Push(em.Close)
	if b.schema != 0 {
		_, value, err := mapTypes(em)
		if err != nil {
			return nil, err
		}
		if schemaOf(value) != b.schema {
			return nil, fmt.Errorf("the kernel keeps no BTF for kind %s, so schema %d can not be told later (set Spec.Schema to 0): %w", b.spec.Type, b.schema, ebpf.ErrNotSupported)
		}
	}
	if err := pin(em, path); err != nil {
		return nil, err
	}
	return em, nil
}

// pin does not go through em, which would note the path and move the pin later.
func pin(em *ebpf.Map, path string) error {
	c, err := em.Clone()
	if err != nil {
		return fmt.Errorf("pin it at %s: %w", path, err)
	}
	defer c.Close()
	if err := c.Pin(path); err != nil {
		return fmt.Errorf("pin it at %s: %w", path, explainPermission(err))
	}
	return nil
}

func (b *blueprint) adoptOrCreate(dir string, mismatch Mismatch) (_ *ebpf.Map, err error) {
	var u undo.Stack
	defer u.Run(&err)
	takeBack, err := bpffs.Ensure(dir)
	if err != nil {
		return nil, err
	}
	u.Push(takeBack)
	unlock, err := lockFolder(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()

	path := filepath.Join(dir, b.spec.Name)
	em, err := loadPin(path)
	if errors.Is(err, os.ErrNotExist) {
		if em, err = b.createPinned(path); !errors.Is(err, os.ErrExist) {
			return em, err
		}
		em, err = loadPin(path) // somebody who does not know our lock was faster
	}
	if err != nil {
		return nil, err
	}
	diffs, err := b.differences(em)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the table at %s: %w", path, err), em.Close())
	}
	if len(diffs) == 0 {
		return em, nil
	}
	defer em.Close()
	migrate := b.migrate
	if migrate == nil && !slices.ContainsFunc(diffs, func(d Difference) bool { return d.Field != maxEntries }) {
		migrate = b.copy
	}
	switch {
	case mismatch == Replace:
		return b.replace(path, em, nil)
	case mismatch == Migrate && migrate != nil:
		return b.replace(path, em, migrate)
	default:
		return nil, &IncompatibleError{Table: b.spec.Name, Path: path, Differences: diffs}
	}
}

// replace puts a new table in the place of the one pinned at path. The rename at
// the end is the only step that others can see: a crash before it leaves the old
// table, and a pin with nextSuffix that the next attempt takes away.
func (b *blueprint) replace(path string, old *ebpf.Map, migrate func(old, next *ebpf.Map) error) (_ *ebpf.Map, err error) {
	var u undo.Stack
	defer u.Run(&err)
	aside := path + nextSuffix
	if err := os.Remove(aside); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("take away what a crash has left: %w", err)
	}
	next, err := b.createPinned(aside)
	if err != nil {
		return nil, err
	}
	u.Push(next.Close)
	u.Push(func() error { return os.Remove(aside) })
	if migrate != nil {
		if err := migrate(old, next); err != nil {
			return nil, fmt.Errorf("migrate the entries of %s: %w", path, err)
		}
	}
	if err := unix.Rename(aside, path); err != nil {
		return nil, fmt.Errorf("put the new table in the place of %s: %w", path, err)
	}
	return next, nil
}

// copyEntries carries the entries over to a table with other room. Both handles
// are lent, so neither Map is closed.
func copyEntries[K, V any](name string, lay layout, old, next *ebpf.Map) error {
	from, err := newMap[K, V](old, name, "", lay)
	if err != nil {
		return err
	}
	to, err := newMap[K, V](next, name, "", lay)
	if err != nil {
		return err
	}
	var failed error
	_, err = to.SetAll(func(yield func(K, V) bool) {
		for entry, err := range from.All() {
			if failed = err; err != nil || !yield(entry.Key, entry.Value) {
				return
			}
		}
	})
	return errors.Join(failed, err)
}

// differences holds an existing table against the blueprint.
func (b *blueprint) differences(em *ebpf.Map) ([]Difference, error) {
	var diffs []Difference
	differ := func(field string, have, want any) {
		if have != want {
			diffs = append(diffs, Difference{field, fmt.Sprint(have), fmt.Sprint(want)})
		}
	}
	flags := b.spec.Flags
	if b.spec.Type == ebpf.DevMap || b.spec.Type == ebpf.DevMapHash {
		flags |= em.Flags() & unix.BPF_F_RDONLY_PROG // the kernel sets it by itself
	}
	differ("type", em.Type(), b.spec.Type)
	differ("key size", em.KeySize(), b.spec.KeySize)
	differ("value size", em.ValueSize(), b.spec.ValueSize)
	differ(maxEntries, em.MaxEntries(), b.roundedEntries())
	differ("flags", fmt.Sprintf("%#x", em.Flags()), fmt.Sprintf("%#x", flags))

	key, value, err := mapTypes(em)
	if err != nil {
		return nil, err
	}
	differ("schema", schemaOf(value), b.schema)
	switch {
	case value == nil:
		// Made without BTF: the sizes have to do.
	case b.fromC:
		if key != nil {
			diffs = append(diffs, diffC(btfFields(key, "key"), btfFields(b.spec.Key, "key"))...)
		}
		diffs = append(diffs, diffC(btfFields(value, "value"), btfFields(b.spec.Value, "value"))...)
	case em.KeySize() == b.spec.KeySize && em.ValueSize() == b.spec.ValueSize:
		// Only Go types to go by, and their names are the user's. Turned round:
		// here it is the C side that exists.
		for _, d := range b.lay.diffTypes(key, value) {
			diffs = append(diffs, Difference{d.Field, d.Want, d.Have})
		}
	}
	return diffs, nil
}

// roundedEntries is what the kernel makes of Spec.Map.MaxEntries: evicting
// tables with a list per CPU round up to a multiple of the CPUs.
func (b *blueprint) roundedEntries() uint32 {
	n := b.spec.MaxEntries
	if b.spec.Flags&unix.BPF_F_NO_COMMON_LRU == 0 {
		return n
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil || cpus < 1 {
		return n
	}
	c := uint32(cpus)
	if up := (n + c - 1) / c * c; up >= n {
		return up
	}
	return n / c * c
}
