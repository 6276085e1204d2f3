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
		// Protocol 0: a socket that only sends.
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open a packet socket: %w", err)
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index})
	})
	if err != nil {
		return fmt.Errorf("send a frame of %d bytes out of %s of %s: %w", len(frame), device, h.name, err)
	}
	return nil
}
