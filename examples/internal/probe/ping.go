// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
)

// The headers before the payload of an echo request, in bytes.
const (
	overhead4 = 20 + 8
	overhead6 = 40 + 8
)

// Ping sends one echo request that is an IP packet of size bytes, which nobody
// on the way may fragment, and returns how long its reply took. Size 0 is the
// 84 bytes (IPv6: 104) of the usual ping.
//
// An ICMP error that comes back is an [*Error]. What the kernel knows of the
// path's MTU is not asked: a packet that fits the device is sent.
func Ping(ctx context.Context, from devices.Namespace, to netip.Addr, size int) (time.Duration, error) {
	return ping(ctx, from, to, size, 0)
}

// ping with a TTL or hop limit; 0: the usual one.
func ping(ctx context.Context, from devices.Namespace, to netip.Addr, size, ttl int) (time.Duration, error) {
	p := &pinger{fd: -1, is4: to.Is4(), id: uint16(rand.Uint32()), ttl: ttl}
	overhead := overhead6
	if p.is4 {
		overhead = overhead4
	}
	if size == 0 {
		size = overhead + 56
	}
	if size < overhead || size > 1<<16-1 {
		return 0, fmt.Errorf("ping %s: a packet of %d bytes: want %d to %d", to, size, overhead, 1<<16-1)
	}
	defer p.close()
	if err := from.Do(func() error { return p.open(to) }); err != nil {
		return 0, fmt.Errorf("ping %s: %w", to, err)
	}
	return p.exchange(ctx, pattern(size-overhead))
}

// TooBig sends an echo request of size bytes that must not get through, and
// returns how long the error about it took. The error must name mtu and come
// from the address teller.
func TooBig(ctx context.Context, from devices.Namespace, to netip.Addr, size, mtu int, teller netip.Addr) (time.Duration, error) {
	start := time.Now()
	_, err := Ping(ctx, from, to, size)
	took := time.Since(start)
	var icmp *Error
	switch {
	case err == nil:
		return 0, fmt.Errorf("%d bytes got through, want an error that names MTU %d", size, mtu)
	case !errors.As(err, &icmp):
		return 0, err
	case !icmp.TooBig(), icmp.MTU != mtu:
		return 0, fmt.Errorf("%w; want MTU %d", icmp, mtu)
	case icmp.From != teller:
		return 0, fmt.Errorf("%w; want it from %s", icmp, teller)
	}
	return took, nil
}

// pinger is a raw socket. The kernel's own ping sockets are closed to all
// groups in a new namespace.
type pinger struct {
	fd  int
	is4 bool
	id  uint16
	ttl int // 0: the usual one
}

func (p *pinger) open(to netip.Addr) (err error) {
	type option struct{ level, name, value int }
	domain, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	var sa unix.Sockaddr
	options := []option{
		{unix.SOL_IP, unix.IP_RECVERR, 1},
		{unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE},
	}
	if p.is4 {
		sa = &unix.SockaddrInet4{Addr: to.As4()}
	} else {
		domain, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
		sa = &unix.SockaddrInet6{Addr: to.As16()}
		options = []option{
			{unix.SOL_IPV6, unix.IPV6_RECVERR, 1},
			{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE},
			{unix.SOL_IPV6, unix.IPV6_DONTFRAG, 1},
		}
	}
	if p.ttl > 0 && p.is4 {
		options = append(options, option{unix.SOL_IP, unix.IP_TTL, p.ttl})
	} else if p.ttl > 0 {
		options = append(options, option{unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, p.ttl})
	}
	if p.fd, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol); err != nil {
		return fmt.Errorf("open a raw socket: %w", err)
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(p.fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set option %d of a raw socket: %w", o.name, err)
		}
	}
	// Then only packets of the other end come, and errors about ours.
	return unix.Connect(p.fd, sa)
}

func (p *pinger) close() {
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
}

// exchange sends a request and waits for what comes of it.
func (p *pinger) exchange(ctx context.Context, payload []byte) (time.Duration, error) {
	request := p.request(payload)
	start := time.Now()
	if err := unix.Send(p.fd, request, 0); err != nil {
		if queued := queued(p.fd); queued != nil {
			err = queued
		}
		return 0, err
	}
	return await(ctx, p.fd, start, func() (bool, error) { return p.reply(payload) })
}

func (p *pinger) request(payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	b[0] = 8 // echo request, RFC 792
	if !p.is4 {
		b[0] = 128 // RFC 4443
	}
	binary.BigEndian.PutUint16(b[4:], p.id)
	binary.BigEndian.PutUint16(b[6:], 1)
	b = append(b, payload...)
	if p.is4 { // the kernel computes that of ICMPv6, which covers the addresses
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

// reply reads one message. A raw socket gets all of ICMP that comes from the
// other end: what does not answer our request is not ours.
func (p *pinger) reply(payload []byte) (ours bool, err error) {
	buf := make([]byte, 1<<16)
	n, err := unix.Read(p.fd, buf)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the answer: %w", err)
	}
	b, kind := buf[:n], byte(129)
	if p.is4 { // with its IP header
		kind = 0
		if n == 0 || n < int(b[0]&15)*4 {
			return false, nil
		}
		b = b[int(b[0]&15)*4:]
	}
	if len(b) < 8 || b[0] != kind || binary.BigEndian.Uint16(b[4:]) != p.id {
		return false, nil
	}
	if !bytes.Equal(b[8:], payload) {
		return true, compare(b[8:], payload)
	}
	return true, nil
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
