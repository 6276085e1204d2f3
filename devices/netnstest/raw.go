// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// SendRaw sends one Ethernet frame out of a device, as it is; "" is
// [Host.Device].
func (h *Host) SendRaw(device string, frame []byte) error {
	if device == "" {
		device = h.Device()
	}
	err := h.ns.Do(func() error {
		ifi, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		fd, err := h.rawSocket()
		if err != nil {
			return err
		}
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index})
	})
	if err != nil {
		return fmt.Errorf("send a frame of %d bytes out of %s of %s: %w", len(frame), device, h.name, err)
	}
	return nil
}

// rawSocket returns the packet socket of the host, which only sends. There is
// one until the end of the lab: to close one takes the kernel a dozen
// milliseconds. The thread must be inside the namespace.
func (h *Host) rawSocket() (int, error) {
	h.rawMu.Lock()
	defer h.rawMu.Unlock()
	if h.raw != nil {
		return *h.raw, nil
	}
	// Protocol 0: it hears nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a packet socket: %w", err)
	}
	h.raw = &fd
	h.lab.atEnd(func() { unix.Close(fd) })
	return fd, nil
}
