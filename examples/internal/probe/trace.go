// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/godatapath/datapath/devices"
)

// Trace sends echo requests that live for one hop, two hops and so on, and
// returns how long all of them took. The routers that say so, and then the
// destination itself, must be those of want.
func Trace(ctx context.Context, from devices.Namespace, to netip.Addr, want []netip.Addr) (time.Duration, error) {
	start := time.Now()
	var hops []netip.Addr
	for ttl := 1; ttl <= len(want)+1; ttl++ {
		_, err := ping(ctx, from, to, 0, ttl)
		var icmp *Error
		if err == nil {
			hops = append(hops, to)
			break
		}
		if !errors.As(err, &icmp) || !icmp.Expired() {
			return 0, fmt.Errorf("hop %d: %w", ttl, err)
		}
		hops = append(hops, icmp.From)
	}
	if !slices.Equal(hops, want) {
		return 0, fmt.Errorf("the way is %v, want %v", hops, want)
	}
	return time.Since(start), nil
}
