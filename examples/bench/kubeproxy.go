// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// backendsOfRules is how many each service has, but for the one that is asked:
// its only one is the server.
const backendsOfRules = 3

// errLeftOut is why a contestant can not be had here.
var errLeftOut = errors.New("left out")

// ruleSet is services as kube-proxy makes them: a set for every service, another
// for every backend, the mark for what must be masqueraded, and the kernel's
// connection tracking behind all. The middle one of them leads to the server.
type ruleSet struct {
	ipv6     bool
	pods     netip.Prefix
	nodePort bool // the service that leads to the server is at the node's addresses too
	services []ruleService
}

type ruleService struct {
	front    netip.AddrPort
	protocol string // tcp or udp
	asked    bool
	backends []netip.AddrPort
}

func (a *arena) newRuleSet(front, server netip.Addr, services int) ruleSet {
	s := ruleSet{ipv6: a.ipv6, pods: a.addr("10.99.0.0/16", "fd00:99::/32")}
	for i := range services {
		if i == services/2 {
			for _, protocol := range []string{"tcp", "udp"} {
				s.services = append(s.services, ruleService{
					front: netip.AddrPortFrom(front, port), protocol: protocol, asked: true, backends: []netip.AddrPort{netip.AddrPortFrom(server, port)},
				})
			}
			continue
		}
		hi, lo := i>>8, i&255
		rs := ruleService{front: netip.AddrPortFrom(a.addr(fmt.Sprintf("10.96.%d.%d/32", hi, lo), fmt.Sprintf("fd00:96::%x:%x/128", hi, lo)).Addr(), port), protocol: "tcp"}
		for j := range backendsOfRules {
			rs.backends = append(rs.backends, netip.AddrPortFrom(a.addr(fmt.Sprintf("10.%d.%d.%d/32", 100+j, hi, lo), fmt.Sprintf("fd00:%d::%x:%x/128", 100+j, hi, lo)).Addr(), port))
		}
		s.services = append(s.services, rs)
	}
	return s
}

func (a *arena) addIPTables(ctx context.Context) error {
	tool := "iptables-restore"
	if a.ipv6 {
		tool = "ip6tables-restore"
	}
	return a.addRules(ctx, rules{name: nameIPTables, title: "iptables, of " + thousands(a.services), text: ruleSet.iptables, tool: tool})
}

func (a *arena) addNFTables(ctx context.Context) error {
	return a.addRules(ctx, rules{name: nameNFTables, title: "nftables, of " + thousands(a.services), text: ruleSet.nftables, tool: "nft", args: []string{"-f", "-"}})
}

// rules is a contestant made of them.
type rules struct {
	name, title string
	nodePort    bool // the client asks at the router's own address
	text        func(ruleSet) string
	tool        string
	args        []string
}

// addRules puts a router between the two, with services in its rules.
func (a *arena) addRules(ctx context.Context, r rules) error {
	path, err := exec.LookPath(r.tool)
	if err != nil {
		return fmt.Errorf("%w: %w", errLeftOut, err)
	}
	router, c, err := a.routed()
	if err != nil {
		return err
	}
	c.name, c.title, c.front = r.name, r.title, a.serviceAddr()
	set := a.newRuleSet(c.front, c.addr, a.services)
	if r.nodePort {
		c.front = a.routerAddr(1)
		// Who asks from outside is no pod, so it is masqueraded.
		set.nodePort, set.pods = true, a.addr("10.98.0.0/16", "fd00:98::/32")
	}
	input := r.text(set)
	err = router.Do(func() error {
		cmd := exec.CommandContext(ctx, path, r.args...)
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", r.tool, err, strings.TrimSpace(string(out)))
		}
		return nil
	})
	if err != nil {
		return err
	}
	a.add(c)
	return nil
}

// iptables is the input of iptables-restore.
func (s ruleSet) iptables() string {
	var chains, rules, ports strings.Builder
	host := 32
	if s.ipv6 {
		host = 128
	}
	for i, svc := range s.services {
		to := fmt.Sprintf("-d %s/%d -p %s -m %s --dport %d", svc.front.Addr(), host, svc.protocol, svc.protocol, svc.front.Port())
		fmt.Fprintf(&chains, ":KUBE-SVC-%d - [0:0]\n", i)
		if s.nodePort && svc.asked {
			fmt.Fprintf(&chains, ":KUBE-EXT-%d - [0:0]\n", i)
			fmt.Fprintf(&ports, "-A KUBE-NODEPORTS -p %s -m %s --dport %d -j KUBE-EXT-%d\n", svc.protocol, svc.protocol, svc.front.Port(), i)
			fmt.Fprintf(&ports, "-A KUBE-EXT-%d -j KUBE-MARK-MASQ\n-A KUBE-EXT-%d -j KUBE-SVC-%d\n", i, i, i)
		}
		fmt.Fprintf(&rules, "-A KUBE-SERVICES %s -j KUBE-SVC-%d\n", to, i)
		fmt.Fprintf(&rules, "-A KUBE-SVC-%d ! -s %s %s -j KUBE-MARK-MASQ\n", i, s.pods, to)
		for j, b := range svc.backends {
			one := ""
			if left := len(svc.backends) - j; left > 1 {
				one = fmt.Sprintf(" -m statistic --mode random --probability %.10f", 1/float64(left))
			}
			fmt.Fprintf(&chains, ":KUBE-SEP-%d-%d - [0:0]\n", i, j)
			fmt.Fprintf(&rules, "-A KUBE-SVC-%d%s -j KUBE-SEP-%d-%d\n", i, one, i, j)
			fmt.Fprintf(&rules, "-A KUBE-SEP-%d-%d -s %s/%d -j KUBE-MARK-MASQ\n", i, j, b.Addr(), host)
			fmt.Fprintf(&rules, "-A KUBE-SEP-%d-%d -p %s -m %s -j DNAT --to-destination %s\n", i, j, svc.protocol, svc.protocol, b)
		}
	}
	return `*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
` + chains.String() + `-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
` + rules.String() + `-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
` + ports.String() + `COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
`
}

// nftables is the input of nft: one look-up in a map leads to the service's chain.
func (s ruleSet) nftables() string {
	var chains, elements, ports strings.Builder
	family, addr := "ip", "ipv4_addr"
	if s.ipv6 {
		family, addr = "ip6", "ipv6_addr"
	}
	for i, svc := range s.services {
		var choice []string
		for j, b := range svc.backends {
			fmt.Fprintf(&chains, "\tchain endpoint-%d-%d {\n\t\t%s saddr %s jump mark-for-masquerade\n\t\tmeta l4proto %s dnat to %s\n\t}\n",
				i, j, family, b.Addr(), svc.protocol, b)
			choice = append(choice, fmt.Sprintf("%d : goto endpoint-%d-%d", j, i, j))
		}
		fmt.Fprintf(&chains, "\tchain service-%d {\n\t\t%s daddr %s %s dport %d %s saddr != %s jump mark-for-masquerade\n\t\tnumgen random mod %d vmap { %s }\n\t}\n",
			i, family, svc.front.Addr(), svc.protocol, svc.front.Port(), family, s.pods, len(svc.backends), strings.Join(choice, ", "))
		if s.nodePort && svc.asked {
			fmt.Fprintf(&chains, "\tchain external-%d {\n\t\tjump mark-for-masquerade\n\t\tgoto service-%d\n\t}\n", i, i)
			fmt.Fprintf(&ports, "\t\t\t%s . %d : goto external-%d,\n", svc.protocol, svc.front.Port(), i)
		}
		fmt.Fprintf(&elements, "\t\t\t%s . %s . %d : goto service-%d,\n", svc.front.Addr(), svc.protocol, svc.front.Port(), i)
	}
	return "table " + family + ` kube-proxy {
	chain mark-for-masquerade {
		meta mark set meta mark or 0x4000
	}
` + chains.String() + `	map service-ips {
		type ` + addr + ` . inet_proto . inet_service : verdict
		elements = {
` + elements.String() + `		}
	}
	map service-nodeports {
		type inet_proto . inet_service : verdict
` + elementsOf(ports.String()) + `	}
	chain services {
		` + family + ` daddr . meta l4proto . th dport vmap @service-ips
		fib daddr type local meta l4proto . th dport vmap @service-nodeports
	}
	chain nat-prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		jump services
	}
	chain nat-output {
		type nat hook output priority -100; policy accept;
		jump services
	}
	chain nat-postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark and 0x4000 == 0 return
		meta mark set meta mark xor 0x4000
		masquerade fully-random
	}
	chain filter-forward {
		type filter hook forward priority -110; policy accept;
		ct state invalid drop
	}
}
`
}

// elementsOf is the elements of a map, which nft does not take if there are none.
func elementsOf(lines string) string {
	if lines == "" {
		return ""
	}
	return "\t\telements = {\n" + lines + "\t\t}\n"
}
