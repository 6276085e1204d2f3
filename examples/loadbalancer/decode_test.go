// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/lb"
)

func TestSample(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("services.json")
	require.NoError(t, err)
	all, err := parseServices(text)
	require.NoError(t, err)
	require.Len(t, all, 4)
	require.Equal(t, lb.Service{
		Name: "web", Algorithm: lb.Maglev,
		Frontends: []lb.Frontend{{Addr: netip.MustParseAddrPort("203.0.113.10:80"), Protocol: lb.TCP, Type: lb.ExternalIP}},
		Backends: []lb.Backend{
			{Addr: netip.MustParseAddrPort("192.0.2.11:8080"), State: lb.Active, Weight: 1},
			{Addr: netip.MustParseAddrPort("192.0.2.12:8080"), State: lb.Active, Weight: 2},
			{Addr: netip.MustParseAddrPort("192.0.2.13:8080"), State: lb.Terminating, Weight: 1},
		},
	}, all[0])
	require.Equal(t, lb.Service{
		Name: "shop, on every address of this machine", Affinity: time.Hour, OnRemove: lb.Drain, DenySources: true,
		SourceRanges: []netip.Prefix{netip.MustParsePrefix("198.51.100.66/32")},
		Frontends:    []lb.Frontend{{Addr: netip.MustParseAddrPort("0.0.0.0:30080"), Protocol: lb.TCP, Type: lb.NodePort}},
		Backends: []lb.Backend{
			{Addr: netip.MustParseAddrPort("192.0.2.11:9090"), State: lb.Active, Weight: 1},
			{Addr: netip.MustParseAddrPort("192.0.2.12:9090"), State: lb.Active, Weight: 1},
		},
	}, all[3])
	require.Equal(t, lb.UDP, all[2].Frontends[0].Protocol)
	require.Equal(t, lb.Maintenance, all[2].Backends[1].State)
	b := newServices(t)
	_, err = b.Sync(all)
	require.NoError(t, err)
}

// newServices are the tables of services alone.
func newServices(t *testing.T) *lb.Balancer {
	t.Helper()
	b, err := lb.New(lb.Config{NodeAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func TestEmptyList(t *testing.T) {
	t.Parallel()
	all, err := parseServices([]byte(" [] \n"))
	require.NoError(t, err)
	require.Empty(t, all)
}

func TestWrongText(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		``:                    `line 1: it is no JSON: unexpected end of JSON input`,
		"[\n  {\"name\": \"w": `line 2: it is no JSON: unexpected end of JSON input`,
		"[\n\n,]":             `line 3: it is no JSON: invalid character ',' looking for beginning of value`,
		`[] []`:               `line 1: it is no JSON: invalid character '[' after top-level value`,
		`{"name": "w"}`:       `{"name":"w"}: want a list of services`,
		`null`:                `null: want a list of services`,
		`[7]`:                 `service 1 of the list: 7: want an object`,
		`[{}]`:                `service 1 of the list: name: it is missing`,
		`[{"name": 3}]`:       `service 1 of the list: name: 3: want a text`,
		`[{"name": null}]`:    `service 1 of the list: name: null: want a text`,
		`[{"name": "", "frontends": [], "backends": []}]`: `service 1 of the list: name: it is empty`,
	} {
		_, err := parseServices([]byte(text))
		require.EqualError(t, err, want, text)
	}
}

// Of a service that has all it needs, something is wrong.
func TestWrongService(t *testing.T) {
	t.Parallel()
	const fields = "affinitySeconds, algorithm, backends, denySources, frontends, name, onRemove, sourceRanges"
	for more, want := range map[string]string{
		`"frontend": []`:                          `there is no field "frontend": want ` + fields,
		`"Algorithm": "maglev"`:                   `there is no field "Algorithm": want ` + fields,
		`"algorithm": "maglev2"`:                  `algorithm: "maglev2": want random or maglev`,
		`"algorithm": 1`:                          `algorithm: 1: want a text`,
		`"name": "other"`:                         `name: it comes twice`,
		`"affinitySeconds": -1`:                   `affinitySeconds: -1: want 0 to 86400`,
		`"affinitySeconds": 86401`:                `affinitySeconds: 86401: want 0 to 86400`,
		`"affinitySeconds": 1.5`:                  `affinitySeconds: 1.5: want a whole number`,
		`"affinitySeconds": 99999999999999999999`: `affinitySeconds: 99999999999999999999: want a whole number`,
		`"sourceRanges": "192.0.2.0/24"`:          `sourceRanges: "192.0.2.0/24": want a list`,
		`"sourceRanges": ["192.0.2.0"]`:           `sourceRanges: number 1: "192.0.2.0": want a prefix such as 192.0.2.0/24`,
		`"sourceRanges": [null]`:                  `sourceRanges: number 1: null: want a text`,
		`"denySources": "yes"`:                    `denySources: "yes": want true or false`,
		`"denySources": true`:                     `denySources: there are no sourceRanges that are denied`,
		`"onRemove": "forget"`:                    `onRemove: "forget": want reset or drain`,
	} {
		text := fmt.Sprintf(`[{"name": "w", "frontends": [{"address": "203.0.113.1:80"}], "backends": [], %s}]`, more)
		_, err := parseServices([]byte(text))
		require.EqualError(t, err, `service "w": `+want, more)
	}
}

func TestWrongFrontend(t *testing.T) {
	t.Parallel()
	for front, want := range map[string]string{
		`"203.0.113.1:80"`:                                      `"203.0.113.1:80": want an object`,
		`{}`:                                                    `address: it is missing`,
		`{"adress": "x"}`:                                       `there is no field "adress": want address, protocol, type`,
		`{"address": "203.0.113.1"}`:                            `address: "203.0.113.1": want ip:port, or [ip]:port`,
		`{"address": "2001:db8::1:80"}`:                         `address: "2001:db8::1:80": want ip:port, or [ip]:port`,
		`{"address": "example.org:80"}`:                         `address: "example.org:80": want ip:port, or [ip]:port`,
		`{"address": "203.0.113.1:0"}`:                          `address: "203.0.113.1:0": the port is 0`,
		`{"address": "[fe80::1%eth0]:80"}`:                      `address: "[fe80::1%eth0]:80": a zone has no meaning here`,
		`{"address": "203.0.113.1:80", "protocol": "ICMP"}`:     `protocol: "ICMP": want TCP, UDP or SCTP`,
		`{"address": "203.0.113.1:80", "type": "ClusterIP"}`:    `type: "ClusterIP": want ExternalIP, LoadBalancer or NodePort`,
		`{"address": "203.0.113.1:80", "port": 80}`:             `there is no field "port": want address, protocol, type`,
		`{"address": "203.0.113.1:80", "type": {"a": [1,2,3]}}`: `type: {"a":[1,2,3]}: want a text`,
	} {
		text := fmt.Sprintf(`[{"name": "w", "frontends": [{"address": "203.0.113.1:79"}, %s], "backends": []}]`, front)
		_, err := parseServices([]byte(text))
		require.EqualError(t, err, `service "w": frontends: number 2: `+want, front)
	}
}

func TestWrongBackend(t *testing.T) {
	t.Parallel()
	for back, want := range map[string]string{
		`{"address": "192.0.2.1:1", "state": "dead"}`:    `state: "dead": want active, terminating, quarantined or maintenance`,
		`{"address": "192.0.2.1:1", "weight": 0}`:        `weight: 0: want 1 to 65535; with "state": "maintenance" it gets nothing`,
		`{"address": "192.0.2.1:1", "weight": 65536}`:    `weight: 65536: want 1 to 65535`,
		`{"address": "192.0.2.1:1", "weight": "3"}`:      `weight: "3": want a whole number`,
		`{"state": "active"}`:                            `address: it is missing`,
		`{"address": "192.0.2.1:1", "zone": "a"}`:        `there is no field "zone": want address, state, weight`,
		`{"address": "192.0.2.1:1", "address": "x:1"}`:   `address: it comes twice`,
		`["` + strings.Repeat("a long text ", 10) + `"]`: `["a long text a long text a long text a …: want an object`,
	} {
		text := fmt.Sprintf(`[{"name": "w", "frontends": [], "backends": [%s]}]`, back)
		_, err := parseServices([]byte(text))
		require.EqualError(t, err, `service "w": backends: number 1: `+want, back)
	}
}

// What is wrong with several services is told of each; what the library finds names
// the service too.
func TestWrongServices(t *testing.T) {
	t.Parallel()
	_, err := parseServices([]byte(`[{"name": "a"}, {"name": "b", "x": 1}, {"frontends": [], "name": "c", "backends": []}]`))
	require.ErrorContains(t, err, "service \"a\": frontends: it is missing\nservice \"b\": there is no field \"x\"")

	all, err := parseServices([]byte(`[
		{"name": "mixed", "frontends": [{"address": "203.0.113.1:80"}], "backends": [{"address": "[2001:db8::1]:80"}]},
		{"name": "bare", "frontends": [], "backends": []}]`))
	require.NoError(t, err)
	_, err = newServices(t).Sync(all)
	require.ErrorContains(t, err, `service "mixed": backend [2001:db8::1]:80: it is not of the frontends' family`)
	require.ErrorContains(t, err, `service "bare": it has no frontend`)
}

// Whatever the text is, it is told or it says the same when it is written again.
func FuzzParseServices(f *testing.F) {
	sample, err := os.ReadFile("services.json")
	require.NoError(f, err)
	f.Add(sample)
	for _, text := range []string{
		``, `[]`, `[{}]`, `[{"name":"w","frontends":[{"address":"[::1]:80","type":"nodeport"}],"backends":[{"address":"192.0.2.1:1","weight":3}]}]`,
		`[{"name":"\ud800","frontends":[],"backends":[],"sourceRanges":["10.0.0.0/8"],"denySources":true,"onRemove":"drain"}]`,
		`[{"name":"a","name":"b"}]`, `[[[[[`, "[{\"name\":\"a\x00\"}]",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := decode(text)
		parsed, parseErr := parseServices(text)
		if err != nil {
			require.Error(t, parseErr)
			return
		}
		again, err := json.Marshal(all)
		require.NoError(t, err)
		back, err := decode(again)
		require.NoError(t, err, "%s", again)
		written, err := json.Marshal(back)
		require.NoError(t, err)
		require.Equal(t, string(again), string(written))
		reparsed, err := parseServices(again)
		require.Equal(t, parseErr == nil, err == nil)
		if err == nil {
			require.Equal(t, parsed, reparsed)
		}
	})
}
