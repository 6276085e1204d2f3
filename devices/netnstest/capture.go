// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/godatapath/datapath/internal/pcap"
	"golang.org/x/sys/unix"
)

// captureLimit is how many bytes of frames a Capture keeps.
const captureLimit = 64 << 20

// Capture holds the frames that a device sent and received since it began. If
// the test fails it becomes a pcap file at the end of the test, and the log
// says where.
//
// Its methods are safe for concurrent use.
type Capture struct {
	host   *Host
	device string
	file   *os.File

	mu      sync.Mutex
	frames  []Frame
	size    int
	missed  int
	err     error
	closed  bool
	arrived chan struct{} // closed and replaced when frames arrive
	done    chan struct{} // closed when the reader is gone
}

// Capture begins to capture a device of the host, in both directions; "" is
// [Host.Device]. It sees every frame from now on, and ends with the test or
// with Close. It keeps 64 MiB of frames; see [Capture.Missed].
func (h *Host) Capture(device string) *Capture {
	h.lab.t.Helper()
	if device == "" {
		device = h.Device()
	}
	fd, err := h.openCapture(device)
	if err != nil {
		h.lab.t.Fatalf("netnstest: capture %s of %s: %v", device, h.name, err)
	}
	c := &Capture{
		host: h, device: device,
		file:    os.NewFile(uintptr(fd), "capture of "+device),
		arrived: make(chan struct{}), done: make(chan struct{}),
	}
	h.lab.start(c.read)
	h.lab.atEnd(c.end)
	return c
}

func (h *Host) openCapture(device string) (int, error) {
	result := -1
	err := h.ns.Do(func() error {
		ifi, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		// Protocol 0 keeps the socket deaf until it is bound, so that it never
		// hears another device.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open a packet socket: %w", err)
		}
		for _, o := range []struct{ level, name, value int }{
			{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16 << 20},
			{unix.SOL_PACKET, unix.PACKET_AUXDATA, 1}, // for the VLAN tag, which the kernel takes out
		} {
			if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
				return errors.Join(fmt.Errorf("set option %d of a packet socket: %w", o.name, err), unix.Close(fd))
			}
		}
		everything := uint16(unix.ETH_P_ALL)
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything<<8 | everything>>8, Ifindex: ifi.Index})
		if err != nil {
			return errors.Join(fmt.Errorf("bind a packet socket: %w", err), unix.Close(fd))
		}
		result = fd
		return nil
	})
	return result, err
}

// Frames returns what was captured so far: all frames that the kernel handed
// over before the call.
func (c *Capture) Frames() []Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain()
	return append([]Frame(nil), c.frames...)
}

// Count returns how many of the frames so far match.
func (c *Capture) Count(match func(Frame) bool) int {
	n := 0
	for _, f := range c.Frames() {
		if match(f) {
			n++
		}
	}
	return n
}

// Wait returns the first frame since the beginning of the capture that matches,
// and waits for it up to timeout. None answers
// errors.Is(err, os.ErrDeadlineExceeded), and the error lists what was seen; a
// capture that was closed meanwhile answers errors.Is(err, os.ErrClosed).
func (c *Capture) Wait(match func(Frame) bool, timeout time.Duration) (Frame, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for seen := 0; ; {
		c.mu.Lock()
		c.drain()
		fresh, more, err, closed := c.frames[seen:], c.arrived, c.err, c.closed
		c.mu.Unlock()
		for _, f := range fresh {
			if match(f) {
				return f, nil
			}
		}
		seen += len(fresh)
		if err == nil && closed {
			err = os.ErrClosed
		}
		if err != nil {
			return Frame{}, fmt.Errorf("wait for a frame on %s of %s: %w", c.device, c.host.name, err)
		}
		select {
		case <-more:
		case <-timer.C:
			return Frame{}, fmt.Errorf("wait for a frame on %s of %s: %w after %v; seen:%s",
				c.device, c.host.name, os.ErrDeadlineExceeded, timeout, c.summary())
		}
	}
}

// Missed returns how many frames went past the capture because it was full, or
// because the kernel's buffer was.
func (c *Capture) Missed() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drain()
	return c.missed
}

// WriteFile writes the frames so far as a pcap file.
func (c *Capture) WriteFile(path string) error {
	var frames []pcap.Frame
	for _, f := range c.Frames() {
		frames = append(frames, pcap.Frame{Time: f.Time, Bytes: f.Bytes})
	}
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	if err := errors.Join(pcap.Write(file, frames), file.Close()); err != nil {
		return fmt.Errorf("write capture %s: %w", path, err)
	}
	return nil
}

// Close ends the capture. Its frames stay. It is idempotent.
func (c *Capture) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.drain()
	c.closed = true
	close(c.arrived)
	c.mu.Unlock()
	err := c.file.Close()
	<-c.done
	return err
}

// end runs at the end of the lab.
func (c *Capture) end() {
	if err := c.Close(); err != nil {
		c.host.lab.t.Errorf("netnstest: end the capture of %s of %s: %v", c.device, c.host.name, err)
	}
	if c.host.lab.t.Failed() {
		c.host.lab.keepCapture(c)
	}
}

// read waits for frames until the socket is closed.
func (c *Capture) read() {
	defer close(c.done)
	raw, err := c.file.SyscallConn()
	if err == nil {
		err = raw.Read(func(uintptr) bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.drain()
			return c.closed || c.err != nil
		})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && !c.closed && c.err == nil {
		c.fail(err)
	}
}

// fail notes why the capture ended. The caller holds the lock.
func (c *Capture) fail(err error) {
	c.err = err
	close(c.arrived)
	c.arrived = make(chan struct{})
}

// drain takes all frames that the kernel has. The caller holds the lock.
func (c *Capture) drain() {
	if c.closed || c.err != nil {
		return
	}
	raw, err := c.file.SyscallConn()
	if err != nil {
		c.fail(err)
		return
	}
	before := len(c.frames)
	var failed error
	err = raw.Control(func(fd uintptr) {
		buf, oob := make([]byte, 1<<17), make([]byte, 128)
		for failed == nil {
			n, oobn, _, from, err := unix.Recvmsg(int(fd), buf, oob, unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EAGAIN):
				if stats, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
					c.missed += int(stats.Drops)
				}
				return
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.ENETDOWN):
				// The device went down. The socket hears it again when it is up.
			case err != nil:
				failed = err
			default:
				c.keep(buf[:n], oob[:oobn], from)
			}
		}
	})
	if failed == nil {
		failed = err
	}
	if failed != nil {
		c.fail(failed)
		return
	}
	if len(c.frames) > before {
		close(c.arrived)
		c.arrived = make(chan struct{})
	}
}

func (c *Capture) keep(frame, oob []byte, from unix.Sockaddr) {
	if c.size+len(frame) > captureLimit {
		c.missed++
		return
	}
	f := Frame{Time: time.Now(), Bytes: withTag(frame, oob)}
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		f.Outgoing = ll.Pkttype == unix.PACKET_OUTGOING
	}
	c.size += len(f.Bytes)
	c.frames = append(c.frames, f)
}

// withTag copies a frame and puts the VLAN tag back that the kernel reports
// beside it (struct tpacket_auxdata, linux/if_packet.h).
func withTag(frame, oob []byte) []byte {
	tagged := append(make([]byte, 0, len(frame)+4), frame...)
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(frame) < 14 {
		return tagged
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < 20 {
			continue
		}
		if binary.NativeEndian.Uint32(m.Data)&unix.TP_STATUS_VLAN_VALID == 0 {
			return tagged
		}
		tpid := uint16(unix.ETH_P_8021Q)
		if binary.NativeEndian.Uint32(m.Data)&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
			tpid = binary.NativeEndian.Uint16(m.Data[18:])
		}
		tagged = append(tagged[:12], byte(tpid>>8), byte(tpid))
		tagged = binary.BigEndian.AppendUint16(tagged, binary.NativeEndian.Uint16(m.Data[16:]))
		return append(tagged, frame[12:]...)
	}
	return tagged
}
