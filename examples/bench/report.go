// SPDX-License-Identifier: Apache-2.0

package main

import (
	"runtime"
	"slices"

	"golang.org/x/sys/unix"
)

// report is what was measured, as the JSON document has it.
type report struct {
	Kernel   string    `json:"kernel"`
	Arch     string    `json:"arch"`
	CPUs     int       `json:"cpus"`
	CPU      int       `json:"cpu"` // that both ends were on
	Family   string    `json:"family"`
	Underlay string    `json:"underlay"`
	Rounds   int       `json:"rounds"`
	Seconds  float64   `json:"seconds"` // of one measurement
	Measures []results `json:"measures"`
	Targets  []target  `json:"targets"`
}

type results struct {
	measure
	Contestants []result `json:"contestants"`
}

type result struct {
	Name    string    `json:"name"`
	Title   string    `json:"title"`
	Rounds  []float64 `json:"rounds"`
	Median  float64   `json:"median"`
	Min     float64   `json:"min"`
	Max     float64   `json:"max"`
	ToVeth  float64   `json:"ratioToVeth"`
	ToVXLAN float64   `json:"ratioToKernelVXLAN"` // 0: that was not measured
	ours    bool
}

func newReport(s settings, contestants []contestant) *report {
	rep := &report{
		Kernel: kernelRelease(), Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), CPU: s.cpu, Family: "IPv4",
		Underlay: s.underlay, Rounds: s.rounds, Seconds: s.time.Seconds(),
	}
	if s.ipv6 {
		rep.Family = "IPv6"
	}
	for _, m := range s.measures {
		r := results{measure: m}
		for _, c := range contestants {
			r.Contestants = append(r.Contestants, result{Name: c.name, Title: c.title, ours: c.ours})
		}
		rep.Measures = append(rep.Measures, r)
	}
	return rep
}

func (r *result) add(v float64) { r.Rounds = append(r.Rounds, v) }

// conclude computes all that follows from the rounds.
func (rep *report) conclude() {
	for i := range rep.Measures {
		m := &rep.Measures[i]
		for k := range m.Contestants {
			c := &m.Contestants[k]
			c.Median, c.Min, c.Max = median(c.Rounds), slices.Min(c.Rounds), slices.Max(c.Rounds)
		}
		veth, vxlan := m.of(nameVeth), m.of(nameKernelVXLAN)
		for k := range m.Contestants {
			c := &m.Contestants[k]
			c.ToVeth = c.Median / veth.Median
			if vxlan.Median > 0 {
				c.ToVXLAN = c.Median / vxlan.Median
			}
		}
	}
	rep.judge()
}

// of returns the result of a contestant.
func (r results) of(name string) result {
	for _, c := range r.Contestants {
		if c.Name == name {
			return c
		}
	}
	return result{}
}

func (r results) has(name string) bool { return r.of(name).Name != "" }

// median of at least one value; the mean of the middle two if their number is
// even.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
