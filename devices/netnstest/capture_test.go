// SPDX-License-Identifier: Apache-2.0

package netnstest_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/godatapath/datapath/devices/netnstest"
	"github.com/godatapath/datapath/internal/packet"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// marked is a frame that nobody answers, with a number.
func marked(n int) []byte {
	return packet.Build(packet.Ethernet{Dst: packet.Broadcast(), Type: 0x88b5}, packet.Payload{byte(n), 1, 2, 3})
}

func TestSendRawAndCapture(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	out, in := a.Capture(""), b.Capture("")
	const count = 200
	for n := range count {
		require.NoError(t, a.SendRaw("", marked(n)))
	}
	isMarked := func(f netnstest.Frame) bool { return f.Bytes[12] == 0x88 && f.Bytes[13] == 0xb5 }
	last := func(f netnstest.Frame) bool { return isMarked(f) && f.Bytes[14] == count-1 }
	for c, outgoing := range map[*netnstest.Capture]bool{out: true, in: false} {
		f, err := c.Wait(last, time.Second)
		require.NoError(t, err)
		assert.Equal(t, marked(count-1), f.Bytes)
		assert.Equal(t, count, c.Count(isMarked), "every frame, in both captures")
		for n, f := range c.Frames() {
			if isMarked(f) {
				assert.Equal(t, outgoing, f.Outgoing)
				assert.WithinDuration(t, time.Now(), f.Time, 5*time.Second, "frame %d", n)
			}
		}
		assert.Zero(t, c.Missed())
	}
}

func TestCaptureKeepsTheVLANTag(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	in := b.Capture("")
	for _, typ := range []uint16{packet.TypeVLAN, packet.TypeQinQ} {
		frame := packet.Build(packet.Ethernet{Dst: packet.Broadcast(), Type: typ}, packet.VLAN{TCI: 0x2005, Type: 0x88b5}, packet.Sized(30))
		require.NoError(t, a.SendRaw("", frame))
		_, err := in.Wait(func(f netnstest.Frame) bool { return string(f.Bytes) == string(frame) }, time.Second)
		require.NoError(t, err)
	}
}

func TestSummary(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	in := b.Capture("")
	server := b.Echo(at(b.Addr6(), 80))
	_, err := a.ProbeUDP(server, 4)
	require.NoError(t, err)
	f, err := in.Wait(func(f netnstest.Frame) bool { return f.Summary().Dst == server }, time.Second)
	require.NoError(t, err)
	s := f.Summary()
	assert.Equal(t, a.Addr6(), s.Src.Addr())
	assert.Equal(t, uint8(17), s.Protocol)
	assert.Equal(t, []byte{0, 1, 2, 3}, s.Payload)
	assert.Regexp(t, `^in 2001:db8::1 > 2001:db8::2 ttl 64 UDP \d+ > 80 4 bytes$`, f.String())
	_, err = in.Wait(func(f netnstest.Frame) bool { s := f.Summary(); return s.Protocol == 58 && s.Type == 135 }, time.Second)
	require.NoError(t, err, "the solicitation that came first")
	assert.Contains(t, netnstest.Frame{Bytes: []byte{1}}.String(), "decode Ethernet")
}

func TestCaptureWaitErrors(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	in := b.Capture("")
	never := func(netnstest.Frame) bool { return false }
	_, err := a.Ping(b.Addr4(), netnstest.PingOptions{})
	require.NoError(t, err)
	_, err = in.Wait(never, 10*time.Millisecond)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.ErrorContains(t, err, "in 192.0.2.1 > 192.0.2.2 ttl 64 ICMP type 8", "the error shows what was seen")

	waiting := make(chan error, 1)
	go func() {
		_, err := in.Wait(never, time.Minute)
		waiting <- err
	}()
	require.NoError(t, in.Close())
	require.NoError(t, in.Close(), "twice is once")
	require.ErrorIs(t, <-waiting, os.ErrClosed)
	seen := len(in.Frames())
	assert.NotZero(t, seen, "frames stay")
	_, err = a.Ping(b.Addr4(), netnstest.PingOptions{})
	require.NoError(t, err)
	assert.Len(t, in.Frames(), seen, "a closed capture hears nothing")
	assert.Error(t, in.WriteFile(filepath.Join(t.TempDir(), "no", "folder")))
}

func TestCaptureSurvivesLinkDown(t *testing.T) {
	t.Parallel()
	_, a, b := pair(t)
	in := b.Capture("")
	require.NoError(t, b.SetLink("", false))
	require.NoError(t, b.SetLink("", true))
	require.NoError(t, a.SendRaw("", marked(7)))
	_, err := in.Wait(func(f netnstest.Frame) bool { return string(f.Bytes) == string(marked(7)) }, time.Second)
	require.NoError(t, err)
}

func TestFailedTestLeavesAPcapFile(t *testing.T) {
	t.Parallel()
	for name, fails := range map[string]bool{"failed": true, "passed": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "new")
			tb := fatal(func(tb *fakeTB) {
				lab := netnstest.New(tb, netnstest.Config{PcapDir: dir})
				a, b := lab.Host("a", "192.0.2.1/24"), lab.Host("b", "192.0.2.2/24")
				lab.Wire(a, b)
				b.Capture("")
				a.Capture("lo") // stays empty, so there is no file
				if err := a.SendRaw("", marked(42)); err != nil {
					tb.Fatalf("send: %v", err)
				}
				if fails {
					tb.Fatalf("on purpose")
				}
			})
			if !fails {
				assert.Empty(t, tb.errors)
				assert.NoDirExists(t, dir)
				return
			}
			assert.Equal(t, []string{"on purpose"}, tb.errors)
			require.Len(t, tb.logs, 1)
			path := regexp.MustCompile(`of eth0 of b are in (\S+)`).FindStringSubmatch(tb.logs[0])
			require.Len(t, path, 2, tb.logs[0])
			assert.Equal(t, dir, filepath.Dir(path[1]))
			assert.Regexp(t, `^Fake_test_one-b-eth0-.*\.pcap$`, filepath.Base(path[1]))
			file, err := os.ReadFile(path[1])
			require.NoError(t, err)
			assert.Equal(t, uint32(0xa1b23c4d), binary.LittleEndian.Uint32(file))
			assert.Contains(t, string(file), string(marked(42)))
		})
	}
}
