// SPDX-License-Identifier: Apache-2.0

// Package yardstick has the programs that benchmarks measure ours by: one that
// does nothing, and one that does a single look-up. The difference of the two is
// L, the unit in which costs on the packet's way are told.
package yardstick

import (
	"encoding/binary"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Bench is what a benchmark is here: a testing.TB, without what else that
// brings.
type Bench interface {
	Helper()
	Fatal(why ...any)
	Cleanup(func())
}

// Program loads a program of the TC kind for the time of a benchmark.
func Program(b Bench, name string, insns asm.Instructions) *ebpf.Program {
	b.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "GPL", Instructions: insns})
	if err != nil {
		b.Fatal("load the program "+name+": ", err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

// Empty is a program that does nothing.
func Empty(b Bench) *ebpf.Program {
	b.Helper()
	return Program(b, "empty", asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()})
}

// LookUp is a program that finds one key of 40 bytes in a hash table and reads
// of its value.
func LookUp(b Bench) *ebpf.Program {
	b.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 40, ValueSize: 128, MaxEntries: 131072})
	if err != nil {
		b.Fatal("make the table of the yardstick: ", err)
	}
	b.Cleanup(func() { m.Close() })
	var key [40]byte
	binary.NativeEndian.PutUint32(key[:], 1)
	if err := m.Put(key[:], make([]byte, 128)); err != nil {
		b.Fatal("fill the table of the yardstick: ", err)
	}
	insns := asm.Instructions{asm.StoreImm(asm.R10, -40, 1, asm.Word)}
	for off := int16(-36); off < 0; off += 4 {
		insns = append(insns, asm.StoreImm(asm.R10, off, 0, asm.Word))
	}
	return Program(b, "look_up", append(insns,
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -40),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "miss"),
		asm.LoadMem(asm.R0, asm.R0, 0, asm.Word),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 2).WithSymbol("miss"),
		asm.Return(),
	))
}
