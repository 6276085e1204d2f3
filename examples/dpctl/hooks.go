// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/show"
	"github.com/godatapath/datapath/programs"
)

// hook is one side of a device that a program of ours is on, with all that
// runs there.
type hook struct {
	Device    string     `json:"device"` // "" if it is gone and only the pin is left
	Ifindex   int        `json:"ifindex"`
	Direction string     `json:"direction"` // as the device sees it: an endpoint's sending is ingress
	Endpoint  string     `json:"endpoint"`  // first address of the endpoint behind the device, or ""
	Programs  []attached `json:"programs"`  // in the order in which they run
}

// attached is a program on a hook.
type attached struct {
	Kind string `json:"kind"` // xdp, tcx or a classic tc filter; in this order they run
	ID   uint32 `json:"id"`   // of the program; 0 for a filter that is none
	Name string `json:"name"`
	Tag  string `json:"tag"`
	Ours bool   `json:"ours"`
	Pin  string `json:"pin"` // of our attachment
}

// readHooks lists the hooks of the node whose pins are in the folder. behind has
// an address of the endpoint behind a device, by ifindex.
func readHooks(pins string, ns devices.Namespace, behind map[int]string) ([]hook, error) {
	s, err := programs.ReadStatus(pins, ns)
	if err != nil {
		return nil, err
	}
	out := []hook{}
	err = withNetlink(ns, func(nl *netlink.Handle) error {
		for _, h := range s.Hooks {
			one := hook{Device: h.Device, Ifindex: h.Ifindex, Endpoint: behind[h.Ifindex], Programs: []attached{}}
			if h.Ifindex != 0 {
				one.Direction = h.Direction.String()
			}
			first, last, err := others(nl, h)
			if err != nil {
				return err
			}
			one.Programs = append(one.Programs, first...)
			for _, p := range h.Programs {
				one.Programs = append(one.Programs, attached{
					Kind: "tcx", ID: uint32(p.ID), Name: p.Name, Tag: p.Tag, Ours: p.Pin != "", Pin: p.Pin,
				})
			}
			one.Programs = append(one.Programs, last...)
			out = append(out, one)
		}
		return nil
	})
	return out, err
}

// others lists what runs before tcx and what runs behind it: XDP and the classic
// filters.
func others(nl *netlink.Handle, h programs.HookStatus) (first, last []attached, err error) {
	if h.Ifindex == 0 {
		return nil, nil, nil
	}
	dev, err := nl.LinkByIndex(h.Ifindex)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) || errors.Is(err, unix.ENODEV) {
		return nil, nil, nil // since it was listed
	}
	if err != nil {
		return nil, nil, fmt.Errorf("look at device %s: %w", h.Device, err)
	}
	parent := uint32(netlink.HANDLE_MIN_EGRESS)
	if h.Direction == programs.Ingress {
		parent = netlink.HANDLE_MIN_INGRESS
		if xdp := dev.Attrs().Xdp; xdp != nil && xdp.Attached {
			first = append(first, attached{Kind: "xdp", ID: xdp.ProgId})
		}
	}
	filters, err := nl.FilterList(dev, parent)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return first, nil, nil // no qdisc that could have filters
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list the filters of %s: %w", h.Device, err)
	}
	for _, f := range filters {
		if f.Attrs().Handle == 0 {
			continue // the head of its list
		}
		if b, ok := f.(*netlink.BpfFilter); ok {
			last = append(last, attached{Kind: "tc bpf", ID: uint32(b.Id), Name: b.Name, Tag: b.Tag})
			continue
		}
		// The parts of one filter, as its hash tables and keys, are one filter.
		a := attached{Kind: "tc " + f.Type(), Name: fmt.Sprintf("pref %d", f.Attrs().Priority)}
		if n := len(last); n == 0 || last[n-1] != a {
			last = append(last, a)
		}
	}
	return first, last, nil
}

func printHooks(w io.Writer, indent string, hooks []hook) error {
	if hooks == nil {
		return nil
	}
	if _, err := fmt.Fprintf(w, "%shooks, with programs in the order in which they run\n", indent); err != nil {
		return err
	}
	var rows []show.Row
	for _, h := range hooks {
		device, direction, endpoint := h.Device, h.Direction, h.Endpoint
		if device == "" {
			device = "(the device is gone)"
		}
		for i, p := range h.Programs {
			owner := "not ours"
			if p.Ours {
				owner = "ours"
			}
			name := p.Name
			if name == "" {
				name = "(no name)"
			}
			id, tag := "", ""
			if p.ID != 0 {
				id = "id=" + strconv.FormatUint(uint64(p.ID), 10)
			}
			if p.Tag != "" {
				tag = "tag=" + p.Tag
			}
			rows = append(rows, show.Row{device, endpoint, direction, strconv.Itoa(i+1) + ".", p.Kind, name, owner, id, tag})
			device, endpoint, direction = "", "", "" // once is enough
		}
	}
	return show.Write(w, indent+"  ", rows)
}

func withNetlink(ns devices.Namespace, fn func(*netlink.Handle) error) error {
	return ns.Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer nl.Close()
		return fn(nl)
	})
}
