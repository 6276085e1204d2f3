// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/godatapath/datapath/devices"
)

// around is what tests can leave on the machine that does not end with their
// process. All processes see the same.
type around struct {
	names  map[string]bool // paths of the names of namespaces
	mounts map[string]bool // paths of the BPF filesystems
}

func lookAround() (around, error) {
	names, err := filepath.Glob(filepath.Join(devices.NamespaceDir, "*"))
	if err != nil {
		return around{}, fmt.Errorf("list the names of namespaces: %w", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return around{}, fmt.Errorf("list the mounts: %w", err)
	}
	now := around{names: make(map[string]bool), mounts: make(map[string]bool)}
	for _, name := range names {
		now.names[name] = true
	}
	for _, path := range bpfMounts(string(mounts)) {
		now.mounts[path] = true
	}
	return now, nil
}

// since returns what is there now, was not before and is of this process.
// Nothing of it says who made it. What has the number of the process in its
// path is ours; the rest is taken for ours unless another test runs beside us,
// as the packages of "go test ./..." do.
func (now around) since(before around) []string {
	var ours, perhaps []string
	add := func(path, what string) {
		if hasNumber(path, os.Getpid()) {
			ours = append(ours, what+path)
		} else {
			perhaps = append(perhaps, what+path)
		}
	}
	for path := range now.names {
		if !before.names[path] {
			add(path, "the name of a namespace ")
		}
	}
	for path := range now.mounts {
		if !before.mounts[path] {
			add(path, "a BPF filesystem on ")
		}
	}
	if len(perhaps) > 0 && !testBeside("/proc", os.Getpid()) {
		ours = append(ours, perhaps...)
	}
	return ours
}

// bpfMounts returns the mount points of BPF filesystems in the text of
// /proc/self/mountinfo (proc_pid_mountinfo(5)).
func bpfMounts(text string) []string {
	var paths []string
	for line := range strings.Lines(text) {
		mount, filesystem, ok := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		const point = 4
		if ok && len(fields) > point && strings.HasPrefix(filesystem, "bpf ") {
			paths = append(paths, mountEscapes.Replace(fields[point]))
		}
	}
	return paths
}

// mountEscapes are the bytes that the kernel writes as octal numbers.
var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// hasNumber tells whether one of the numbers in a path is n.
func hasNumber(path string, n int) bool {
	for _, number := range strings.FieldsFunc(path, func(r rune) bool { return r < '0' || r > '9' }) {
		if number == strconv.Itoa(n) {
			return true
		}
	}
	return false
}

// testBeside tells whether a test runs on the machine that is neither the
// process self nor was started by it. proc is "/proc".
func testBeside(proc string, self int) bool {
	processes, _ := filepath.Glob(filepath.Join(proc, "[0-9]*"))
	for _, dir := range processes {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err == nil && isTest(dir) && !descends(proc, pid, self) {
			return true
		}
	}
	return false
}

// isTest tells by its command line whether a process is the test of a package.
func isTest(dir string) bool {
	text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return false // it has ended
	}
	args := strings.Split(string(text), "\x00")
	for _, arg := range args {
		if strings.HasPrefix(arg, "-test.") {
			return true
		}
	}
	return strings.HasSuffix(args[0], ".test")
}

// descends tells whether a process is another one or was started below it.
func descends(proc string, pid, from int) bool {
	for pid > 0 && pid != from {
		stat, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "stat"))
		if err != nil {
			return false
		}
		// The name of the program may have spaces and brackets of its own.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		const parent = 1
		if len(fields) <= parent {
			return false
		}
		if pid, err = strconv.Atoi(fields[parent]); err != nil {
			return false
		}
	}
	return pid == from
}
