// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/examples/internal/cluster"
)

// clusterName has our devices and pins under it, unless -name says otherwise. It
// is the same each time, so that what is left of a run that was killed is found by
// the next one.
const clusterName = "dpbench"

func (s settings) cluster() cluster.Config {
	return cluster.Config{
		Name: s.name,
		Wire: s.underlay == underlayWire,
		// Connections come and go faster here than anywhere, and a long -time
		// opens more of them than expiry sees.
		Flows: conntrack.Config{Flows: 1 << 18},
	}
}

// addOurs adds two contestants on one cluster.
func (a *arena) addOurs(ctx context.Context) error {
	c, err := cluster.Start(ctx, a.cluster)
	if err != nil {
		return err
	}
	a.push(c.Close)
	family := 4
	if a.ipv6 {
		family = 6
	}
	near, far := c.Nodes[0].Endpoints, c.Nodes[1].Endpoints
	a.add(contestant{
		name: nameSameNode, title: "ours, same node", ours: true,
		client: near[0].Namespace, server: near[1].Namespace, addr: near[1].Addr(family),
	})
	a.add(contestant{
		name: nameOverlay, title: "ours, over vxlan", ours: true,
		client: near[0].Namespace, server: far[0].Namespace, addr: far[0].Addr(family),
	})
	return nil
}
