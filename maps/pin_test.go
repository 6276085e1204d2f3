// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func pinsIn(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	out := []string{}
	for _, e := range list {
		if strings.HasSuffix(e.Name(), ".debug") {
			continue // the kernel puts iterators into each new bpf filesystem
		}
		out = append(out, e.Name())
	}
	return out
}

func TestAPinnedTableIsAdopted(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(mountedFS(t), "some", "where")
	spec := hashSpec("flows", 16)
	spec.Schema = 7
	a := makeMap(t, spec, Config{Pins: dir})
	assert.Equal(t, filepath.Join(dir, "flows"), a.PinPath())
	require.NoError(t, a.Set(keyOf(1), valueOf(1)))
	require.NoError(t, a.Close())

	b := makeMap(t, spec, Config{Pins: dir})
	assert.Equal(t, map[key]value{keyOf(1): valueOf(1)}, contents(t, b))
	c, err := Open[key, value](filepath.Join(dir, "flows"))
	require.NoError(t, err)
	defer c.Close()
	assert.Equal(t, "flows", c.Name())
	require.NoError(t, c.Set(keyOf(2), valueOf(2)))
	d, err := OpenSpec(filepath.Join(dir, "flows"), spec)
	require.NoError(t, err)
	defer d.Close()
	assert.Len(t, contents(t, b), 2, "all of them are one table")

	require.NoError(t, b.Remove())
	require.NoError(t, b.Remove())
	assert.Empty(t, pinsIn(t, dir))
	assert.Empty(t, b.PinPath())
	_, err = Open[key, value](filepath.Join(dir, "flows"))
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.Len(t, contents(t, d), 2, "others who hold the table keep it")
}

func TestPinAndUnpin(t *testing.T) {
	t.Parallel()
	dir := mountedFS(t)
	m := makeMap(t, hashSpec("late", 4), Config{})
	require.NoError(t, m.Unpin(), "not pinned")
	require.NoError(t, m.Pin(filepath.Join(dir, "a")))
	require.NoError(t, m.Pin(filepath.Join(dir, "a")))
	require.ErrorIs(t, m.Pin(filepath.Join(dir, "b")), os.ErrExist)
	assert.NoDirExists(t, filepath.Join(dir, "b"), "a failed Pin leaves nothing behind")

	other := makeMap(t, hashSpec("late", 4), Config{})
	err := other.Pin(filepath.Join(dir, "a"))
	require.ErrorIs(t, err, os.ErrExist)
	require.ErrorContains(t, err, "another table")
	assert.Empty(t, other.PinPath())

	again, err := Wrap[key, value](m.EBPF())
	require.NoError(t, err)
	defer again.Close()
	require.NoError(t, again.Pin(filepath.Join(dir, "a")), "the same table is there already")

	require.NoError(t, m.Unpin())
	require.NoError(t, m.Unpin())
	assert.Empty(t, pinsIn(t, filepath.Join(dir, "a")))
	require.NoError(t, m.Set(keyOf(1), valueOf(1)), "Unpin does not close")
	require.NoError(t, m.Pin(filepath.Join(dir, "b")))
	require.NoError(t, m.Close())
	assert.Equal(t, []string{"late"}, pinsIn(t, filepath.Join(dir, "b")), "Close leaves the pin")
	require.NoError(t, m.Remove(), "also after Close")
	assert.Empty(t, pinsIn(t, filepath.Join(dir, "b")))
}

func TestUnpinLeavesThePinOfASuccessor(t *testing.T) {
	t.Parallel()
	dir := mountedFS(t)
	old := makeMap(t, hashSpec("heir", 4), Config{Pins: dir})
	next := makeMap(t, hashSpec("heir", 8), Config{Pins: dir, OnMismatch: Replace})
	require.NoError(t, old.Remove())
	assert.Equal(t, []string{"heir"}, pinsIn(t, dir))
	require.NoError(t, os.Remove(filepath.Join(dir, "heir")))
	require.NoError(t, next.Unpin(), "the pin is gone already")

	m := makeMap(t, hashSpec("heir", 4), Config{Pins: filepath.Join(dir, "sub")})
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "sub")))
	require.NoError(t, m.Unpin(), "the folder is gone already")
}

// cStruct is what a C compiler would say about a struct.
func cStruct(size uint32, members ...btf.Member) *btf.Struct {
	return &btf.Struct{Name: "entry", Size: size, Members: members}
}

func member(name string, at btf.Bits, t btf.Type) btf.Member {
	return btf.Member{Name: name, Offset: at * 8, Type: t}
}

func bytesOf(n uint32) btf.Type {
	return &btf.Array{Index: btfNumber("u32", 4), Type: &btf.Typedef{Name: "__u8", Type: btfNumber("u8", 1)}, Nelems: n}
}

func TestEveryDifferenceIsNamed(t *testing.T) {
	t.Parallel()
	u16, u32, u64 := btfNumber("u16", 2), btfNumber("u32", 4), btfNumber("u64", 8)
	base := func() *ebpf.MapSpec {
		return &ebpf.MapSpec{
			Name: "rows", Type: ebpf.Hash, MaxEntries: 16, KeySize: 8, ValueSize: 16,
			Key: cStruct(8, member("addr", 0, u32), member("port", 4, u16), member("pad", 6, u16)),
			Value: cStruct(16, member("count", 0, u64), member("mac", 8, bytesOf(6)),
				member("in", 14, cStruct(2, member("a", 0, btfNumber("u8", 1)), member("b", 1, btfNumber("u8", 1))))),
		}
	}
	wide := base()
	wide.KeySize, wide.Key = 16, cStruct(16, member("addr", 0, bytesOf(16)))
	type entry struct {
		schema uint32
		spec   *ebpf.MapSpec
	}
	edit := func(f func(*ebpf.MapSpec)) entry { s := base(); f(s); return entry{1, s} }
	values := func(members ...btf.Member) entry {
		return edit(func(s *ebpf.MapSpec) { s.Value = cStruct(16, members...) })
	}
	in := base().Value.(*btf.Struct).Members[2]
	for _, c := range []struct {
		name string
		have entry
		want []Difference
	}{
		{"nothing", entry{1, base()}, nil},
		{"type", edit(func(s *ebpf.MapSpec) { s.Type = ebpf.LRUHash }), []Difference{{"type", "LRUHash", "Hash"}}},
		{"max entries", edit(func(s *ebpf.MapSpec) { s.MaxEntries = 17 }), []Difference{{"max entries", "17", "16"}}},
		{"flags", edit(func(s *ebpf.MapSpec) { s.Flags = unix.BPF_F_NO_PREALLOC }), []Difference{{"flags", "0x1", "0x0"}}},
		{"schema", entry{2, base()}, []Difference{{"schema", "2", "1"}}},
		{"no schema", entry{0, base()}, []Difference{{"schema", "0", "1"}}},
		{"key size", entry{1, wide}, []Difference{
			{"key size", "16", "8"},
			{"key.addr", "u8[16] at byte 0", "u32 at byte 0"},
			{"key.port", "no such field", "u16 at byte 4"},
			{"key.pad", "no such field", "u16 at byte 6"},
		}},
		{"value size", edit(func(s *ebpf.MapSpec) { s.ValueSize, s.Value = 8, u64 }), []Difference{
			{"value size", "8", "16"},
			{"value.count", "no such field", "u64 at byte 0"},
			{"value.mac", "no such field", "u8[6] at byte 8"},
			{"value.in.a", "no such field", "u8 at byte 14"},
			{"value.in.b", "no such field", "u8 at byte 15"},
			{"value", "u64 at byte 0", "no such field"},
		}},
		{"moved", values(member("mac", 0, bytesOf(6)), member("in", 6, in.Type), member("count", 8, u64)), []Difference{
			{"value.count", "u64 at byte 8", "u64 at byte 0"},
			{"value.mac", "u8[6] at byte 0", "u8[6] at byte 8"},
			{"value.in.a", "u8 at byte 6", "u8 at byte 14"},
			{"value.in.b", "u8 at byte 7", "u8 at byte 15"},
		}},
		{"signed", values(member("count", 0, btfNumber("s64", 8)), member("mac", 8, bytesOf(6)), in), []Difference{
			{"value.count", "s64 at byte 0", "u64 at byte 0"},
		}},
		{"renamed", values(member("bytes", 0, u64), member("mac", 8, bytesOf(6)), in), []Difference{
			{"value.count", "no such field", "u64 at byte 0"},
			{"value.bytes", "u64 at byte 0", "no such field"},
		}},
		{"typedef and const", values(member("count", 0, &btf.Const{Type: &btf.Typedef{Name: "u64_t", Type: u64}}), member("mac", 8, bytesOf(6)), in), nil},
		{"union", values(member("count", 0, &btf.Union{Size: 8, Members: []btf.Member{member("v", 0, u64), member("w", 0, u32)}}), member("mac", 8, bytesOf(6)), in), []Difference{
			{"value.count", "union{u64 at byte 0 v; u32 at byte 0 w} at byte 0", "u64 at byte 0"},
		}},
		{"bits", values(btf.Member{Name: "count", Type: u32, Offset: 3, BitfieldSize: 5}, member("mac", 8, bytesOf(6)), in), []Difference{
			{"value.count", "bits 3 to 7 at byte 0", "u64 at byte 0"},
		}},
		{"no BTF, same sizes", edit(func(s *ebpf.MapSpec) { s.Key, s.Value = nil, nil }), []Difference{{"schema", "0", "1"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := mountedFS(t)
			path := filepath.Join(dir, "rows")
			completeBTF2(c.have.spec, c.have.schema)
			em, err := ebpf.NewMap(c.have.spec)
			require.NoError(t, err)
			defer em.Close()
			require.NoError(t, pin(em, path))

			spec := Spec[[8]byte, [16]byte]{Map: base(), Schema: 1}
			m, err := New(spec, Config{Pins: dir})
			if c.want == nil {
				require.NoError(t, err)
				require.NoError(t, m.Close())
				return
			}
			require.Nil(t, m)
			require.ErrorIs(t, err, ebpf.ErrMapIncompatible)
			var typed *IncompatibleError
			require.True(t, errors.As(err, &typed))
			assert.Equal(t, &IncompatibleError{Table: "rows", Path: path, Differences: c.want}, typed)
			assert.Equal(t, []string{"rows"}, pinsIn(t, dir))
			a, err := mapIDOfPin(path)
			require.NoError(t, err)
			info, err := infoOf(em)
			require.NoError(t, err)
			assert.Equal(t, info.id, a, "the pin is left alone")

			o, err := OpenSpec(path, spec)
			if c.name == "flags" || c.name == "max entries" {
				require.NoError(t, err, "the owner's business")
				require.NoError(t, o.Close())
			} else {
				require.ErrorIs(t, err, ebpf.ErrMapIncompatible)
			}
		})
	}
}

// completeBTF2 is completeBTF for a spec that may have no types.
func completeBTF2(spec *ebpf.MapSpec, schema uint32) {
	if spec.Value != nil {
		completeBTF(spec, schema)
	}
}

func mapIDOfPin(path string) (uint32, error) {
	em, err := loadPin(path)
	if err != nil {
		return 0, err
	}
	defer em.Close()
	info, err := infoOf(em)
	return info.id, err
}

// Go types alone, without a C side, find a changed layout too.
func TestGoTypesFindAChangedLayout(t *testing.T) {
	t.Parallel()
	type before struct{ Packets, Bytes uint64 }
	type after struct{ Bytes, Packets uint64 }
	type renamed struct{ Frames, Octets uint64 }
	type narrow struct{ Packets, Drops, Bytes, Pad uint32 }
	dir := mountedFS(t)
	spec := &ebpf.MapSpec{Name: "plain", Type: ebpf.Hash, MaxEntries: 4}
	makeMap(t, Spec[uint32, before]{Map: spec}, Config{Pins: dir})

	_, err := New(Spec[uint32, after]{Map: spec}, Config{Pins: dir})
	var typed *IncompatibleError
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, []Difference{
		{"value.Packets", "u64 at byte 0", "value.Bytes at byte 0"},
		{"value.Bytes", "u64 at byte 8", "value.Packets at byte 8"},
	}, typed.Differences)
	_, err = Open[uint32, after](filepath.Join(dir, "plain"))
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, []Difference{
		{"value.Packets", "value.Bytes at byte 0", "u64 at byte 0"},
		{"value.Bytes", "value.Packets at byte 8", "u64 at byte 8"},
	}, typed.Differences)
	_, err = Open[uint32, narrow](filepath.Join(dir, "plain"))
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, Difference{"value.Packets", "value.Packets u32 at byte 0", "u64 at byte 0"}, typed.Differences[0])
	_, err = Open[uint64, uint32](filepath.Join(dir, "plain"))
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, []Difference{{"key size", "8 (Go type uint64)", "4"}, {"value size", "4 (Go type uint32)", "16"}}, typed.Differences)

	ok, err := Open[uint32, renamed](filepath.Join(dir, "plain"))
	require.NoError(t, err, "other names for the same fields are fine")
	require.NoError(t, ok.Close())
	raw, err := Open[[4]byte, [16]byte](filepath.Join(dir, "plain"))
	require.NoError(t, err, "bytes may stand for any fields")
	require.NoError(t, raw.Close())
}

func TestGoTypesMustFitTheCTypes(t *testing.T) {
	t.Parallel()
	u16, u32 := btfNumber("u16", 2), btfNumber("u32", 4)
	c := &ebpf.MapSpec{
		Name: "shape", Type: ebpf.Hash, MaxEntries: 4, KeySize: 8, ValueSize: 4,
		Key:   cStruct(8, member("node_ip", 0, u32), member("src_port", 4, u16), member("dst_port", 6, u16)),
		Value: u32,
	}
	type good struct {
		NodeIp           uint32 // as bpf2go spells it
		SrcPort, DstPort uint16
	}
	type swapped struct {
		NodeIp           uint32
		DstPort, SrcPort uint16
	}
	type wide struct {
		NodeIp uint32
		Ports  uint32
	}
	m, err := New(Spec[good, uint32]{Map: c}, Config{})
	require.NoError(t, err)
	require.NoError(t, m.Close())

	var typed *IncompatibleError
	_, err = New(Spec[swapped, uint32]{Map: c}, Config{})
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, &IncompatibleError{Table: "shape", Differences: []Difference{
		{"key.src_port", "key.DstPort at byte 4", "u16 at byte 4"},
		{"key.dst_port", "key.SrcPort at byte 6", "u16 at byte 6"},
	}}, typed)
	_, err = New(Spec[wide, uint32]{Map: c}, Config{})
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, Difference{"key.src_port", "key.Ports u32 at byte 4", "u16 at byte 4"}, typed.Differences[0])
	_, err = New(Spec[[3]uint32, uint64]{Map: c}, Config{})
	require.ErrorAs(t, err, &typed)
	assert.Equal(t, Difference{"key size", "12 (Go type [3]uint32)", "8"}, typed.Differences[0])
	assert.Equal(t, Difference{"value size", "8 (Go type uint64)", "4"}, typed.Differences[1])
}

func TestReplaceSwapsThePinInOneStep(t *testing.T) {
	t.Parallel()
	dir := mountedFS(t)
	path := filepath.Join(dir, "rows")
	old := makeMap(t, hashSpec("rows", 4), Config{Pins: dir})
	require.NoError(t, old.Set(keyOf(1), valueOf(1)))
	require.NoError(t, pin(old.EBPF(), path+nextSuffix), "what a crash leaves")

	// All the time, somebody can open one table or the other.
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			m, err := Open[key, value](path)
			if assert.NoError(t, err) {
				assert.NoError(t, m.Close())
			}
		}
	})
	for i := range 50 {
		next := makeMap(t, hashSpec("rows", uint32(8+i)), Config{Pins: dir, OnMismatch: Replace})
		assert.Empty(t, contents(t, next))
		assert.Equal(t, path, next.PinPath())
	}
	close(done)
	wg.Wait()
	assert.Equal(t, []string{"rows"}, pinsIn(t, dir))
	assert.Len(t, contents(t, old), 1, "who holds the old table keeps it")
	same := makeMap(t, hashSpec("rows", 57), Config{Pins: dir, OnMismatch: Replace})
	require.NoError(t, same.Set(keyOf(2), valueOf(2)))
	same = makeMap(t, hashSpec("rows", 57), Config{Pins: dir, OnMismatch: Replace})
	assert.Len(t, contents(t, same), 1, "nothing differs, nothing is replaced")
}

func TestMigrateCarriesTheEntriesOver(t *testing.T) {
	t.Parallel()
	type v1 struct{ Count, Pad uint32 }
	type v2 struct{ Count, Bytes uint64 }
	dir := mountedFS(t)
	path := filepath.Join(dir, "rows")
	mapSpec := &ebpf.MapSpec{Name: "rows", Type: ebpf.Hash, MaxEntries: 1000}
	old := makeMap(t, Spec[uint32, v1]{Map: mapSpec, Schema: 1}, Config{Pins: dir})
	_, err := old.SetAll(entries(1000, numberOf, func(i int) v1 { return v1{Count: uint32(i)} }))
	require.NoError(t, err)

	spec := Spec[uint32, v2]{Map: mapSpec, Schema: 2}
	_, err = New(spec, Config{Pins: dir, OnMismatch: Migrate})
	require.ErrorIs(t, err, ebpf.ErrMapIncompatible, "no way is known")

	broken := errors.New("broken")
	spec.Migrate = func(o, n *ebpf.Map) error { return broken }
	_, err = New(spec, Config{Pins: dir, OnMismatch: Migrate})
	require.ErrorIs(t, err, broken)
	assert.Equal(t, []string{"rows"}, pinsIn(t, dir))
	still, err := Open[uint32, v1](path)
	require.NoError(t, err, "the old table is as it was")
	assert.Len(t, contents(t, still), 1000)
	require.NoError(t, still.Close())

	spec.Migrate = func(o, n *ebpf.Map) error {
		assert.Equal(t, []string{"rows", "rows" + nextSuffix}, pinsIn(t, dir), "the old table is in its place until the end")
		from, err := Wrap[uint32, v1](o)
		if err != nil {
			return err
		}
		defer from.Close()
		to, err := Wrap[uint32, v2](n)
		if err != nil {
			return err
		}
		defer to.Close()
		var failed error
		_, err = to.SetAll(func(yield func(uint32, v2) bool) {
			for e, err := range from.All() {
				if failed = err; err != nil || !yield(e.Key, v2{Count: uint64(e.Value.Count)}) {
					return
				}
			}
		})
		return errors.Join(failed, err)
	}
	m := makeMap(t, spec, Config{Pins: dir, OnMismatch: Migrate})
	all := contents(t, m)
	require.Len(t, all, 1000)
	assert.Equal(t, v2{Count: 999}, all[999])
	assert.Equal(t, []string{"rows"}, pinsIn(t, dir))

	spec.Migrate = func(o, n *ebpf.Map) error { return errors.New("must not be called again") }
	again := makeMap(t, spec, Config{Pins: dir, OnMismatch: Migrate})
	assert.Len(t, contents(t, again), 1000)
}

// Nothing is left to the garbage collector: with it off, each way through New,
// Open and Wrap, good or bad, gives back all descriptors.
func TestNoDescriptorIsForgotten(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	dir := mountedFS(t)
	path := filepath.Join(dir, "rows")
	broken := errors.New("broken")
	with := func(entries, schema uint32, migrate func(o, n *ebpf.Map) error) Spec[key, value] {
		spec := hashSpec("rows", entries)
		spec.Schema, spec.Migrate = schema, migrate
		return spec
	}
	ok := func(m *Map[key, value], err error) {
		require.NoError(t, err)
		require.NoError(t, m.Close())
	}
	bad := func(m *Map[key, value], err error) { require.Error(t, err) }
	pass := func() {
		ok(New(with(4, 1, nil), Config{}))
		ok(New(with(4, 1, nil), Config{Pins: dir, OnMismatch: Replace}))
		ok(New(with(4, 1, nil), Config{Pins: dir}))
		bad(New(with(4, 2, nil), Config{Pins: dir}))
		bad(New(with(4, 2, func(o, n *ebpf.Map) error { return broken }), Config{Pins: dir, OnMismatch: Migrate}))
		ok(New(with(4, 2, func(o, n *ebpf.Map) error { return nil }), Config{Pins: dir, OnMismatch: Migrate}))
		ok(New(with(8, 2, nil), Config{Pins: dir, OnMismatch: Replace}))
		bad(New(with(8, 2, nil), Config{Pins: t.TempDir()}))
		ok(Open[key, value](path))
		ok(OpenSpec(path, with(4, 2, nil)))
		bad(OpenSpec(path, with(4, 3, nil)))
		_, err := Open[key, uint32](path)
		require.Error(t, err)
		require.Error(t, try(kindSpec[uint32](ebpf.DevMapHash, 4), 1, dir))
		m, err := Open[key, value](path)
		require.NoError(t, err)
		ok(Wrap[key, value](m.EBPF()))
		_, err = Wrap[key, uint32](m.EBPF())
		require.Error(t, err)
		require.ErrorIs(t, m.Pin(filepath.Join(dir, "elsewhere")), os.ErrExist)
		require.NoError(t, m.Pin(dir))
		require.NoError(t, m.Unpin())
		require.NoError(t, m.Pin(dir))
		require.NoError(t, m.Remove())
		assert.Empty(t, pinsIn(t, dir))
	}
	pass() // cilium/ebpf probes the kernel once and keeps what it needs
	before := descriptors()
	pass()
	assert.Equal(t, before, descriptors())
}

func TestManyMakersGetOneTable(t *testing.T) {
	t.Parallel()
	for _, old := range []uint32{0, 3} { // nothing is there, or a table to migrate
		dir := filepath.Join(mountedFS(t), "new")
		if old != 0 {
			makeMap(t, hashSpec("one", old), Config{Pins: dir})
		}
		var migrations atomic.Int32
		spec := hashSpec("one", 4)
		spec.Migrate = func(_, _ *ebpf.Map) error {
			migrations.Add(1)
			time.Sleep(20 * time.Millisecond) // long enough for all the others to come
			return nil
		}
		ids := make([]uint32, 8)
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() {
				m, err := New(spec, Config{Pins: dir, OnMismatch: Migrate})
				if assert.NoError(t, err) {
					ids[i] = m.id
					assert.NoError(t, m.Close())
				}
			})
		}
		wg.Wait()
		for _, id := range ids {
			assert.Equal(t, ids[0], id)
		}
		assert.EqualValues(t, min(old, 1), migrations.Load(), "one migrates, the others adopt")
		assert.Equal(t, []string{"one"}, pinsIn(t, dir))
	}
}

func TestSchemaOnEveryKind(t *testing.T) {
	t.Parallel()
	dir := mountedFS(t)
	check := func(t *testing.T, make func(schema uint32, dir string) error) {
		sub := filepath.Join(dir, filepath.Base(t.Name()))
		require.NoError(t, make(41, sub))
		require.NoError(t, make(41, sub))
		err := make(42, sub)
		var typed *IncompatibleError
		require.ErrorAs(t, err, &typed)
		assert.Equal(t, []Difference{{"schema", "41", "42"}}, typed.Differences)
	}
	for _, kind := range []ebpf.MapType{ebpf.Hash, ebpf.LRUHash, ebpf.Array} {
		t.Run(kind.String(), func(t *testing.T) {
			check(t, func(schema uint32, dir string) error { return try(kindSpec[uint32](kind, 4), schema, dir) })
		})
	}
	for _, kind := range []ebpf.MapType{ebpf.PerCPUHash, ebpf.PerCPUArray, ebpf.LRUCPUHash} {
		t.Run(kind.String(), func(t *testing.T) {
			check(t, func(schema uint32, dir string) error { return try(kindSpec[[]uint64](kind, 4), schema, dir) })
		})
	}
	t.Run("trie", func(t *testing.T) {
		check(t, func(schema uint32, dir string) error { return try(trieSpec("t", 4), schema, dir) })
	})
	t.Run("array by enum", func(t *testing.T) {
		spec := kindSpec[uint32](ebpf.Array, 4)
		spec.Map.Key = &btf.Enum{Name: "reason", Size: 4, Values: []btf.EnumValue{{Name: "A", Value: 0}}}
		spec.Map.Value = btfNumber("u32", 4)
		check(t, func(schema uint32, dir string) error { return try(spec, schema, dir) })
	})
	t.Run("lists per CPU", func(t *testing.T) {
		spec := kindSpec[uint32](ebpf.LRUHash, 1001) // rounded by the kernel
		spec.Map.Flags = unix.BPF_F_NO_COMMON_LRU
		check(t, func(schema uint32, dir string) error { return try(spec, schema, dir) })
	})
	t.Run("devices", func(t *testing.T) {
		sub := filepath.Join(dir, "devices")
		require.NoError(t, try(kindSpec[uint32](ebpf.DevMapHash, 4), 0, sub))
		require.NoError(t, try(kindSpec[uint32](ebpf.DevMapHash, 4), 0, sub), "the flag that the kernel adds is no difference")
		err := try(kindSpec[uint32](ebpf.DevMapHash, 4), 1, filepath.Join(dir, "devices1"))
		require.ErrorIs(t, err, ebpf.ErrNotSupported)
		require.ErrorContains(t, err, "set Spec.Schema to 0")
		assert.NoDirExists(t, filepath.Join(dir, "devices1"))
	})
}

func try[V any, K any](spec Spec[K, V], schema uint32, dir string) error {
	spec.Schema = schema
	m, err := New(spec, Config{Pins: dir})
	if err != nil {
		return err
	}
	return m.Close()
}

func TestNoBPFFS(t *testing.T) {
	t.Parallel()
	plain := t.TempDir()
	_, err := New(hashSpec("lost", 4), Config{Pins: filepath.Join(plain, "a", "b")})
	require.ErrorIs(t, err, ErrNoBPFFS)
	require.ErrorContains(t, err, "lost")
	require.ErrorContains(t, err, "MountBPFFS")
	assert.Empty(t, pinsIn(t, plain), "nothing is left behind")

	m := makeMap(t, hashSpec("lost", 4), Config{})
	require.ErrorIs(t, m.Pin(plain), ErrNoBPFFS)
	require.NoError(t, os.WriteFile(filepath.Join(plain, "lost"), nil, 0o600))
	_, err = Open[key, value](filepath.Join(plain, "lost"))
	require.ErrorIs(t, err, ErrNoBPFFS)
	_, err = Open[key, value](filepath.Join(plain, "absent"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = OpenSpec(filepath.Join(plain, "absent"), hashSpec("lost", 4))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = OpenSpec(filepath.Join(plain, "absent"), Spec[key, value]{})
	require.ErrorContains(t, err, "Spec.Map is nil")
}

func TestAFolderWithADotIsExplained(t *testing.T) {
	t.Parallel()
	dir := mountedFS(t)
	_, err := New(hashSpec("dots", 4), Config{Pins: filepath.Join(dir, "v1", "a.b", "c")})
	require.ErrorIs(t, err, os.ErrPermission)
	require.ErrorContains(t, err, "no dot")
	assert.Empty(t, pinsIn(t, dir), "the folders that were made are taken back")
}

func TestAPinThatIsNoTable(t *testing.T) {
	t.Parallel()
	dir := mountedFS(t)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "thing"), 0o700))
	_, err := New(hashSpec("thing", 4), Config{Pins: dir, OnMismatch: Replace})
	require.ErrorContains(t, err, "make table thing")
	_, err = Open[key, value](filepath.Join(dir, "thing"))
	require.ErrorContains(t, err, filepath.Join(dir, "thing"))
	assert.Equal(t, []string{"thing"}, pinsIn(t, dir))
}

func TestMountAndUnmount(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "x", "bpf")
	is := func(path string) bool {
		yes, err := IsBPFFS(path)
		require.NoError(t, err)
		return yes
	}
	_, err := IsBPFFS(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, UnmountBPFFS(dir), "absent")
	require.NoError(t, MountBPFFS(dir))
	require.NoError(t, MountBPFFS(dir))
	assert.True(t, is(dir))
	inner := filepath.Join(dir, "inner")
	require.NoError(t, MountBPFFS(inner), "is on one already")
	assert.True(t, is(inner))
	err = UnmountBPFFS(inner)
	require.ErrorIs(t, err, unix.EINVAL)
	require.ErrorContains(t, err, inner+": it is a folder inside")

	m := makeMap(t, hashSpec("inside", 4), Config{Pins: dir})
	require.NoError(t, UnmountBPFFS(dir))
	assert.False(t, is(dir), "mounted once only")
	require.NoError(t, UnmountBPFFS(dir))
	require.NoError(t, m.Remove(), "the pin went with the mount")

	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.ErrorIs(t, MountBPFFS(file), unix.ENOTDIR)
}

func TestRelativeFolder(t *testing.T) {
	dir := mountedFS(t)
	t.Chdir(dir)
	m := makeMap(t, hashSpec("near", 4), Config{Pins: "here"})
	assert.Equal(t, filepath.Join(dir, "here", "near"), m.PinPath())
	o, err := Open[key, value]("here/near")
	require.NoError(t, err)
	t.Chdir("/")
	require.NoError(t, o.Remove())
	assert.Empty(t, pinsIn(t, filepath.Join(dir, "here")))
}

func ExampleNew() {
	// A folder for pins in production is one below /sys/fs/bpf.
	tmp, err := os.MkdirTemp("", "Example")
	if err != nil {
		panic(err)
	}
	defer os.Remove(tmp)
	if err := MountBPFFS(tmp); err != nil {
		panic(err)
	}
	defer UnmountBPFFS(tmp)

	type service struct {
		Addr [4]byte
		Port uint16 // network byte order in the program
		Pad  uint16
	}
	spec := Spec[service, uint32]{
		Map:    &ebpf.MapSpec{Name: "services", Type: ebpf.Hash, MaxEntries: 1024},
		Schema: 1,
	}
	services, err := New(spec, Config{Pins: tmp})
	if err != nil {
		panic(err)
	}
	defer services.Remove()

	want := map[service]uint32{
		{Addr: [4]byte{10, 96, 0, 1}}:  1,
		{Addr: [4]byte{10, 96, 0, 10}}: 2,
	}
	changes, err := services.Sync(func(yield func(service, uint32) bool) {
		for k, v := range want {
			if !yield(k, v) {
				return
			}
		}
	})
	fmt.Println(changes.Set, changes.Deleted, err)

	// A newer release has another layout.
	spec.Schema = 2
	_, err = New(spec, Config{Pins: tmp})
	var incompatible *IncompatibleError
	if errors.As(err, &incompatible) {
		fmt.Println(incompatible.Differences)
	}
	// Output:
	// 2 0 <nil>
	// [{schema 1 2}]
}

func ExampleMap_All() {
	counts, err := New(Spec[uint32, uint64]{
		Map: &ebpf.MapSpec{Name: "counts", Type: ebpf.Array, MaxEntries: 3},
	}, Config{})
	if err != nil {
		panic(err)
	}
	defer counts.Close()
	if err := counts.Set(1, 42); err != nil {
		panic(err)
	}
	for entry, err := range counts.All() {
		if err != nil {
			panic(err)
		}
		fmt.Println(entry.Key, entry.Value)
	}
	// Output:
	// 0 0
	// 1 42
	// 2 0
}
