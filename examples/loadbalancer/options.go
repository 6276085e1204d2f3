// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/godatapath/datapath/conntrack"
	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/cluster"
)

const usage = `Balances connections over backends on other machines: TCP, UDP and SCTP, by IPv4
and IPv6. Root is needed, and nothing but Go.

  sudo go run ./examples/loadbalancer [-hold] [-name NAME]

shows it at work: a client, a balancer and three backends, each in a network
namespace of its own. It asks the services, changes their file, asks again and
takes everything away. Nothing is left behind, also after Ctrl-C. What a killed
run has left, the next one of the same -name clears away.

  sudo go run ./examples/loadbalancer -config FILE -device NAME [-device NAME] [flags]

is the real thing, on the devices of this machine, until Ctrl-C. FILE is a JSON
list of services: see examples/loadbalancer/services.json for one, and document.go
beside it for all fields. It is read again whenever it has changed; one that is
wrong is told, and what runs goes on.

A packet for a service goes on to one of its backends with this machine's address
as its source, so the answer comes back here, and the backend needs no route to
the client and does not see who it is. A packet must come in and go out by a
-device, both to the backends and to the clients; all other packets are left alone.
Backends and clients are other machines: what this one sends itself is not balanced.

A service may be at an address of this machine (ip address add 203.0.113.10/32 dev
eth0), whose other ports stay what they are, or at one that no device has. For such
an address packets must be routed to this machine, since nobody answers ARP or NDP
for it; there the balancer answers echoes, and refuses ports without a service.

Flags:
  -config FILE     the services; without it, the demonstration
  -device NAME     a device of this machine, with its addresses, the first of each
                   family that is not alone in its network, as they are at the
                   start; up to %d times
  -netns NAME      the namespace of the devices: its name in %s, or its
                   path (the current one)
  -pins DIR        folder for the pinned tables; a bpf filesystem is mounted there
                   (%s/NAME/bpf)
  -flows N         connections that are remembered, %d to %d (%d);
                   each takes 450 bytes, at once
  -xdp             packets of known connections are sent by the driver, before the
                   kernel has made anything of them, on devices whose driver can
  -hold            the demonstration stays up until Ctrl-C
  -name NAME       of the demonstration: prefix of the names of the namespaces; and
                   of the folder of the pins (lb): up to 64 letters, digits, '-', '_'
                   and '.', a letter or digit first

Look at it, while it runs:
  sudo go run ./examples/dpctl -pins %[3]s/lb/bpf service list
  sudo kill -USR1 PID    prints services, backends, connections and counters

IP forwarding of this machine is switched on, and stays on. If the balancer is
killed (SIGKILL), its programs go on; one that is started again takes over with
all connections.

The exit code is 0 if the demonstration has shown what it should, or if the
balancer was ended; 1 after an error and after Ctrl-C before the demonstration was
over; 2 for a bad command line.
`

const (
	fewestFlows = 16
	mostFlows   = 1 << 24
	mostDevices = 64 // programs.MostUplinks
)

// options are the flags.
type options struct {
	config  string // "": the demonstration
	devices []string
	netns   string
	pins    string // "": the default place of name
	flows   int
	xdp     bool
	name    string
	hold    bool
}

var (
	// errUsage is an error in the command line.
	errUsage  = errors.New("see -h")
	validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
)

func help() string {
	return fmt.Sprintf(usage, mostDevices, devices.NamespaceDir, cluster.DefaultDir, fewestFlows, mostFlows, conntrack.DefaultFlows)
}

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("loadbalancer", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.config, "config", "", "")
	fs.Func("device", "", func(name string) error {
		if slices.Contains(o.devices, name) {
			return errors.New("it comes twice")
		}
		o.devices = append(o.devices, name)
		return devices.CheckName(name)
	})
	fs.StringVar(&o.netns, "netns", "", "")
	fs.StringVar(&o.pins, "pins", "", "")
	fs.IntVar(&o.flows, "flows", conntrack.DefaultFlows, "")
	fs.BoolVar(&o.xdp, "xdp", false, "")
	fs.BoolVar(&o.hold, "hold", false, "")
	fs.StringVar(&o.name, "name", "lb", "")
	err := fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return o, err
	}
	if err == nil {
		err = o.check(fs)
	}
	if err != nil {
		return o, fmt.Errorf("%w (%w)", err, errUsage)
	}
	return o, nil
}

func (o *options) check(fs *flag.FlagSet) error {
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	switch {
	case fs.NArg() > 0:
		return fmt.Errorf("%q is not a flag", fs.Arg(0))
	case !validName.MatchString(o.name):
		return fmt.Errorf("-name %q: want letters, digits, '-', '_' and '.', a letter or digit first, at most 64", o.name)
	case o.flows < fewestFlows || o.flows > mostFlows:
		return fmt.Errorf("-flows %d: want %d to %d", o.flows, fewestFlows, mostFlows)
	case len(o.devices) > mostDevices:
		return fmt.Errorf("%d times -device: want up to %d", len(o.devices), mostDevices)
	case given["config"] && o.config == "":
		return errors.New("-config: want a file")
	case given["pins"] && o.pins == "":
		return errors.New("-pins: want a folder")
	case given["netns"] && o.netns == "":
		return errors.New("-netns: want a namespace")
	case o.config != "" && len(o.devices) == 0:
		return errors.New("-config needs a -device")
	case o.config != "" && o.hold:
		return errors.New("-hold is for the demonstration, and not for -config")
	case o.config != "":
		return nil
	}
	for _, name := range []string{"device", "netns", "pins", "flows", "xdp"} {
		if given[name] {
			return fmt.Errorf("-%s is for -config", name)
		}
	}
	return nil
}

// place is where the pins are to be.
func (o options) place() place {
	if o.pins != "" {
		pins := filepath.Clean(o.pins)
		return place{pins: pins, lock: pins + ".lock"}
	}
	dir := filepath.Join(cluster.DefaultDir, o.name)
	return place{pins: filepath.Join(dir, "bpf"), lock: filepath.Join(dir, "lock"), dir: dir}
}

// namespace opens the namespace of the devices. The caller closes it.
func (o options) namespace() (devices.Namespace, error) {
	switch {
	case o.netns == "":
		return devices.CurrentNamespace()
	case strings.Contains(o.netns, "/"):
		return devices.OpenNamespace(o.netns)
	}
	return devices.OpenNamed(o.netns)
}
