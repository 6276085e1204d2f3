// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
)

// findNamespace opens the node's namespace: the one at path, or, if path is "",
// the one that has the cookie. It looks at the current namespace, at those with
// a name and at those of the processes.
func findNamespace(path string, cookie uint64) (devices.Namespace, error) {
	if path != "" {
		ns, err := devices.OpenNamespace(path)
		if err != nil {
			return ns, err
		}
		if have, err := ns.Cookie(); err == nil && cookie != 0 && have != cookie {
			ns.Close()
			return ns, fmt.Errorf("%s is not the node's namespace: it has cookie %d, the node's is %d", path, have, cookie)
		}
		return ns, nil
	}
	if cookie == 0 {
		return devices.Namespace{}, fmt.Errorf("the kernel has not told the node's namespace: name it with -netns PATH")
	}
	named, _ := filepath.Glob(filepath.Join(devices.NamespaceDir, "*"))
	processes, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	seen := map[uint64]bool{}
	for _, path := range append(append([]string{"/proc/self/ns/net"}, named...), processes...) {
		// Many processes share a namespace: look at each once.
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil || seen[st.Ino] {
			continue
		}
		seen[st.Ino] = true
		ns, err := devices.OpenNamespace(path)
		if err != nil {
			continue // it ended, or is no namespace
		}
		if have, err := ns.Cookie(); err == nil && have == cookie {
			return ns, nil
		}
		ns.Close()
	}
	return devices.Namespace{}, fmt.Errorf("no namespace in %s or of a process has the cookie %d of the node: name it with -netns PATH, or has it ended?",
		devices.NamespaceDir, cookie)
}
