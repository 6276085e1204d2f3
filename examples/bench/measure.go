// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
)

// measure is one kind of traffic.
type measure struct {
	Name   string `json:"name"`
	Title  string `json:"title"`
	Unit   string `json:"unit"`
	Higher bool   `json:"higherIsBetter"`
	value  func(client, server outcome) float64
}

var measures = []measure{
	{"rr", "TCP request/response of 1 byte, median", "µs", false,
		func(client, _ outcome) float64 { return client.P50 }},
	{"crr", "TCP connect/request/response/close, median", "µs", false,
		func(client, _ outcome) float64 { return client.P50 }},
	{"udp", "UDP, 64 bytes of payload, received", "kpkt/s", true,
		func(_, server outcome) float64 { return server.Rate / 1e3 }},
	{"stream", "TCP stream, received", "Gbit/s", true,
		func(_, server outcome) float64 { return server.Rate / 1e9 }},
}

func measureNames() (names []string) {
	for _, m := range measures {
		names = append(names, m.Name)
	}
	return names
}

func selectMeasures(list string) (out []measure, err error) {
	for name := range strings.SplitSeq(list, ",") {
		if slices.ContainsFunc(out, func(m measure) bool { return m.Name == name }) {
			return nil, fmt.Errorf("%q comes twice", name)
		}
		found := false
		for _, m := range measures {
			if m.Name == name {
				out, found = append(out, m), true
			}
		}
		if !found {
			return nil, fmt.Errorf("%q is none of %s", name, strings.Join(measureNames(), ", "))
		}
	}
	return out, nil
}

// settings are what a run of all measurements needs.
type settings struct {
	rounds   int
	time     time.Duration
	measures []measure
	cpu      int
	ipv6     bool
	services int      // of the contestants with many
	only     []string // contestants; empty: all
	underlay string
	name     string // of our cluster
}

// What is between the nodes of the overlays.
const (
	underlayWire   = "wire"
	underlayBridge = "bridge"
)

// port is free: nothing else runs in the namespaces. It is a NodePort too.
const port = 30000

func (s settings) measureAll(ctx context.Context, p *progress) (_ *report, err error) {
	a, err := newArena(ctx, s, p)
	if err != nil {
		return nil, err
	}
	defer func() {
		p.say("taking everything away")
		if e := a.close(); e != nil {
			err = errors.Join(err, fmt.Errorf("take everything away: %w", e))
		}
		p.done()
	}()
	rep := newReport(s, a.contestants)
	p.begin(s.rounds, len(s.measures)*len(a.contestants), s.time+s.warmUp())
	for range s.rounds {
		for i, m := range s.measures {
			for k, c := range a.contestants {
				p.step(fmt.Sprintf("%-6s  %s", m.Name, c.title))
				v, err := s.measure(ctx, m, c)
				if ctx.Err() != nil {
					return nil, ctx.Err() // and not what became of the two processes
				}
				if err != nil {
					return nil, fmt.Errorf("measure %s with %s: %w", m.Name, c.title, err)
				}
				rep.Measures[i].Contestants[k].add(v)
			}
		}
	}
	rep.conclude()
	return rep, nil
}

func (s settings) warmUp() time.Duration { return min(s.time/5, 300*time.Millisecond) }

// measure runs a server and a client.
func (s settings) measure(ctx context.Context, m measure, c contestant) (float64, error) {
	j := job{
		Measure: m.Name, Addr: netip.AddrPortFrom(c.addr, port), CPU: s.cpu,
		Time: s.time, WarmUp: s.warmUp(),
	}
	// A path that loses everything must not hang the run.
	ctx, cancel := context.WithTimeoutCause(ctx, j.WarmUp+j.Time+20*time.Second, errors.New("it took too long: do packets get lost?"))
	defer cancel()

	j.Server = true
	server := startChild(ctx, c.server, "", j)
	defer server.stop()
	if err := server.waitReady(); err != nil {
		return 0, fmt.Errorf("server: %w", err)
	}
	j.Server = false
	if c.front.IsValid() {
		j.Addr = netip.AddrPortFrom(c.front, port)
	}
	client := startChild(ctx, c.client, c.cgroup, j)
	defer client.stop()
	fromClient, err := client.wait()
	if err != nil {
		return 0, fmt.Errorf("client: %w", err)
	}
	fromServer, err := server.wait()
	if err != nil {
		return 0, fmt.Errorf("server: %w", err)
	}
	v := m.value(fromClient, fromServer)
	if v <= 0 {
		return 0, errors.New("there is no result")
	}
	return v, nil
}

// child is one end of a measurement, a process of its own.
type child struct {
	ctx    context.Context
	cancel context.CancelFunc
	out    *bufio.Reader
	pipe   *os.File
	stderr bytes.Buffer
	ended  chan error
}

// startChild starts this program again inside a namespace, and in a cgroup unless
// that is "". What goes wrong is told by waitReady or wait.
func startChild(ctx context.Context, ns devices.Namespace, cgroup string, j job) *child {
	c := &child{ended: make(chan error, 1)}
	c.ctx, c.cancel = context.WithCancel(ctx)
	r, w, err := os.Pipe()
	if err != nil {
		c.ended <- err
		return c
	}
	c.pipe, c.out = r, bufio.NewReader(r)
	go func() {
		// A process begins in the namespace of the thread that starts it, and the
		// thread stays until the process ends: if it goes, so does the process.
		err := ns.Do(func() error {
			cmd, err := c.command(j, w)
			if err == nil {
				err = startIn(cmd, cgroup)
			}
			w.Close()
			if err != nil {
				return err
			}
			return cmd.Wait()
		})
		w.Close()
		c.ended <- err
	}()
	return c
}

func (c *child) command(j job, stdout *os.File) (*exec.Cmd, error) {
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(c.ctx, self, childFlag, string(text))
	cmd.Env = append(os.Environ(), childEnv...)
	cmd.Stdout, cmd.Stderr = stdout, &c.stderr
	// A group of its own: an interrupt from the keyboard is for us alone, and we
	// end the children.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	return cmd, nil
}

func startIn(cmd *exec.Cmd, cgroup string) error {
	if cgroup != "" {
		group, err := unix.Open(cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open cgroup %s: %w", cgroup, err)
		}
		defer unix.Close(group)
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, group
	}
	return cmd.Start()
}

func (c *child) waitReady() error {
	if c.out == nil {
		return c.failure(nil)
	}
	line, err := c.out.ReadString('\n')
	if err == nil && strings.TrimSpace(line) == readyWord {
		return nil
	}
	return c.failure(err)
}

// wait returns what the child has measured.
func (c *child) wait() (out outcome, err error) {
	if c.out == nil {
		return out, c.failure(nil)
	}
	if err := json.NewDecoder(c.out).Decode(&out); err != nil {
		return out, c.failure(err)
	}
	err = <-c.ended
	c.ended <- err
	return out, err
}

// failure says why a child did not say what it should.
func (c *child) failure(read error) error {
	err := <-c.ended
	c.ended <- err
	if cause := context.Cause(c.ctx); cause != nil {
		return cause
	}
	if text := strings.TrimSpace(c.stderr.String()); text != "" {
		return errors.New(text)
	}
	return errors.Join(err, read)
}

// stop ends the child if it still runs, and waits for its end.
func (c *child) stop() {
	c.cancel()
	<-c.ended
	if c.pipe != nil {
		c.pipe.Close()
	}
}
