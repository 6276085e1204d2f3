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

// Freshly is a program that writes a packet anew before the next one gets it: in
// the runs of a benchmark it is the one that the run before has changed.
func Freshly(b Bench, frame []byte, next *ebpf.Program) *ebpf.Program {
	b.Helper()
	jump, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		b.Fatal("make the table of the next program: ", err)
	}
	b.Cleanup(func() { jump.Close() })
	if err := jump.Put(uint32(0), next); err != nil {
		b.Fatal("note the next program: ", err)
	}
	bytes, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(frame)), MaxEntries: 1})
	if err != nil {
		b.Fatal("make the table of the packet: ", err)
	}
	b.Cleanup(func() { bytes.Close() })
	if err := bytes.Put(uint32(0), frame); err != nil {
		b.Fatal("note the packet: ", err)
	}
	return Program(b, "freshly", asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMapValue(asm.R3, bytes.FD(), 0),
		asm.Mov.Imm(asm.R2, 0), asm.Mov.Imm(asm.R4, int32(len(frame))), asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),
		asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, jump.FD()), asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 99), asm.Return(),
	})
}
