// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"
)

// portRange is the ports of the node that flows may get; zero: not known.
type portRange struct {
	First uint16 `json:"firstPort"`
	Last  uint16 `json:"lastPort"`
}

func (r portRange) count() int {
	if r == (portRange{}) {
		return 0
	}
	return int(r.Last) - int(r.First) + 1
}

// readPortRange asks the programs that are attached: it is one of the settings that
// they were loaded with, and no table has it. Zero if none is attached.
func readPortRange(pins string) (portRange, error) {
	for p, err := range pin.WalkDir(pins, nil) {
		if errors.Is(err, os.ErrNotExist) {
			break // an endpoint has just gone, and the walk ends
		}
		if err != nil {
			return portRange{}, fmt.Errorf("look for the programs of the node: %w", err)
		}
		l, ok := p.Object.(link.Link)
		if !ok {
			continue
		}
		info, err := l.Info()
		if err != nil {
			return portRange{}, fmt.Errorf("ask the attachment at %s: %w", p.Path, err)
		}
		settings, err := settingsOf(info.Program)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return portRange{}, fmt.Errorf("read the settings of the program at %s: %w", p.Path, err)
		}
		first, n := settings["nat_first"], settings["nat_count"]
		if len(first) == 2 && len(n) == 4 {
			r := portRange{First: binary.NativeEndian.Uint16(first)}
			r.Last = r.First + uint16(binary.NativeEndian.Uint32(n)) - 1
			return r, nil
		}
	}
	return portRange{}, nil
}

// settingsOf returns the constants that a program was loaded with, by name, as
// the types of their table tell where each is. Those that it does not use are
// not among them.
func settingsOf(id ebpf.ProgramID) (map[string][]byte, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return nil, err
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		settings, err := readSettings(id)
		if settings != nil || err != nil {
			return settings, err
		}
	}
	return nil, nil
}

// readSettings returns nil for any other table.
func readSettings(id ebpf.MapID) (map[string][]byte, error) {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if m.Type() != ebpf.Array || m.MaxEntries() != 1 {
		return nil, nil
	}
	types, err := m.Handle()
	if errors.Is(err, ebpf.ErrNotSupported) {
		return nil, nil // it has none
	}
	if err != nil {
		return nil, err
	}
	defer types.Close()
	spec, err := types.Spec(nil)
	if err != nil {
		return nil, err
	}
	var section *btf.Datasec
	if spec.TypeByName(".rodata.config", &section) != nil || section.Size != m.ValueSize() {
		return nil, nil
	}
	all, err := m.LookupBytes(uint32(0))
	if err != nil {
		return nil, err
	}
	settings := map[string][]byte{}
	for _, v := range section.Vars {
		settings[v.Type.TypeName()] = all[v.Offset : v.Offset+v.Size]
	}
	return settings, nil
}
