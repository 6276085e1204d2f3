// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/godatapath/datapath/devices"
	"golang.org/x/sys/unix"
)

// patience is how long things that end by themselves may take: a goroutine
// that has been told to, the thread of a subtest, a finished connection.
const patience = 2 * time.Second

// untilNone asks look until it finds nothing or patience ends, and returns what
// it found last.
func untilNone(look func() []string) []string {
	for pause, deadline := time.Millisecond, time.Now().Add(patience); ; pause = min(2*pause, 50*time.Millisecond) {
		found := look()
		if len(found) == 0 || time.Now().After(deadline) {
			return found
		}
		time.Sleep(pause)
	}
}

// leaks returns what of the lab, or of its test, is still there beside our own
// descriptors of the namespaces.
func (l *Lab) leaks() []string {
	return untilNone(func() []string {
		found := l.leftOfNamespaces()
		for _, stack := range l.goroutines() {
			found = append(found, "goroutine\n"+stack)
		}
		return append(found, l.leftOfProcess()...)
	})
}

// leftOfNamespaces returns what still holds a namespace of the lab. It tells
// the things of this lab from those of tests that run beside it.
func (l *Lab) leftOfNamespaces() []string {
	descriptors, err := listDescriptors()
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	for _, d := range descriptors {
		if h := l.holder(d); h != nil {
			found = append(found, fmt.Sprintf("%s, which holds the namespace of %s", d.describe(), h.name))
		}
	}
	names, _ := filepath.Glob(filepath.Join(devices.NamespaceDir, "*"))
	for _, h := range l.hosts {
		if h.inode == 0 {
			continue
		}
		if n := threadsIn(h.inode); n > 0 {
			found = append(found, fmt.Sprintf("%d threads in the namespace of %s", n, h.name))
		}
		for _, name := range names {
			if inodeOf(name) == h.inode {
				found = append(found, fmt.Sprintf("the name %s of the namespace of %s", name, h.name))
			}
		}
		if h.nsName != "" {
			if path := filepath.Join(devices.NamespaceDir, h.nsName); isThere(path) {
				found = append(found, "the file "+path)
			}
		}
	}
	return found
}

// holder returns the host whose namespace a descriptor keeps alive, or nil.
func (l *Lab) holder(d descriptor) *Host {
	var cookie, inode uint64
	if strings.HasPrefix(d.target, "socket:") {
		cookie, _ = unix.GetsockoptUint64(d.fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	} else {
		inode = namespaceOf(d.fd)
	}
	for _, h := range l.hosts {
		if d.fd != h.fd && (cookie != 0 && h.cookie == cookie || inode != 0 && h.inode == inode) {
			return h
		}
	}
	return nil
}

// own tells whether the descriptor is one that the lab itself closes.
func (l *Lab) own(d descriptor) bool {
	for _, h := range l.hosts {
		if d.fd == h.fd {
			return true
		}
	}
	return false
}

// namespaceOf returns the inode of the namespace that a descriptor is of, or 0.
// The name in /proc does not tell: it is the path that was opened.
func namespaceOf(fd int) uint64 {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if unix.Fstatfs(fd, &fs) != nil || fs.Type != unix.NSFS_MAGIC || unix.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Ino
}

// leftOfProcess returns what the process has more than at the start of the
// lab. Only when no other test runs beside it is that known to be the lab's;
// [Main] looks again when all tests are over.
func (l *Lab) leftOfProcess() []string {
	now, err := takeCensus()
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	for _, d := range since(l.before.descriptors, now.descriptors) {
		if l.holder(d) == nil && !l.own(d) {
			found = append(found, d.describe())
		}
	}
	found = append(found, linksSince(l.before.links, now.links)...)
	if len(found) > 0 && !l.alone() {
		return nil
	}
	return found
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
