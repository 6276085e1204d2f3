// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// errNotSupported is the kernel's ENOTSUPP, which is not EOPNOTSUPP and has no
// name in user space. Kinds without batch operations answer it.
const errNotSupported = unix.Errno(524)

// batchAttr is the part of union bpf_attr (linux/bpf.h) that the batch commands
// read, and count and the cursor are what they write.
type batchAttr struct {
	inBatch   pointer
	outBatch  pointer
	keys      pointer
	values    pointer
	count     uint32
	mapFd     uint32
	elemFlags uint64
	flags     uint64
}

// batch runs one batch command and returns how many entries it went through.
//
// It does not go through cilium/ebpf, because that hides the count when the
// kernel stops halfway (EBUSY before kernel 6.15, EINTR), although the entries
// before that are already copied and the cursor has moved: they would be lost.
func batch(cmd uintptr, em *ebpf.Map, in, out []byte, keys, values unsafe.Pointer, count int) (int, error) {
	attr := batchAttr{
		inBatch:  pointer{p: unsafe.Pointer(unsafe.SliceData(in))},
		outBatch: pointer{p: unsafe.Pointer(unsafe.SliceData(out))},
		keys:     pointer{p: keys},
		values:   pointer{p: values},
		count:    uint32(count),
		mapFd:    uint32(em.FD()),
	}
	_, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(em)
	switch errno {
	case 0:
		return int(attr.count), nil
	case errNotSupported:
		return 0, ebpf.ErrNotSupported
	case unix.EFAULT:
		return 0, errno // the count was not written
	default:
		n := int(attr.count)
		if (cmd == unix.BPF_MAP_UPDATE_BATCH || cmd == unix.BPF_MAP_DELETE_BATCH) && n >= count {
			n = 0 // it was refused before it began (a frozen map), and the count is still ours
		}
		return n, errno
	}
}

// mapInfo is the start of struct bpf_map_info (linux/bpf.h), up to the last
// field used. cilium/ebpf has the id of the BTF object only, not those of the two
// types in it.
type mapInfo struct {
	_     uint32
	id    uint32
	_     [14]uint32
	btf   uint32
	key   uint32 // type ids inside of btf
	value uint32
	_     uint32
}

func infoOf(em *ebpf.Map) (mapInfo, error) {
	var info mapInfo
	attr := struct {
		fd, size uint32
		info     pointer
	}{uint32(em.FD()), uint32(unsafe.Sizeof(info)), pointer{p: unsafe.Pointer(&info)}}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(em)
	runtime.KeepAlive(&info)
	if errno != 0 {
		return mapInfo{}, fmt.Errorf("ask the kernel about it: %w", errno)
	}
	return info, nil
}

// mapTypes returns the BTF types of a table in the kernel, or nils if it was
// made without.
func mapTypes(em *ebpf.Map) (key, value btf.Type, err error) {
	info, err := infoOf(em)
	if err != nil {
		return nil, nil, err
	}
	if info.btf == 0 || info.value == 0 {
		return nil, nil, nil
	}
	h, err := btf.NewHandleFromID(btf.ID(info.btf))
	if err != nil {
		return nil, nil, fmt.Errorf("open its types: %w", explainPermission(err))
	}
	defer h.Close()
	spec, err := h.Spec(nil)
	if err != nil {
		return nil, nil, fmt.Errorf("read its types: %w", err)
	}
	if info.key != 0 {
		if key, err = spec.TypeByID(btf.TypeID(info.key)); err != nil {
			return nil, nil, fmt.Errorf("read its key type: %w", err)
		}
	}
	if value, err = spec.TypeByID(btf.TypeID(info.value)); err != nil {
		return nil, nil, fmt.Errorf("read its value type: %w", err)
	}
	return key, value, nil
}
