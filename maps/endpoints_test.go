// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/wire"
)

// endpointsRig is an endpoint table that counts how often it announced a change.
type endpointsRig struct {
	*Endpoints
	t     testing.TB
	bumps int
}

func newEndpoints(t testing.TB, cfg EndpointsConfig) *endpointsRig {
	t.Helper()
	e, err := NewEndpoints(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	r := &endpointsRig{Endpoints: e, t: t}
	e.change.Bind(func() error { r.bumps++; return nil })
	return r
}

// bumped runs fn and returns how many changes it announced.
func (r *endpointsRig) bumped(fn func()) int {
	before := r.bumps
	fn()
	return r.bumps - before
}

// check fails unless both tables say the same, and exactly want.
func (r *endpointsRig) check(want ...Endpoint) {
	r.t.Helper()
	links, err := contentsOf(r.links)
	require.NoError(r.t, err)
	addrs, err := contentsOf(r.addrs)
	require.NoError(r.t, err)
	wantLinks, wantAddrs := map[uint32]bpf.TableEndpoint{}, map[bpf.TableAddress]bpf.TableEndpoint{}
	for _, ep := range want {
		v, err := ep.value()
		require.NoError(r.t, err)
		wantLinks[v.Ifindex] = v
		for _, a := range present(v) {
			wantAddrs[a] = v
		}
	}
	require.Equal(r.t, wantLinks, links, "by device")
	require.Equal(r.t, wantAddrs, addrs, "by address")
}

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, last} }

// endpoint makes one with an address of each family that is given.
func endpoint(id uint32, ifindex int, addrs ...string) Endpoint {
	ep := Endpoint{ID: id, Identity: 300, Ifindex: ifindex, MAC: mac(1), NodeMAC: mac(2)}
	for _, a := range addrs {
		ep.Addrs = append(ep.Addrs, netip.MustParseAddr(a))
	}
	return ep
}

func TestEndpointsSetAndRead(t *testing.T) {
	t.Parallel()
	r := newEndpoints(t, EndpointsConfig{})
	blue := endpoint(10, 4, "10.0.0.1", "fd00::1")
	blue.NoPeerRedirect = true
	green := endpoint(11, 5, "fd00::2")
	require.Equal(t, 2, r.bumped(func() {
		require.NoError(t, r.Set(blue))
		require.NoError(t, r.Set(green))
	}))
	r.check(blue, green)
	for _, a := range blue.Addrs {
		got, err := r.Lookup(a)
		require.NoError(t, err)
		assert.Equal(t, blue, got)
	}
	got, err := r.Lookup(netip.MustParseAddr("::ffff:10.0.0.1"))
	require.NoError(t, err, "a mapped address is an IPv4 address")
	assert.Equal(t, blue, got)
	_, err = r.Lookup(netip.MustParseAddr("10.0.0.2"))
	require.ErrorIs(t, err, ebpf.ErrKeyNotExist)
	assert.ErrorContains(t, err, "10.0.0.2")
	_, err = r.Lookup(netip.Addr{})
	require.ErrorContains(t, err, "missing or invalid")
	require.ErrorIs(t, err, os.ErrInvalid)

	all := map[uint32]Endpoint{}
	for ep, err := range r.All() {
		require.NoError(t, err)
		all[ep.ID] = ep
	}
	assert.Equal(t, map[uint32]Endpoint{10: blue, 11: green}, all)
	for range r.All() {
		break
	}
	n, err := r.Len()
	require.NoError(t, err)
	assert.Equal(t, 2, n)

	assert.Equal(t, 0, r.bumped(func() { require.NoError(t, r.Set(blue)) }), "nothing has changed")
	assert.Equal(t, 0, r.bumped(func() { require.NoError(t, r.Delete(99)) }), "nothing was there")
	assert.Equal(t, 1, r.bumped(func() { require.NoError(t, r.Delete(blue.Ifindex)) }))
	r.check(green)
}

func TestEndpointsBadInput(t *testing.T) {
	t.Parallel()
	r := newEndpoints(t, EndpointsConfig{})
	there := endpoint(9, 9, "10.9.9.9")
	require.NoError(t, r.Set(there))
	for _, c := range []struct {
		name, want string
		spoil      func(*Endpoint)
	}{
		{"no ID", "ID is 0", func(ep *Endpoint) { ep.ID = 0 }},
		{"identity 0", "Identity is 0", func(ep *Endpoint) { ep.Identity = 0 }},
		{"identity between", "Identity is 9,", func(ep *Endpoint) { ep.Identity = 9 }},
		{"identity 255", "Identity is 255,", func(ep *Endpoint) { ep.Identity = 255 }},
		{"identity too long", "Identity is 16777216,", func(ep *Endpoint) { ep.Identity = 1 << 24 }},
		{"ifindex 0", "Ifindex is 0", func(ep *Endpoint) { ep.Ifindex = 0 }},
		{"ifindex negative", "Ifindex is -1", func(ep *Endpoint) { ep.Ifindex = -1 }},
		{"ifindex of 33 bits", "Ifindex is 4294967305", func(ep *Endpoint) { ep.Ifindex = 1<<32 + 9 }},
		{"no address", "Addrs is empty", func(ep *Endpoint) { ep.Addrs = nil }},
		{"zero address", "missing or invalid", func(ep *Endpoint) { ep.Addrs[0] = netip.Addr{} }},
		{"zone", "a zone", func(ep *Endpoint) { ep.Addrs[0] = netip.MustParseAddr("fe80::1%eth0") }},
		{"unspecified", "does not name one host", func(ep *Endpoint) { ep.Addrs[0] = netip.MustParseAddr("0.0.0.0") }},
		{"unspecified 6", "does not name one host", func(ep *Endpoint) { ep.Addrs[0] = netip.MustParseAddr("::") }},
		{"mapped unspecified", "does not name one host", func(ep *Endpoint) { ep.Addrs[0] = netip.MustParseAddr("::ffff:0.0.0.0") }},
		{"multicast", "does not name one host", func(ep *Endpoint) { ep.Addrs[0] = netip.MustParseAddr("ff02::1") }},
		{"broadcast", "does not name one host", func(ep *Endpoint) { ep.Addrs[0] = netip.MustParseAddr("255.255.255.255") }},
		{"loopback", "does not name one host", func(ep *Endpoint) { ep.Addrs[0] = netip.MustParseAddr("127.0.0.1") }},
		{"two of a family", "second one of its family", func(ep *Endpoint) { ep.Addrs = append(ep.Addrs, netip.MustParseAddr("::ffff:10.0.0.2")) }},
		{"three", "second one of its family", func(ep *Endpoint) {
			ep.Addrs = append(ep.Addrs, netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"))
		}},
		{"no MAC", "MAC: MAC address", func(ep *Endpoint) { ep.MAC = nil }},
		{"long MAC", "of 8 bytes", func(ep *Endpoint) { ep.MAC = make(net.HardwareAddr, 8) }},
		{"zero MAC", "all zero", func(ep *Endpoint) { ep.MAC = make(net.HardwareAddr, 6) }},
		{"group MAC", "group", func(ep *Endpoint) { ep.MAC = net.HardwareAddr{1, 0, 0x5e, 0, 0, 1} }},
		{"no node MAC", "NodeMAC: ", func(ep *Endpoint) { ep.NodeMAC = nil }},
		{"broadcast node MAC", "NodeMAC: ", func(ep *Endpoint) { ep.NodeMAC = net.HardwareAddr{255, 255, 255, 255, 255, 255} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ep := endpoint(7, 4, "10.0.0.1")
			c.spoil(&ep)
			assert.Equal(t, 0, r.bumped(func() {
				err := r.Set(ep)
				require.ErrorContains(t, err, c.want)
				require.ErrorIs(t, err, os.ErrInvalid)
				assert.ErrorContains(t, err, fmt.Sprintf("set endpoint %d: ", ep.ID))
				_, err = r.Sync([]Endpoint{endpoint(8, 8, "10.0.0.8"), ep})
				require.ErrorContains(t, err, c.want)
				require.ErrorIs(t, err, os.ErrInvalid)
				assert.ErrorContains(t, err, "sync the endpoint table: ")
			}))
			r.check(there)
		})
	}
	for _, ifindex := range []int{0, -1, 1<<32 + 9} {
		err := r.Delete(ifindex)
		require.ErrorContains(t, err, "want the index")
		require.ErrorIs(t, err, os.ErrInvalid)
	}
	r.check(there)
	for _, size := range []int{-1, 1<<24 + 1} {
		_, err := NewEndpoints(EndpointsConfig{Max: size})
		require.ErrorContains(t, err, "Max is")
		require.ErrorIs(t, err, os.ErrInvalid)
	}
}

func TestEndpointsRefuseWhatIsTaken(t *testing.T) {
	t.Parallel()
	r := newEndpoints(t, EndpointsConfig{})
	blue, green := endpoint(10, 4, "10.0.0.1", "fd00::1"), endpoint(11, 5, "10.0.0.2", "fd00::2")
	require.NoError(t, r.Set(blue))
	require.NoError(t, r.Set(green))
	assert.Equal(t, 0, r.bumped(func() {
		err := r.Set(endpoint(12, 6, "10.0.0.3", "fd00::2"))
		require.ErrorIs(t, err, os.ErrExist)
		require.ErrorContains(t, err, "address fd00::2 belongs to endpoint 11")
		err = r.Set(endpoint(10, 4, "10.0.0.2"))
		require.ErrorIs(t, err, os.ErrExist)
		require.ErrorContains(t, err, "address 10.0.0.2 belongs to endpoint 11")
		err = r.Set(endpoint(12, 5, "10.0.0.3"))
		require.ErrorIs(t, err, os.ErrExist)
		require.ErrorContains(t, err, "interface 5 belongs to endpoint 11")
	}))
	r.check(blue, green)
}

func TestEndpointsChangeAsAWhole(t *testing.T) {
	t.Parallel()
	r := newEndpoints(t, EndpointsConfig{})
	other := endpoint(11, 5, "10.0.0.9")
	require.NoError(t, r.Set(other))
	for _, ep := range []Endpoint{
		endpoint(10, 4, "10.0.0.1", "fd00::1"),
		endpoint(10, 4, "10.0.0.1"),            // an address less
		endpoint(10, 4, "10.0.0.2", "fd00::1"), // another and one more
		endpoint(10, 4, "10.0.0.3", "fd00::3"), // all others
		endpoint(10, 6, "10.0.0.3", "fd00::3"), // another device
		endpoint(10, 7, "10.0.0.4", "fd00::3"), // another device, and an address less in common
		endpoint(10, 4, "fd00::3"),             // back to one that was there
	} {
		assert.Equal(t, 1, r.bumped(func() { require.NoError(t, r.Set(ep)) }))
		r.check(ep, other)
		assert.Equal(t, 0, r.bumped(func() { require.NoError(t, r.Set(ep)) }))
	}
}

// A device that keeps its two addresses through two former devices at once.
func TestEndpointsJoinTwoDevices(t *testing.T) {
	t.Parallel()
	r := newEndpoints(t, EndpointsConfig{})
	require.NoError(t, r.Set(endpoint(10, 4, "10.0.0.1")))
	require.NoError(t, r.Set(endpoint(10, 5, "fd00::1")))
	both := endpoint(10, 6, "10.0.0.1", "fd00::1")
	require.NoError(t, r.Set(both))
	r.check(both)
}

func TestEndpointsFullTable(t *testing.T) {
	t.Parallel()
	const room = 8
	r := newEndpoints(t, EndpointsConfig{Max: room})
	var all []Endpoint
	for i := range room {
		all = append(all, endpoint(uint32(10+i), 10+i, fmt.Sprintf("10.0.0.%d", i+1), fmt.Sprintf("fd00::%d", i+1)))
		require.NoError(t, r.Set(all[i]))
	}
	assert.Equal(t, 0, r.bumped(func() {
		err := r.Set(endpoint(99, 99, "10.0.0.99", "fd00::99"))
		require.ErrorIs(t, err, unix.E2BIG)
		require.ErrorContains(t, err, endpointByIfindex)
	}))
	r.check(all...)

	// What is there can still change, in its addresses and its device.
	all[3] = endpoint(13, 13, "10.0.1.1", "fd00:1::1")
	require.NoError(t, r.Set(all[3]))
	r.check(all...)
	all[4] = endpoint(14, 50, "10.0.0.5", "fd00:1::2")
	require.NoError(t, r.Set(all[4]))
	r.check(all...)

	// All at once, too.
	var next []Endpoint
	for i := range room {
		next = append(next, endpoint(uint32(200+i), 200+i, fmt.Sprintf("10.0.2.%d", i+1), fmt.Sprintf("fd00:2::%d", i+1)))
	}
	changes, err := r.Sync(next)
	require.NoError(t, err)
	assert.Equal(t, Changes{Set: room, Deleted: room}, changes)
	r.check(next...)
	assert.Equal(t, 0, r.bumped(func() {
		changes, err = r.Sync(append(slices.Clone(next), endpoint(300, 300, "10.0.3.1")))
		require.ErrorIs(t, err, unix.E2BIG)
		require.ErrorContains(t, err, "9 endpoints")
		assert.Zero(t, changes)
	}))
	r.check(next...)
}

func TestEndpointsSync(t *testing.T) {
	t.Parallel()
	r := newEndpoints(t, EndpointsConfig{Max: 64})
	a, b, c := endpoint(1, 11, "10.0.0.1", "fd00::1"), endpoint(2, 12, "10.0.0.2", "fd00::2"), endpoint(3, 13, "10.0.0.3")
	for _, step := range []struct {
		name string
		to   []Endpoint
		want Changes
	}{
		{"from nothing", []Endpoint{a, b, c}, Changes{Set: 3}},
		{"nothing to do", []Endpoint{c, b, a}, Changes{}},
		{"one goes", []Endpoint{a, c}, Changes{Deleted: 1}},
		{"its address to a new one", []Endpoint{a, c, endpoint(4, 14, "10.0.0.2", "fd00::2")}, Changes{Set: 1}},
		{"an address of one that goes", []Endpoint{a, endpoint(5, 15, "10.0.0.2"), endpoint(6, 16, "10.0.0.3")}, Changes{Set: 2, Deleted: 2}},
		{"back", []Endpoint{a, b, c}, Changes{Set: 2, Deleted: 2}},
		{"two trade addresses", []Endpoint{endpoint(1, 11, "10.0.0.2", "fd00::2"), endpoint(2, 12, "10.0.0.1", "fd00::1"), c}, Changes{Set: 2}},
		{"one family of it back", []Endpoint{endpoint(1, 11, "10.0.0.1", "fd00::2"), endpoint(2, 12, "10.0.0.2", "fd00::1"), c}, Changes{Set: 2}},
		{"two trade interfaces", []Endpoint{endpoint(1, 12, "10.0.0.1", "fd00::2"), endpoint(2, 11, "10.0.0.2", "fd00::1"), c}, Changes{Set: 2, Deleted: 2}},
		{"an interface changes hands", []Endpoint{endpoint(1, 12, "10.0.0.1", "fd00::2"), endpoint(9, 11, "10.0.0.9"), c}, Changes{Set: 1, Deleted: 1}},
		{"only the identity", []Endpoint{func() Endpoint { ep := endpoint(1, 12, "10.0.0.1", "fd00::2"); ep.Identity = 400; return ep }(), endpoint(9, 11, "10.0.0.9"), c}, Changes{Set: 1}},
		{"to nothing", nil, Changes{Deleted: 3}},
	} {
		want := 1
		if step.want == (Changes{}) {
			want = 0
		}
		assert.Equal(t, want, r.bumped(func() {
			got, err := r.Sync(step.to)
			require.NoError(t, err, step.name)
			assert.Equal(t, step.want, got, step.name)
		}), step.name)
		r.check(step.to...)
	}
	require.NoError(t, r.Set(a))
	for name, bad := range map[string][]Endpoint{
		"interface 12: endpoints 2 and 3 both have it":     {b, endpoint(3, 12, "10.0.0.3")},
		"endpoint 2: comes twice, on interfaces 12 and 13": {b, endpoint(2, 13, "10.0.0.3")},
		"address fd00::2: endpoints 2 and 3 both have it":  {b, endpoint(3, 13, "fd00::2")},
	} {
		assert.Equal(t, 0, r.bumped(func() {
			_, err := r.Sync(bad)
			require.ErrorContains(t, err, name)
			require.ErrorIs(t, err, os.ErrInvalid)
		}))
		r.check(a)
	}
}

// A change whose announcement failed is announced by the next call.
func TestEndpointsAnnounceWhatIsDue(t *testing.T) {
	t.Parallel()
	e := newEndpoints(t, EndpointsConfig{})
	fail, calls := errors.New("no announcing today"), 0
	e.change.Bind(func() error { calls++; return fail })
	blue := endpoint(10, 4, "10.0.0.1")
	require.ErrorIs(t, e.Set(blue), fail)
	e.check(blue)
	require.ErrorIs(t, e.Set(blue), fail, "programs may still act on the old table")
	fail = nil
	require.NoError(t, e.Set(blue))
	require.Equal(t, 3, calls)
	require.NoError(t, e.Set(blue))
	require.Equal(t, 3, calls)
	fail = os.ErrClosed
	require.NoError(t, e.Delete(blue.Ifindex), "a datapath that is closed wants to hear nothing")
	require.Equal(t, 4, calls)
	require.NoError(t, e.Set(blue))
	require.Equal(t, 4, calls)
}

// Readers see the endpoint as it was or as it is, never a mixture.
func TestEndpointsReadersSeeWholeEntries(t *testing.T) {
	t.Parallel()
	r := newEndpoints(t, EndpointsConfig{})
	versions := make([]Endpoint, 2)
	for i := range versions {
		versions[i] = Endpoint{
			ID: 10, Identity: Identity(300 + i), Ifindex: 4, Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1))},
			MAC: mac(byte(10 + i)), NodeMAC: mac(byte(20 + i)), NoPeerRedirect: i == 1,
		}
	}
	require.NoError(t, r.Set(versions[0]))
	stop := make(chan struct{})
	seen := make(chan error, 3)
	matches := func(ep Endpoint) bool {
		return slices.ContainsFunc(versions, func(v Endpoint) bool { return assert.ObjectsAreEqual(v, ep) })
	}
	read := func(once func() error) {
		for {
			select {
			case <-stop:
				seen <- nil
				return
			default:
				if err := once(); err != nil {
					seen <- err
					return
				}
			}
		}
	}
	go read(func() error {
		ep, err := r.Lookup(netip.MustParseAddr("10.0.0.1"))
		if err == nil && !matches(ep) {
			err = fmt.Errorf("looked up a mixture: %+v", ep)
		}
		return err
	})
	go read(func() error {
		n := 0
		for ep, err := range r.All() {
			if err != nil || !matches(ep) {
				return fmt.Errorf("walked over a mixture: %+v: %w", ep, err)
			}
			n++
		}
		if n != 1 {
			return fmt.Errorf("walked over %d endpoints", n)
		}
		return nil
	})
	go read(func() error {
		_, err := r.Sync(versions[:1])
		return err
	})
	for i := range 4000 {
		require.NoError(t, r.Set(versions[i%2]))
	}
	close(stop)
	for range 3 {
		require.NoError(t, <-seen)
	}
}

// The time of Set does not grow with the number of endpoints.
func TestEndpointsSetDoesNotGrow(t *testing.T) {
	r := newEndpoints(t, EndpointsConfig{})
	set := func(i int) time.Duration {
		ep := endpoint(uint32(i+1), i+1)
		ep.Addrs = []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)})}
		start := time.Now()
		err := r.Set(ep)
		took := time.Since(start)
		require.NoError(t, err)
		return took
	}
	median := func(from int) time.Duration {
		var all []time.Duration
		for i := range 200 {
			all = append(all, set(from+i))
		}
		slices.Sort(all)
		return all[100]
	}
	set(3999)
	few := median(0)
	for i := 200; i < 2000; i++ {
		set(i)
	}
	many := median(2000)
	t.Logf("Set takes %s with few endpoints and %s with 2,000", few, many)
	assert.Less(t, many, 3*few+20*time.Microsecond)
	assert.Less(t, many, time.Millisecond)
}

// An endpoint takes less than 1 KiB of kernel memory, of the 4 KiB that are
// allowed.
func TestEndpointsMemory(t *testing.T) {
	t.Parallel()
	const few, many = 1024, 8192
	memory := func(room int) uint64 {
		r := newEndpoints(t, EndpointsConfig{Max: room})
		var sum uint64
		for _, m := range []*ebpf.Map{r.addrs.EBPF(), r.links.EBPF()} {
			info, err := m.Info()
			require.NoError(t, err)
			bytes, ok := info.Memlock()
			require.True(t, ok)
			sum += bytes
		}
		return sum
	}
	each := (memory(many) - memory(few)) / (many - few)
	t.Logf("%d bytes an endpoint", each)
	assert.NotZero(t, each)
	assert.Less(t, each, uint64(1024))
}

func TestEndpointsPins(t *testing.T) {
	t.Parallel()
	dir := mountedFS(t)
	_, err := OpenEndpoints(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	first := newEndpoints(t, EndpointsConfig{Config: Config{Pins: dir}, Max: 16})
	blue := endpoint(10, 4, "10.0.0.1", "fd00::1")
	require.NoError(t, first.Set(blue))
	require.NoError(t, first.Close())
	require.ErrorIs(t, first.Set(endpoint(11, 5, "10.0.0.2")), os.ErrClosed)

	second := newEndpoints(t, EndpointsConfig{Config: Config{Pins: dir}, Max: 16})
	second.check(blue)
	tool, err := OpenEndpoints(dir)
	require.NoError(t, err)
	defer tool.Close()
	got, err := tool.Lookup(blue.Addrs[1])
	require.NoError(t, err)
	assert.Equal(t, blue, got)

	var incompatible *IncompatibleError
	_, err = NewEndpoints(EndpointsConfig{Config: Config{Pins: dir}, Max: 17})
	require.ErrorAs(t, err, &incompatible)
	assert.Equal(t, "max entries", incompatible.Differences[0].Field)

	require.NoError(t, second.Remove())
	assert.Empty(t, pinsIn(t, dir))

	_, err = NewEndpoints(EndpointsConfig{Config: Config{Pins: t.TempDir()}})
	require.ErrorIs(t, err, ErrNoBPFFS)
}

// If one table can not be had, the other one is not left behind.
func TestEndpointsConstructorLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, name := range []string{endpointByAddr, endpointByIfindex} {
		dir := mountedFS(t)
		foreign := makeMap(t, Spec[uint32, uint32]{Map: &ebpf.MapSpec{Name: name, Type: ebpf.Hash, MaxEntries: 1}}, Config{Pins: dir})
		_, err := NewEndpoints(EndpointsConfig{Config: Config{Pins: dir}})
		require.ErrorIs(t, err, ebpf.ErrMapIncompatible)
		_, err = OpenEndpoints(dir)
		require.Error(t, err)
		assert.Equal(t, []string{name}, pinsIn(t, dir))
		require.NoError(t, foreign.Remove())
	}
}

// Close and Remove come before a change or after it, never into the middle: a
// pinned table is left whole, and what Set says of it is true.
func TestEndpointsCloseWaitsForAChange(t *testing.T) {
	t.Parallel()
	dir := mountedFS(t)
	cfg := EndpointsConfig{Config: Config{Pins: dir}, Max: 16}
	versions := []Endpoint{endpoint(10, 4, "10.0.0.1", "fd00::1"), endpoint(10, 4, "10.0.0.2", "fd00::2")}
	last := newEndpoints(t, cfg)
	require.NoError(t, last.Set(versions[0]))
	is := versions[0]
	for range 100 {
		e, err := NewEndpoints(cfg)
		require.NoError(t, err)
		started := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; ; i++ {
				if err := e.Set(versions[i%2]); err != nil {
					assert.ErrorIs(t, err, os.ErrClosed)
					return
				}
				is = versions[i%2]
				if i == 0 {
					close(started)
				}
			}
		}()
		<-started
		require.NoError(t, e.Close())
		require.NoError(t, e.Close())
		<-done
		last.check(is)
	}
	require.NoError(t, last.Remove())
	require.NoError(t, last.Remove())
	assert.Empty(t, pinsIn(t, dir))
}

func TestEndpointsZeroSlotIsNoAddress(t *testing.T) {
	t.Parallel()
	v, err := endpoint(1, 1, "fd00::1").value()
	require.NoError(t, err)
	assert.Len(t, present(v), 1)
	assert.Equal(t, netip.MustParseAddr("fd00::1"), wire.GoAddr(present(v)[0]))
}
