// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/internal/bpf"
	"github.com/godatapath/datapath/internal/names"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/godatapath/datapath/internal/wire"
	"github.com/godatapath/datapath/programs"
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
	r.record(r.blocks)
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

// as makes a subtest the one that fails.
func (r *rig) as(t *testing.T) {
	before := r.t
	r.t = t
	t.Cleanup(func() { r.t = before })
}

// attached is the table of the endpoints whose programs are attached.
func (r *rig) attached() *ebpf.Map {
	return programs.TablesForTest(r.dp)[bpf.TableMapEndpointAttached]
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

// on is the way in by another device.
func (p port) on(ifindex uint32) port { p.ifindex = ifindex; return p }

func (p port) counter(what string) string {
	return strings.ReplaceAll(p.program, "_", " ") + ": " + what
}

// skbContext is the struct __sk_buff of a test run, as far as the kernel takes
// fields of it.
type skbContext struct {
	_        [2]uint32
	Mark     uint32
	_        [7]uint32
	Ifindex  uint32
	_        [25]uint32
	_        uint64
	Tstamp   uint64
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
	neigh   bool // to a next hop, whose address the kernel finds
	via     netip.Addr
	flags   uint64
	vni     uint32
	node    netip.Addr
}

// passage is what became of one packet, and all that it moved.
type passage struct {
	in      []byte
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
	events, flows := r.events(), r.flowList()
	out = r.inject(p, frame)
	out.events = moved(events, r.events())
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
func (r *rig) inject(p port, frame []byte) passage {
	r.t.Helper()
	out := r.injectAll(p, [][]byte{frame})
	require.Len(r.t, out, 1, "the kernel does not run a frame of %d bytes", len(frame))
	return out[0]
}

// injectAll sends frames into a port, one after the other, and counts what each
// of them moved. Frames that are too short for the kernel to run are left out.
func (r *rig) injectAll(p port, frames [][]byte) (all []passage) {
	r.t.Helper()
	prog := r.recorded[p.program]
	if p.node.IsValid() {
		prog = r.sender(p)
	}
	require.NoError(r.t, r.ns.Do(func() error {
		before, err := r.tally()
		if err != nil {
			return err
		}
		var own []byte // of the device: what is not for it is another host's
		if dev, err := net.InterfaceByIndex(int(p.ifindex)); err == nil && p.program == "from_device" {
			own = dev.HardwareAddr
		}
		for _, sent := range frames {
			frame := sent
			if own != nil && bytes.Equal(frame[:6], blueHost[:]) {
				frame = append(slices.Clone(own), frame[6:]...)
			}
			ctx := skbContext{GSOSize: p.gso}
			if p.gso > 0 {
				ctx.GSOSegs = uint32(len(frame)) / p.gso
			}
			if p.ifindex > 1 {
				ctx.Ifindex = p.ifindex
			}
			opts := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: ctx}
			ret, err := prog.Run(&opts)
			if errors.Is(err, unix.EINVAL) && len(frame) < 14+40 {
				continue
			}
			if err != nil {
				return err
			}
			for _, at := range []int{0, 6} {
				if len(opts.DataOut) >= 12 && own != nil && bytes.Equal(opts.DataOut[at:at+6], own) {
					copy(opts.DataOut[at:], blueHost[:])
				}
			}
			frame = sent
			out := passage{in: frame, verdict: int(int32(ret)), frame: opts.DataOut, counted: map[string]uint64{}}
			if out.sent, err = r.sent(); err != nil {
				return err
			}
			after, err := r.tally()
			if err != nil {
				return err
			}
			for i := range after {
				if after[i] != before[i] {
					out.counted[counterNames()[uint32(i)]] += after[i] - before[i]
				}
			}
			before = after
			all = append(all, out)
		}
		return nil
	}))
	return all
}

// tally reads all counters at once.
func (r *rig) tally() ([]uint64, error) {
	const n = 8 * 64 // programs by outcomes
	m := r.metrics.DatapathParts().Maps[bpf.TableMapMetrics]
	cpus := ebpf.MustPossibleCPU()
	keys, values := make([]uint32, n), make([]bpf.TableCounters, n*cpus)
	var cursor ebpf.MapBatchCursor
	if _, err := m.BatchLookup(&cursor, keys, values, nil); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, err
	}
	out := make([]uint64, n)
	for i, k := range keys {
		for _, c := range values[i*cpus : (i+1)*cpus] {
			out[k] += c.Packets
		}
	}
	return out, nil
}

// namesOf reads names from BTF; the tests want them after each packet.
func namesOf(enum, prefix string) map[uint32]string {
	all, err := names.Of(enum, prefix)
	if err != nil {
		panic(err)
	}
	return all
}

var eventNames = sync.OnceValue(func() map[uint32]string { return namesOf("flow_event", "FLOW") })

var counterNames = sync.OnceValue(func() map[uint32]string {
	out := map[uint32]string{}
	for p, program := range namesOf("program", "PROGRAM") {
		for a, action := range namesOf("action", "ACTION") {
			out[p*64+a] = program + ": " + action
		}
		for d, reason := range namesOf("drop_reason", "DROP") {
			if d > 0 {
				out[p*64+d] = program + ": drop " + reason
			}
		}
	}
	return out
})

// sender is overlayProgram, made once for a sender.
func (r *rig) sender(p port) *ebpf.Program {
	if r.senders == nil {
		r.senders = map[port]*ebpf.Program{}
	}
	key := port{node: p.node, vni: p.vni}
	if r.senders[key] == nil {
		r.senders[key] = r.overlayProgram(p.node, p.vni, r.recorded["from_overlay"])
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
	m := r.flows.DatapathParts().Maps[bpf.TableMapFlowEvents]
	for i, name := range eventNames() {
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
	events := map[string]uint64{}
	for _, e := range w.events {
		events[e]++
	}
	slices.Sort(w.flows)
	var bad []string
	check := func(what string, want, got any) {
		if !assert.ObjectsAreEqual(want, got) {
			bad = append(bad, fmt.Sprintf("%s: want %+v, got %+v", what, want, got))
		}
	}
	check("counters", map[string]uint64{p.counter(w.counted): 1}, got.counted)
	check("verdict", w.verdict, got.verdict)
	check("sent to", w.sent, got.sent)
	check("events", events, got.events)
	check("flows", w.flows, got.flows)
	if !bytes.Equal(w.frame, got.frame) {
		at := 0
		for at < len(w.frame) && at < len(got.frame) && w.frame[at] == got.frame[at] {
			at++
		}
		a, _ := packet.Decode(w.frame)
		b, _ := packet.Decode(got.frame)
		bad = append(bad, fmt.Sprintf("frame: differs from byte %d on\n  want %d bytes % x: %s\n  got  %d bytes % x: %s",
			at, len(w.frame), w.frame[:min(96, len(w.frame))], a, len(got.frame), got.frame[:min(96, len(got.frame))], b))
	}
	if bad != nil {
		sent, _ := packet.Decode(frame)
		require.Fail(r.t, fmt.Sprintf("%s: %s\n%s", p.program, sent, strings.Join(bad, "\n")), msg...)
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

// Where a packet is sent is not in the result of a test run. So the programs
// are loaded a second time, with the same tables and settings, and with each
// call of a helper that sends going through a function which notes the
// arguments.

// record loads the programs so that they tell what they ask of the kernel.
func (r *rig) record(blocks []programs.Block) {
	r.t.Helper()
	var err error
	r.calls, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 48, MaxEntries: 1})
	require.NoError(r.t, err)
	r.t.Cleanup(func() { r.calls.Close() })
	r.recorded = map[string]*ebpf.Program{}
	settings, err := programs.SettingsForTest(r.dp)
	require.NoError(r.t, err)
	tables := programs.TablesForTest(r.dp)
	for _, b := range blocks {
		maps.Copy(settings, b.DatapathParts().Settings)
		maps.Copy(tables, b.DatapathParts().Maps)
	}
	for name, spec := range programSpecs() {
		spec = spec.Copy()
		for k, v := range settings {
			if spec.Variables[k] != nil {
				require.NoError(r.t, spec.Variables[k].Set(v))
			}
		}
		replace := map[string]*ebpf.Map{}
		for k, ms := range spec.Maps {
			if m := tables[k]; m != nil {
				ms.MaxEntries, ms.Flags = m.MaxEntries(), m.Flags()
				replace[k] = m
			}
		}
		noteCalls(spec.Programs[name], r.calls)
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
		if err != nil {
			r.t.Fatalf("%+v", err)
		}
		r.recorded[name] = coll.DetachProgram(name)
		coll.Close()
		r.t.Cleanup(func() { r.recorded[name].Close() })
	}
}

// programSpecs are the objects of the hooks, read once. A test copies them.
var programSpecs = sync.OnceValue(func() map[string]*ebpf.CollectionSpec {
	out := map[string]*ebpf.CollectionSpec{}
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){
		"from_endpoint": bpf.LoadFromEndpoint, "to_endpoint": bpf.LoadToEndpoint,
		"from_host": bpf.LoadFromHost, "from_overlay": bpf.LoadFromOverlay, "from_device": bpf.LoadFromDevice,
	} {
		spec, err := load()
		if err != nil {
			panic(err)
		}
		out[name] = spec
	}
	return out
})

// noteCalls leads the calls of the sending helpers through functions of ours.
// What they note: which helper redirected, to which interface, with which
// flags, and the 20 bytes of the next hop; whether a header was set, and the 28
// bytes of it.
func noteCalls(p *ebpf.ProgramSpec, calls *ebpf.Map) {
	detours := map[asm.BuiltinFunc]string{
		asm.FnRedirect: "note_redirect", asm.FnRedirectPeer: "note_peer", asm.FnRedirectNeigh: "note_neigh",
		asm.FnSkbSetTunnelKey: "note_header",
	}
	used := map[string]bool{}
	for i, ins := range p.Instructions {
		if to := detours[asm.BuiltinFunc(ins.Constant)]; ins.IsBuiltinCall() && to != "" {
			detour := asm.Call.Label(to)
			detour.Metadata = ins.Metadata
			p.Instructions[i] = detour.WithReference(to)
			used[to] = true
		}
	}
	word := &btf.Int{Name: "long", Size: 8, Encoding: btf.Signed}
	begin := func(name string, args ...string) asm.Instructions { // R0: the record, R6 to R9: the arguments
		proto := &btf.FuncProto{Return: word}
		for _, a := range args {
			proto.Params = append(proto.Params, btf.FuncParam{Name: a, Type: word})
		}
		// The verifier wants a source line for each function: any will do.
		first := asm.Mov.Reg(asm.R6, asm.R1).WithSymbol(name).WithSource(p.Instructions[0].Source())
		out := asm.Instructions{btf.WithFuncMetadata(first, &btf.Func{Name: name, Type: proto, Linkage: btf.StaticFunc})}
		for i := 1; i < len(args); i++ {
			out = append(out, asm.Mov.Reg(asm.R6+asm.Register(i), asm.R1+asm.Register(i)))
		}
		return append(out,
			asm.StoreImm(asm.R10, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, calls.FD()),
			asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, name+"_on"),
		)
	}
	redirect := func(name string, kind int64, fn asm.BuiltinFunc) asm.Instructions {
		return append(begin(name, "ifindex", "flags"),
			asm.StoreImm(asm.R0, 0, kind, asm.Word),
			asm.StoreMem(asm.R0, 4, asm.R6, asm.Word),
			asm.StoreMem(asm.R0, 8, asm.R7, asm.Word),
			asm.Mov.Reg(asm.R1, asm.R6).WithSymbol(name+"_on"),
			asm.Mov.Reg(asm.R2, asm.R7),
			fn.Call(), asm.Return(),
		)
	}
	bodies := map[string]asm.Instructions{
		"note_redirect": redirect("note_redirect", 1, asm.FnRedirect),
		"note_peer":     redirect("note_peer", 2, asm.FnRedirectPeer),
	}
	header := append(begin("note_header", "skb", "key", "size", "flags"), asm.StoreImm(asm.R0, 12, 1, asm.Word))
	for off := int16(0); off < 28; off += 4 {
		header = append(header, asm.LoadMem(asm.R1, asm.R7, off, asm.Word), asm.StoreMem(asm.R0, 16+off, asm.R1, asm.Word))
	}
	bodies["note_header"] = append(header,
		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("note_header_on"),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, 28),
		asm.Mov.Reg(asm.R4, asm.R9),
		asm.FnSkbSetTunnelKey.Call(), asm.Return(),
	)
	neigh := append(begin("note_neigh", "ifindex", "params", "size", "flags"),
		asm.StoreImm(asm.R0, 0, 3, asm.Word),
		asm.StoreMem(asm.R0, 4, asm.R6, asm.Word),
		asm.StoreMem(asm.R0, 8, asm.R9, asm.Word),
		asm.JEq.Imm(asm.R7, 0, "note_neigh_on"),
	)
	for off := int16(0); off < 20; off += 4 { // struct bpf_redir_neigh
		neigh = append(neigh, asm.LoadMem(asm.R1, asm.R7, off, asm.Word), asm.StoreMem(asm.R0, 16+off, asm.R1, asm.Word))
	}
	bodies["note_neigh"] = append(neigh,
		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("note_neigh_on"),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Reg(asm.R3, asm.R8),
		asm.Mov.Reg(asm.R4, asm.R9),
		asm.FnRedirectNeigh.Call(), asm.Return(),
	)
	for name := range used {
		p.Instructions = append(p.Instructions, bodies[name]...)
	}
}

// sent returns what has been asked since the last time.
func (r *rig) sent() (hop, error) {
	var c [12]uint32
	if err := errors.Join(r.calls.Lookup(uint32(0), &c), r.calls.Put(uint32(0), [12]uint32{})); err != nil {
		return hop{}, err
	}
	h := hop{ifindex: c[1], peer: c[0] == 2, neigh: c[0] == 3, flags: uint64(c[2])}
	if h.neigh {
		var next []byte
		for _, w := range c[5:9] {
			next = binary.NativeEndian.AppendUint32(next, w)
		}
		switch c[4] {
		case unix.AF_INET:
			h.via = netip.AddrFrom4([4]byte(next))
		case unix.AF_INET6:
			h.via = netip.AddrFrom16([16]byte(next))
		}
	}
	if c[3] == 1 {
		h.vni = c[4]
		h.node = netip.AddrFrom4([4]byte{byte(c[5] >> 24), byte(c[5] >> 16), byte(c[5] >> 8), byte(c[5])})
	}
	return h, nil
}

// key is the key of a flow's entry in the table itself.
func key(src netip.Addr, sport uint16, dst netip.Addr, dport uint16, protocol uint8) bpf.TableTuple {
	swap := func(p uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, p)) }
	return bpf.TableTuple{Saddr: wire.Addr(src), Daddr: wire.Addr(dst), Sport: swap(sport), Dport: swap(dport), Protocol: protocol}
}
