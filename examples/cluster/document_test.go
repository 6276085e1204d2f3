// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/cluster"
	"github.com/godatapath/datapath/examples/internal/probe"
)

// The document as other tools read it, without our types.
func TestJSONDocument(t *testing.T) {
	t.Parallel()
	name := newName(t)
	var out, people bytes.Buffer
	code := run(t.Context(), []string{"-json", "-nodes", "3", "-endpoints", "2", "-name", name}, &out, &people)
	require.Zero(t, code, "%s", &people)
	require.Contains(t, people.String(), "all ok")
	require.NotContains(t, out.String(), "null")

	dec := json.NewDecoder(&out)
	var doc map[string]any
	require.NoError(t, dec.Decode(&doc))
	require.False(t, dec.More(), "one document")

	require.Equal(t, []string{"nodes", "outside", "services"}, keys(doc))
	require.Equal(t, []any{map[string]any{
		"name": "outside", "netns": name + "-outside",
		"addresses": []any{"198.51.100.10", "fd00:98::a"}, "trusted": []any{"203.0.113.10", "fd00:99::a"},
	}}, doc["outside"])
	require.Equal(t, []any{}, doc["services"])
	nodes := doc["nodes"].([]any)
	require.Len(t, nodes, 3)
	seen := map[string]bool{}
	for i, n := range nodes {
		node := n.(map[string]any)
		require.Equal(t, []string{"addresses", "cgroup", "endpoints", "name", "netns", "pins", "podCIDRs"}, keys(node))
		require.Equal(t, fmt.Sprintf("node%d", i+1), node["name"])
		require.Equal(t, fmt.Sprintf("%s-node%d", name, i+1), node["netns"])
		require.Equal(t, fmt.Sprintf("%s/%s/bpf/node%d", cluster.DefaultDir, name, i+1), node["pins"])
		require.Equal(t, "", node["cgroup"])
		require.Equal(t, []any{fmt.Sprintf("172.16.16.%d", 11+i), fmt.Sprintf("fd00:16::%x", 17+i)}, node["addresses"])
		require.Equal(t, []any{fmt.Sprintf("10.244.%d.0/24", i+1), fmt.Sprintf("fd00:244:%x::/64", i+1)}, node["podCIDRs"])
		endpoints := node["endpoints"].([]any)
		require.Len(t, endpoints, 2)
		for j, e := range endpoints {
			ep := e.(map[string]any)
			require.Equal(t, []string{"addresses", "id", "identity", "ifindex", "mac", "name", "netns", "nodemac"}, keys(ep))
			require.Equal(t, fmt.Sprintf("node%d-ep%d", i+1, j+1), ep["name"])
			require.Equal(t, fmt.Sprintf("%s-node%d-ep%d", name, i+1, j+1), ep["netns"])
			require.Equal(t, float64(j+1), ep["id"])
			require.GreaterOrEqual(t, ep["identity"], 256.0)
			for k, a := range ep["addresses"].([]any) {
				cidr := netip.MustParsePrefix(node["podCIDRs"].([]any)[k].(string))
				require.True(t, cidr.Contains(netip.MustParseAddr(a.(string))))
			}
			for _, mac := range []string{ep["mac"].(string), ep["nodemac"].(string)} {
				_, err := net.ParseMAC(mac)
				require.NoError(t, err)
				require.Equal(t, strings.ToLower(mac), mac)
				require.False(t, seen[mac], "MAC %s twice", mac)
				seen[mac] = true
			}
		}
	}
}

// What the document says is what the kernel has.
func TestDocumentIsTrue(t *testing.T) {
	t.Parallel()
	c, err := cluster.Start(t.Context(), cluster.Config{Name: newName(t), Nodes: 2, Endpoints: 2})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	doc := describe(c)
	has := func(netns string, addrs ...netip.Addr) devices.Link {
		ns, err := devices.OpenNamed(netns)
		require.NoError(t, err)
		defer ns.Close()
		dev, err := devices.FindLink(ns, "eth0")
		require.NoError(t, err)
		for _, a := range addrs {
			require.True(t, slices.ContainsFunc(dev.Addrs, func(p netip.Prefix) bool { return p.Addr() == a }), "%s has %s", netns, a)
		}
		return dev
	}
	for _, n := range doc.Nodes {
		has(n.Netns, n.Addresses...)
		node, err := devices.OpenNamed(n.Netns)
		require.NoError(t, err)
		defer node.Close()
		all, err := devices.ListEndpoints(node, "")
		require.NoError(t, err)
		require.Len(t, all, len(n.Endpoints))
		for i, e := range n.Endpoints {
			require.Equal(t, all[i].Index, e.Ifindex)
			require.Equal(t, all[i].MAC.String(), e.NodeMAC)
			require.Equal(t, has(e.Netns, e.Addresses...).MAC.String(), e.MAC)
		}
	}

	// Who is outside sees the node, or the endpoint itself where that is said.
	require.Len(t, doc.Outside, 1)
	o := doc.Outside[0]
	has(o.Netns, append(slices.Clone(o.Addresses), o.Trusted...)...)
	outside, err := devices.OpenNamed(o.Netns)
	require.NoError(t, err)
	defer outside.Close()
	for i := range bothFamilies {
		for at, as := range map[netip.Addr]netip.Addr{o.Addresses[i]: doc.Nodes[0].Addresses[i], o.Trusted[i]: doc.Nodes[0].Endpoints[0].Addresses[i]} {
			server, err := probe.NewEcho(outside, at)
			require.NoError(t, err)
			defer func() { require.NoError(t, server.Close()) }()
			_, err = probe.TCP(t.Context(), c.Nodes[0].Endpoints[0].Namespace, server.Addr(), echoSize)
			require.NoError(t, err)
			_, seen := server.Asked()
			require.Equal(t, as, seen, "at %s", at)
		}
	}
}

// The nodes of a wire have no outside.
func TestDocumentWithoutOutside(t *testing.T) {
	t.Parallel()
	c, err := cluster.Start(t.Context(), cluster.Config{Name: newName(t), Wire: true, Endpoints: 1})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	require.NotNil(t, describe(c).Outside)
	require.Empty(t, describe(c).Outside)
	var out bytes.Buffer
	require.NoError(t, showTables(c, &out))
	require.NotContains(t, out.String(), "Ports of the node", "nothing leaves in its name")
	hint(c, &out)
	require.NotContains(t, out.String(), "nat list")
}

func TestEmptyListsAreNotNull(t *testing.T) {
	t.Parallel()
	c, err := cluster.Start(t.Context(), cluster.Config{Name: newName(t), Nodes: 1, Endpoints: -1})
	require.NoError(t, err)
	defer func() { require.NoError(t, c.Close()) }()
	b, err := json.Marshal(describe(c))
	require.NoError(t, err)
	require.Contains(t, string(b), `"endpoints":[]`)
	require.NotContains(t, string(b), "null")
}

func keys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }
