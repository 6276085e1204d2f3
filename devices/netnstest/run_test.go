// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type runner func() int

func (r runner) Run() int { return r() }

// TestMainFindsWhatIsLeft is not parallel: it looks at the whole process.
func TestMainFindsWhatIsLeft(t *testing.T) {
	var report strings.Builder
	assert.Zero(t, run(runner(func() int { return 0 }), &report))
	assert.Empty(t, report.String())
	assert.Equal(t, 7, run(runner(func() int { return 7 }), &report), "the code of the tests")
	assert.Empty(t, report.String())

	stop := make(chan struct{})
	var file *os.File
	code := run(runner(func() int {
		var err error
		file, err = os.Open("/dev/zero")
		require.NoError(t, err)
		go forgotten(stop)
		return 0
	}), &report)
	close(stop)
	require.NoError(t, file.Close())
	assert.Equal(t, 1, code)
	assert.Contains(t, report.String(), ": /dev/zero")
	assert.Contains(t, report.String(), "netnstest.forgotten")
}

func forgotten(stop chan struct{}) { <-stop }
