// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// PinDir returns a folder that holds a BPF filesystem of the lab's own, for
// pins. What is still in it at the end of the test is a leak, and is removed.
func (l *Lab) PinDir() string {
	l.t.Helper()
	if l.pinDir != "" {
		return l.pinDir
	}
	// Not t.TempDir: it would be emptied before we have looked into it. The number
	// lets Main tell our mounts from those of other processes.
	dir, err := os.MkdirTemp("", fmt.Sprintf("netnstest-pins-%d-", os.Getpid()))
	if err != nil {
		l.t.Fatalf("netnstest: make a folder for pins: %v", err)
	}
	if err := unix.Mount("bpffs", dir, "bpf", 0, "mode=0700"); err != nil {
		os.Remove(dir)
		l.t.Fatalf("netnstest: mount a BPF filesystem on %s: %v", dir, err)
	}
	l.pinDir = dir
	l.pinsAtFirst = make(map[string]bool)
	// Kernels with BPF iterators built in put some pins into every new one.
	entries, err := os.ReadDir(dir)
	if err != nil {
		l.t.Fatalf("netnstest: list the folder for pins: %v", err)
	}
	for _, e := range entries {
		l.pinsAtFirst[e.Name()] = true
	}
	return dir
}

// removePins returns what is left in the folder of pins and takes it away.
func (l *Lab) removePins() []string {
	if l.pinDir == "" {
		return nil
	}
	var leaks []string
	err := filepath.WalkDir(l.pinDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(l.pinDir, path)
		if err != nil || path == l.pinDir || l.pinsAtFirst[name] {
			return err
		}
		what := "pin"
		if entry.IsDir() {
			what = "folder of pins"
		}
		leaks = append(leaks, what+" "+name)
		return nil
	})
	if err != nil {
		leaks = append(leaks, fmt.Sprintf("folder of pins %s: %v", l.pinDir, err))
	}
	if err := unix.Unmount(l.pinDir, 0); err != nil {
		leaks = append(leaks, fmt.Sprintf("BPF filesystem on %s: %v", l.pinDir, err))
		_ = unix.Unmount(l.pinDir, unix.MNT_DETACH)
	}
	if err := os.Remove(l.pinDir); err != nil {
		leaks = append(leaks, err.Error())
	}
	return leaks
}
