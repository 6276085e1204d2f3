// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"embed"
	"io/fs"
)

// The public headers. The others declare tables of ours, which a program of the
// user's would then have too.
//
//go:embed bpf/lib/bpf.h bpf/lib/net.h bpf/lib/types.h bpf/lib/parse.h
var headers embed.FS

// Headers returns the public C headers for other build systems, read-only:
// "lib/bpf.h" (types, helpers, map notation), "lib/net.h" (headers on the
// wire), "lib/types.h" (the types that our programs and tables use) and
// "lib/parse.h" (packet_parse). They define no table and no license, and need
// no system header. A program of any license may include them: they are
// "GPL-2.0-only OR BSD-2-Clause".
//
// [Compile] has them on its include path. A build that runs where this module
// is a requirement finds the same files in the module's folder, so bpf2go takes
//
//	-I$(go list -m -f '{{.Dir}}' github.com/godatapath/datapath)/programs/bpf
//
// after its "--".
func Headers() fs.FS {
	sub, _ := fs.Sub(headers, "bpf") // fails for a malformed name only
	return sub
}
