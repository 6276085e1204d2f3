// SPDX-License-Identifier: Apache-2.0

package programs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/godatapath/datapath/internal/invalid"
)

// CompileConfig says what to compile and how. Either Path or Text is required.
type CompileConfig struct {
	// Path of the C file. An #include "…" is looked for beside it first.
	Path string
	// Text is C source instead of a file.
	Text string
	// Name of Text in messages, a relative path; "": source.c.
	Name string
	// Include lists folders to look for headers in, before ours.
	Include []string
	// Flags go to clang last and so win over what Compile asks for, which is
	// "-O2 -g -mcpu=v3 -Wall -fno-stack-protector". Each is one argument; no
	// shell reads them.
	Flags []string
	// Clang is the compiler, a path or a name in PATH; "": the first of clang-19
	// and clang that is in PATH.
	Clang string
	// Warnings gets what clang says about a source that it compiles; nil: it is
	// thrown away. What it says about one that it does not is in the error.
	Warnings io.Writer
}

// CompileError says that clang refused the source, or could not work.
type CompileError struct {
	Command string // as it was run, its arguments separated by blanks
	Output  string // all that clang said, with file, line and column; our headers begin with "lib/"

	source string
	err    error
}

// Error has clang's output whole, so it is longer than a line.
func (e *CompileError) Error() string {
	text := fmt.Sprintf("compile %s: %s: %v", e.source, e.Command, e.err)
	if out := strings.TrimRight(e.Output, "\n"); out != "" {
		text += "\n" + out
	}
	return text
}

// Unwrap returns how clang ended, which is an [*exec.ExitError].
func (e *CompileError) Unwrap() error { return e.err }

// Compile turns C into programs and tables that can be loaded, for the byte
// order of this machine. Our headers are on the include path, as
// #include "lib/parse.h"; [Headers] tells which there are. clang runs with the
// environment and the working directory of this process, and is killed when ctx
// ends: the error is then that of ctx.
//
// What clang refuses is a [*CompileError] with its message whole. An absent
// compiler answers [exec.ErrNotFound], and [ebpf.ErrNotSupported] too if none
// was named: this machine has none. An absent Path answers os.ErrNotExist.
// Compile keeps no file and asks the kernel for nothing: the verifier speaks
// when the result is loaded.
func Compile(ctx context.Context, cfg CompileConfig) (*ebpf.CollectionSpec, error) {
	name, err := cfg.check()
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w", name, err)
	}
	clang, err := findClang(cfg.Clang)
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w", name, err)
	}
	dir, err := os.MkdirTemp("", "datapath-compile-")
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w", name, err)
	}
	object, said, err := cfg.compileIn(ctx, dir, clang, name)
	if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
		return nil, err
	}
	if cfg.Warnings != nil && len(said) > 0 {
		if _, err := cfg.Warnings.Write(said); err != nil {
			return nil, fmt.Errorf("compile %s: hand on the warnings: %w", name, err)
		}
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("compile %s: read the object that %s wrote: %w", name, clang, err)
	}
	return spec, nil
}

// check returns the name of the source for messages.
func (c CompileConfig) check() (string, error) {
	name := c.Path
	if name == "" {
		name = c.Name
	}
	if name == "" {
		name = "source.c"
	}
	switch {
	case c.Path == "" && c.Text == "":
		return name, invalid.Errorf("neither Path nor Text is given")
	case c.Path != "" && c.Text != "":
		return name, invalid.Errorf("both Path and Text are given")
	case c.Path != "" && c.Name != "":
		return name, invalid.Errorf("Name is for Text, a file has its own")
	case c.Path == "" && !filepath.IsLocal(name):
		return name, fmt.Errorf("Name %q is not a relative path", name)
	}
	if c.Path != "" {
		if _, err := os.Stat(c.Path); err != nil {
			return name, err
		}
	}
	return name, nil
}

// findClang returns the compiler to run.
func findClang(name string) (string, error) {
	const advice = "install the Debian package clang-19, or clang, or name another compiler"
	if name != "" {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("find clang: %w (%s)", err, advice)
		}
		return path, nil
	}
	path, err := exec.LookPath("clang-19")
	if err == nil {
		return path, nil
	}
	path, err2 := exec.LookPath("clang")
	if err2 == nil {
		return path, nil
	}
	return "", fmt.Errorf("find clang: %w, %w (%s): %w", err, err2, advice, ebpf.ErrNotSupported)
}

// compileIn runs clang, with dir as its private folder. Text becomes a file
// there, because clang reads it twice: the second time for the lines that the
// verifier quotes.
func (c CompileConfig) compileIn(ctx context.Context, dir, clang, name string) (object, said []byte, err error) {
	headers, sources := filepath.Join(dir, "headers"), filepath.Join(dir, "sources")
	source := c.Path
	if source == "" {
		source = filepath.Join(sources, name)
		if err := writeFile(source, c.Text); err != nil {
			return nil, nil, fmt.Errorf("compile %s: write the source: %w", name, err)
		}
	}
	if err := os.CopyFS(headers, Headers()); err != nil {
		return nil, nil, fmt.Errorf("compile %s: write our headers: %w", name, err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, clang, c.arguments(headers, source)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// Clang may be a script that runs others: they end with it.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	err = cmd.Run()
	text := strings.NewReplacer(sources+"/", "", headers+"/", "").Replace(stderr.String())
	switch {
	case err == nil:
		return stdout.Bytes(), []byte(text), nil
	case ctx.Err() != nil:
		return nil, nil, fmt.Errorf("compile %s: %w", name, context.Cause(ctx))
	default:
		return nil, nil, &CompileError{Command: strings.Join(cmd.Args, " "), Output: text, source: name, err: err}
	}
}

// arguments are those of clang. The object goes to its standard output.
func (c CompileConfig) arguments(headers, source string) []string {
	target := "bpfel"
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		target = "bpfeb"
	}
	// Some distributions have clang protect the stack, which BPF does not know.
	args := []string{"-target", target, "-c", "-O2", "-g", "-mcpu=v3", "-Wall", "-fno-stack-protector"}
	for _, dir := range c.Include {
		args = append(args, "-I", dir)
	}
	args = append(append(args, "-I", headers), c.Flags...)
	if strings.HasPrefix(source, "-") {
		source = "./" + source // not an option
	}
	return append(args, "-o", "-", "-x", "c", source)
}

func writeFile(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o600)
}
