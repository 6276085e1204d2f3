// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// PingOptions are the details of a ping. The zero PingOptions is one echo
// request of 56 bytes that waits a second for its answer.
type PingOptions struct {
	// Size is the payload in bytes, 1 to 65,507; IPv4 adds 28 bytes of headers
	// and IPv6 48. Default: 56.
	Size int
	// Count is how many requests to send, each after the answer to the one
	// before. All must be answered. Default: 1.
	Count int
	// TTL is the TTL or hop limit, 1 to 255. Default: that of the namespace.
	TTL int
	// Timeout is how long to wait for each answer. Default: one second.
	Timeout time.Duration
	// DontFragment forbids fragmenting on the way and here. What the kernel has
	// learned of the path's MTU is ignored and so is the MTU of the route, so
	// every ping asks the path again.
	DontFragment bool
	// From is the source address. Default: the kernel chooses.
	From netip.Addr
}

// PingReply is the last echo reply.
type PingReply struct {
	// RTT is the time from request to reply; with Count, the shortest.
	RTT time.Duration
	// TTL is the TTL or hop limit that the reply arrived with.
	TTL int
	// From is who sent the reply.
	From netip.Addr
	// Size is the payload in bytes, as sent.
	Size int
}

// Ping sends ICMP or ICMPv6 echo requests and waits for the replies, whose
// payload must be that of the request.
//
// An ICMP error that comes instead of a reply is an [*ICMPError]; silence
// answers errors.Is(err, os.ErrDeadlineExceeded); a request that is too big for
// the device itself answers errors.Is(err, unix.EMSGSIZE).
func (h *Host) Ping(dst netip.Addr, opts PingOptions) (PingReply, error) {
	reply, err := h.ping(dst, opts)
	if err != nil {
		return reply, fmt.Errorf("ping %v from %s: %w", dst, h.name, err)
	}
	return reply, nil
}

func (h *Host) ping(dst netip.Addr, opts PingOptions) (PingReply, error) {
	opts.Size, opts.Count = max1(opts.Size, 56), max1(opts.Count, 1)
	if opts.Timeout == 0 {
		opts.Timeout = time.Second
	}
	dst = dst.Unmap()
	switch {
	case !dst.IsValid():
		return PingReply{}, errors.New("the address is not valid")
	case opts.From.IsValid() && opts.From.Unmap().Is4() != dst.Is4():
		return PingReply{}, fmt.Errorf("PingOptions.From: %v is of the other family", opts.From)
	case opts.Size < 0 || opts.Size > 65507:
		return PingReply{}, fmt.Errorf("PingOptions.Size: %d is not between 1 and 65507", opts.Size)
	case opts.TTL < 0 || opts.TTL > 255:
		return PingReply{}, fmt.Errorf("PingOptions.TTL: %d is not between 1 and 255", opts.TTL)
	case opts.Count < 0:
		return PingReply{}, fmt.Errorf("PingOptions.Count: %d is negative", opts.Count)
	case opts.Timeout < 0:
		return PingReply{}, fmt.Errorf("PingOptions.Timeout: %v is negative", opts.Timeout)
	}
	p := &pinger{fd: -1, opts: opts, is4: dst.Is4()}
	defer p.close()
	if err := h.ns.Do(func() error { return p.open(dst) }); err != nil {
		return PingReply{}, err
	}
	var best PingReply
	for seq := range opts.Count {
		reply, err := p.once(uint16(seq + 1))
		if err != nil {
			return PingReply{}, err
		}
		if seq > 0 {
			reply.RTT = min(reply.RTT, best.RTT)
		}
		best = reply
	}
	return best, nil
}

func max1(value, standard int) int {
	if value == 0 {
		return standard
	}
	return value
}

// pinger is a ping socket: the kernel chooses the identifier of the echo and
// gives us only replies to it, and queues the ICMP errors about it.
type pinger struct {
	fd   int
	opts PingOptions
	is4  bool
	to   unix.Sockaddr
}

func (p *pinger) open(dst netip.Addr) error {
	domain, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	if !p.is4 {
		domain, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return fmt.Errorf("open a ping socket: %w", err)
	}
	p.fd = fd
	type option struct{ level, name, value int }
	options := []option{
		{unix.SOL_IP, unix.IP_RECVERR, 1},
		{unix.SOL_IP, unix.IP_RECVTTL, 1},
		{unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT},
	}
	ttl := option{unix.SOL_IP, unix.IP_TTL, p.opts.TTL}
	if p.is4 && p.opts.DontFragment {
		options[2].value = unix.IP_PMTUDISC_PROBE
	}
	if !p.is4 {
		options = []option{
			{unix.SOL_IPV6, unix.IPV6_RECVERR, 1},
			{unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, 1},
			{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT},
		}
		ttl = option{unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, p.opts.TTL}
		if p.opts.DontFragment {
			options[2].value = unix.IPV6_PMTUDISC_PROBE
			options = append(options, option{unix.SOL_IPV6, unix.IPV6_DONTFRAG, 1})
		}
	}
	if p.opts.TTL != 0 {
		options = append(options, ttl)
	}
	// A reply of the largest size must fit.
	options = append(options, option{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1 << 20}, option{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1 << 20})
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set option %d of a ping socket: %w", o.name, err)
		}
	}
	if p.opts.From.IsValid() {
		from, err := sockaddr(p.opts.From.Unmap())
		if err != nil {
			return err
		}
		if err := unix.Bind(fd, from); err != nil {
			return fmt.Errorf("bind to %v: %w", p.opts.From, err)
		}
	}
	p.to, err = sockaddr(dst)
	return err
}

func (p *pinger) close() {
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
}

// once sends one request and waits for what comes of it.
func (p *pinger) once(seq uint16) (PingReply, error) {
	request := append(make([]byte, 8), pattern(p.opts.Size)...)
	request[0] = 8
	if !p.is4 {
		request[0] = 128
	}
	binary.BigEndian.PutUint16(request[6:], seq)
	start := time.Now()
	if err := unix.Sendto(p.fd, request, 0, p.to); err != nil {
		// The queue knows more about it: the MTU, or an ICMP error.
		if reported := p.readError(); reported != nil {
			err = reported
		}
		return PingReply{}, err
	}
	for {
		left := p.opts.Timeout - time.Since(start)
		if left <= 0 {
			return PingReply{}, fmt.Errorf("no answer in %v: %w", p.opts.Timeout, os.ErrDeadlineExceeded)
		}
		wait := unix.NsecToTimespec(left.Nanoseconds())
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		if _, err := unix.Ppoll(fds, &wait, nil); err != nil && !errors.Is(err, unix.EINTR) {
			return PingReply{}, fmt.Errorf("wait for the answer: %w", err)
		}
		if fds[0].Revents&unix.POLLERR != 0 {
			if err := p.readError(); err != nil {
				return PingReply{}, err
			}
		}
		if fds[0].Revents&unix.POLLIN != 0 {
			reply, ours, err := p.readReply(request)
			if err != nil || ours {
				reply.RTT = time.Since(start)
				return reply, err
			}
		}
	}
}

// readReply reads one message. It is not ours if it answers another request.
func (p *pinger) readReply(request []byte) (reply PingReply, ours bool, err error) {
	buf, oob := make([]byte, 1<<16), make([]byte, 256)
	n, oobn, _, from, err := unix.Recvmsg(p.fd, buf, oob, unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return PingReply{}, false, nil
	}
	if err != nil {
		return PingReply{}, false, fmt.Errorf("read the answer: %w", err)
	}
	got := buf[:n]
	if n < 8 || !bytes.Equal(got[6:8], request[6:8]) {
		return PingReply{}, false, nil
	}
	if !bytes.Equal(got[8:], request[8:]) {
		return PingReply{}, false, fmt.Errorf("the payload of the reply (%d bytes) differs from that of the request (%d bytes) at byte %d",
			len(got)-8, len(request)-8, firstDifference(got[8:], request[8:]))
	}
	reply = PingReply{Size: n - 8, From: addrOf(from)}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return PingReply{}, false, fmt.Errorf("read the answer: %w", err)
	}
	for _, m := range messages {
		is4 := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_TTL
		is6 := m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT
		if (is4 || is6) && len(m.Data) >= 4 {
			reply.TTL = int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return reply, true, nil
}

// readError reads what the kernel has queued about our requests, or nil.
func (p *pinger) readError() error {
	buf, oob := make([]byte, 1<<16), make([]byte, 512)
	_, oobn, _, _, err := unix.Recvmsg(p.fd, buf, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return nil // an empty queue
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return fmt.Errorf("read an ICMP error: %w", err)
	}
	for _, m := range messages {
		is4 := m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_RECVERR
		is6 := m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if is4 || is6 {
			return parseExtendedError(m.Data)
		}
	}
	return nil
}

// parseExtendedError reads struct sock_extended_err and the address of the
// offender that follows it (linux/errqueue.h).
func parseExtendedError(b []byte) error {
	if len(b) < 16 {
		return fmt.Errorf("read an ICMP error: %d bytes are too few", len(b))
	}
	errno := unix.Errno(binary.NativeEndian.Uint32(b))
	info := binary.NativeEndian.Uint32(b[8:])
	switch b[4] {
	case unix.SO_EE_ORIGIN_ICMP, unix.SO_EE_ORIGIN_ICMP6:
	default:
		if errno == unix.EMSGSIZE && info > 0 {
			return fmt.Errorf("the request does not fit the MTU of %d bytes here: %w", info, errno)
		}
		return errno
	}
	e := &ICMPError{Type: b[5], Code: b[6], Errno: errno}
	offender := b[16:]
	switch {
	case b[4] == unix.SO_EE_ORIGIN_ICMP && len(offender) >= 8:
		e.From = netip.AddrFrom4([4]byte(offender[4:8]))
	case b[4] == unix.SO_EE_ORIGIN_ICMP6 && len(offender) >= 24:
		e.From = netip.AddrFrom16([16]byte(offender[8:24]))
		e.v6 = true
	}
	if e.IsTooBig() {
		e.MTU = int(info)
	}
	return e
}

func sockaddr(a netip.Addr) (unix.Sockaddr, error) {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}, nil
	}
	index, err := zoneIndex(a)
	if err != nil {
		return nil, err
	}
	return &unix.SockaddrInet6{Addr: a.As16(), ZoneId: uint32(index)}, nil
}

func addrOf(sa unix.Sockaddr) netip.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr)
	}
	return netip.Addr{}
}
