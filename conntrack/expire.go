// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/ticks"
)

// Expired is what a pass has done.
type Expired struct {
	Flows    uint64        // idle for their time when the pass began, and what is left of broken ones
	Entries  uint64        // deleted: two a flow, none of those that were used again meanwhile
	Duration time.Duration // of the whole pass
}

// Run expires idle flows every Config.Interval until ctx ends, which is not an
// error, or until Close, which is os.ErrClosed, at once. One process of those
// that share a pinned table runs it.
func (t *Table) Run(ctx context.Context) error {
	if err := t.canExpire(); err != nil {
		return err
	}
	tick := time.NewTicker(t.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.closed:
			return fmt.Errorf("expire the flow table: %w", os.ErrClosed)
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
//
// Packets go on meanwhile. A flow that comes or goes at the wrong moment can
// hide others from the pass; the next one finds them.
func (t *Table) Expire() (Expired, error) {
	if err := t.canExpire(); err != nil {
		return Expired{}, err
	}
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

// canExpire refuses a table whose timeouts are not known: a flow that its owner
// keeps for a day must not end after our default.
func (t *Table) canExpire() error {
	if t.ring == nil {
		return errors.New("expire the flow table: it was opened as a tool does, and its owner's timeouts are not known: use New")
	}
	return nil
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
	if t.nat != nil && t.nat.hints != nil {
		replace[natHintsTable] = t.nat.hints.EBPF()
	}
	for name, value := range t.natSettings() {
		if v := spec.Variables[name]; v != nil {
			if err := v.Set(value); err != nil {
				return fmt.Errorf("load the pass over the flow table: setting %s: %w", name, err)
			}
		}
	}
	for name, m := range replace {
		if ms := spec.Maps[name]; ms != nil {
			ms.MaxEntries, ms.Flags = m.MaxEntries(), m.Flags()
		} else {
			delete(replace, name)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("load the pass over the flow table: %w (root or CAP_BPF and CAP_PERFMON are needed)", err)
	}
	if err != nil {
		return fmt.Errorf("load the pass over the flow table: %w", err)
	}
	defer coll.Close()
	if t.clock, err = ticks.Kernel(); err != nil {
		return err
	}
	t.pass = coll.DetachProgram("flow_pass")
	return nil
}

// now is the kernel's tick.
func (t *Table) now() (uint32, error) {
	out, err := t.runPass(0) // looks at the clock and at no entry
	return out.Now, err
}

func (t *Table) runPass(mode bpf.TablePassMode) (bpf.TablePass, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.pass == nil {
		return bpf.TablePass{}, fmt.Errorf("pass over the flow table: %w", os.ErrClosed)
	}
	args := bpf.TablePass{Mode: uint32(mode)}
	if mode != 0 {
		c, d := t.clock, t.cfg.Timeouts
		args.TcpNew, args.TcpEstablished, args.TcpClosing = c.Of(d.TCPNew), c.Of(d.TCPEstablished), c.Of(d.TCPClosing)
		args.UdpNew, args.UdpConfirmed = c.Of(d.UDPNew), c.Of(d.UDPConfirmed)
		args.Icmp, args.OtherNew, args.OtherConfirmed = c.Of(d.ICMP), c.Of(d.OtherNew), c.Of(d.OtherConfirmed)
		args.Shortest = c.Of(min(d.TCPNew, d.TCPEstablished, d.TCPClosing, d.UDPNew, d.UDPConfirmed, d.ICMP, d.OtherNew, d.OtherConfirmed))
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
