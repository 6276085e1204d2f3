// SPDX-License-Identifier: Apache-2.0

package main

import "fmt"

// target is what the project wants of a ratio.
type target struct {
	Measure    string  `json:"measure"`
	Contestant string  `json:"contestant"`
	Against    string  `json:"against"`
	Bound      float64 `json:"bound"`
	Ratio      float64 `json:"ratio"`
	Met        bool    `json:"met"`
	higher     bool
}

var targets = []target{
	{Measure: "rr", Contestant: nameSameNode, Against: nameVeth, Bound: 1.08},
	{Measure: "rr", Contestant: nameOverlay, Against: nameVeth, Bound: 1.45},
	{Measure: "rr", Contestant: nameOverlay, Against: nameKernelVXLAN, Bound: 1},
	{Measure: "crr", Contestant: nameSameNode, Against: nameVeth, Bound: 1.10},
	{Measure: "crr", Contestant: nameOverlay, Against: nameVeth, Bound: 1.50},
	{Measure: "crr", Contestant: nameOverlay, Against: nameKernelVXLAN, Bound: 1},
	{Measure: "crr", Contestant: nameService, Against: nameVeth, Bound: 1.12},
	{Measure: "crr", Contestant: nameServices, Against: nameService, Bound: 1.03},
	{Measure: "crr", Contestant: nameServices, Against: nameNFTables, Bound: 1},
	{Measure: "crr", Contestant: nameServices, Against: nameIPTables, Bound: 1},
	{Measure: "crr", Contestant: nameSocket, Against: nameSameNode, Bound: 1.05},
	{Measure: "crr", Contestant: nameNodePorts, Against: nameNodePort, Bound: 1.03},
	{Measure: "crr", Contestant: nameNodePorts, Against: nameNFTablesNodePort, Bound: 1},
	{Measure: "crr", Contestant: nameNodePorts, Against: nameIPTablesNodePort, Bound: 1},
	{Measure: "udp", Contestant: nameSameNode, Against: nameVeth, Bound: 0.92},
	{Measure: "udp", Contestant: nameOverlay, Against: nameKernelVXLAN, Bound: 1.10},
	{Measure: "stream", Contestant: nameSameNode, Against: nameVeth, Bound: 0.90},
	{Measure: "stream", Contestant: nameOverlay, Against: nameKernelVXLAN, Bound: 1},
}

// judge compares with the targets of what was measured.
func (rep *report) judge() {
	rep.Targets = nil
	for _, m := range rep.Measures {
		for _, t := range targets {
			// Who was left out is compared with nobody.
			if t.Measure != m.Name || !m.has(t.Contestant) || !m.has(t.Against) {
				continue
			}
			t.higher = m.Higher
			t.Ratio = m.of(t.Contestant).Median / m.of(t.Against).Median
			if t.higher {
				t.Met = t.Ratio >= t.Bound
			} else {
				t.Met = t.Ratio <= t.Bound
			}
			rep.Targets = append(rep.Targets, t)
		}
	}
}

// missed counts the targets that are not met.
func (rep *report) missed() (n int) {
	for _, t := range rep.Targets {
		if !t.Met {
			n++
		}
	}
	return n
}

// wish is the target in words: "≤ 1.08 × veth".
func (t target) wish() string {
	sign := "≤"
	if t.higher {
		sign = "≥"
	}
	return fmt.Sprintf("%s %.2f × %s", sign, t.Bound, t.Against)
}
