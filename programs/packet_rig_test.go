// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	ebpflink "github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/names"
	"github.com/godatapath/datapath/internal/packet"
)

// family is the cast in one family: a test of packets is written once.
type family struct {
	name                                        string
	blue, green, red, gate, redGate, world, far netip.Addr
	nobodyHere                                  netip.Addr // in the node's own prefix, but nobody has it
	icmp                                        conntrack.Protocol
}

var families = []family{
	{
		name: "IPv4", blue: blue4, green: green4, red: red4, gate: gate4, world: world4, icmp: conntrack.ICMP,
		redGate: addr("10.244.2.1"), far: addr("10.244.3.10"), nobodyHere: addr("10.244.1.99"),
	},
	{
		name: "IPv6", blue: blue6, green: green6, red: red6, gate: gate6, world: world6, icmp: conntrack.ICMPv6,
		redGate: addr("fd00:244:2::1"), far: addr("fd00:244:3::10"), nobodyHere: addr("fd00:244:1::99"),
	},
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func eachFamily(t *testing.T, cfg rigConfig, fn func(t *testing.T, r *rig, f family)) {
	t.Helper()
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) { fn(t, newPacketRig(t, cfg), f) })
	}
}

// newPacketRig is a rig whose devices exist, with tables small enough to be
// looked through after each packet, and with the helpers' calls on record.
func newPacketRig(t testing.TB, cfg rigConfig) *rig {
	t.Helper()
	if cfg.flows.Flows == 0 {
		cfg.flows.Flows, cfg.flows.Unconfirmed = 256, 64
	}
	if cfg.flows.Fragments == 0 {
		cfg.flows.Fragments = 256
	}
	r := newRig(t, cfg)
	r.record()
	require.NoError(t, r.ns.Do(func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		for name, index := range map[string]int{"green": greenIfindex, "net": netIfindex, "overlay": overlayIfindex} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.Index = name, index
			v := netlink.NewVeth(attrs)
			v.PeerName = name + "_in"
			if err := h.LinkAdd(v); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if l, err := h.LinkByName(name); err != nil || l.Attrs().Index != index {
				return fmt.Errorf("%s: index %d is not %d: %w", name, l.Attrs().Index, index, err)
			}
		}
		return nil
	}))
	return r
}

const netIfindex = hostIfindex + 100 // as SetForTest has it

// port is a way into the datapath.
type port struct {
	program string
	ifindex uint32
	node    netip.Addr // from_overlay: the outer source
	vni     uint32
	gso     uint32 // size of a segment, if the packet is an aggregate
}

var (
	fromBlue  = port{program: "from_endpoint", ifindex: blueIfindex}
	fromGreen = port{program: "from_endpoint", ifindex: greenIfindex}
	fromHost  = port{program: "from_host", ifindex: netIfindex}
	fromRed   = fromNode(redNode, redIdentity)
	toBlue    = port{program: "to_endpoint", ifindex: blueIfindex}
	toGreen   = port{program: "to_endpoint", ifindex: greenIfindex}
)

func fromNode(node netip.Addr, vni uint32) port {
	return port{program: "from_overlay", ifindex: overlayIfindex, node: node, vni: vni}
}

func (p port) counter(what string) string {
	return strings.ReplaceAll(p.program, "_", " ") + ": " + what
}

// skbContext is the struct __sk_buff of a test run, as far as the kernel takes
// fields of it.
type skbContext struct {
	_        [10]uint32
	Ifindex  uint32
	_        [29]uint32
	_        [2]uint64
	_        uint32
	GSOSegs  uint32
	_        uint64
	GSOSize  uint32
	_        uint32
	HWTstamp uint64
}

// hop is where a packet was sent: the last redirect and the outer header.
type hop struct {
	ifindex uint32
	peer    bool // into the namespace behind the device
	flags   uint64
	vni     uint32
	node    netip.Addr
}

// passage is what became of one packet, and all that it moved.
type passage struct {
	verdict int
	frame   []byte
	sent    hop
	counted map[string]uint64
	events  map[string]uint64
	flows   []string // "+" created, "-" gone, "~" used; and the flow
}

// send sends a frame into a port and looks at everything afterwards.
func (r *rig) send(p port, frame []byte) (out passage) {
	r.t.Helper()
	counted, events, flows := r.counted(), r.events(), r.flowList()
	out = r.inject(p, frame)
	out.counted, out.events = moved(counted, r.counted()), moved(events, r.events())
	after := r.flowList()
	for k, v := range after {
		if old, ok := flows[k]; !ok {
			out.flows = append(out.flows, "+"+k)
		} else if old != v {
			out.flows = append(out.flows, "~"+k)
		}
	}
	for k := range flows {
		if _, ok := after[k]; !ok {
			out.flows = append(out.flows, "-"+k)
		}
	}
	slices.Sort(out.flows)
	return out
}

func moved(before, after map[string]uint64) map[string]uint64 {
	out := map[string]uint64{}
	for k, n := range after {
		if n != before[k] {
			out[k] = n - before[k]
		}
	}
	return out
}

// inject sends a frame into a port.
func (r *rig) inject(p port, frame []byte) (out passage) {
	r.t.Helper()
	prog := r.dp.Program(p.program)
	if p.node.IsValid() {
		prog = r.sender(p)
	}
	ctx := skbContext{GSOSize: p.gso}
	if p.gso > 0 {
		ctx.GSOSegs = uint32(len(frame)) / p.gso
	}
	if p.ifindex > 1 {
		ctx.Ifindex = p.ifindex
	}
	require.NoError(r.t, r.ns.Do(func() error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done := r.watch()
		opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: ctx}
		ret, err := prog.Run(&opts)
		out.sent = done()
		out.verdict, out.frame = int(int32(ret)), opts.DataOut
		return err
	}))
	return out
}

// sender is overlayProgram, made once for a sender.
func (r *rig) sender(p port) *ebpf.Program {
	if r.senders == nil {
		r.senders = map[port]*ebpf.Program{}
	}
	key := port{node: p.node, vni: p.vni}
	if r.senders[key] == nil {
		r.senders[key] = r.overlayProgram(p.node, p.vni, r.dp.Program("from_overlay"))
	}
	return r.senders[key]
}

// flowList lists the flows with all that packets change, but for the time.
func (r *rig) flowList() map[string]string {
	r.t.Helper()
	out := map[string]string{}
	if r.flows == nil {
		return out
	}
	for f, err := range r.flows.All() {
		require.NoError(r.t, err)
		f.Age, f.Idle = 0, 0
		out[f.Original.String()] = fmt.Sprintf("%+v", f)
	}
	return out
}

func (r *rig) events() map[string]uint64 {
	r.t.Helper()
	out := map[string]uint64{}
	if r.flows == nil {
		return out
	}
	known, err := names.Of("flow_event", "FLOW")
	require.NoError(r.t, err)
	m := r.flows.DatapathParts().Maps[bpf.TableMapFlowEvents]
	for i, name := range known {
		var perCPU []uint64
		if err := m.Lookup(i, &perCPU); err != nil {
			continue // the number of events
		}
		for _, n := range perCPU {
			out[name] += n
		}
	}
	return out
}

// want is what a packet must do; what is not named must not happen.
type want struct {
	verdict int
	frame   []byte // nil: the frame that was sent
	sent    hop
	counted string
	events  []string
	flows   []string
}

func (r *rig) expect(p port, frame []byte, w want, msg ...any) passage {
	r.t.Helper()
	got := r.send(p, frame)
	if w.frame == nil {
		w.frame = frame
	}
	if !r.recording() {
		w.sent = got.sent
	}
	events := map[string]uint64{}
	for _, e := range w.events {
		events[e]++
	}
	slices.Sort(w.flows)
	assert.Equal(r.t, map[string]uint64{p.counter(w.counted): 1}, got.counted, msg...)
	assert.Equal(r.t, w.verdict, got.verdict, msg...)
	assert.Equal(r.t, w.sent, got.sent, msg...)
	assert.Equal(r.t, events, got.events, msg...)
	assert.Equal(r.t, w.flows, got.flows, msg...)
	if !assert.Equal(r.t, w.frame, got.frame, msg...) {
		a, _ := packet.Decode(w.frame)
		b, _ := packet.Decode(got.frame)
		r.t.Logf("want %s\ngot  %s", a, b)
	}
	if r.t.Failed() {
		r.t.FailNow()
	}
	return got
}

// Where a packet can go.

func hopped(frame []byte) []byte { return edit(frame, func(b []byte) { b[ttlAt(b)]-- }) }

func ttlAt(frame []byte) int {
	if frame[12] == 0x08 {
		return 22
	}
	return 21
}

// edit changes a copy of a frame and makes its IPv4 header checksum anew.
func edit(frame []byte, fn func([]byte)) []byte {
	b := slices.Clone(frame)
	fn(b)
	if b[12] == 0x08 && b[13] == 0 {
		b[24], b[25] = 0, 0
		binary.BigEndian.PutUint16(b[24:], packet.Checksum(b[14:14+int(b[14]&15)*4]))
	}
	return b
}

func addressed(frame []byte, dst, src packet.MAC) []byte {
	b := slices.Clone(frame)
	copy(b, dst[:])
	copy(b[6:], src[:])
	return b
}

func dropped(reason string, flows ...string) want {
	return want{verdict: verdictDrop, counted: "drop " + reason, flows: flows}
}

func intoGreen(frame []byte, flows ...string) want {
	return want{
		verdict: rediret, frame: addressed(hopped(frame), greenMAC, greenHost), counted: "to endpoint",
		sent: hop{ifindex: greenIfindex, peer: true}, flows: flows, events: eventsOf(flows),
	}
}

func intoBlue(frame []byte, flows ...string) want {
	return want{
		verdict: rediret, frame: addressed(hopped(frame), blueMAC, nodeMAC), counted: "to endpoint",
		sent: hop{ifindex: blueIfindex, peer: true}, flows: flows, events: eventsOf(flows),
	}
}

func intoOverlay(frame []byte, vni uint32, flows ...string) want {
	return want{
		verdict: rediret, frame: hopped(frame), counted: "to overlay",
		sent: hop{ifindex: overlayIfindex, vni: vni, node: redNode}, flows: flows, events: eventsOf(flows),
	}
}

func intoHost(frame []byte, flows ...string) want {
	return want{
		verdict: rediret, frame: addressed(frame, hostMAC, hostMAC), counted: "to host",
		sent: hop{ifindex: hostIfindex, flags: 1}, flows: flows, events: eventsOf(flows),
	}
}

// unhopped is a want for a packet whose TTL the stack has counted.
func (w want) unhopped(frame []byte) want {
	b := slices.Clone(frame)
	copy(b[:12], w.frame[:12])
	w.frame = b
	return w
}

func (w want) with(events ...string) want {
	w.events = append(slices.Clone(w.events), events...)
	return w
}

func eventsOf(flows []string) (out []string) {
	for _, f := range flows {
		if f[0] == '+' {
			out = append(out, "created")
		}
	}
	return out
}

func tupleOf(proto conntrack.Protocol, src netip.Addr, sport uint16, dst netip.Addr, dport uint16) string {
	return conntrack.Tuple{Src: netip.AddrPortFrom(src, sport), Dst: netip.AddrPortFrom(dst, dport), Protocol: proto}.String()
}

// The helpers that send are watched: what a program asks of them is not in the
// result of a test run. Without fentry in the kernel this is left out.

type recorder struct {
	users int
	calls *ebpf.Map
	links []ebpflink.Link
	none  bool
}

var (
	recorderMu sync.Mutex
	recorded   recorder
)

func (r *rig) recording() bool { return r.calls != nil }

// record starts to watch, for as long as any rig lives.
func (r *rig) record() {
	r.t.Helper()
	recorderMu.Lock()
	defer recorderMu.Unlock()
	if recorded.users == 0 {
		var err error
		if recorded.calls, recorded.links, err = startRecorder(); errors.Is(err, ebpf.ErrNotSupported) {
			r.t.Logf("the helpers' calls can not be watched: %v", err)
			recorded.none = true
		} else {
			require.NoError(r.t, err)
		}
	}
	recorded.users++
	if !recorded.none {
		r.calls = recorded.calls
	}
	r.t.Cleanup(func() {
		recorderMu.Lock()
		defer recorderMu.Unlock()
		if recorded.users--; recorded.users > 0 {
			return
		}
		for _, l := range recorded.links {
			assert.NoError(r.t, l.Close())
		}
		if recorded.calls != nil {
			assert.NoError(r.t, recorded.calls.Close())
		}
		recorded = recorder{}
	})
}

// watch notes what this thread's programs ask for until the returned function
// is called. The caller has locked the thread.
func (r *rig) watch() func() hop {
	if !r.recording() {
		return func() hop { return hop{} }
	}
	tid := uint32(unix.Gettid())
	var none [12]uint32
	if err := r.calls.Put(tid, none); err != nil {
		return func() hop { return hop{flags: 1 << 63} }
	}
	return func() hop {
		var c [12]uint32
		if r.calls.LookupAndDelete(tid, &c) != nil {
			return hop{flags: 1 << 63}
		}
		h := hop{ifindex: c[1], peer: c[0] == 2, flags: uint64(c[2])}
		if c[3] == 1 { // a redirect to the overlay; else the outer header is not used
			h.vni = c[4]
			h.node = netip.AddrFrom4([4]byte{byte(c[5] >> 24), byte(c[5] >> 16), byte(c[5] >> 8), byte(c[5])})
		}
		return h
	}
}

// startRecorder hangs a program on each helper. A record is a thread's: which
// helper, its interface and flags; whether a header was set, its VNI and node.
func startRecorder() (_ *ebpf.Map, _ []ebpflink.Link, err error) {
	var links []ebpflink.Link
	calls, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 48, MaxEntries: 256})
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			for _, l := range links {
				err = errors.Join(err, l.Close())
			}
			err = errors.Join(err, calls.Close())
		}
	}()
	find := asm.Instructions{ // R6: the arguments; R0: the thread's record
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetCurrentPidTgid.Call(),
		asm.StoreMem(asm.R10, -4, asm.R0, asm.Word),
		asm.LoadMapPtr(asm.R1, calls.FD()),
		asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
	}
	end := asm.Instructions{asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return()}
	redirect := func(kind int64) asm.Instructions {
		return slices.Concat(find, asm.Instructions{
			asm.StoreImm(asm.R0, 0, kind, asm.Word),
			asm.LoadMem(asm.R1, asm.R6, 0, asm.DWord), asm.StoreMem(asm.R0, 4, asm.R1, asm.Word),
			asm.LoadMem(asm.R1, asm.R6, 8, asm.DWord), asm.StoreMem(asm.R0, 8, asm.R1, asm.Word),
		}, end)
	}
	header := slices.Concat(find, asm.Instructions{
		asm.LoadMem(asm.R1, asm.R6, 16, asm.DWord), // size: the programs under test give the prefix
		asm.JNE.Imm(asm.R1, 28, "out"),             // and the rig's own one the whole
		asm.StoreImm(asm.R0, 12, 1, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R0), asm.Add.Imm(asm.R1, 16),
		asm.Mov.Imm(asm.R2, 28),
		asm.LoadMem(asm.R3, asm.R6, 8, asm.DWord),
		asm.FnProbeReadKernel.Call(),
	}, end)
	for target, insns := range map[string]asm.Instructions{
		"bpf_redirect": redirect(1), "bpf_redirect_peer": redirect(2), "bpf_skb_set_tunnel_key": header,
	} {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "record", Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFEntry, AttachTo: target, License: "GPL", Instructions: insns,
		})
		if err != nil {
			return nil, nil, fmt.Errorf("watch %s: %w", target, err)
		}
		l, err := ebpflink.AttachTracing(ebpflink.TracingOptions{Program: p})
		if err = errors.Join(err, p.Close()); err != nil {
			return nil, nil, fmt.Errorf("watch %s: %w", target, err)
		}
		links = append(links, l)
	}
	return calls, links, nil
}
