// SPDX-License-Identifier: Apache-2.0

// Package maps holds the tables of a datapath: [Map], a typed table in the
// kernel, and the tables of endpoints and of metrics made of it.
//
//	type flow struct{ Src, Dst [16]byte }
//
//	flows, err := maps.New(maps.Spec[flow, uint64]{
//		Map: &ebpf.MapSpec{Name: "flow_bytes", Type: ebpf.Hash, MaxEntries: 65536},
//	}, maps.Config{Pins: "/sys/fs/bpf/mine"})
//	if err != nil {
//		return err
//	}
//	defer flows.Close()
//	for entry, err := range flows.All() {
//		if err != nil {
//			return err
//		}
//		fmt.Println(entry.Key, entry.Value)
//	}
//
// Go types are checked against the C types, field by field, when a table is
// made or opened. A pinned table is adopted only if it has the layout that is
// asked for; an [IncompatibleError] says field by field what differs, and
// [Config].OnMismatch can have it replaced or migrated in one step, for example
// when only its size is another.
//
// Lifetime: Close drops our handle, Pin outlives the process, Remove takes the
// table off the machine. All methods may be called by many goroutines at once.
//
// Errors of cilium/ebpf and the system are passed through, so one errors.Is
// works for all layers: ebpf.ErrKeyNotExist, ebpf.ErrKeyExist,
// ebpf.ErrMapIncompatible, unix.E2BIG for a full table, os.ErrNotExist for an
// absent pin, os.ErrInvalid for a setting or an argument that can not be used,
// os.ErrPermission, os.ErrClosed after Close. [ErrNoBPFFS] is our own.
//
// Kernel 5.10 is the floor of this package. Batch operations of tries need 5.16
// and of per-CPU arrays 5.13; below that, and for the kinds that have none,
// calls go key by key.
package maps
