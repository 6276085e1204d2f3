// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the compiled programs and the Go types of what they share
// with us. All but this file is written by "go generate" from programs/bpf; the
// layouts come from the BTF of the tables object, so C is their only author.
package bpf

//go:generate -command compile go run github.com/cilium/ebpf/cmd/bpf2go -go-package bpf -target bpfel,bpfeb -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -mcpu=v3 -gno-column-info -Wall -Wextra -Werror -Wshadow -Wimplicit-int-conversion -I../../programs/bpf"
//go:generate compile Table ../../programs/bpf/tables.c
//go:generate compile -no-global-types FromEndpoint ../../programs/bpf/from_endpoint.c
//go:generate compile -no-global-types ToEndpoint ../../programs/bpf/to_endpoint.c
//go:generate compile -no-global-types FromHost ../../programs/bpf/from_host.c
//go:generate compile -no-global-types FromOverlay ../../programs/bpf/from_overlay.c
//go:generate compile -no-global-types FromDevice ../../programs/bpf/from_device.c
//go:generate compile -no-global-types XDP ../../programs/bpf/xdp.c
//go:generate compile -no-global-types Expire ../../programs/bpf/expire.c
//go:generate compile -no-global-types Socket ../../programs/bpf/socket.c
//go:generate compile -no-global-types Destroy ../../programs/bpf/destroy.c
