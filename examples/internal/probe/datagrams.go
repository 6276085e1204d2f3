// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
)

// Datagrams is one flow of UDP to an echo server. Nobody on the way may fragment its
// packets, and it hears of the ICMP errors about them.
type Datagrams struct {
	fd  int
	to  netip.AddrPort
	is4 bool
}

// OpenDatagrams opens a flow from an address of the namespace. Close it.
func OpenDatagrams(from devices.Namespace, as netip.Addr, to netip.AddrPort) (*Datagrams, error) {
	d := &Datagrams{fd: -1, to: to, is4: to.Addr().Is4()}
	if err := from.Do(func() error { return d.open(as) }); err != nil {
		d.Close()
		return nil, fmt.Errorf("datagrams to %s: %w", to, err)
	}
	return d, nil
}

func (d *Datagrams) open(as netip.Addr) (err error) {
	domain := unix.AF_INET6
	if d.is4 {
		domain = unix.AF_INET
	}
	if d.fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return err
	}
	if err := d.set(unix.IP_RECVERR, unix.IPV6_RECVERR, 1); err != nil {
		return err
	}
	// What the kernel has learned of the path is not asked, as for [Ping].
	if err := d.set(unix.IP_MTU_DISCOVER, unix.IPV6_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil {
		return err
	}
	if err := unix.Bind(d.fd, d.sockaddr(netip.AddrPortFrom(as, 0))); err != nil {
		return fmt.Errorf("bind to %s: %w", as, err)
	}
	return unix.Connect(d.fd, d.sockaddr(d.to))
}

func (d *Datagrams) sockaddr(a netip.AddrPort) unix.Sockaddr {
	if d.is4 {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func (d *Datagrams) set(option4, option6, value int) error {
	level, option := unix.SOL_IPV6, option6
	if d.is4 {
		level, option = unix.SOL_IP, option4
	}
	if err := unix.SetsockoptInt(d.fd, level, option, value); err != nil {
		return fmt.Errorf("set option %d: %w", option, err)
	}
	return nil
}

// Close ends the flow.
func (d *Datagrams) Close() {
	if d.fd >= 0 {
		unix.Close(d.fd)
	}
}

// Ask sends an IP packet of size bytes that lives for ttl hops, and returns how long
// its answer took. An ICMP error that comes back is an [*Error].
func (d *Datagrams) Ask(ctx context.Context, size, ttl int) (time.Duration, error) {
	overhead := overhead6
	if d.is4 {
		overhead = overhead4
	}
	if size < overhead {
		return 0, fmt.Errorf("a packet of %d bytes: want %d at least", size, overhead)
	}
	if err := d.set(unix.IP_TTL, unix.IPV6_UNICAST_HOPS, ttl); err != nil {
		return 0, err
	}
	sent := pattern(size - overhead)
	start := time.Now()
	if _, err := unix.Write(d.fd, sent); err != nil {
		return 0, err
	}
	return await(ctx, d.fd, start, func() (bool, error) {
		got := make([]byte, 1<<16)
		n, err := unix.Read(d.fd, got)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("read the answer: %w", err)
		}
		return true, compare(got[:n], sent)
	})
}

// Trace sends datagrams that live for one hop, two hops and so on until one is
// answered, and returns the routers that were told to be on the way. Most is how
// many there may be.
func (d *Datagrams) Trace(ctx context.Context, most int) ([]netip.Addr, error) {
	var hops []netip.Addr
	for ttl := 1; ttl <= most+1; ttl++ {
		_, err := d.Ask(ctx, 100, ttl)
		var icmp *Error
		switch {
		case err == nil:
			return hops, nil
		case !errors.As(err, &icmp) || !icmp.Expired():
			return hops, fmt.Errorf("hop %d: %w", ttl, err)
		}
		hops = append(hops, icmp.From)
	}
	return hops, fmt.Errorf("the way is longer than %v", hops)
}
