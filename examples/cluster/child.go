// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/probe"
)

// asChild makes this program a child that does the job in it: a socket belongs
// to the cgroup of the process that makes it.
const asChild = "DATAPATH_CLUSTER_PROBE"

// job is a probe of a child. It is started inside its namespace and its cgroup.
type job struct {
	Probe string // tcpEcho, udpEcho or datagramEcho
	To    netip.AddrPort
	Size  int
}

// answer is what a child prints.
type answer struct {
	Took  time.Duration
	Error string // "": it got through
}

// childMain is the child: it returns its exit code.
func childMain(text string, out, errs io.Writer) int {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		fmt.Fprintf(errs, "read the job: %v\n", err)
		return 2
	}
	took, err := j.run(context.Background())
	a := answer{Took: took}
	if err != nil {
		a.Error = err.Error()
	}
	if err := json.NewEncoder(out).Encode(a); err != nil {
		return 1
	}
	return 0
}

func (j job) run(ctx context.Context) (time.Duration, error) {
	ask := map[string]asker{tcpEcho: probe.TCP, udpEcho: probe.UDP, datagramEcho: probe.Datagram}[j.Probe]
	if ask == nil {
		return 0, fmt.Errorf("no such probe: %q", j.Probe)
	}
	here, err := devices.CurrentNamespace()
	if err != nil {
		return 0, err
	}
	defer here.Close()
	return ask(ctx, here, j.To, j.Size)
}

// askInCgroup has a child do the job. The time is the child's, without its start.
func askInCgroup(ctx context.Context, cgroup string, ns devices.Namespace, j job) (time.Duration, error) {
	text, err := json.Marshal(j)
	if err != nil {
		return 0, err
	}
	group, err := unix.Open(cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open the cgroup: %w", err)
	}
	defer unix.Close(group)
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), asChild+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: group}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := ns.Do(cmd.Start); err != nil {
		return 0, fmt.Errorf("start a child in the cgroup: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("the child in the cgroup: %w: %s", err, bytes.TrimSpace(errs.Bytes()))
	}
	var a answer
	if err := json.Unmarshal(out.Bytes(), &a); err != nil {
		return 0, fmt.Errorf("what the child in the cgroup says: %w", err)
	}
	if a.Error != "" {
		return 0, errors.New(a.Error)
	}
	return a.Took, nil
}
