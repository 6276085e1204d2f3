// SPDX-License-Identifier: Apache-2.0

// Package names reads the names of the programs' enumerations from the BTF of
// the compiled objects, so that no second list of them exists.
package names

import (
	"fmt"
	"strings"
	"sync"

	"github.com/cilium/ebpf/btf"

	"github.com/godatapath/datapath/internal/bpf"
)

// Of returns the values of a C enumeration with their names, without the
// prefix and in lower case with spaces: DROP_NO_ROUTE under the prefix DROP is
// "no route". COUNT, and names that end in _COUNT, are sizes and not listed. The
// map is the caller's.
func Of(enum, prefix string) (map[uint32]string, error) {
	types, err := table()
	if err != nil {
		return nil, err
	}
	var e *btf.Enum
	if err := types.TypeByName(enum, &e); err != nil {
		return nil, fmt.Errorf("read the names of %s: %w", enum, err)
	}
	out := make(map[uint32]string, len(e.Values))
	for _, v := range e.Values {
		name := strings.TrimPrefix(v.Name, prefix+"_")
		if name == "COUNT" || strings.HasSuffix(name, "_COUNT") {
			continue
		}
		out[uint32(v.Value)] = strings.ToLower(strings.ReplaceAll(name, "_", " "))
	}
	return out, nil
}

var table = sync.OnceValues(func() (*btf.Spec, error) {
	spec, err := bpf.LoadTable()
	if err != nil {
		return nil, fmt.Errorf("read the tables object: %w", err)
	}
	return spec.Types, nil
})
