// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func threadNamespace() (string, error) { return os.Readlink("/proc/thread-self/ns/net") }

func TestDoRunsInsideAndMovesNobody(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	home, err := threadNamespace()
	require.NoError(t, err)

	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			err := ns.Do(func() error {
				inside, err := threadNamespace()
				if err == nil && inside == home {
					err = errors.New("still at home")
				}
				return err
			})
			assert.NoError(t, err)
		})
	}
	group.Wait()
	for range 200 {
		group.Go(func() {
			now, err := threadNamespace()
			assert.NoError(t, err)
			assert.Equal(t, home, now, "a goroutine ended up in a foreign namespace")
		})
	}
	group.Wait()
}

func TestDoReturnsTheErrorOfTheFunction(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	want := errors.New("from inside")
	require.ErrorIs(t, ns.Do(func() error { return want }), want)
	require.ErrorIs(t, Namespace{}.Do(func() error { return want }), want)
}

func TestDoDoesNotHangOnGoexit(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, newNS(t).Do(func() error { runtime.Goexit(); return nil }), "did not return")
}

func TestCloseIsForAllCopies(t *testing.T) {
	t.Parallel()
	ns, err := NewNamespace()
	require.NoError(t, err)
	other := ns
	require.NoError(t, ns.Close())
	require.NoError(t, other.Close())
	require.ErrorIs(t, other.Do(func() error { return nil }), os.ErrClosed)
	_, err = other.dup()
	require.ErrorIs(t, err, os.ErrClosed)
	require.NoError(t, Namespace{}.Close())
}

func TestNewNamespaceHasLoopbackUp(t *testing.T) {
	t.Parallel()
	lo := find(t, newNS(t), "lo")
	require.True(t, lo.Up)
	require.Equal(t, 1, lo.Ifindex())
	require.Nil(t, lo.MAC)
}

func TestNamedNamespace(t *testing.T) {
	t.Parallel()
	name := fmt.Sprintf("dp-test-%d", os.Getpid())
	ns, err := NewNamed(name)
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, RemoveNamed(name))
		assert.NoError(t, ns.Close())
	})
	require.Equal(t, filepath.Join(NamespaceDir, name), ns.Path())
	require.Equal(t, ns.Path(), ns.String())

	_, err = NewNamed(name)
	require.ErrorIs(t, err, os.ErrExist)

	again, err := OpenNamed(name)
	require.NoError(t, err)
	a, err := ns.Cookie()
	require.NoError(t, err)
	b, err := again.Cookie()
	require.NoError(t, err)
	require.Equal(t, a, b)
	require.NoError(t, again.Close())

	require.NoError(t, RemoveNamed(name))
	require.NoError(t, RemoveNamed(name), "removing what is absent")
	_, err = OpenNamed(name)
	require.ErrorIs(t, err, os.ErrNotExist)
	c, err := ns.Cookie()
	require.NoError(t, err, "the descriptor outlives the name")
	require.Equal(t, a, c)
}

func TestNamesOfNamespacesStayInTheirFolder(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", ".", "..", "a/b", "../x", "a\x00b"} {
		_, err := NewNamed(name)
		requireInput(t, err, "namespace name")
		_, err = OpenNamed(name)
		requireInput(t, err, "namespace name")
		requireInput(t, RemoveNamed(name), "namespace name")
	}
}

func TestCookiesDiffer(t *testing.T) {
	t.Parallel()
	a, err := newNS(t).Cookie()
	require.NoError(t, err)
	b, err := newNS(t).Cookie()
	require.NoError(t, err)
	require.NotEqual(t, a, b)

	current, err := CurrentNamespace()
	require.NoError(t, err)
	defer current.Close()
	c, err := current.Cookie()
	require.NoError(t, err)
	d, err := Namespace{}.Cookie()
	require.NoError(t, err)
	require.Equal(t, c, d)
	require.Equal(t, "(current)", Namespace{}.String())
	require.Empty(t, Namespace{}.Path())
}

func TestOpenNamespaceOfNothing(t *testing.T) {
	t.Parallel()
	_, err := OpenNamespace(filepath.Join(t.TempDir(), "absent"))
	require.ErrorIs(t, err, os.ErrNotExist)

	file := filepath.Join(t.TempDir(), "plain")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	ns, err := OpenNamespace(file)
	require.NoError(t, err)
	defer ns.Close()
	require.Error(t, ns.Do(func() error { return nil }), "a plain file is no namespace")
}
