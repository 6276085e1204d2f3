// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/godatapath/datapath/internal/bpffs"
	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/undo"
)

// PinPath is where the table is pinned by us, or "".
func (m *Map[K, V]) PinPath() string {
	m.pinMu.Lock()
	defer m.pinMu.Unlock()
	return m.path
}

// Pin makes the table outlive the process: it is pinned as dir/NAME, and New
// with that folder as Config.Pins, or Open, finds it again. The folder is made
// if it is absent; a folder on no bpf filesystem answers [ErrNoBPFFS]. Nil if
// the table is pinned there already. A name that another table has answers
// errors.Is(err, os.ErrExist), and so does a table that is pinned in another
// folder: Unpin it first.
//
// [Map.Close] leaves the pin alone, [Map.Unpin] and [Map.Remove] take it away.
func (m *Map[K, V]) Pin(dir string) (err error) {
	if err := m.enter(); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	defer m.leave()
	m.pinMu.Lock()
	defer m.pinMu.Unlock()

	if strings.ContainsAny(m.name, "./") || m.name == "" {
		return invalid.Errorf("pin table %q: a bpf filesystem allows no dot and no slash in a name", m.name)
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("pin table %s: %w", m.name, err)
	}
	path := filepath.Join(dir, m.name)
	if m.path != "" && m.path != path {
		return fmt.Errorf("pin table %s at %s: it is pinned at %s, unpin it first: %w", m.name, path, m.path, os.ErrExist)
	}
	var u undo.Stack
	defer u.Run(&err)
	takeBack, err := bpffs.Ensure(dir)
	if err != nil {
		return fmt.Errorf("pin table %s: %w", m.name, err)
	}
	u.Push(takeBack)
	unlock, err := lockFolder(dir)
	if err != nil {
		return fmt.Errorf("pin table %s: %w", m.name, err)
	}
	defer unlock()
	switch ours, err := m.isAt(path); {
	case ours:
	case err == nil:
		return fmt.Errorf("pin table %s at %s: another table is there: %w", m.name, path, os.ErrExist)
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("pin table %s: %w", m.name, err)
	default:
		if err := pin(m.em, path); err != nil {
			return fmt.Errorf("pin table %s: %w", m.name, err)
		}
	}
	m.path = path
	return nil
}

// isAt tells whether the pin at path is this table.
func (m *Map[K, V]) isAt(path string) (bool, error) {
	other, err := loadPin(path)
	if err != nil {
		return false, err
	}
	defer other.Close()
	info, err := infoOf(other)
	if err != nil {
		return false, fmt.Errorf("%s: %w", path, err)
	}
	return info.id == m.id, nil
}

// Unpin takes the pin away, so that the table ends with its last user. It is
// idempotent, and nil for a table that is not pinned. If another table has
// taken the place of ours meanwhile, its pin is left alone. It works after Close
// too.
func (m *Map[K, V]) Unpin() error {
	m.pinMu.Lock()
	defer m.pinMu.Unlock()
	if m.path == "" {
		return nil
	}
	unlock, err := lockFolder(filepath.Dir(m.path))
	if errors.Is(err, os.ErrNotExist) {
		m.path = ""
		return nil
	}
	if err != nil {
		return fmt.Errorf("unpin table %s: %w", m.name, err)
	}
	defer unlock()
	ours, err := m.isAt(m.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, ErrNoBPFFS) {
		return fmt.Errorf("unpin table %s: %w", m.name, err)
	}
	if ours {
		if err := os.Remove(m.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("unpin table %s: %w", m.name, explainPermission(err))
		}
	}
	m.path = ""
	return nil
}

// Remove takes the table off the machine: it removes our pin, if there is one,
// and closes. The kernel frees the table when no program uses it any more. It is
// idempotent. If the pin can not be removed, the table is closed all the same
// and the pin stays.
//
// [Map.Close] leaves the pin; [Map.Pin] makes one.
func (m *Map[K, V]) Remove() error {
	return errors.Join(m.Unpin(), m.Close())
}
