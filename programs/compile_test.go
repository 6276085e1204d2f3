// SPDX-License-Identifier: Apache-2.0

package programs_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/programs"
)

const license = "\nchar _license[] SEC(\"license\") = \"Dual BSD/GPL\";\n"

// A program that counts, with our parser, and a table of its own.
const countSource = `#include "lib/bpf.h"
#include "lib/net.h"
#include "lib/parse.h"
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");
static int count(struct __sk_buff *skb, __u32 who) {
	struct packet p;
	__u64 *n;
	if (packet_parse(skb, &p) || p.tuple.protocol != IPPROTO_UDP)
		return TCX_NEXT;
	n = bpf_map_lookup_elem(&seen, &who);
	if (n)
		__sync_fetch_and_add(n, 1);
	return TCX_NEXT;
}
SEC("tc") int count_first(struct __sk_buff *skb) { return count(skb, 0); }
SEC("tc") int count_second(struct __sk_buff *skb) { return count(skb, 1); }
` + license

// skipWithoutClang skips the test if err says that this machine has no compiler.
func skipWithoutClang(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, ebpf.ErrNotSupported) {
		t.Skipf("this machine has no clang: %v", err)
	}
}

func compileText(t *testing.T, text string) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := programs.Compile(t.Context(), programs.CompileConfig{Text: text})
	skipWithoutClang(t, err)
	require.NoError(t, err)
	return spec
}

func TestCompileLoads(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "count.c")
	require.NoError(t, os.WriteFile(path, []byte(countSource), 0o600))
	for name, cfg := range map[string]programs.CompileConfig{
		"text": {Text: countSource},
		"file": {Path: path},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec, err := programs.Compile(t.Context(), cfg)
			skipWithoutClang(t, err)
			require.NoError(t, err)
			require.Len(t, spec.Programs, 2)
			require.Len(t, spec.Maps, 1, "the user's table and none of ours")
			require.Equal(t, "Dual BSD/GPL", spec.Programs["count_first"].License)
			coll, err := ebpf.NewCollection(spec)
			require.NoError(t, err)
			defer coll.Close()
			verdict, _, err := coll.Programs["count_first"].Test(make([]byte, 64))
			require.NoError(t, err)
			require.Equal(t, ^uint32(0), verdict, "TCX_NEXT")
		})
	}
}

func TestCompileErrorIsWholeAndNamesTheLine(t *testing.T) {
	t.Parallel()
	const bad = "#include \"lib/bpf.h\"\nint f(void) {\n\treturn nothing_of_that_name;\n}\nint g(void) { return 1 }\n"
	path := filepath.Join(t.TempDir(), "users.c")
	require.NoError(t, os.WriteFile(path, []byte(bad), 0o600))
	for name, test := range map[string]struct {
		cfg   programs.CompileConfig
		place string
	}{
		"file":           {programs.CompileConfig{Path: path}, path},
		"text":           {programs.CompileConfig{Text: bad}, "source.c"},
		"text of a name": {programs.CompileConfig{Text: bad, Name: "my programs/users.c"}, "my programs/users.c"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := programs.Compile(t.Context(), test.cfg)
			skipWithoutClang(t, err)
			var compile *programs.CompileError
			require.ErrorAs(t, err, &compile)
			for _, want := range []string{
				test.place + ":3:9: error: use of undeclared identifier 'nothing_of_that_name'",
				"return nothing_of_that_name;", // the line itself
				test.place + ":5:23: error: expected ';' after return statement",
				"2 errors generated.",
			} {
				assert.Contains(t, compile.Output, want)
				assert.ErrorContains(t, err, want)
			}
			assert.Contains(t, compile.Command, "clang")
			assert.Contains(t, compile.Command, "-mcpu=v3")
			assert.ErrorContains(t, err, "compile "+test.place+": ")
			var exit *exec.ExitError
			assert.ErrorAs(t, err, &exit)
		})
	}
}

func TestCompileWarningsAreKeptAndNotFatal(t *testing.T) {
	t.Parallel()
	const text = "static int unused;\nint f(void) { return 1; }\n"
	var said strings.Builder
	_, err := programs.Compile(t.Context(), programs.CompileConfig{Text: text, Warnings: &said})
	skipWithoutClang(t, err)
	require.NoError(t, err)
	require.Contains(t, said.String(), "source.c:1:12: warning: unused variable 'unused'")

	compileText(t, text) // thrown away

	_, err = programs.Compile(t.Context(), programs.CompileConfig{Text: text, Flags: []string{"-Werror"}})
	var compile *programs.CompileError
	require.ErrorAs(t, err, &compile, "flags are the caller's")

	_, err = programs.Compile(t.Context(), programs.CompileConfig{Text: text, Warnings: full{}})
	require.ErrorIs(t, err, io.ErrShortWrite)
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestCompileIncludeAndFlags(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "inc", "mine"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "inc", "mine", "number.h"), []byte("#define FROM_HEADER 7\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "beside.h"), []byte("#define FROM_BESIDE 8\n"), 0o600))
	const text = `#include "lib/bpf.h"
#include "mine/number.h"
#include "beside.h"
SEC("tc") int number(struct __sk_buff *skb) { (void)skb; return FROM_HEADER * 10000 + FROM_BESIDE * 100 + FROM_FLAG; }
` + license
	path := filepath.Join(dir, "-number.c") // a name that could be taken for an option
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	spec, err := programs.Compile(t.Context(), programs.CompileConfig{
		Path: path, Include: []string{filepath.Join(dir, "inc")}, Flags: []string{"-DFROM_FLAG=9"},
	})
	skipWithoutClang(t, err)
	require.NoError(t, err)
	p, err := ebpf.NewProgram(spec.Programs["number"])
	require.NoError(t, err)
	defer p.Close()
	got, _, err := p.Test(make([]byte, 64))
	require.NoError(t, err)
	require.EqualValues(t, 70809, got)

	_, err = programs.Compile(t.Context(), programs.CompileConfig{Path: path})
	require.ErrorContains(t, err, "'mine/number.h' file not found")
}

func TestCompileBadInput(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		cfg  programs.CompileConfig
		is   error
		text string
	}{
		"nothing":           {programs.CompileConfig{}, nil, "neither Path nor Text"},
		"both":              {programs.CompileConfig{Path: "a.c", Text: "x"}, nil, "both Path and Text"},
		"a name for a file": {programs.CompileConfig{Path: "a.c", Name: "b.c"}, nil, "Name is for Text"},
		"a path elsewhere":  {programs.CompileConfig{Text: "x", Name: "../a.c"}, nil, "not a relative path"},
		"an absolute path":  {programs.CompileConfig{Text: "x", Name: "/a.c"}, nil, "not a relative path"},
		"a zero byte":       {programs.CompileConfig{Text: "x", Name: "a\x00.c"}, nil, "write the source"},
		"no such file":      {programs.CompileConfig{Path: "absent.c"}, os.ErrNotExist, "compile absent.c"},
		"no such compiler":  {programs.CompileConfig{Text: "x", Clang: "clang-of-tomorrow"}, exec.ErrNotFound, "install the Debian package clang-19"},
		"no such path":      {programs.CompileConfig{Text: "x", Clang: "/absent/clang"}, os.ErrNotExist, "install the Debian package clang-19"},
		"no object":         {programs.CompileConfig{Text: "int x;", Clang: "true"}, nil, "read the object that"},
		"not C":             {programs.CompileConfig{Text: "int x;", Flags: []string{"-E"}}, nil, "read the object that"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec, err := programs.Compile(t.Context(), test.cfg)
			skipWithoutClang(t, err) // not one that was named
			require.Error(t, err)
			require.Nil(t, spec)
			if test.is != nil {
				require.ErrorIs(t, err, test.is)
			}
			require.ErrorContains(t, err, test.text)
		})
	}
}

// Not parallel: PATH is the process's.
func TestCompileFindsClang(t *testing.T) {
	ok := programs.CompileConfig{Text: "int x;"}
	_, here := programs.Compile(t.Context(), ok)
	clang, err := exec.LookPath("clang-19")
	if err != nil {
		clang, _ = exec.LookPath("clang")
	}
	dir, tmp := t.TempDir(), t.TempDir()
	t.Setenv("PATH", dir)
	t.Setenv("TMPDIR", tmp)
	_, err = programs.Compile(t.Context(), ok)
	require.ErrorIs(t, err, exec.ErrNotFound)
	require.ErrorIs(t, err, ebpf.ErrNotSupported)
	require.ErrorContains(t, err, "clang-19")
	require.ErrorContains(t, err, "install the Debian package")
	require.NotContains(t, err.Error(), "\n")
	_, err = programs.Compile(t.Context(), programs.CompileConfig{Text: "int x;", Clang: "clang"})
	require.ErrorIs(t, err, exec.ErrNotFound)
	require.NotErrorIs(t, err, ebpf.ErrNotSupported, "a wrong name is a mistake, and no reason to skip")

	skipWithoutClang(t, here)
	require.NoError(t, here)
	require.NoError(t, os.Symlink(clang, filepath.Join(dir, "clang")))
	_, err = programs.Compile(t.Context(), ok)
	require.NoError(t, err, "clang, if there is no clang-19")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "clang-19"), []byte("#!/bin/sh\necho it is me >&2\nexit 3\n"), 0o700))
	_, err = programs.Compile(t.Context(), ok)
	var compile *programs.CompileError
	require.ErrorAs(t, err, &compile, "clang-19 goes first")
	require.Equal(t, "it is me\n", compile.Output)
	require.True(t, strings.HasPrefix(compile.Command, filepath.Join(dir, "clang-19")+" "), compile.Command)

	ok.Clang = clang
	_, err = programs.Compile(t.Context(), ok)
	require.NoError(t, err)

	left, err := os.ReadDir(tmp)
	require.NoError(t, err)
	require.Empty(t, left, "our headers are taken away again, after success and after failure")
}

func TestCompileCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := programs.Compile(ctx, programs.CompileConfig{Text: "int x;", Clang: "true"})
	require.ErrorIs(t, err, context.Canceled)

	// A compiler that hangs, in a process of its own that holds the output open.
	dir := t.TempDir()
	slow := filepath.Join(dir, "clang")
	child := filepath.Join(dir, "child")
	script := fmt.Sprintf("#!/bin/sh\nsleep 1000 &\necho $! >%s.new\nmv %s.new %s\nwait\n", child, child, child)
	require.NoError(t, os.WriteFile(slow, []byte(script), 0o700))
	ctx, cancelCause := context.WithCancelCause(t.Context())
	defer cancelCause(nil)
	done := make(chan error, 1)
	go func() {
		_, err := programs.Compile(ctx, programs.CompileConfig{Text: "int x;", Clang: slow})
		done <- err
	}()
	var pid []byte
	require.Eventually(t, func() bool {
		pid, err = os.ReadFile(child)
		return err == nil
	}, 10*time.Second, 5*time.Millisecond)
	cause := errors.New("the user has gone")
	cancelCause(cause)
	select {
	case err := <-done:
		require.ErrorIs(t, err, cause)
		var compile *programs.CompileError
		require.False(t, errors.As(err, &compile), "it is not clang that is to blame")
	case <-time.After(10 * time.Second):
		t.Fatal("the compiler was waited for")
	}
	require.Eventually(t, func() bool {
		state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		return err != nil || strings.Contains(string(state), ") Z ")
	}, 10*time.Second, 5*time.Millisecond, "what the compiler has started ends with it")

	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = programs.Compile(ctx, programs.CompileConfig{Text: "int x;", Clang: slow})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestHeadersAreWholeAndDefineNothing(t *testing.T) {
	t.Parallel()
	var names []string
	require.NoError(t, fs.WalkDir(programs.Headers(), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, path)
		}
		return err
	}))
	require.Equal(t, []string{"lib/bpf.h", "lib/net.h", "lib/parse.h", "lib/types.h"}, names)
	all := ""
	for _, name := range names {
		text, err := fs.ReadFile(programs.Headers(), name)
		require.NoError(t, err)
		here, err := os.ReadFile(filepath.Join("bpf", name))
		require.NoError(t, err)
		require.Equal(t, string(here), string(text))
		line := fmt.Sprintf("#include %q\n", name)
		all += line
		for _, source := range []string{line, line + line} {
			var said strings.Builder
			_, err := programs.Compile(t.Context(), programs.CompileConfig{
				Text: source, Warnings: &said, Flags: []string{"-Wall", "-Wextra", "-Werror", "-nostdinc"},
			})
			skipWithoutClang(t, err)
			require.NoError(t, err, "each compiles alone and twice, without a system header")
			require.Empty(t, said.String())
		}
	}
	spec := compileText(t, all+"int one = 1;")
	assert.Empty(t, spec.Programs)
	assert.NotContains(t, spec.Maps, ".maps")
	for name := range spec.Maps {
		assert.Equal(t, ".data", name, "only the user's own variable")
	}
	assert.Len(t, spec.Variables, 1)
	own := compileText(t, all+`SEC("tc") int f(struct __sk_buff *skb) { return skb->len ? TCX_NEXT : TCX_PASS; }`)
	assert.Empty(t, own.Maps)
	assert.Empty(t, own.Variables)
	assert.Empty(t, own.Programs["f"].License, "the license is the user's to tell")

	_, err := programs.Compile(t.Context(), programs.CompileConfig{Text: `#include "lib/tables.h"`})
	require.ErrorContains(t, err, "'lib/tables.h' file not found", "our tables are not public")
	_, err = programs.Compile(t.Context(), programs.CompileConfig{Text: "#define __u8 7\n#include \"lib/bpf.h\""})
	require.ErrorContains(t, err, "In file included from source.c:2:\nlib/bpf.h:", "messages name our files as the source does")
}

// What the verifier says about a program of the user's reaches him whole.
func TestCompileThenVerifierError(t *testing.T) {
	t.Parallel()
	spec := compileText(t, `#include "lib/bpf.h"
SEC("tc") int bad(struct __sk_buff *skb) {
	__u8 *first = (void *)(long)skb->data;
	return first[0]; /* without a look at the end */
}
`+license)
	_, err := ebpf.NewCollection(spec)
	var verifier *ebpf.VerifierError
	require.ErrorAs(t, err, &verifier)
	text := fmt.Sprintf("%+v", verifier)
	assert.Contains(t, text, "invalid access to packet")
	assert.Contains(t, text, "without a look at the end", "the line of the source is in it")
}
