// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"bytes"
	"reflect"
	"unsafe"

	"github.com/godatapath/datapath/internal/invalid"
)

// This file is the only one that looks at keys and values as bytes. layoutOf
// has made sure that both are numbers from end to end.

func keyBytes[K any](key *K) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(key)), unsafe.Sizeof(*key))
}

// valueBytes is for kinds that are not per-CPU.
func valueBytes[V any](value *V) []byte { return keyBytes(value) }

// wordBytes is memory for values of all CPUs, which the kernel aligns to 8.
func wordBytes(words []uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), 8*len(words))
}

// clearBlank sets the blank fields of one value to zero: a copy of a Go value
// need not copy them, so what they hold is not defined.
func (l *layout) clearBlank(value []byte) {
	for _, f := range l.blank {
		clear(value[f.off:f.end()])
	}
}

// decodeCPUs makes a slice of the values of all CPUs in raw.
func decodeCPUs[V any](l *layout, raw []byte) V {
	s := reflect.MakeSlice(reflect.TypeFor[V](), l.cpus, l.cpus)
	flat := unsafe.Slice((*byte)(s.UnsafePointer()), l.cpus*l.valueSize)
	for i := range l.cpus {
		copy(flat[i*l.valueSize:(i+1)*l.valueSize], raw[i*l.stride:])
	}
	return s.Interface().(V)
}

// encodeCPUs lays the values of all CPUs out in raw, which has a stride per CPU.
func encodeCPUs[V any](l *layout, raw []byte, value *V) error {
	slices, err := cpuSlices(l, value)
	if err != nil {
		return err
	}
	clear(raw)
	for i, one := range slices {
		copy(raw[i*l.stride:], one)
	}
	return nil
}

// cpuSlices is the bytes of each CPU's value. Only with blank fields are they a
// copy.
func cpuSlices[V any](l *layout, value *V) ([][]byte, error) {
	s := reflect.ValueOf(value).Elem()
	if s.Len() != l.cpus {
		return nil, invalid.Errorf("the value has %d elements, it needs one for each of %d CPUs", s.Len(), l.cpus)
	}
	flat := unsafe.Slice((*byte)(s.UnsafePointer()), l.cpus*l.valueSize)
	if len(l.blank) > 0 {
		flat = bytes.Clone(flat)
	}
	slices := make([][]byte, l.cpus)
	for i := range slices {
		slices[i] = flat[i*l.valueSize : (i+1)*l.valueSize]
		l.clearBlank(slices[i])
	}
	return slices, nil
}

// zeroValue has an element for each CPU where the kind wants that.
func zeroValue[V any](l *layout) V {
	var zero V
	if l.cpus > 0 {
		zero = reflect.MakeSlice(reflect.TypeFor[V](), l.cpus, l.cpus).Interface().(V)
	}
	return zero
}
