// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
)

// The ports of the demonstration's services, and of the backends.
const (
	echoPort   = 7  // repeats what it is told, TCP and UDP
	webPort    = 80 // tells the name of the backend, HTTP
	echoServer = 7007
	webServer  = 8080
)

// at is a service of the demonstration in a family, 4 or 6.
func at(family int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(serviceAddrs[family/6].Addr(), port)
}

// server is a port of the n-th backend, from 1.
func server(n, family int, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(backendAddrs(n)[family/6].Addr(), port)
}

// planServices is the file at the beginning.
func planServices() []Service {
	var all []Service
	for _, family := range bothFamilies {
		echo := at(family, echoPort).String()
		both := []Service{
			{Name: fmt.Sprintf("echo-ipv%d", family), Frontends: []Frontend{{Address: echo}, {Address: echo, Protocol: "UDP"}}},
			{Name: fmt.Sprintf("web-ipv%d", family), Frontends: []Frontend{{Address: at(family, webPort).String()}}},
		}
		for n := 1; n <= backends; n++ {
			both[0].Backends = append(both[0].Backends, Backend{Address: server(n, family, echoServer).String()})
			both[1].Backends = append(both[1].Backends, Backend{Address: server(n, family, webServer).String()})
		}
		all = append(all, both...)
	}
	return all
}

// withState is the file with the first backend of each service in a state.
func withState(all []Service, state string) []Service {
	all = slices.Clone(all)
	for i := range all {
		all[i].Backends = slices.Clone(all[i].Backends)
		all[i].Backends[0].State = state
	}
	return all
}

// without is the file without the first backend of each service.
func without(all []Service) []Service {
	all = slices.Clone(all)
	for i := range all {
		all[i].Backends = all[i].Backends[1:]
	}
	return all
}

// writeFile writes the file as a careful writer does: aside, and then in its place.
func writeFile(path string, all []Service) error {
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("write the services: %w", err)
	}
	if err := os.WriteFile(path+".new", append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the services: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write the services: %w", err)
	}
	return nil
}
