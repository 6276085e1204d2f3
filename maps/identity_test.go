// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestIdentity(t *testing.T) {
	t.Parallel()
	for i := Identity(0); i <= 300; i++ {
		assert.Equal(t, i >= 1 && i <= 8 || i >= 256, i.Valid(), "%d", uint32(i))
	}
	assert.True(t, MaxIdentity.Valid())
	assert.False(t, (MaxIdentity + 1).Valid())
	assert.False(t, (^Identity(0)).Valid())
	for i, want := range map[Identity]string{
		0: "unknown", IdentityHost: "host", IdentityWorld: "world", IdentityUnmanaged: "unmanaged", IdentityHealth: "health", IdentityInit: "init",
		IdentityRemoteNode: "remote node", IdentityKubeAPIServer: "kube apiserver", IdentityIngress: "ingress",
		9: "9", 255: "255", MinUserIdentity: "256", 37483: "37483", MaxIdentity: "16777215",
	} {
		assert.Equal(t, want, i.String())
	}
}
