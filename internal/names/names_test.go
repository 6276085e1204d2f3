// SPDX-License-Identifier: Apache-2.0

package names_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/names"
)

func TestNames(t *testing.T) {
	t.Parallel()
	actions, err := names.Of("action", "ACTION")
	require.NoError(t, err)
	assert.Equal(t, "to overlay", actions[uint32(bpf.TableActionACTION_TO_OVERLAY)])
	assert.Equal(t, "none", actions[0])
	assert.NotContains(t, actions, uint32(bpf.TableActionACTION_COUNT), "a size is no name")
	events, err := names.Of("flow_event", "FLOW")
	require.NoError(t, err)
	assert.Equal(t, "fragments full", events[uint32(bpf.TableFlowEventFLOW_FRAGMENTS_FULL)])
	assert.NotContains(t, events, uint32(bpf.TableFlowEventFLOW_EVENT_COUNT))
	for _, enum := range []string{"drop_reason", "program", "identity", "flow_stage", "pass_mode"} {
		all, err := names.Of(enum, "X")
		require.NoError(t, err)
		assert.NotEmpty(t, all, enum)
	}
	for _, bad := range []string{"", "no_such_enum", "flow"} {
		_, err := names.Of(bad, "")
		require.ErrorContains(t, err, "read the names of "+bad)
	}
	actions[0] = "mine"
	again, err := names.Of("action", "ACTION")
	require.NoError(t, err)
	assert.Equal(t, "none", again[0], "the map is the caller's alone")
}

func TestNamesConcurrently(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				_, err := names.Of("drop_reason", "DROP")
				assert.NoError(t, err)
			}
		})
	}
	wg.Wait()
}
