// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// await waits for what comes of a packet that was sent at start: an answer, which
// read takes from the socket and knows as one, or an ICMP error. It returns how long
// the answer took.
func await(ctx context.Context, fd int, start time.Time, read func() (bool, error)) (time.Duration, error) {
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if time.Since(start) > Timeout {
			return 0, errNoAnswer
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 50); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("wait for the answer: %w", err)
		}
		took := time.Since(start)
		if fds[0].Revents&unix.POLLERR != 0 {
			err := queued(fd)
			_, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR) // it is told twice
			if err != nil {
				return 0, err
			}
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			continue
		}
		if ours, err := read(); ours || err != nil {
			return took, err
		}
	}
}
