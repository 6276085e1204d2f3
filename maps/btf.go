// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// schemaPrefix starts the name of the typedef that carries the schema version.
//
// The version must be readable from the table alone, must change in the same
// step as the table, and must not move the pin, because tools find tables by
// name. A suffix of the pin or a second file beside it fails the last two; the
// kernel's own name for the table has 15 characters, which the table's name has
// used up. A typedef around the value's BTF type is part of the kernel object
// for as long as it lives, costs nothing at run time, and shows up in every
// tool that prints the table's types.
const schemaPrefix = "datapath_schema_"

// completeBTF adds the schema to the value's type and repairs what the kernel
// would refuse, since cilium/ebpf then makes the table without any BTF.
func completeBTF(spec *ebpf.MapSpec, schema uint32) {
	if schema != 0 {
		spec.Value = &btf.Typedef{Name: schemaPrefix + strconv.FormatUint(uint64(schema), 10), Type: spec.Value}
	}
	if isArray(spec.Type) { // the index must be an integer there, an enum is refused
		if _, ok := btf.UnderlyingType(spec.Key).(*btf.Int); !ok {
			spec.Key = btfNumber("u32", 4)
		}
	}
}

// schemaOf reads the version back from a value's type; 0 if there is none.
func schemaOf(value btf.Type) uint32 {
	for {
		td, ok := value.(*btf.Typedef)
		if !ok {
			return 0
		}
		if number, ok := strings.CutPrefix(td.Name, schemaPrefix); ok {
			if n, err := strconv.ParseUint(number, 10, 32); err == nil {
				return uint32(n)
			}
		}
		value = td.Type
	}
}

// btfFields lists the fields of a C type. Bytes that belong to no field are not
// listed.
func btfFields(t btf.Type, path string) []field {
	var fields []field
	walkBTF(t, path, 0, &fields)
	return fields
}

func walkBTF(t btf.Type, path string, off int, out *[]field) {
	t = btf.UnderlyingType(t)
	size, err := btf.Sizeof(t)
	if err != nil || size == 0 {
		return
	}
	if desc := cNumber(t); desc != "" {
		*out = append(*out, field{path: path, off: off, size: size, desc: desc})
		return
	}
	switch t := t.(type) {
	case *btf.Array:
		elem := size / int(t.Nelems)
		if desc := cNumber(btf.UnderlyingType(t.Type)); desc != "" {
			*out = append(*out, field{path: path, off: off, size: size, desc: fmt.Sprintf("%s[%d]", desc, t.Nelems), bytes: elem == 1})
			return
		}
		for i := range int(t.Nelems) {
			walkBTF(t.Type, fmt.Sprintf("%s[%d]", path, i), off+i*elem, out)
		}
	case *btf.Struct:
		for _, m := range t.Members {
			p := path
			if m.Name != "" {
				p += "." + m.Name
			}
			if m.BitfieldSize != 0 {
				first, last := int(m.Offset), int(m.Offset)+int(m.BitfieldSize)-1
				*out = append(*out, field{
					path: p, off: off + first/8, size: last/8 - first/8 + 1,
					desc: fmt.Sprintf("bits %d to %d", first, last), opaque: true,
				})
				continue
			}
			walkBTF(m.Type, p, off+int(m.Offset.Bytes()), out)
		}
	default:
		*out = append(*out, field{path: path, off: off, size: size, desc: cOpaque(t, size), opaque: true})
	}
}

// cNumber is the name of a C number in the words of goNumber, or "". Enums and
// pointers are numbers.
func cNumber(t btf.Type) string {
	switch t := t.(type) {
	case *btf.Int:
		switch t.Encoding {
		case btf.Bool:
			return "bool"
		case btf.Unsigned:
			return fmt.Sprintf("u%d", 8*t.Size)
		default:
			return fmt.Sprintf("s%d", 8*t.Size)
		}
	case *btf.Enum:
		if t.Signed {
			return fmt.Sprintf("s%d", 8*t.Size)
		}
		return fmt.Sprintf("u%d", 8*t.Size)
	case *btf.Float:
		return fmt.Sprintf("f%d", 8*t.Size)
	case *btf.Pointer:
		return "u64"
	default:
		return ""
	}
}

// cOpaque describes a type whose parts lie over each other, so that two
// versions of it can be told apart.
func cOpaque(t btf.Type, size int) string {
	u, ok := t.(*btf.Union)
	if !ok {
		return fmt.Sprintf("%s of %d bytes", strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", t), "*btf.")), size)
	}
	var parts []string
	for _, m := range u.Members {
		for _, f := range btfFields(m.Type, m.Name) {
			parts = append(parts, fmt.Sprintf("%s %s", f, f.path))
		}
	}
	return "union{" + strings.Join(parts, "; ") + "}"
}

// diffTypes holds the Go types against the C types, as far as those are known.
// Names may differ, borders may not. An array of bytes on one side may stand
// for any fields on the other that it covers whole. A field whose name is found
// at another place in C has been moved.
func (l *layout) diffTypes(key, value btf.Type) []Difference {
	var diffs []Difference
	if key != nil {
		diffs = append(diffs, diffGoC(l.keyFields, btfFields(key, "key"))...)
	}
	if value != nil {
		diffs = append(diffs, diffGoC(l.valFields, btfFields(value, "value"))...)
	}
	return diffs
}

func diffGoC(goSide, cSide []field) []Difference {
	places := make(map[string]field, len(cSide))
	for _, c := range cSide {
		places[plainName(c.path)] = c
	}
	var diffs []Difference
	for _, c := range cSide {
		if c.opaque {
			continue
		}
		for _, g := range goSide {
			if g.blank || !g.meets(c) {
				continue
			}
			if g.off == c.off && g.size == c.size {
				if other, ok := places[plainName(g.path)]; ok && other.path != c.path {
					diffs = append(diffs, Difference{c.path, fmt.Sprintf("%s at byte %d", g.path, g.off), c.String()})
				}
				continue
			}
			if g.bytes && g.holds(c) || c.bytes && c.holds(g) {
				continue
			}
			diffs = append(diffs, Difference{c.path, fmt.Sprintf("%s %s", g.path, g), c.String()})
			break
		}
	}
	return diffs
}

// plainName makes "value.node_mac" and "value.NodeMac" equal.
func plainName(path string) string {
	return strings.ToLower(strings.ReplaceAll(path, "_", ""))
}

// diffC compares two C types field by field, by name.
func diffC(have, want []field) []Difference {
	var diffs []Difference
	old := make(map[string]field, len(have))
	for _, f := range have {
		old[f.path] = f
	}
	for _, w := range want {
		h, ok := old[w.path]
		delete(old, w.path)
		switch {
		case !ok:
			diffs = append(diffs, Difference{w.path, "no such field", w.String()})
		case !h.sameAs(w):
			diffs = append(diffs, Difference{w.path, h.String(), w.String()})
		}
	}
	for _, h := range have {
		if _, left := old[h.path]; left {
			diffs = append(diffs, Difference{h.path, h.String(), "no such field"})
		}
	}
	return diffs
}

func (l *layout) btfKey() btf.Type   { return btfOf(l.key) }
func (l *layout) btfValue() btf.Type { return btfOf(l.value) }

// btfOf describes a Go type that goFields has accepted.
func btfOf(t reflect.Type) btf.Type {
	if desc := goNumber(t); desc != "" {
		return btfNumber(desc, uint32(t.Size()))
	}
	if t.Kind() == reflect.Array {
		return &btf.Array{Index: btfNumber("u32", 4), Type: btfOf(t.Elem()), Nelems: uint32(t.Len())}
	}
	s := &btf.Struct{Name: cName(t.Name()), Size: uint32(t.Size())}
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Type.Size() == 0 || f.Name == "_" {
			continue
		}
		s.Members = append(s.Members, btf.Member{Name: cName(f.Name), Type: btfOf(f.Type), Offset: btf.Bits(8 * f.Offset)})
	}
	return s
}

func btfNumber(desc string, size uint32) btf.Type {
	switch desc[0] {
	case 's':
		return &btf.Int{Name: desc, Size: size, Encoding: btf.Signed}
	case 'b':
		return &btf.Int{Name: desc, Size: size, Encoding: btf.Bool}
	case 'f':
		return &btf.Float{Name: desc, Size: size}
	default:
		return &btf.Int{Name: desc, Size: size, Encoding: btf.Unsigned}
	}
}

// cName is name, or "" if C has no such name.
func cName(name string) string {
	for _, r := range name {
		if r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') {
			return ""
		}
	}
	return name
}
