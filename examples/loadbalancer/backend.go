// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/godatapath/datapath/devices"
	"github.com/godatapath/datapath/examples/internal/probe"
)

// backend is the servers of one, IPv4 and IPv6.
type backend struct {
	name string
	echo [2]*probe.Echo
	web  [2]*http.Server
	done [2]chan error
}

// startBackend starts the servers of the n-th backend, from 1.
func startBackend(ns devices.Namespace, n int) (_ *backend, err error) {
	b := &backend{name: fmt.Sprintf("backend%d", n)}
	for i, family := range bothFamilies {
		if b.echo[i], err = probe.NewEchoAt(ns, server(n, family, echoServer)); err != nil {
			return nil, errors.Join(err, b.close())
		}
		var listener net.Listener
		err := ns.Do(func() (err error) {
			listener, err = net.Listen("tcp", server(n, family, webServer).String())
			return err
		})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start %s: %w", b.name, err), b.close())
		}
		b.web[i] = &http.Server{Handler: http.HandlerFunc(b.tell), ReadHeaderTimeout: time.Minute}
		b.done[i] = make(chan error, 1)
		go func() { b.done[i] <- b.web[i].Serve(listener) }()
	}
	return b, nil
}

// tell answers who serves, and who has asked as far as he can be seen.
func (b *backend) tell(w http.ResponseWriter, r *http.Request) {
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	fmt.Fprintf(w, "%s, asked by %s\n", b.name, from.Addr().Unmap())
}

func (b *backend) close() error {
	var errs []error
	for i := range bothFamilies {
		if b.echo[i] != nil {
			errs = append(errs, b.echo[i].Close())
		}
		if b.web[i] != nil {
			errs = append(errs, b.web[i].Close())
			if err := <-b.done[i]; !errors.Is(err, http.ErrServerClosed) {
				errs = append(errs, fmt.Errorf("serve as %s: %w", b.name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// asked is how often its echo was asked in a family.
func (b *backend) asked(family int) int {
	n, _ := b.echo[family/6].Asked()
	return n
}

// ask asks a web service once, on a connection of its own.
func ask(ctx context.Context, from devices.Namespace, to netip.AddrPort) (answer string, err error) {
	ctx, cancel := context.WithTimeout(ctx, probe.Timeout)
	defer cancel()
	var conn net.Conn
	err = from.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	request, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://%s/", to), nil)
	if err != nil {
		return "", err
	}
	request.Close = true
	if err := request.Write(conn); err != nil {
		return "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	return strings.TrimSpace(string(text)), err
}
