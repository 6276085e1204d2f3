// SPDX-License-Identifier: Apache-2.0

// Package pidfile is the file that says which process has a place, for who finds
// the place taken. The lock on it is its holder's business.
package pidfile

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Write makes this process the one that the file names.
func Write(f *os.File) error {
	err := f.Truncate(0) // of one that was killed
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return fmt.Errorf("write the number of this process: %w", err)
	}
	return nil
}

// Read returns the process that the file names; 0: none.
func Read(f *os.File) int {
	text := make([]byte, 20)
	n, _ := f.ReadAt(text, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text[:n])))
	if err != nil {
		return 0
	}
	return pid
}

// IsAt tells whether path is still this file, and not another one that has come since.
func IsAt(f *os.File, path string) bool {
	held, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(held, there)
}
