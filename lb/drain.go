// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"
)

// drain keeps the backends that a service loses among its members.
func drain(from, to *compiled) {
	for k, m := range from.members {
		if _, stays := to.members[k]; stays {
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
// Config.Flows, or that have drained for Config.DrainTimeout. It returns how many
// it has taken away.
func (b *Balancer) Sweep() (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	var errs []error
	for name, k := range b.services {
		over, err := b.drained(k)
		errs = append(errs, err)
		if len(over) == 0 {
			continue
		}
		without := *k.rows
		without.members, without.backends = maps.Clone(k.rows.members), maps.Clone(k.rows.backends)
		for _, at := range over {
			delete(without.members, memberKey(k.rows.id, at))
			delete(without.backends, at)
		}
		if err := b.carryOut([]planned{{change{name: name, old: k.rows, new: &without}, k.spec}}); err != nil {
			errs = append(errs, fmt.Errorf("service %q: %w", name, err))
			continue
		}
		n += len(over)
	}
	if n > 0 {
		errs = append(errs, b.change.Changed())
	}
	if err := errors.Join(errs...); err != nil {
		return n, fmt.Errorf("sweep the backends that drain: %w", err)
	}
	return n, nil
}

// drained are the backends of a service whose draining is over.
func (b *Balancer) drained(k *kept) (over []netip.AddrPort, err error) {
	var errs []error
	for at, since := range k.draining {
		if b.ids.now().Sub(since) < b.cfg.DrainTimeout {
			if b.cfg.Flows == nil {
				continue
			}
			flows := 0
			for _, f := range k.spec.Frontends {
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
