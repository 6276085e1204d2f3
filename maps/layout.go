// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"reflect"

	"github.com/cilium/ebpf"

	"github.com/godatapath/datapath/internal/invalid"
)

// layout is how one pair of Go types lies in memory and in the kernel.
type layout struct {
	key, value reflect.Type // value: the element of a per-CPU slice
	keySize    int
	valueSize  int // of one element
	cpus       int // 0: not per-CPU
	stride     int // from one CPU's element to the next in the kernel's buffer
	keyFields  []field
	valFields  []field
	blank      []field // of a value, written as zeros
}

// field is one number or one array of numbers inside a type.
type field struct {
	path   string // for example "value.stats[3].bytes"
	off    int    // bytes from the start
	size   int    // bytes
	desc   string // kind of number, for example "u32" or "u8[6]"
	bytes  bool   // an array of bytes, which may stand for anything of its size
	blank  bool   // Go: a field named _
	opaque bool   // C: a union or a bit-field, compared only with itself
}

func (f field) end() int            { return f.off + f.size }
func (f field) holds(g field) bool  { return f.off <= g.off && g.end() <= f.end() }
func (f field) meets(g field) bool  { return f.off < g.end() && g.off < f.end() }
func (f field) String() string      { return fmt.Sprintf("%s at byte %d", f.desc, f.off) }
func (f field) sameAs(g field) bool { return f.off == g.off && f.size == g.size && f.desc == g.desc }

// layoutOf checks that K and V can be handed to the kernel as they lie in
// memory, which is what makes every call here free of copies.
func layoutOf[K, V any](kind ebpf.MapType) (layout, error) {
	l := layout{key: reflect.TypeFor[K](), value: reflect.TypeFor[V]()}
	if isPerCPU(kind) {
		if l.value.Kind() != reflect.Slice {
			return layout{}, invalid.Errorf("%s has one value per CPU: the Go value type must be []%s", kind, l.value)
		}
		l.value = l.value.Elem()
		cpus, err := ebpf.PossibleCPU()
		if err != nil {
			return layout{}, fmt.Errorf("count the CPUs: %w", err)
		}
		l.cpus = cpus
	} else if l.value.Kind() == reflect.Slice {
		return layout{}, invalid.Errorf("%s has one value per key: the Go value type must be %s", kind, l.value.Elem())
	}
	l.keySize, l.valueSize = int(l.key.Size()), int(l.value.Size())
	l.stride = (l.valueSize + 7) &^ 7
	var err error
	if l.keyFields, err = goFields(l.key, "key"); err != nil {
		return layout{}, fmt.Errorf("key type %s: %w", l.key, err)
	}
	if l.valFields, err = goFields(l.value, "value"); err != nil {
		return layout{}, fmt.Errorf("value type %s: %w", l.value, err)
	}
	if l.keySize == 0 || l.valueSize == 0 {
		return layout{}, invalid.Errorf("key type %s and value type %s must not be empty", l.key, l.value)
	}
	for _, f := range l.keyFields {
		if f.blank {
			return layout{}, invalid.Errorf("key type %s has padding in bytes %d to %d: name it in C and set it to zero there", l.key, f.off, f.end()-1)
		}
	}
	for _, f := range l.valFields {
		if f.blank {
			l.blank = append(l.blank, f)
		}
	}
	return l, nil
}

// goFields lists the fields of a Go type. A type that has bytes of its own
// beside its fields, or holds anything but numbers, is an error.
func goFields(t reflect.Type, path string) ([]field, error) {
	var fields []field
	err := walkGo(t, path, 0, &fields)
	return fields, err
}

func walkGo(t reflect.Type, path string, off int, out *[]field) error {
	if desc := goNumber(t); desc != "" {
		*out = append(*out, field{path: path, off: off, size: int(t.Size()), desc: desc})
		return nil
	}
	switch t.Kind() {
	case reflect.Array:
		if desc := goNumber(t.Elem()); desc != "" {
			*out = append(*out, field{
				path: path, off: off, size: int(t.Size()),
				desc: fmt.Sprintf("%s[%d]", desc, t.Len()), bytes: t.Elem().Size() == 1,
			})
			return nil
		}
		for i := range t.Len() {
			if err := walkGo(t.Elem(), fmt.Sprintf("%s[%d]", path, i), off+i*int(t.Elem().Size()), out); err != nil {
				return err
			}
		}
		return nil
	case reflect.Struct:
		at := 0
		for i := range t.NumField() {
			f := t.Field(i)
			if int(f.Offset) != at {
				return invalid.Errorf("the Go compiler pads %s with %d bytes before field %s: name them", path, int(f.Offset)-at, f.Name)
			}
			at += int(f.Type.Size())
			if f.Type.Size() == 0 { // structs.HostLayout
				continue
			}
			if f.Name == "_" {
				*out = append(*out, field{path: path + "._", off: off + int(f.Offset), size: int(f.Type.Size()), desc: "padding", blank: true})
				continue
			}
			if err := walkGo(f.Type, path+"."+f.Name, off+int(f.Offset), out); err != nil {
				return err
			}
		}
		if at != int(t.Size()) {
			return invalid.Errorf("the Go compiler pads %s with %d bytes at its end: name them", path, int(t.Size())-at)
		}
		return nil
	default:
		return invalid.Errorf("%s is a %s: only fixed-size numbers, arrays and structs of them have one layout in C and Go", path, t)
	}
}

// goNumber is the name of a type of fixed-size number, or "".
func goNumber(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "bool"
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return fmt.Sprintf("u%d", t.Bits())
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return fmt.Sprintf("s%d", t.Bits())
	case reflect.Float32, reflect.Float64:
		return fmt.Sprintf("f%d", t.Bits())
	default:
		return ""
	}
}

func (l *layout) diffSizes(key, value uint32) []Difference {
	var diffs []Difference
	if int(key) != l.keySize {
		diffs = append(diffs, Difference{"key size", fmt.Sprintf("%d (Go type %s)", l.keySize, l.key), fmt.Sprint(key)})
	}
	if int(value) != l.valueSize {
		diffs = append(diffs, Difference{"value size", fmt.Sprintf("%d (Go type %s)", l.valueSize, l.value), fmt.Sprint(value)})
	}
	return diffs
}

func isPerCPU(t ebpf.MapType) bool {
	switch t {
	case ebpf.PerCPUHash, ebpf.PerCPUArray, ebpf.LRUCPUHash, ebpf.PerCPUCGroupStorage:
		return true
	default:
		return false
	}
}

// isArray tells the kinds whose entries always exist and can not be deleted.
func isArray(t ebpf.MapType) bool {
	return t == ebpf.Array || t == ebpf.PerCPUArray
}
