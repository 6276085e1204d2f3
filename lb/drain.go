// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/godatapath/datapath/internal/invalid"
)

// drain keeps backends among the members of a service that it loses: those that
// drain already, and by how those that it loses now.
func drain(from, to *compiled, how Removal) {
	for k, m := range from.members {
		if _, stays := to.members[k]; stays || (State(m.State) != Draining && how.policy() != Drain) {
			continue
		}
		m.State = uint8(Draining)
		to.members[k] = m
		at := goAddrPort(k.Addr, k.Port)
		to.backends[at] = from.backends[at]
	}
}

// noteDraining remembers since when each backend of a service drains.
func (k *kept) noteDraining(before *kept, now time.Time) {
	for key, m := range k.rows.members {
		if State(m.State) != Draining {
			continue
		}
		at := goAddrPort(key.Addr, key.Port)
		if k.draining == nil {
			k.draining = map[netip.AddrPort]time.Time{}
		}
		k.draining[at] = now
		if before != nil {
			if since, ok := before.draining[at]; ok {
				k.draining[at] = since
			}
		}
	}
}

// Sweep takes away the backends that drain and have no flow left, by
// Config.Flows and the sockets that are remembered, or that have drained for
// Config.DrainTimeout: what is left of those ends as with [Reset]. It returns how
// many it has taken away.
func (b *Balancer) Sweep() (int, error) {
	if b.cfg.MaglevSize == 0 {
		return 0, invalid.Errorf("sweep the backends that drain: the services were opened for reading")
	}
	if err := b.enter(); err != nil {
		return 0, fmt.Errorf("sweep the backends that drain: %w", err)
	}
	defer b.mu.Unlock()
	n := 0
	var gone []departure
	var errs []error
	for name, k := range b.services {
		over, err := b.drained(k)
		errs = append(errs, err)
		if len(over) == 0 {
			continue
		}
		applied, err := b.carryOut([]planned{{change{name: name, old: k.rows, new: k.rows.without(over...)}, k.spec}})
		if err != nil {
			errs = append(errs, fmt.Errorf("service %q: %w", name, err))
		}
		if applied {
			n += len(over)
			gone = append(gone, departure{spec: k.spec, id: k.rows.id, backends: over, how: Reset})
		}
	}
	if n > 0 {
		errs = append(errs, b.settle(gone))
	}
	if err := errors.Join(errs...); err != nil {
		return n, fmt.Errorf("sweep the backends that drain: %w", err)
	}
	return n, nil
}

// shortestDrain is how long a backend drains at least: a flow that has been given
// to it a moment before may not be in the table yet.
const shortestDrain = time.Second

// drained are the backends of a service whose draining is over.
func (b *Balancer) drained(k *kept) (over []netip.AddrPort, err error) {
	var errs []error
	for at, since := range k.draining {
		drains := b.ids.now().Sub(since)
		if drains < shortestDrain {
			continue
		}
		if drains < b.cfg.DrainTimeout {
			if b.cfg.Flows == nil && b.bound {
				continue // there may be flows that nobody counts
			}
			if any, err := b.hasPeers(k.rows.id, at); any || err != nil {
				errs = append(errs, err)
				continue
			}
			flows := 0
			for _, f := range k.spec.Frontends {
				if b.cfg.Flows == nil {
					break
				}
				n, err := b.flowsOf(f, at, Reset)
				flows += n
				errs = append(errs, err)
			}
			if flows > 0 || errors.Join(errs...) != nil {
				continue
			}
		}
		over = append(over, at)
	}
	return over, errors.Join(errs...)
}

// Run sweeps every Config.SweepInterval until ctx ends, and returns the context's
// error, or what stood against a pass.
func (b *Balancer) Run(ctx context.Context) error {
	if b.cfg.MaglevSize == 0 {
		return invalid.Errorf("sweep the backends that drain: the services were opened for reading")
	}
	tick := time.NewTicker(b.cfg.SweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if _, err := b.Sweep(); err != nil {
				return err
			}
		}
	}
}
