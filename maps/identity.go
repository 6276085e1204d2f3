// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"strconv"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/names"
)

// Identity says who a packet is from. It is a number of 24 bits, because it
// travels in the VNI of VXLAN. 1 to 8 have a fixed meaning; 256 to 16777215 are
// the user's.
type Identity uint32

// The reserved identities.
const (
	IdentityHost          = Identity(bpf.TableIdentityIDENTITY_HOST)           // 1: the node itself
	IdentityWorld         = Identity(bpf.TableIdentityIDENTITY_WORLD)          // 2: anybody outside
	IdentityUnmanaged     = Identity(bpf.TableIdentityIDENTITY_UNMANAGED)      // 3: a workload that is not ours
	IdentityHealth        = Identity(bpf.TableIdentityIDENTITY_HEALTH)         // 4: health checks
	IdentityInit          = Identity(bpf.TableIdentityIDENTITY_INIT)           // 5: an endpoint whose identity is not known yet
	IdentityRemoteNode    = Identity(bpf.TableIdentityIDENTITY_REMOTE_NODE)    // 6: another node
	IdentityKubeAPIServer = Identity(bpf.TableIdentityIDENTITY_KUBE_APISERVER) // 7: the API server of Kubernetes
	IdentityIngress       = Identity(bpf.TableIdentityIDENTITY_INGRESS)        // 8: an ingress proxy

	// MinUserIdentity is the first identity that a user may give: 256.
	MinUserIdentity = Identity(bpf.TableIdentityIDENTITY_USER)
	// MaxIdentity is the last one that fits a VNI: 16777215.
	MaxIdentity Identity = 1<<24 - 1
)

// Valid reports whether the identity can be sent: a reserved one or a user's.
func (i Identity) Valid() bool {
	return i >= IdentityHost && i <= IdentityIngress || i >= MinUserIdentity && i <= MaxIdentity
}

// String is the name of a reserved identity and the number of any other.
func (i Identity) String() string {
	if i < MinUserIdentity {
		if all, err := names.Of("identity", "IDENTITY"); err == nil && all[uint32(i)] != "" {
			return all[uint32(i)]
		}
	}
	return strconv.FormatUint(uint64(i), 10)
}
