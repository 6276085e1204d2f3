// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A process that is killed between two writes of a call leaves tables that the
// first write of the next process puts right. Every point of every change is
// tried: the writes of the call are recorded and played up to that point.
func TestEndpointsKilledHalfway(t *testing.T) {
	t.Parallel()
	before := []Endpoint{endpoint(1, 11, "10.0.0.1", "fd00::1"), endpoint(2, 12, "10.0.0.2", "fd00::2"), endpoint(3, 13, "10.0.0.3")}
	set := func(ep Endpoint) func(*Endpoints) error { return func(e *Endpoints) error { return e.Set(ep) } }
	for _, c := range []struct {
		name  string
		call  func(*Endpoints) error
		after []Endpoint
	}{
		{"new", set(endpoint(4, 14, "10.0.0.4", "fd00::4")), append(before[:3:3], endpoint(4, 14, "10.0.0.4", "fd00::4"))},
		{"addresses", set(endpoint(1, 11, "10.0.0.9", "fd00::9")), append(before[1:3:3], endpoint(1, 11, "10.0.0.9", "fd00::9"))},
		{"device", set(endpoint(1, 19, "10.0.0.1", "fd00::9")), append(before[1:3:3], endpoint(1, 19, "10.0.0.1", "fd00::9"))},
		{"delete", func(e *Endpoints) error { return e.Delete(12) }, []Endpoint{before[0], before[2]}},
		{"trade", func(e *Endpoints) error {
			_, err := e.Sync([]Endpoint{endpoint(1, 11, "10.0.0.2", "fd00::2"), endpoint(2, 12, "10.0.0.1", "fd00::1")})
			return err
		}, []Endpoint{endpoint(1, 11, "10.0.0.2", "fd00::2"), endpoint(2, 12, "10.0.0.1", "fd00::1")}},
		{"trade devices", func(e *Endpoints) error {
			_, err := e.Sync([]Endpoint{endpoint(1, 12, "10.0.0.1", "fd00::1"), endpoint(2, 11, "10.0.0.2", "fd00::2")})
			return err
		}, []Endpoint{endpoint(1, 12, "10.0.0.1", "fd00::1"), endpoint(2, 11, "10.0.0.2", "fd00::2")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			steps := writesOf(t, before, c.after)
			for _, order := range orders(steps) {
				for n := range len(order) + 1 {
					for repair, by := range map[string]func(*endpointsRig){
						"the same call": func(r *endpointsRig) {
							require.NoError(t, c.call(r.Endpoints))
							r.check(c.after...)
						},
						"another endpoint": func(r *endpointsRig) {
							require.NoError(t, r.Set(endpoint(7, 17, "10.0.0.7")))
							r.consistent()
						},
						"the old state": func(r *endpointsRig) {
							_, err := r.Sync(before)
							require.NoError(t, err)
							r.check(before...)
						},
						"the new state": func(r *endpointsRig) {
							_, err := r.Sync(c.after)
							require.NoError(t, err)
							r.check(c.after...)
						},
					} {
						r := newEndpoints(t, EndpointsConfig{Max: 16})
						_, err := r.Sync(before)
						require.NoError(t, err)
						r.whole = false // another process
						for _, step := range order[:n] {
							require.NoError(t, step(r.Endpoints))
						}
						t.Logf("killed after %d writes, then %s", n, repair)
						by(r)
						require.NoError(t, r.Close())
					}
				}
			}
		})
	}
}

// An endpoint whose device was never written does not keep its address from
// others, whoever wrote it and without a restart.
func TestEndpointsLeftoverAddressIsFree(t *testing.T) {
	t.Parallel()
	r := newEndpoints(t, EndpointsConfig{})
	require.NoError(t, r.Set(endpoint(1, 11, "10.0.0.1")))
	v, err := endpoint(5, 15, "10.0.0.5").value()
	require.NoError(t, err)
	require.NoError(t, r.addrs.Set(v.Addrs[0], v))
	other := endpoint(6, 16, "10.0.0.5")
	require.NoError(t, r.Set(other))
	r.check(endpoint(1, 11, "10.0.0.1"), other)
}

// Without the table by address the other one is enough.
func TestEndpointsAddressTableIsRebuilt(t *testing.T) {
	t.Parallel()
	dir := mountedFS(t)
	first := newEndpoints(t, EndpointsConfig{Config: Config{Pins: dir}})
	blue, green := endpoint(1, 11, "10.0.0.1", "fd00::1"), endpoint(2, 12, "10.0.0.2")
	require.NoError(t, first.Set(blue))
	require.NoError(t, first.Set(green))
	require.NoError(t, first.addrs.Remove())
	require.NoError(t, first.Close())
	second := newEndpoints(t, EndpointsConfig{Config: Config{Pins: dir}})
	require.NoError(t, second.Set(blue))
	second.check(blue, green)
	require.NoError(t, second.Remove())
}

// consistent fails unless every address leads to a device that has it, and
// every device's addresses to it.
func (r *endpointsRig) consistent() {
	r.t.Helper()
	links, err := contentsOf(r.links)
	require.NoError(r.t, err)
	addrs, err := contentsOf(r.addrs)
	require.NoError(r.t, err)
	n := 0
	for _, v := range links {
		for _, a := range present(v) {
			require.Equal(r.t, v, addrs[a])
			n++
		}
	}
	require.Len(r.t, addrs, n, "addresses that no device has")
}

type write = func(*Endpoints) error

// writesOf lists the single writes between two states: those by address, then
// those by device.
func writesOf(t *testing.T, before, after []Endpoint) (out [2][]write) {
	t.Helper()
	r := newEndpoints(t, EndpointsConfig{})
	oldLinks, oldAddrs, err := r.wanted(before)
	require.NoError(t, err)
	newLinks, newAddrs, err := r.wanted(after)
	require.NoError(t, err)
	for a, v := range newAddrs {
		if oldAddrs[a] != v {
			out[0] = append(out[0], func(e *Endpoints) error { return e.addrs.Set(a, v) })
		}
	}
	for a := range oldAddrs {
		if _, stays := newAddrs[a]; !stays {
			out[0] = append(out[0], func(e *Endpoints) error { return e.addrs.Delete(a) })
		}
	}
	for i, v := range newLinks {
		if oldLinks[i] != v {
			out[1] = append(out[1], func(e *Endpoints) error { return e.links.Set(i, v) })
		}
	}
	for i := range oldLinks {
		if _, stays := newLinks[i]; !stays {
			out[1] = append(out[1], func(e *Endpoints) error { return e.links.Delete(i) })
		}
	}
	return out
}

// orders lists orders of the writes: addresses in any rotation, then devices.
func orders(steps [2][]write) (out [][]write) {
	for i := range max(1, len(steps[0])) {
		var one []write
		one = append(one, steps[0][min(i, len(steps[0])):]...)
		one = append(one, steps[0][:min(i, len(steps[0]))]...)
		out = append(out, append(one, steps[1]...))
	}
	return out
}
