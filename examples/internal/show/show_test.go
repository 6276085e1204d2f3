// SPDX-License-Identifier: Apache-2.0

package show

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func written(t *testing.T, indent string, rows []Row) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, Write(&b, indent, rows))
	return b.String()
}

func TestWrite(t *testing.T) {
	t.Parallel()
	require.Equal(t, "  (none)\n", written(t, "  ", nil))
	require.Equal(t, ""+
		"NAME  COUNT  LAST\n"+
		"µs        7  x\n"+
		"long  12345\n", written(t, "", []Row{{"NAME", "COUNT", "LAST"}, {"µs", "7", "x"}, {"long", "12345", ""}}))
}

func TestPairsStandCloser(t *testing.T) {
	t.Parallel()
	require.Equal(t, ""+
		"10.0.1.180  id=3663 identity=37483 ifindex=24  to a node vni=1\n"+
		"10.0.1.9    id=1    identity=2     ifindex=3   to\n", written(t, "", []Row{
		{"10.0.1.180", "id=3663", "identity=37483", "ifindex=24", "to a node vni=1"},
		{"10.0.1.9", "id=1", "identity=2", "ifindex=3", "to"},
	}))
}

type broken struct{}

var errBroken = errors.New("broken")

func (broken) Write([]byte) (int, error) { return 0, errBroken }

func TestWriteError(t *testing.T) {
	t.Parallel()
	require.ErrorIs(t, Write(broken{}, "", nil), errBroken)
	require.ErrorIs(t, Write(broken{}, "", []Row{{"a"}}), errBroken)
}

// The rows that the field expects.
func TestRows(t *testing.T) {
	t.Parallel()
	require.Equal(t, "10.0.1.180  id=3663 identity=37483 ifindex=24 mac=FE:55:00:00:00:01 nodemac=D2:F1:00:00:00:02\n",
		written(t, "", EndpointRows([]Endpoint{{
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.1.180")}, ID: 3663, Identity: 37483, Ifindex: 24,
			MAC: "fe:55:00:00:00:01", NodeMAC: "d2:f1:00:00:00:02",
		}})))
	require.Equal(t, "10.42.1.0/24  172.16.16.121  vni=identity\n10.42.9.0/24  172.16.16.122  vni=700\n", written(t, "", PeerRows([]Peer{
		{Prefix: netip.MustParsePrefix("10.42.1.0/24"), Node: netip.MustParseAddr("172.16.16.121")},
		{Prefix: netip.MustParsePrefix("10.42.9.0/24"), Node: netip.MustParseAddr("172.16.16.122"), VNI: 700},
	})))
	require.Equal(t, ""+
		"to overlay               from endpoint  12  3400\n"+
		"dropped: spoofed source  from endpoint   1    60\n",
		written(t, "", MetricRows([]Metric{
			{Outcome: "to overlay", Program: "from endpoint", Direction: "egress", Packets: 12, Bytes: 3400},
			{Outcome: "spoofed source", Dropped: true, Program: "from endpoint", Direction: "egress", Packets: 1, Bytes: 60},
		})))
}

func TestFlowRows(t *testing.T) {
	t.Parallel()
	a, b := netip.MustParseAddr("10.0.1.10"), netip.MustParseAddr("10.0.2.10")
	overlay := Verdict{Action: "to overlay", Node: "172.16.16.12", VNI: 1000}
	f := Flow{
		Tuple: Tuple{"TCP", a, 40312, b, 80}, Reply: Tuple{"TCP", b, 80, a, 40312}, State: "established", Idle: 3.9, Age: 62.4,
		Sent: Counters{12, 3400}, Received: Counters{10, 9000}, Forward: overlay,
	}
	require.Equal(t, "TCP  10.0.1.10:40312 -> 10.0.2.10:80  established  idle=3s age=1m2s sent=12/3400 received=10/9000  to overlay 172.16.16.12 vni=1000\n",
		written(t, "", FlowRows([]Flow{f})))
	for _, test := range []struct {
		name string
		f    Flow
		want []string // the second and the last cell
	}{
		{"both ways", Flow{Tuple: f.Tuple, Reply: f.Reply, Forward: overlay, Back: Verdict{Action: "to endpoint", SendsTo: 4}},
			[]string{"10.0.1.10:40312 -> 10.0.2.10:80", "to overlay 172.16.16.12 vni=1000, replies to endpoint ifindex=4"}},
		{"translated", Flow{Tuple: f.Tuple, Reply: Tuple{"TCP", netip.MustParseAddr("10.0.3.3"), 8080, a, 40312}, Forward: Verdict{Action: "to host"}, Back: Verdict{Action: "to endpoint", SendsTo: 4}},
			[]string{"10.0.1.10:40312 -> 10.0.2.10:80", "to host as 10.0.1.10:40312 -> 10.0.3.3:8080, replies to endpoint ifindex=4"}},
		{"masqueraded", Flow{Tuple: f.Tuple, Reply: Tuple{"TCP", b, 80, netip.MustParseAddr("172.16.16.11"), 1024}, Forward: Verdict{Action: "to device", SendsTo: 2, Node: "172.16.16.1"}, Back: Verdict{Action: "to endpoint", SendsTo: 4}},
			[]string{"10.0.1.10:40312 -> 10.0.2.10:80", "to device ifindex=2 via 172.16.16.1 as 172.16.16.11:1024 -> 10.0.2.10:80, replies to endpoint ifindex=4"}},
		{"masqueraded echo", Flow{Tuple: Tuple{"ICMP", a, 77, b, 0}, Reply: Tuple{"ICMP", b, 0, netip.MustParseAddr("172.16.16.11"), 78}, Forward: Verdict{Action: "to device", SendsTo: 2}},
			[]string{"10.0.1.10 -> 10.0.2.10 echo 77", "to device ifindex=2 as 172.16.16.11 -> 10.0.2.10 echo 78"}},
		{"from a backend on another node", Flow{Tuple: f.Tuple, Reply: f.Reply, Forward: overlay, Back: Verdict{Action: "to device", SendsTo: 2, VNI: 1000, Node: "172.16.16.12"}},
			[]string{"10.0.1.10:40312 -> 10.0.2.10:80", "to overlay 172.16.16.12 vni=1000, replies to device ifindex=2"}},
		{"echo", Flow{Tuple: Tuple{"ICMP", a, 77, b, 0}, Reply: Tuple{"ICMP", b, 0, a, 77}}, []string{"10.0.1.10 -> 10.0.2.10 echo 77", ""}},
		{"no ports", Flow{Tuple: Tuple{"protocol 47", a, 0, b, 0}, Reply: Tuple{"protocol 47", b, 0, a, 0}}, []string{"10.0.1.10 -> 10.0.2.10", ""}},
	} {
		row := FlowRows([]Flow{test.f})[0]
		require.Equal(t, test.want, []string{row[1], row[len(row)-1]}, test.name)
	}
}

func TestStatsRow(t *testing.T) {
	t.Parallel()
	s := FlowStats{Established: 2, New: 1, Closing: 4, Fill: 0.1234, Created: 8, Evicted: 3}
	require.Equal(t, "flows=7 new=1 established=2 closing=4 full=12.34% created=8 evicted=3 insert-errors=0\n", written(t, "", []Row{s.Row()}))
	s.InsertErrors = map[string]uint64{"ENOMEM": 1, "E2BIG": 22}
	require.Equal(t, "E2BIG:22,ENOMEM:1", s.Errors())
}

func TestUnder(t *testing.T) {
	t.Parallel()
	rows := []Row{{"a"}, {"b"}}
	require.Equal(t, []Row{{"n", "a"}, {"n", "b"}}, Under("n", rows))
	require.Equal(t, []Row{{"a"}, {"b"}}, rows)
}
