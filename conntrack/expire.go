// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
)

// Expired is what a pass has done.
type Expired struct {
	Flows    uint64        // idle for their time when the pass began
	Entries  uint64        // deleted: two a flow, none of those that were used again meanwhile
	Duration time.Duration // of the whole pass
}

// Run expires idle flows every Config.Interval until ctx ends, which is not an
// error. It may be left out when another process does it.
func (t *Table) Run(ctx context.Context) error {
	tick := time.NewTicker(t.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if _, err := t.Expire(); err != nil {
				return err
			}
		}
	}
}

// Expire makes one pass over the table and deletes the flows that have been
// idle for their time, both entries of each. It runs inside the kernel, looks
// again before it deletes, and never takes a flow that a packet has used since.
func (t *Table) Expire() (Expired, error) {
	t.expiring.Lock()
	defer t.expiring.Unlock()
	start := time.Now()
	condemned, err := t.runPass(bpf.TablePassModePASS_CONDEMN)
	if err != nil {
		return Expired{}, err
	}
	out := Expired{Flows: condemned.Condemned}
	if condemned.Condemned > 0 {
		if err := gracePeriod(); err != nil {
			return out, err
		}
		reaped, err := t.runPass(bpf.TablePassModePASS_REAP)
		if err != nil {
			return out, err
		}
		out.Entries = reaped.Deleted
	}
	out.Duration = time.Since(start)
	return out, nil
}

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of the kernel's uapi.
const membarrierGlobal = 1

// gracePeriod waits until every program that had an entry in hand is through:
// they run inside RCU read-side sections, and membarrier waits for all of those.
func gracePeriod() error {
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
	switch errno {
	case 0:
	case unix.EINVAL, unix.ENOSYS:
		// Refused on kernels with CPUs that take no ticks. A program lives for
		// microseconds; this is generous.
		time.Sleep(100 * time.Millisecond)
	default:
		return fmt.Errorf("wait for the running programs: %w", errno)
	}
	return nil
}

func (t *Table) loadPass() error {
	spec, err := bpf.LoadExpire()
	if err != nil {
		return fmt.Errorf("read the expire object: %w", err)
	}
	replace := map[string]*ebpf.Map{flowsTable: t.flows.EBPF(), eventsTable: t.events.EBPF()}
	for name, m := range replace {
		if ms := spec.Maps[name]; ms != nil {
			ms.MaxEntries, ms.Flags = m.MaxEntries(), m.Flags()
		} else {
			delete(replace, name)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return fmt.Errorf("load the pass over the flow table: %w", err)
	}
	defer coll.Close()
	t.pass = coll.DetachProgram("flow_pass")
	now, err := t.runPass(0) // reads the clocks and nothing else
	if err != nil {
		return err
	}
	t.clock, err = newClock(now.Jiffies, now.Ktime)
	return err
}

func (t *Table) runPass(mode bpf.TablePassMode) (bpf.TablePass, error) {
	args := bpf.TablePass{Mode: uint32(mode)}
	if mode != 0 {
		c, d := t.clock, t.cfg.Timeouts
		args.TcpNew, args.TcpEstablished, args.TcpClosing = c.ticks(d.TCPNew), c.ticks(d.TCPEstablished), c.ticks(d.TCPClosing)
		args.UdpNew, args.UdpConfirmed = c.ticks(d.UDPNew), c.ticks(d.UDPConfirmed)
		args.Icmp, args.OtherNew, args.OtherConfirmed = c.ticks(d.ICMP), c.ticks(d.OtherNew), c.ticks(d.OtherConfirmed)
		args.Shortest = c.ticks(min(d.TCPNew, d.TCPEstablished, d.TCPClosing, d.UDPNew, d.UDPConfirmed, d.ICMP, d.OtherNew, d.OtherConfirmed))
	}
	var out bpf.TablePass
	for {
		_, err := t.pass.Run(&ebpf.RunOptions{Context: &args, ContextOut: &out})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return out, fmt.Errorf("pass over the flow table: %w", err)
		}
		return out, nil
	}
}
