// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/godatapath/datapath/maps"
	"github.com/godatapath/datapath/programs"
)

// The same file by both ways: compiled here and now, and by bpf2go ahead of
// time with the include path that programs.Headers tells.
func TestBothWaysToCompile(t *testing.T) {
	t.Parallel()
	clang := needClang(t)
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/godatapath/datapath").Output()
	require.NoError(t, err)
	include := filepath.Join(strings.TrimSpace(string(module)), "programs", "bpf")

	dir := t.TempDir()
	flags := []string{"-O2", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wimplicit-int-conversion", "-I" + include}
	for _, cpu := range [][]string{nil, {"-mcpu=v3"}} { // bpf2go's own choice, and ours
		args := []string{"run", "github.com/cilium/ebpf/cmd/bpf2go", "-go-package", "dns", "-output-dir", dir, "-cc", clang,
			"-no-strip", "-target", "bpfel,bpfeb", "-type", "questions", "DNSCount", "dns_count.c", "--"}
		said, err := exec.Command("go", append(append(args, flags...), cpu...)...).CombinedOutput()
		require.NoError(t, err, "%s", said)

		object := "dnscount_bpfel.o"
		if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
			object = "dnscount_bpfeb.o"
		}
		ahead, err := ebpf.LoadCollectionSpec(filepath.Join(dir, object))
		require.NoError(t, err)
		check(t, ahead)
	}
	for _, suffix := range []string{"bpfel", "bpfeb"} {
		assert.FileExists(t, filepath.Join(dir, "dnscount_"+suffix+".go"))
	}

	var warnings strings.Builder
	now, err := programs.Compile(t.Context(), programs.CompileConfig{Path: "dns_count.c", Flags: flags[:len(flags)-1], Warnings: &warnings})
	require.NoError(t, err)
	assert.Empty(t, warnings.String())
	check(t, now)
}

func check(t *testing.T, spec *ebpf.CollectionSpec) {
	t.Helper()
	require.Len(t, spec.Maps, 1, "the user's table and none of ours")
	require.Len(t, spec.Programs, 1)
	require.Equal(t, "Dual BSD/GPL", spec.Programs["dns_count"].License)
	coll, err := ebpf.NewCollection(spec)
	require.NoError(t, err)
	defer coll.Close()
	table, err := maps.Wrap[uint32, questions](coll.Maps["dns_questions"])
	require.NoError(t, err)
	require.NoError(t, table.Close())
}
