// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/internal/wire"
)

// SetNodeAddrs changes Config.NodeAddrs: wildcard NodePorts and HostPorts are at the
// new addresses and no more at those that have gone, where nobody can go on with a
// connection. Setting what is there already disturbs nothing. A port that another
// service has at one of the addresses is os.ErrExist, and a table that is full
// unix.E2BIG: the error names the services that are still at the old addresses, and
// the next call does the rest.
func (b *Balancer) SetNodeAddrs(addrs []netip.Addr) error {
	if b.cfg.MaglevSize == 0 {
		return invalid.Errorf("set the node's addresses: the services were opened for reading")
	}
	own := make([]netip.Addr, len(addrs))
	for i, a := range addrs {
		var err error
		if own[i], err = wire.CheckAddr(a); err != nil {
			return fmt.Errorf("set the node's addresses: %w", err)
		}
	}
	if err := b.enter(); err != nil {
		return fmt.Errorf("set the node's addresses: %w", err)
	}
	defer b.mu.Unlock()
	if !slices.Equal(own, b.cfg.NodeAddrs) {
		b.cfg.NodeAddrs = own
		for _, k := range b.services {
			k.doubtful = true // until it has been compiled with these
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(b.services)) {
		if err := b.again(b.services[name]); err != nil {
			errs = append(errs, fmt.Errorf("set the node's addresses: service %q: %w", name, err))
		}
	}
	return errors.Join(append(errs, b.change.Unchanged())...)
}

// again makes a service be as it was set, under another Config.
func (b *Balancer) again(k *kept) error {
	c, err := b.changeTo(k.spec, nil)
	if err != nil || c == nil {
		return err
	}
	p := planned{change: *c, spec: k.spec}
	gone := b.departures(p)
	applied, err := b.carryOut([]planned{p})
	if applied {
		err = errors.Join(err, b.settle(gone))
	}
	return err
}
