// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/godatapath/datapath/examples/internal/cluster"
)

// defaultName is that of our own cluster.
const defaultName = "custom"

const usage = `Counts the DNS questions of endpoints by a program of its own, before those of the
library on the same hook: examples/custom/dns_count.c, which is compiled when this
runs. Root and clang are needed. Nothing is left behind, also after Ctrl-C.

  sudo go run ./examples/custom                # on a small cluster that it builds, whose endpoints then ask
  sudo go run ./examples/custom -cluster dp    # on one that "examples/cluster -hold" keeps up

Flags:
  -cluster NAME    count on the cluster of that name until Ctrl-C, or until it ends
  -for D           with -cluster: for that long, such as 30s
  -name NAME       without -cluster: prefix of the names of the namespaces (%s). What a
                   killed run has left, the next one of the same name clears away

It prints a row for each endpoint: how many datagrams it has sent to port 53, and
how many connections it has opened to it.

The exit code is 0, also when Ctrl-C ends the counting on a cluster that is up; 1
after an error and after Ctrl-C before there is a result; 2 for a bad command line.
`

// options are the flags.
type options struct {
	cluster string // "": build one
	howLong time.Duration
	name    string // of the one that is built
}

// errUsage is an error in the command line.
var errUsage = errors.New("see -h")

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("custom", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.cluster, "cluster", "", "")
	flags.DurationVar(&o.howLong, "for", 0, "")
	flags.StringVar(&o.name, "name", defaultName, "")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return o, err
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	switch {
	case err != nil:
	case flags.NArg() > 0:
		err = fmt.Errorf("argument %q: there are only flags", flags.Arg(0))
	case given["cluster"] && (o.cluster == "" || o.cluster != filepath.Base(o.cluster)):
		err = fmt.Errorf("-cluster %q: a name is one path element", o.cluster)
	case given["for"] && !given["cluster"]:
		err = errors.New("-for is for a cluster that is up: name it with -cluster")
	case given["for"] && o.howLong <= 0:
		err = fmt.Errorf("-for %s: want more than 0", o.howLong)
	case given["name"] && given["cluster"]:
		err = errors.New("-name is for a cluster that is built, and -cluster for one that is up")
	case o.name == "":
		err = errors.New("-name: want a name")
	default:
		err = cluster.Config{Name: o.name}.Check()
	}
	if err != nil {
		return o, fmt.Errorf("%w (%w)", err, errUsage)
	}
	return o, nil
}
