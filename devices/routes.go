// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"github.com/godatapath/datapath/internal/undo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteProtocol marks the routes of this package (rtm_protocol). "ip route show
// proto 86" lists them. Routes with another mark are never changed or removed.
const RouteProtocol = 86

// defaultMetric6 is what the kernel makes of metric 0 in IPv6.
const defaultMetric6 = 1024

// Route is a unicast route in the main table. Prefix and Metric identify it.
type Route struct {
	Prefix netip.Prefix // without host bits; 0.0.0.0/0 and ::/0 are default routes
	// Via is the next hop, of the family of Prefix. The zero Addr means that
	// Prefix is on the link.
	//
	// An address of Dev itself is allowed, as in "10.244.2.0/24 via 10.244.1.1
	// dev dp_host", which sends everything into a NOARP device. The kernel
	// refuses that for IPv6 and refuses Onlink with it for IPv4, so there Via,
	// or Onlink, is left out of the request.
	Via    netip.Addr
	Dev    string     // device name
	Metric int        // from 0; lower wins. 0 is 1024 in IPv6, the kernel's default
	MTU    int        // bytes; 0 means that of the device
	Onlink bool       // Via is taken to be on the link even if no route says so
	Source netip.Addr // preferred source, an address of this namespace; zero lets the kernel choose
}

func (r Route) check() (Route, error) {
	var err error
	if r.Prefix, err = checkPrefix("route prefix", r.Prefix); err != nil {
		return r, err
	}
	if err := checkName("route device", r.Dev); err != nil {
		return r, err
	}
	is4 := r.Prefix.Addr().Is4()
	for _, a := range []struct {
		field string
		addr  *netip.Addr
	}{{"route gateway", &r.Via}, {"route source", &r.Source}} {
		if *a.addr == (netip.Addr{}) {
			continue
		}
		if *a.addr, err = checkAddr(a.field, *a.addr); err != nil {
			return r, err
		}
		if a.addr.Is4() != is4 {
			return r, &InputError{Field: a.field, Value: a.addr.String(), Reason: fmt.Sprintf("is not of the family of %s", r.Prefix)}
		}
	}
	if r.Onlink && !r.Via.IsValid() {
		return r, &InputError{Field: "route", Value: r.Prefix.String(), Reason: "is onlink without a gateway"}
	}
	if int64(r.Metric) < 0 || int64(r.Metric) > 1<<32-1 {
		return r, &InputError{Field: "route metric", Value: strconv.Itoa(r.Metric), Reason: "is not a number of 32 bits"}
	}
	if !is4 && r.Metric == 0 {
		r.Metric = defaultMetric6
	}
	if r.MTU != 0 {
		return r, checkMTU("route MTU", r.MTU, !is4)
	}
	return r, nil
}

// EnsureRoute makes one route hold and leaves it alone if it does. A route of
// ours for the same prefix and metric is replaced, also when it points to
// another device; one of somebody else answers [ErrForeign].
func EnsureRoute(ns Namespace, r Route) error {
	return EnsureRoutes(ns, r.Dev, []Route{r})
}

// EnsureRoutes is [EnsureRoute] for many routes of one device in one pass. It
// is all or nothing. The Dev of each route is dev or empty.
func EnsureRoutes(ns Namespace, dev string, all []Route) error {
	return syncRoutes(ns, dev, all, false)
}

// SyncRoutes makes all routes hold, as [EnsureRoutes] does, and then removes
// every other route of ours on that device. No packet finds a moment without a
// route that stays.
func SyncRoutes(ns Namespace, dev string, all []Route) error {
	return syncRoutes(ns, dev, all, true)
}

// ListRoutes returns the routes of ours on a device, or on all devices if dev
// is "", in the order of their prefix and metric. If the device is absent,
// errors.Is(err, os.ErrNotExist).
func ListRoutes(ns Namespace, dev string) ([]Route, error) {
	if dev != "" {
		if err := checkName("route device", dev); err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
	}
	var all []Route
	err := withConn(ns, func(c conn) error {
		index := 0
		if dev != "" {
			l, err := c.find(dev)
			if err != nil {
				return err
			}
			index = l.Attrs().Index
		}
		routes, err := c.routes()
		if err != nil {
			return err
		}
		names := make(map[int]string)
		for _, r := range routes {
			if r.Protocol != RouteProtocol || (index != 0 && r.LinkIndex != index) {
				continue
			}
			name, ok := names[r.LinkIndex]
			if !ok {
				l, err := c.byIndex(r.LinkIndex)
				if errors.Is(err, os.ErrNotExist) {
					continue // gone since, and its routes with it
				}
				if err != nil {
					return err
				}
				name = l.Attrs().Name
				names[r.LinkIndex] = name
			}
			all = append(all, fromKernel(r, name))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	slices.SortFunc(all, func(a, b Route) int {
		if order := a.Prefix.Compare(b.Prefix); order != 0 {
			return order
		}
		return a.Metric - b.Metric
	})
	return all, nil
}

// RemoveRoute removes the route of ours with the prefix, metric and device of r;
// the other fields are not looked at. Nil if it is absent, or if the route is
// somebody else's.
func RemoveRoute(ns Namespace, r Route) error {
	r, err := Route{Prefix: r.Prefix, Metric: r.Metric, Dev: r.Dev}.check()
	if err != nil {
		return fmt.Errorf("remove route: %w", err)
	}
	err = withConn(ns, func(c conn) error {
		l, err := c.find(r.Dev)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		routes, err := c.routes()
		if err != nil {
			return err
		}
		for _, have := range routes {
			if have.Protocol == RouteProtocol && have.LinkIndex == l.Attrs().Index && idOf(have) == r.id() {
				return c.removeRoute(have)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove route %s: %w", r.Prefix, err)
	}
	return nil
}

// routeID is what makes two routes the same one for the kernel.
type routeID struct {
	prefix netip.Prefix
	metric int
}

func (r Route) id() routeID { return routeID{r.Prefix, r.Metric} }

func idOf(r netlink.Route) routeID { return routeID{fromIPNet(r.Dst), r.Priority} }

func syncRoutes(ns Namespace, dev string, all []Route, prune bool) error {
	if err := checkName("route device", dev); err != nil {
		return fmt.Errorf("ensure routes: %w", err)
	}
	want := make([]Route, 0, len(all))
	seen := make(map[routeID]bool)
	for _, r := range all {
		if r.Dev == "" {
			r.Dev = dev
		}
		r, err := r.check()
		if err != nil {
			return fmt.Errorf("ensure routes: %w", err)
		}
		if r.Dev != dev {
			return fmt.Errorf("ensure routes: %w", &InputError{Field: "route device", Value: r.Dev, Reason: fmt.Sprintf("is not %s", dev)})
		}
		if seen[r.id()] {
			return fmt.Errorf("ensure routes: %w", &InputError{Field: "route prefix", Value: r.Prefix.String(), Reason: "is given twice with one metric"})
		}
		seen[r.id()] = true
		want = append(want, r)
	}
	err := withConn(ns, func(c conn) error {
		l, err := c.find(dev)
		if err != nil {
			return err
		}
		return c.syncRoutes(l, want, prune)
	})
	if err != nil {
		return fmt.Errorf("ensure routes on %s: %w", dev, err)
	}
	return nil
}

// syncRoutes expects checked routes of the device l.
func (c conn) syncRoutes(l netlink.Link, want []Route, prune bool) error {
	var err error
	for range 3 {
		// A route that was absent when the table was read and exists when it is
		// added came from a call at the same time. Then the table is read again.
		if err = c.trySyncRoutes(l, want, prune); !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return err
}

func (c conn) trySyncRoutes(l netlink.Link, want []Route, prune bool) (err error) {
	var back undo.Stack
	defer back.Run(&err)

	local, err := c.addrs(l.Attrs().Index)
	if err != nil {
		return fmt.Errorf("list the addresses of the device: %w", err)
	}
	if len(want) == 1 && !prune {
		// Most often the route is new, and then the table need not be read. The
		// kernel refuses the request if any route of that id exists.
		k := want[0].toKernel(l.Attrs().Index, local)
		err := c.RouteAdd(&k)
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("set route %s: %w", want[0].Prefix, explainRoute(err))
		}
	}
	routes, err := c.routes()
	if err != nil {
		return err
	}
	have := make(map[routeID]netlink.Route)
	for _, r := range routes {
		// Of two with one id the first is the one that works.
		if _, ok := have[idOf(r)]; !ok {
			have[idOf(r)] = r
		}
	}
	for _, r := range want {
		if old, ok := have[r.id()]; ok && old.Protocol != RouteProtocol {
			return fmt.Errorf("a route for %s with metric %d and protocol %d exists: %w; remove it or choose another metric", r.Prefix, r.Metric, old.Protocol, ErrForeign)
		}
	}
	wanted := make(map[routeID]bool)
	for _, r := range want {
		wanted[r.id()] = true
		k := r.toKernel(l.Attrs().Index, local)
		old, ok := have[r.id()]
		if ok && sameRoute(old, k) {
			continue
		}
		step, way := c.RouteAdd, func() error { return c.removeRoute(k) }
		if ok {
			step, way = c.RouteReplace, func() error { return c.RouteReplace(&old) }
		}
		if err := step(&k); err != nil {
			return fmt.Errorf("set route %s: %w", r.Prefix, explainRoute(err))
		}
		back.Push(way)
	}
	if !prune {
		return nil
	}
	for _, r := range routes {
		if r.Protocol == RouteProtocol && r.LinkIndex == l.Attrs().Index && !wanted[idOf(r)] {
			if err := c.removeRoute(r); err != nil {
				return err
			}
			old := r
			back.Push(func() error { return c.RouteReplace(&old) })
		}
	}
	return nil
}

// routes returns the unicast routes of the main table, both families.
func (c conn) routes() ([]netlink.Route, error) {
	var all []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		some, err := retryDump(func() ([]netlink.Route, error) { return c.RouteList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("list the routes: %w", err)
		}
		for _, r := range some {
			// Routes for one type of service are another matter.
			if r.Dst != nil && r.Tos == 0 {
				all = append(all, r)
			}
		}
	}
	return all, nil
}

// removeRoute removes one route of ours. The kernel compares the mark and the
// device too, so a route that took its place meanwhile is safe.
func (c conn) removeRoute(r netlink.Route) error {
	if r.Dst.IP.To4() != nil {
		r.Scope = netlink.SCOPE_NOWHERE // any scope
	}
	if err := c.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove route %s: %w", fromIPNet(r.Dst), explainPermission(err))
	}
	return nil
}

// toKernel expects a checked route. local are the addresses of its device.
func (r Route) toKernel(index int, local []netlink.Addr) netlink.Route {
	k := netlink.Route{
		LinkIndex: index,
		Dst:       ipNet(r.Prefix),
		Protocol:  RouteProtocol,
		Table:     unix.RT_TABLE_MAIN,
		Type:      unix.RTN_UNICAST,
		Priority:  r.Metric,
		MTU:       r.MTU,
	}
	for _, a := range local {
		if prefixOf(a).Addr() != r.Via || !r.Via.IsValid() {
			continue
		}
		r.Onlink = false
		if r.Via.Is6() {
			r.Via = netip.Addr{}
		}
	}
	if r.Via.IsValid() {
		k.Gw = r.Via.AsSlice()
	} else if r.Prefix.Addr().Is4() {
		k.Scope = netlink.SCOPE_LINK
	}
	if r.Onlink {
		k.Flags = int(netlink.FLAG_ONLINK)
	}
	if r.Source.IsValid() {
		k.Src = r.Source.AsSlice()
	}
	return k
}

func fromKernel(r netlink.Route, dev string) Route {
	out := Route{
		Prefix: fromIPNet(r.Dst),
		Dev:    dev,
		Metric: r.Priority,
		MTU:    r.MTU,
		Onlink: r.Flags&int(netlink.FLAG_ONLINK) != 0,
	}
	// Absent addresses stay the zero Addr.
	if via, ok := netip.AddrFromSlice(r.Gw); ok {
		out.Via = via.Unmap()
	}
	if source, ok := netip.AddrFromSlice(r.Src); ok {
		out.Source = source.Unmap()
	}
	return out
}

func sameRoute(have, want netlink.Route) bool {
	return have.LinkIndex == want.LinkIndex &&
		have.Type == want.Type &&
		have.Scope == want.Scope &&
		have.MTU == want.MTU && !have.MTULock &&
		have.Gw.Equal(want.Gw) &&
		have.Flags&int(netlink.FLAG_ONLINK) == want.Flags&int(netlink.FLAG_ONLINK) &&
		have.Src.Equal(want.Src) &&
		len(have.MultiPath) == 0
}

// explainRoute says what the kernel means by its bare numbers.
func explainRoute(err error) error {
	switch {
	case errors.Is(err, unix.ENETUNREACH):
		return fmt.Errorf("%w (the gateway is not on the link of the device; set Onlink if it is)", err)
	case errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("%w (the device is down)", err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w (the gateway or the source does not fit the device)", err)
	}
	return explainPermission(absent(err))
}
