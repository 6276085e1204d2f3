// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCheckName(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"a", "eth0", "eth0.100", "lxc_12-3", "fifteen-bytes-x", "...", "é"} {
		assert.NoError(t, CheckName(good), good)
	}
	for bad, reason := range map[string]string{
		"":                 "is empty",
		"sixteen-bytes-xx": "has 16 bytes",
		".":                "folder",
		"..":               "folder",
		"a/b":              "character '/'",
		"a:b":              "character ':'",
		"eth%d":            "character '%'",
		"a b":              "white space",
		"a\tb":             "white space",
		"a\n":              "white space",
		"a\x00b":           "control byte",
		"a\x7fb":           "control byte",
		"à":                "white space", // its second byte is 0xa0
	} {
		err := CheckName(bad)
		requireInput(t, err, "device name")
		assert.ErrorContains(t, err, reason)
	}
}

// The kernel agrees: a name that we let pass can be given to a device.
func TestCheckNameAgreesWithTheKernel(t *testing.T) {
	t.Parallel()
	ns := newNS(t)
	addVeth(t, ns, "veth0", "peer0")
	for _, good := range []string{"a", "eth0.100", "fifteen-bytes-x", "...", "é", EndpointLinkName("x")} {
		l := find(t, ns, "peer0")
		with(t, ns, func(c conn) error {
			k, err := c.byIndex(l.Index)
			if err != nil {
				return err
			}
			if err := c.rename(k, good); err != nil {
				return err
			}
			return c.rename(k, "peer0")
		})
	}
}

func TestEndpointLinkName(t *testing.T) {
	t.Parallel()
	// Pinned: a new version must find the devices of the old one.
	require.Equal(t, "lxcczdxncga4adj", EndpointLinkName("blue"))
	seen := make(map[string]string)
	for i := range 20_000 {
		// Ids that are equal in their first many bytes, where cutting would fail.
		id := strings.Repeat("container-", 8) + fmt.Sprint(i)
		name := EndpointLinkName(id)
		require.Empty(t, seen[name], "%s and %s share a name", seen[name], id)
		seen[name] = id
	}
}

func TestAsideName(t *testing.T) {
	t.Parallel()
	// Pinned: a new version must find what a killed one has left.
	require.Equal(t, "dp_rm7euoxghnnc", asideName("dp_vxlan"))
	require.NotEqual(t, asideName("dp_vxlan"), asideName("dp_vxlan2"))
	require.NoError(t, CheckName(asideName("fifteen-bytes-x")))
}

func FuzzEndpointLinkName(f *testing.F) {
	f.Add("", "blue")
	f.Add("a", "a ")
	f.Add(strings.Repeat("x", 300), strings.Repeat("x", 301))
	f.Add("sha256:00", "sha256:")
	f.Add("lxcczdxncga4adj", "blue")
	f.Fuzz(func(t *testing.T, a, b string) {
		name := EndpointLinkName(a)
		if err := CheckName(name); err != nil || !strings.HasPrefix(name, EndpointPrefix) {
			t.Fatalf("%q gives %q: %v", a, name, err)
		}
		alias := endpointAlias(a)
		if len(alias) > maxAliasLen || strings.ContainsAny(alias, "\x00\n") {
			t.Fatalf("%q gives the alias %q", a, alias)
		}
		if a != b && (name == EndpointLinkName(b) || alias == endpointAlias(b)) {
			t.Fatalf("%q and %q are not told apart", a, b)
		}
		if a == b && (name != EndpointLinkName(b) || alias != endpointAlias(b)) {
			t.Fatalf("%q has two names", a)
		}
	})
}
