// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/lb"
)

const (
	// watchInterval is the time between two looks at the file.
	watchInterval = 500 * time.Millisecond
	largestFile   = 64 << 20
)

// watched is a file of services that may change. Its content is compared: so it
// does not matter how an editor writes it, whether in place or by renaming
// another, and no change is missed that leaves size and time as they were.
type watched struct {
	path    string
	seen    string // what was there when it was told last, or why it could not be read
	suspect string // what is there and is wrong, as it was a moment ago
}

// first reads the file for the first time.
func (w *watched) first() ([]lb.Service, error) {
	text, err := w.read()
	if err != nil {
		return nil, err
	}
	w.seen = content(text, nil)
	return parseServices(text)
}

// look tells what is new in the file since the last time: services, or what is
// wrong with it. What is wrong is told when it has been so at two looks, for the
// file may be about to be written.
func (w *watched) look() (all []lb.Service, isNew bool, err error) {
	text, err := w.read()
	now := content(text, err)
	if now == w.seen {
		w.suspect = ""
		return nil, false, nil
	}
	if err == nil {
		all, err = parseServices(text)
	}
	if err != nil && now != w.suspect {
		w.suspect = now
		return nil, false, nil
	}
	w.seen, w.suspect = now, ""
	return all, true, err
}

func (w *watched) read() ([]byte, error) {
	// Of a pipe, not wait for somebody who writes.
	f, err := os.OpenFile(w.path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", w.path)
	}
	text, err := io.ReadAll(io.LimitReader(f, largestFile+1))
	if err == nil && len(text) > largestFile {
		err = fmt.Errorf("%s has more than %d MiB", w.path, largestFile>>20)
	}
	return text, err
}

// content is a file, or why it could not be read, as one text.
func content(text []byte, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	return "text: " + string(text)
}
