// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/godatapath/datapath/lb"
)

// apply makes these the services, and tells what has changed. One that can not be
// set stays as it was; the error says why.
func (b *balancer) apply(all []lb.Service) (changed string, err error) {
	if err := b.check(all); err != nil {
		return "", err
	}
	before, err := b.services.Services()
	if err != nil {
		return "", err
	}
	_, err = b.services.Sync(all)
	after, listErr := b.services.Services()
	return difference(before, after), errors.Join(err, listErr)
}

// check finds what the library does not know to be wrong.
func (b *balancer) check(all []lb.Service) error {
	var families [2]bool
	for _, u := range b.uplinks {
		for _, a := range u.as {
			families[family(a)/6] = true
		}
	}
	var errs []error
	for _, s := range all {
		for _, back := range s.Backends {
			if slices.Contains(b.own, back.Addr.Addr()) {
				errs = append(errs, fmt.Errorf("service %q: backend %s is at this machine, and must be at another one", s.Name, back.Addr))
			}
		}
		if len(s.Frontends) > 0 {
			if f := family(s.Frontends[0].Addr.Addr()); !families[f/6] {
				errs = append(errs, fmt.Errorf("service %q: no -device has an address of IPv%d", s.Name, f))
			}
		}
	}
	return errors.Join(errs...)
}

// family is 4 or 6.
func family(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 4
	}
	return 6
}

// mostChanges is how many services one line names.
const mostChanges = 6

// difference tells in one line what became of the services.
func difference(before, after []lb.Status) string {
	old := map[string]lb.Service{}
	for _, s := range before {
		old[s.Name] = s.Service
	}
	var parts []string
	for _, s := range after {
		was, there := old[s.Name]
		delete(old, s.Name)
		if !there {
			parts = append(parts, fmt.Sprintf("%s is new (%s)", s.Name, count(len(s.Backends), "backend")))
		} else if what := alteration(was, s.Service); what != "" {
			parts = append(parts, fmt.Sprintf("%s (%s)", s.Name, what))
		}
	}
	for _, s := range before {
		if _, gone := old[s.Name]; gone {
			parts = append(parts, s.Name+" is gone")
		}
	}
	if more := len(parts) - mostChanges; more > 0 {
		parts = append(parts[:mostChanges], fmt.Sprintf("and %d more", more))
	}
	if len(parts) == 0 {
		return "nothing has changed"
	}
	return strings.Join(parts, ", ")
}

// alteration tells what of a service is different.
func alteration(was, is lb.Service) string {
	old := map[netip.AddrPort]lb.Backend{}
	for _, b := range was.Backends {
		old[b.Addr] = b
	}
	var parts []string
	for _, b := range is.Backends {
		w, there := old[b.Addr]
		delete(old, b.Addr)
		switch {
		case !there:
			parts = append(parts, fmt.Sprintf("%s is new", b.Addr))
		case w.State != b.State:
			parts = append(parts, fmt.Sprintf("%s is %s", b.Addr, b.State))
		case w.Weight != b.Weight:
			parts = append(parts, fmt.Sprintf("%s has weight %d", b.Addr, b.Weight))
		}
	}
	for _, b := range was.Backends {
		if _, gone := old[b.Addr]; gone {
			parts = append(parts, fmt.Sprintf("%s is gone", b.Addr))
		}
	}
	if !reflect.DeepEqual(was.Frontends, is.Frontends) {
		parts = append(parts, "frontends")
	}
	was.Backends, is.Backends, was.Frontends, is.Frontends = nil, nil, nil, nil
	if !reflect.DeepEqual(was, is) {
		parts = append(parts, "settings")
	}
	return strings.Join(parts, ", ")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
