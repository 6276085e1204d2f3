// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"math/bits"
	"time"

	"github.com/godatapath/datapath/internal/invalid"
	"github.com/godatapath/datapath/maps"
)

// Defaults of [Config].
const (
	DefaultFlows     = 65536
	DefaultFragments = 8192
	DefaultInterval  = 10 * time.Second
)

// Config describes a flow table. The zero Config works.
type Config struct {
	maps.Config
	// Flows is how many flows fit; 0: [DefaultFlows]. A flow takes two entries,
	// about 450 bytes of kernel memory together, all taken at once.
	Flows int
	// Unconfirmed is how many of them may be flows whose originator has not
	// answered a reply yet, rounded up to a power of two and at most half of
	// Flows; 0: a quarter of Flows. When they are more, the oldest of these
	// goes: a flood of openings can not push out what is established.
	Unconfirmed int
	// Fragments is how many datagrams in parts are followed at once; 0:
	// [DefaultFragments].
	Fragments int
	// FragmentTimeout is how long the parts of one are waited for; 0: 30 s, as
	// the receiver does (RFC 791 leaves it open, Linux takes 30 s).
	FragmentTimeout time.Duration
	// NAT lets flows leave in the node's name; nil: none does.
	NAT *NAT
	// Timeouts of idle flows.
	Timeouts Timeouts
	// Interval is the time between two passes of [Table.Run]; 0:
	// [DefaultInterval].
	Interval time.Duration
}

// Timeouts are how long a flow may be idle before it is forgotten. A zero field
// has the default that stands beside it. None may be longer than 7 days: the
// programs keep time in 32 bits of the kernel's ticks, up to 1,000 a second, and
// a pass must come while it is still clear how long a flow has been idle.
type Timeouts struct {
	TCPNew         time.Duration // not confirmed; 60 s
	TCPEstablished time.Duration // 6 h; SCTP too
	TCPClosing     time.Duration // FIN from both sides, or RST; 10 s
	UDPNew         time.Duration // one way or one exchange; 30 s
	UDPConfirmed   time.Duration // 180 s (RFC 4787 asks for 2 minutes at least)
	ICMP           time.Duration // 30 s
	OtherNew       time.Duration // 60 s
	OtherConfirmed time.Duration // 600 s
}

func (t Timeouts) withDefaults() (Timeouts, error) {
	for _, f := range []struct {
		name string
		at   *time.Duration
		def  time.Duration
	}{
		{"TCPNew", &t.TCPNew, 60 * time.Second},
		{"TCPEstablished", &t.TCPEstablished, 6 * time.Hour},
		{"TCPClosing", &t.TCPClosing, 10 * time.Second},
		{"UDPNew", &t.UDPNew, 30 * time.Second},
		{"UDPConfirmed", &t.UDPConfirmed, 180 * time.Second},
		{"ICMP", &t.ICMP, 30 * time.Second},
		{"OtherNew", &t.OtherNew, 60 * time.Second},
		{"OtherConfirmed", &t.OtherConfirmed, 600 * time.Second},
	} {
		if *f.at == 0 {
			*f.at = f.def
		}
		if *f.at < 0 || *f.at > 7*24*time.Hour {
			return t, invalid.Errorf("Timeouts.%s is %s, want up to 7 days", f.name, *f.at)
		}
	}
	return t, nil
}

func (c Config) withDefaults() (Config, error) {
	if c.Flows == 0 {
		c.Flows = DefaultFlows
	}
	if c.Flows < 16 || c.Flows > 1<<26 {
		return c, invalid.Errorf("Flows is %d, want 16 to %d", c.Flows, 1<<26)
	}
	if c.Unconfirmed == 0 {
		c.Unconfirmed = c.Flows / 4
	}
	if c.Unconfirmed < 0 || c.Unconfirmed > c.Flows/2 {
		return c, invalid.Errorf("Unconfirmed is %d, want up to half of Flows, %d", c.Unconfirmed, c.Flows/2)
	}
	// A power of two, so that the place in the ring is a mask away; never
	// rounded past half of the table.
	if n := 1 << bits.Len(uint(c.Unconfirmed-1)); n <= c.Flows/2 {
		c.Unconfirmed = n
	} else {
		c.Unconfirmed = n / 2
	}
	if c.Fragments == 0 {
		c.Fragments = DefaultFragments
	}
	if c.Fragments < 0 || c.Fragments > 1<<24 {
		return c, invalid.Errorf("Fragments is %d, want up to %d", c.Fragments, 1<<24)
	}
	if c.FragmentTimeout == 0 {
		c.FragmentTimeout = 30 * time.Second
	}
	if c.FragmentTimeout < 0 || c.FragmentTimeout > time.Hour {
		return c, invalid.Errorf("FragmentTimeout is %s, want up to 1 h", c.FragmentTimeout)
	}
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	if c.Interval < 0 {
		return c, invalid.Errorf("Interval is %s, want more than 0", c.Interval)
	}
	var err error
	if c.NAT != nil {
		n, err := c.NAT.withDefaults()
		if err != nil {
			return c, err
		}
		c.NAT = &n
	}
	c.Timeouts, err = c.Timeouts.withDefaults()
	return c, err
}
