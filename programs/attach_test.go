// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	bpflink "github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/internal/bpffs"
	"github.com/godatapath/datapath/programs"
)

// passing is a program that leaves every packet to the next one.
func passing(t *testing.T, name string) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, p.Close()) })
	return p
}

func idOf(t *testing.T, p *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := p.Info()
	require.NoError(t, err)
	id, ok := info.ID()
	require.True(t, ok)
	return id
}

// vethIn makes a pair of devices in a namespace. An index of 0 is the kernel's choice.
func vethIn(t *testing.T, ns devices.Namespace, name string, index int) int {
	t.Helper()
	require.NoError(t, withNetlink(ns, func(nl *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = name, index
		veth := netlink.NewVeth(attrs)
		veth.PeerName = name + "p"
		return nl.LinkAdd(veth)
	}))
	l, err := devices.FindLink(ns, name)
	require.NoError(t, err)
	return l.Index
}

func removeLink(t *testing.T, ns devices.Namespace, name string) {
	t.Helper()
	l, err := devices.FindLink(ns, name)
	require.NoError(t, err)
	require.NoError(t, devices.RemoveLink(ns, l))
}

func withNetlink(ns devices.Namespace, fn func(*netlink.Handle) error) error {
	return ns.Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		return fn(nl)
	})
}

// bench is a device to attach to, in a namespace of its own.
func bench(t *testing.T) (ns devices.Namespace, ifindex int) {
	t.Helper()
	ns, err := devices.NewNamespace()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, ns.Close()) })
	return ns, vethIn(t, ns, "bench", 0)
}

// on tells what is on a side of a device, in order.
func on(t *testing.T, ns devices.Namespace, ifindex int, d programs.Direction) []programs.AttachedProgram {
	t.Helper()
	hooks, err := programs.Hooks(ns, ifindex)
	require.NoError(t, err)
	for _, h := range hooks {
		if h.Direction == d {
			return h.Programs
		}
	}
	t.Fatalf("no %s among the hooks", d)
	return nil
}

func namesOn(t *testing.T, ns devices.Namespace, ifindex int, d programs.Direction) []string {
	t.Helper()
	names := []string{}
	for _, p := range on(t, ns, ifindex, d) {
		names = append(names, p.Name)
	}
	return names
}

func attachNow(t *testing.T, a programs.Attach) *programs.Attachment {
	t.Helper()
	at, err := programs.AttachProgram(a)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, at.Remove()) })
	return at
}

func TestAttachOrder(t *testing.T) {
	t.Parallel()
	for _, d := range []programs.Direction{programs.Ingress, programs.Egress} {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			ns, ifindex := bench(t)
			first, second := passing(t, "first"), passing(t, "second")
			add := func(name string, order bpflink.Anchor) {
				attachNow(t, programs.Attach{Program: passing(t, name), Namespace: ns, Ifindex: ifindex, Direction: d, Order: order})
			}
			put := func(p *ebpf.Program) {
				attachNow(t, programs.Attach{Program: p, Namespace: ns, Ifindex: ifindex, Direction: d})
			}
			put(first)
			put(second) // behind all others
			add("head", bpflink.Head())
			add("tail", bpflink.Tail())
			add("before", bpflink.BeforeProgram(second))
			add("after", bpflink.AfterProgram(first))
			add("before_id", bpflink.BeforeProgramByID(idOf(t, first)))
			add("after_id", bpflink.AfterProgramByID(idOf(t, second)))
			want := []string{"head", "before_id", "first", "after", "before", "second", "after_id", "tail"}
			require.Equal(t, want, namesOn(t, ns, ifindex, d))
			require.Empty(t, on(t, ns, ifindex, 3-d), "nothing on the other side")
		})
	}
}

func TestAttachToAnAbsentAnchor(t *testing.T) {
	t.Parallel()
	ns, ifindex := bench(t)
	_, err := programs.AttachProgram(programs.Attach{
		Program: passing(t, "p"), Namespace: ns, Ifindex: ifindex, Direction: programs.Ingress, Order: bpflink.BeforeProgram(passing(t, "elsewhere")),
	})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Empty(t, on(t, ns, ifindex, programs.Ingress))
}

func TestAttachBadInput(t *testing.T) {
	t.Parallel()
	ns, ifindex := bench(t)
	p := passing(t, "p")
	good := programs.Attach{Program: p, Namespace: ns, Ifindex: ifindex, Direction: programs.Ingress}
	change := func(fn func(*programs.Attach)) programs.Attach {
		a := good
		fn(&a)
		return a
	}
	for name, test := range map[string]struct {
		attach programs.Attach
		is     error
		text   string
	}{
		"no program":    {change(func(a *programs.Attach) { a.Program = nil }), nil, "Program is nil"},
		"no direction":  {change(func(a *programs.Attach) { a.Direction = 0 }), nil, "want Ingress, Egress or XDP"},
		"index 0":       {change(func(a *programs.Attach) { a.Ifindex = 0 }), nil, "Ifindex is not that of a device"},
		"index below 0": {change(func(a *programs.Attach) { a.Ifindex = -1 }), nil, "Ifindex is not that of a device"},
		"no device": {change(func(a *programs.Attach) { a.Ifindex = 1 << 20 }), unix.ENODEV,
			"attach to interface 1048576 ingress: "},
		"no device, hint": {change(func(a *programs.Attach) { a.Ifindex = 1 << 20 }), unix.ENODEV, "is the device in this namespace?"},
		"no bpf filesystem": {change(func(a *programs.Attach) { a.Pin = filepath.Join(os.TempDir(), "not-bpf") }), bpffs.ErrNone,
			os.TempDir() + " is not on a bpf filesystem"},
		"no folder": {change(func(a *programs.Attach) { a.Pin = "/absent/folder/link" }), os.ErrNotExist, "/absent/folder/link"},
	} {
		t.Run(name, func(t *testing.T) {
			at, err := programs.AttachProgram(test.attach)
			require.Error(t, err)
			require.Nil(t, at)
			if test.is != nil {
				require.ErrorIs(t, err, test.is)
			}
			require.ErrorContains(t, err, test.text)
			require.Empty(t, on(t, ns, ifindex, programs.Ingress), "nothing is left on the hook")
		})
	}
	_, err := programs.Hooks(ns, 1<<20)
	require.ErrorIs(t, err, unix.ENODEV)
	require.ErrorContains(t, err, "is the device in this namespace?")
}

func TestAttachPinnedOutlivesItsHandleAndIsAdopted(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	ns, ifindex := bench(t)
	foreign := attachNow(t, programs.Attach{Program: passing(t, "foreign"), Namespace: ns, Ifindex: ifindex, Direction: programs.Ingress})
	want := programs.Attach{
		Program: passing(t, "old"), Namespace: ns, Ifindex: ifindex, Direction: programs.Ingress,
		Order: bpflink.Head(), Pin: filepath.Join(lab.PinDir(), "link"),
	}
	at, err := programs.AttachProgram(want)
	require.NoError(t, err)
	before := on(t, ns, ifindex, programs.Ingress)
	require.NoError(t, at.Close())
	require.NoError(t, at.Close(), "once more")
	require.Equal(t, before, on(t, ns, ifindex, programs.Ingress), "it goes on without us")

	want.Program, want.Order = passing(t, "new"), bpflink.Tail()
	at, err = programs.AttachProgram(want)
	require.NoError(t, err)
	after := on(t, ns, ifindex, programs.Ingress)
	require.Equal(t, []string{"new", "foreign"}, namesOn(t, ns, ifindex, programs.Ingress), "it keeps its place")
	require.Equal(t, before[0].LinkID, after[0].LinkID, "the same attachment")
	require.Equal(t, before[1], after[1], "the foreign one is as it was")
	id, err := at.ProgramID()
	require.NoError(t, err)
	require.Equal(t, idOf(t, want.Program), id)

	require.NoError(t, at.Remove())
	require.NoError(t, at.Remove(), "once more")
	require.NoError(t, at.Close(), "once more")
	require.NoFileExists(t, want.Pin)
	require.Equal(t, []string{"foreign"}, namesOn(t, ns, ifindex, programs.Ingress))
	id, err = foreign.ProgramID()
	require.NoError(t, err)
	require.Equal(t, before[1].ID, id)
}

func TestAttachPinOfAnotherSideMovesOver(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	ns, ifindex := bench(t)
	a := programs.Attach{
		Program: passing(t, "p"), Namespace: ns, Ifindex: ifindex, Direction: programs.Ingress, Pin: filepath.Join(lab.PinDir(), "link"),
	}
	first, err := programs.AttachProgram(a)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	a.Direction = programs.Egress
	attachNow(t, a)
	require.Empty(t, on(t, ns, ifindex, programs.Ingress))
	require.Equal(t, []string{"p"}, namesOn(t, ns, ifindex, programs.Egress))
}

func TestAttachFindsSomethingElsePinned(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	ns, ifindex := bench(t)
	pin := filepath.Join(lab.PinDir(), "link")
	p := passing(t, "p")
	require.NoError(t, p.Pin(pin))
	t.Cleanup(func() { assert.NoError(t, os.Remove(pin)) })
	_, err := programs.AttachProgram(programs.Attach{Program: p, Namespace: ns, Ifindex: ifindex, Direction: programs.Ingress, Pin: pin})
	require.Error(t, err)
	require.ErrorContains(t, err, pin)
	require.FileExists(t, pin)
	require.Empty(t, on(t, ns, ifindex, programs.Ingress))
}

func TestAttachUnpinnedEndsWithClose(t *testing.T) {
	t.Parallel()
	ns, ifindex := bench(t)
	for name, end := range map[string]func(*programs.Attachment) error{"Close": (*programs.Attachment).Close, "Remove": (*programs.Attachment).Remove} {
		at, err := programs.AttachProgram(programs.Attach{Program: passing(t, "p"), Namespace: ns, Ifindex: ifindex, Direction: programs.Egress})
		require.NoError(t, err)
		require.Len(t, on(t, ns, ifindex, programs.Egress), 1)
		for range 2 {
			require.NoError(t, end(at), name)
			require.Empty(t, on(t, ns, ifindex, programs.Egress), name)
		}
		require.NoError(t, at.Remove(), name)
		require.NoError(t, at.Close(), name)
	}
}

func TestRemoveAfterCloseTakesThePin(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	ns, ifindex := bench(t)
	pin := filepath.Join(lab.PinDir(), "link")
	at, err := programs.AttachProgram(programs.Attach{Program: passing(t, "p"), Namespace: ns, Ifindex: ifindex, Direction: programs.Ingress, Pin: pin})
	require.NoError(t, err)
	require.NoError(t, at.Close())
	require.NoError(t, at.Remove())
	require.NoFileExists(t, pin)
	require.Eventually(t, func() bool { return len(on(t, ns, ifindex, programs.Ingress)) == 0 }, 5*time.Second, 5*time.Millisecond)
}

func TestAttachWhenTheDeviceIsGone(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	ns, ifindex := bench(t)
	a := programs.Attach{
		Program: passing(t, "p"), Namespace: ns, Ifindex: ifindex, Direction: programs.Ingress, Pin: filepath.Join(lab.PinDir(), "link"),
	}
	dead, err := programs.AttachProgram(a)
	require.NoError(t, err)
	removeLink(t, ns, "bench")
	require.ErrorIs(t, dead.Replace(a.Program), unix.ENOLINK)
	_, err = programs.AttachProgram(a)
	require.ErrorIs(t, err, unix.ENODEV)
	require.NoFileExists(t, a.Pin, "what it was pinned for is gone")

	// Another device with the same number.
	dead, err = programs.AttachProgram(programs.Attach{
		Program: a.Program, Namespace: ns, Ifindex: vethIn(t, ns, "bench", ifindex), Direction: a.Direction, Pin: a.Pin,
	})
	require.NoError(t, err)
	removeLink(t, ns, "bench")
	require.Equal(t, ifindex, vethIn(t, ns, "bench", ifindex))
	alive := attachNow(t, a)
	require.Equal(t, []string{"p"}, namesOn(t, ns, ifindex, programs.Ingress))
	require.FileExists(t, a.Pin)

	require.NoError(t, dead.Remove())
	require.FileExists(t, a.Pin)
	require.Equal(t, []string{"p"}, namesOn(t, ns, ifindex, programs.Ingress), "the new one is not the old one's to end")
	removeLink(t, ns, "bench")
	require.NoError(t, alive.Remove(), "the device has done it already")
	require.NoFileExists(t, a.Pin)
}

// Every packet meets one of the two programs while they are swapped.
func TestReplaceUnderTrafficMissesNoPacket(t *testing.T) {
	t.Parallel()
	lab := netnstest.NewLab(t)
	a, b := lab.Host("a", "192.0.2.1/24"), lab.Host("b", "192.0.2.2/24")
	_, device := lab.Wire(a, b)
	ifindex, err := b.Index(device)
	require.NoError(t, err)
	coll, err := ebpf.NewCollection(compileText(t, countSource))
	require.NoError(t, err)
	defer coll.Close()
	both := []*ebpf.Program{coll.Programs["count_first"], coll.Programs["count_second"]}
	want := programs.Attach{
		Program: both[0], Namespace: b.Namespace(), Ifindex: ifindex, Direction: programs.Ingress, Pin: filepath.Join(lab.PinDir(), "link"),
	}
	at := attachNow(t, want)
	linkID := on(t, b.Namespace(), ifindex, programs.Ingress)[0].LinkID

	meter := lab.LossMeter(a, b, netip.MustParseAddrPort("192.0.2.2:9"), 5000)
	require.NoError(t, meter.WaitReceived(100, 5*time.Second))
	for i := range 400 {
		want.Program = both[i%2]
		if i%4 < 2 {
			require.NoError(t, at.Replace(want.Program))
		} else { // as another process would, by the pin
			adopted, err := programs.AttachProgram(want)
			require.NoError(t, err)
			require.NoError(t, adopted.Close())
		}
		time.Sleep(500 * time.Microsecond)
	}
	require.NoError(t, meter.WaitReceived(100, 5*time.Second))
	report := meter.Stop()
	require.Zero(t, report.Missing, "%s", report)

	var first, second uint64
	require.NoError(t, coll.Maps["seen"].Lookup(uint32(0), &first))
	require.NoError(t, coll.Maps["seen"].Lookup(uint32(1), &second))
	require.EqualValues(t, report.Sent, first+second, "each packet was met once")
	require.NotZero(t, first)
	require.NotZero(t, second)
	now := on(t, b.Namespace(), ifindex, programs.Ingress)
	require.Len(t, now, 1)
	require.Equal(t, linkID, now[0].LinkID, "one and the same attachment all the time")
}
