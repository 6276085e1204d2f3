// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"strconv"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/names"
)

// Identity says who a packet is from. It is a number of 24 bits, because it
// travels in the VNI of VXLAN. 1 to 8 have a fixed meaning; 256 and up are the
// user's.
type Identity uint32

// The reserved identities.
const (
	IdentityHost          = Identity(bpf.TableIdentityIDENTITY_HOST)           // the node itself
	IdentityWorld         = Identity(bpf.TableIdentityIDENTITY_WORLD)          // anybody outside
	IdentityUnmanaged     = Identity(bpf.TableIdentityIDENTITY_UNMANAGED)      // a workload that is not ours
	IdentityHealth        = Identity(bpf.TableIdentityIDENTITY_HEALTH)         // health checks
	IdentityInit          = Identity(bpf.TableIdentityIDENTITY_INIT)           // an endpoint whose identity is not known yet
	IdentityRemoteNode    = Identity(bpf.TableIdentityIDENTITY_REMOTE_NODE)    // another node
	IdentityKubeAPIServer = Identity(bpf.TableIdentityIDENTITY_KUBE_APISERVER) // the API server of Kubernetes
	IdentityIngress       = Identity(bpf.TableIdentityIDENTITY_INGRESS)        // an ingress proxy

	// MinUserIdentity is the first identity that a user may give.
	MinUserIdentity = Identity(bpf.TableIdentityIDENTITY_USER)
	// MaxIdentity is the last one that fits a VNI.
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
