// SPDX-License-Identifier: Apache-2.0

package main

// The file of -config is a JSON list of these. A field that is not here, that
// comes twice or that has a value which is not named here is an error.

// Service is addresses that lead to whichever backend is chosen. All of a service
// is of one family: one that is to be reached by IPv4 and by IPv6 is two.
type Service struct {
	Name      string     `json:"name"`      // its own; up to 127 bytes
	Frontends []Frontend `json:"frontends"` // one or more
	Backends  []Backend  `json:"backends"`  // with none of them active, clients are refused at once
	// Algorithm chooses a backend for a new connection, by their weights: random (the
	// default), or maglev, by the client's address and port, the same on every
	// balancer that has the same services.
	Algorithm string `json:"algorithm,omitempty"`
	// AffinitySeconds is how long a client, an address, stays with the backend that
	// it had last, counted from its last new connection; up to 86400. 0, the default:
	// it does not.
	AffinitySeconds int `json:"affinitySeconds,omitempty"`
	// SourceRanges are the prefixes of the clients that are served, such as
	// 192.0.2.0/24. The default is all.
	SourceRanges []string `json:"sourceRanges,omitempty"`
	// DenySources turns SourceRanges around: all others are served.
	DenySources bool `json:"denySources,omitempty"`
	// OnRemove says what becomes of the connections of a backend that is taken out of
	// the list: with reset, the default, they are ended; with drain they go on until
	// they end, for which the backend must still run. Those of a service that is taken
	// out are ended.
	OnRemove string `json:"onRemove,omitempty"`
}

// Frontend is where clients reach a service.
type Frontend struct {
	Address  string `json:"address"`            // ip:port or [ip]:port
	Protocol string `json:"protocol,omitempty"` // TCP (the default), UDP or SCTP, whose port is that of the backends too
	// Type is ExternalIP (the default) or LoadBalancer, which mean the same here, or
	// NodePort: then the address may be 0.0.0.0 or [::] for all of this machine's.
	Type string `json:"type,omitempty"`
}

// Backend is who serves.
type Backend struct {
	Address string `json:"address"` // ip:port or [ip]:port, of another machine
	// State is active (the default), or terminating, quarantined or maintenance: such
	// a backend gets no new connections, and those it has go on. If none is active
	// the terminating ones get new connections all the same.
	State string `json:"state,omitempty"`
	// Weight is its share of the new connections, 1 (the default) to 65535.
	Weight int `json:"weight,omitempty"`
}
