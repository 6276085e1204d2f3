// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/internal/packet"
)

// A million openings that nobody goes on with push out one another, and nothing
// that is established; the table never has more of them than its budget.
func TestFloodTouchesNothingEstablished(t *testing.T) {
	// The endpoint's own address, so that the source check lets it through, and
	// a new port and destination in the world each time.
	t.Run("from an endpoint", func(t *testing.T) {
		flood(t, "from_endpoint", 33, func(r *rig, i int) (src, dst netip.Addr) {
			return r.blue, netip.AddrFrom4([4]byte{198, 18, byte(i), 0})
		})
	})
	// Another node forges all the sources that it may have.
	t.Run("from the overlay", func(t *testing.T) {
		flood(t, "from_overlay", 29, func(r *rig, i int) (src, dst netip.Addr) {
			return netip.AddrFrom4([4]byte{10, 245, byte(i), 0}), r.blue
		})
	})
}

// flood sends it into a program. The byte of the frame at counted and the source
// port are another for each packet, and the rest of the addresses for each sender.
func flood(t *testing.T, program string, counted int32, addrs func(r *rig, sender int) (src, dst netip.Addr)) {
	const established, syns, datagrams, senders = 1000, 1_000_000, 100_000, 2
	r := newRig(t, Config{Flows: 65536, Unconfirmed: 16384})
	toGreen := func(i int) Tuple {
		return Tuple{
			Src: netip.AddrPortFrom(r.blue, uint16(20000+i)), Dst: netip.AddrPortFrom(r.green, 80),
			Protocol: []Protocol{TCP, UDP}[i%2],
		}
	}
	require.NoError(t, r.ns.Do(func() error {
		blue, green := r.from(r.blueDevice), r.from(r.greenDevice)
		for i := range established {
			tu := toGreen(i)
			for _, step := range []struct {
				by    *sender
				frame []byte
			}{
				{blue, r.frame(tu, packet.SYN)}, {green, r.frame(reverse(tu), packet.SYN|packet.ACK)}, {blue, r.frame(tu, packet.ACK)}, {blue, r.frame(tu, packet.ACK)},
			} {
				if verdict, err := step.by.send(step.frame); err != nil || verdict != redirected {
					return fmt.Errorf("%s: verdict %d, %w", tu, verdict, err)
				}
			}
		}
		return nil
	}))
	before, err := r.table.Stats()
	require.NoError(t, err)
	require.EqualValues(t, established, before.Established)
	require.Equal(t, 2*established, before.Entries)
	known := map[Tuple]Flow{}
	for f, err := range r.table.All() {
		require.NoError(t, err)
		require.Equal(t, Counters{3, uint64(3 * len(r.frame(f.Original, 0)))}, f.Sent)
		known[f.Original] = f
	}

	start := time.Now()
	var wg sync.WaitGroup
	floods := [senders]*numbering{r.numbering(program, counted), r.numbering(program, counted)}
	for _, protocol := range []Protocol{TCP, UDP} {
		until := uint32(syns / senders)
		if protocol == UDP {
			until += datagrams / senders
		}
		for i, flood := range floods {
			wg.Go(func() {
				assert.NoError(t, r.ns.Do(func() error {
					by := r.from(r.blueDevice)
					by.program, by.opts.Repeat = flood.program, 1000
					src, dst := addrs(r, i)
					frame := r.frame(Tuple{Src: netip.AddrPortFrom(src, 1), Dst: netip.AddrPortFrom(dst, 80), Protocol: protocol}, packet.SYN)
					for {
						if n, err := flood.sent(); err != nil || n >= until {
							return err
						}
						if verdict, err := by.send(frame); err != nil || verdict != redirected {
							return fmt.Errorf("verdict %d, %w", verdict, err)
						}
					}
				}))
			})
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		for flooding := true; flooding; {
			select {
			case <-done:
				flooding = false
			case <-time.After(50 * time.Millisecond):
			}
			stats, err := r.table.Stats()
			require.NoError(t, err)
			require.EqualValues(t, established, stats.Established)
			// Each sender may have one on its way in, and a pass counts while they come and go.
			require.LessOrEqual(t, stats.Entries, 2*(established+16384)+1000)
		}
	}
	sent := uint32(0)
	for _, flood := range floods {
		n, err := flood.sent()
		require.NoError(t, err)
		sent += n
	}
	t.Logf("%d packets in %s", sent, time.Since(start))
	require.GreaterOrEqual(t, sent, uint32(syns+datagrams))
	stats, err := r.table.Stats()
	require.NoError(t, err)
	assert.EqualValues(t, 16384, stats.New)
	assert.Equal(t, 2*(established+16384), stats.Entries)
	assert.EqualValues(t, established+sent, stats.Created)
	assert.EqualValues(t, sent-16384, stats.Evicted)
	assert.Empty(t, stats.InsertErrors)

	// They all go on where they were.
	require.NoError(t, r.ns.Do(func() error {
		by := r.from(r.blueDevice)
		for i := range established {
			if _, err := by.send(r.frame(toGreen(i), packet.ACK)); err != nil {
				return err
			}
		}
		return nil
	}))
	after := 0
	for f, err := range r.table.Filter(Filter{Dst: netip.PrefixFrom(r.green, 32)}) {
		require.NoError(t, err)
		was, ok := known[f.Original]
		require.True(t, ok, "%s", f.Original)
		require.Equal(t, was.Sent.Packets+1, f.Sent.Packets)
		require.Equal(t, was.Received, f.Received)
		require.GreaterOrEqual(t, f.Age, was.Age)
		after++
	}
	assert.Equal(t, established, after)
}

// numbering is a program that gives each packet of a run another source port and
// address, its full TTL again, and an outer header of the peer of the rig, before
// the next program gets it. It is for one goroutine.
type numbering struct {
	program *ebpf.Program
	counter *ebpf.Map
}

func (n *numbering) sent() (count uint32, err error) {
	err = n.counter.Lookup(uint32(0), &count)
	return count, err
}

func (r *rig) numbering(program string, counted int32) *numbering {
	r.t.Helper()
	n := new(numbering)
	var err error
	n.counter, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	require.NoError(r.t, err)
	r.t.Cleanup(func() { n.counter.Close() })
	next, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	require.NoError(r.t, err)
	r.t.Cleanup(func() { next.Close() })
	require.NoError(r.t, next.Put(uint32(0), r.dp.Program(program)))
	store := func(offset int32, stack int32, size int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, offset), asm.Mov.Reg(asm.R3, asm.R10), asm.Add.Imm(asm.R3, stack),
			asm.Mov.Imm(asm.R4, size), asm.Mov.Imm(asm.R5, 0), asm.FnSkbStoreBytes.Call(),
		}
	}
	insns := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.StoreImm(asm.R10, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, n.counter.FD()), asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -4), asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "end"),
		asm.LoadMem(asm.R7, asm.R0, 0, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R7), asm.Add.Imm(asm.R1, 1), asm.StoreMem(asm.R0, 0, asm.R1, asm.Word),
		asm.StoreImm(asm.R10, -8, 64, asm.Byte),      // TTL
		asm.StoreMem(asm.R10, -12, asm.R7, asm.Half), // source port
		asm.RSh.Imm(asm.R7, 16),
		asm.StoreMem(asm.R10, -16, asm.R7, asm.Byte), // last byte of an address
	}
	insns = append(insns, store(22, -8, 1)...)
	insns = append(insns, store(34, -12, 2)...)
	insns = append(insns, store(counted, -16, 1)...)
	// struct bpf_tunnel_key: the kernel tells the sender from the local address.
	for off := int16(-64); off < -20; off += 4 {
		insns = append(insns, asm.StoreImm(asm.R10, off, 0, asm.Word))
	}
	insns = append(insns,
		asm.StoreImm(asm.R10, -64, 300, asm.Word),
		asm.StoreImm(asm.R10, -64+28, int64(int32(binary.BigEndian.Uint32(redNode.AsSlice()))), asm.Word),
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -64),
		asm.Mov.Imm(asm.R3, 44), asm.Mov.Imm(asm.R4, 0), asm.FnSkbSetTunnelKey.Call(),
		asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, next.FD()), asm.Mov.Imm(asm.R3, 0), asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 99).WithSymbol("end"), asm.Return(),
	)
	n.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Name: "numbering", Type: ebpf.SchedCLS, License: "GPL", Instructions: insns})
	require.NoError(r.t, err)
	r.t.Cleanup(func() { n.program.Close() })
	return n
}
