// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/examples/internal/pidfile"
	"github.com/godatapath/datapath/maps"
)

// place is where a balancer has its pins. Its lock is held for the life of the
// process, so that one that was killed can be told from one that runs. It has the
// number of the process in it.
type place struct {
	pins string // a bpf filesystem is mounted there
	lock string
	dir  string // that goes with the lock, if nothing else is in it; "": none

	held *os.File
	// keep is set while what is pinned there is of one that was killed, and still at
	// work: it is not to end because another can not take over.
	keep bool
}

// heldError says that somebody else has the place. It is os.ErrExist.
type heldError struct {
	lock string
	pid  int // of its process; 0: it has not said yet
}

func (e *heldError) Error() string {
	by := ""
	if e.pid != 0 {
		by = fmt.Sprintf(" (process %d)", e.pid)
	}
	return fmt.Sprintf("another one has %s%s: end it, or choose another -name or -pins", e.lock, by)
}

func (e *heldError) Is(target error) bool { return target == os.ErrExist }

// claim takes the place and mounts the bpf filesystem. What a killed one has
// pinned there is still there.
func (p *place) claim() error {
	if err := p.take(); err != nil {
		return err
	}
	if err := maps.MountBPFFS(p.pins); err != nil {
		return errors.Join(err, p.letGo())
	}
	return nil
}

// take takes the lock.
func (p *place) take() error {
	above := filepath.Dir(p.lock)
	for {
		if err := os.MkdirAll(above, 0o755); errors.Is(err, os.ErrNotExist) {
			continue // another one has just removed the folder above
		} else if err != nil {
			return err
		}
		if is, err := maps.IsBPFFS(above); err != nil || is {
			return errors.Join(err, fmt.Errorf("%s is on a bpf filesystem already: choose a folder where one can be mounted", p.pins))
		}
		f, fresh, err := openLock(p.lock)
		if errors.Is(err, os.ErrNotExist) {
			continue // its owner has just removed it
		}
		if err != nil {
			return err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			defer f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return &heldError{p.lock, pidfile.Read(f)}
			}
			return fmt.Errorf("lock %s: %w", p.lock, err)
		}
		if !pidfile.IsAt(f, p.lock) {
			f.Close() // its owner has removed it between our two steps
			continue
		}
		p.held = f
		if err := pidfile.Write(f); err != nil {
			return errors.Join(err, p.letGo())
		}
		// What is mounted there and has no lock is somebody else's.
		is, err := maps.IsBPFFS(p.pins)
		if is && fresh {
			return errors.Join(fmt.Errorf("%s is a bpf filesystem that is none of ours: choose another folder", p.pins), p.letGo())
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return errors.Join(err, p.letGo())
		}
		p.keep = is
		return nil
	}
}

// openLock tells whether the file was not there before.
func openLock(path string) (f *os.File, fresh bool, err error) {
	f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if !errors.Is(err, os.ErrExist) {
		return f, true, err
	}
	f, err = os.OpenFile(path, os.O_RDWR, 0)
	return f, false, err
}

// clear takes all pins away.
func (p *place) clear() error {
	if err := maps.UnmountBPFFS(p.pins); err != nil {
		return err
	}
	p.keep = false
	return maps.MountBPFFS(p.pins)
}

// release gives the place back, and takes the pins away unless they are to be
// kept: then the lock, which nobody holds, stays as the mark that they are ours.
func (p *place) release() error {
	if p.keep {
		return p.held.Close()
	}
	err := maps.UnmountBPFFS(p.pins)
	if err == nil {
		err = removeEmpty(p.pins)
	}
	return errors.Join(err, p.letGo())
}

// letGo gives the lock back, and removes it.
func (p *place) letGo() error {
	err := errors.Join(os.Remove(p.lock), p.held.Close())
	if p.dir == "" {
		return err
	}
	err = errors.Join(err, removeEmpty(p.dir))
	if filepath.Dir(p.dir) == cluster.DefaultDir {
		err = errors.Join(err, removeEmpty(cluster.DefaultDir))
	}
	return err
}

// removeEmpty removes a folder unless something is in it.
func removeEmpty(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return fmt.Errorf("remove folder %s: %w", dir, err)
}
