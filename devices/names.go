// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"strconv"
	"strings"
)

// MaxNameLen is the longest name of a device in bytes (IFNAMSIZ minus the
// closing zero).
const MaxNameLen = 15

// EndpointPrefix begins the host side device of every endpoint whose name was
// built by [EndpointLinkName].
const EndpointPrefix = "lxc"

// CheckName reports why the kernel would not take name for a device, or nil:
// it is 1 to 15 bytes, neither "." nor "..", without slash, colon, percent sign,
// white space or control bytes. The error is an [*InputError]. The percent sign
// is refused because the kernel would replace "%d" by a number.
func CheckName(name string) error {
	return checkName("device name", name)
}

func checkName(field, name string) error {
	bad := func(reason string) error {
		return &InputError{Field: field, Value: name, Reason: reason}
	}
	switch {
	case name == "":
		return bad("is empty")
	case len(name) > MaxNameLen:
		return bad("has " + strconv.Itoa(len(name)) + " bytes and may have 15")
	case name == "." || name == "..":
		return bad("is a folder")
	}
	for i := range len(name) {
		switch c := name[i]; {
		case c == '/' || c == ':' || c == '%':
			return bad("has the character " + strconv.QuoteRune(rune(c)))
		// The kernel takes 0xa0 for white space, as Latin-1 does.
		case c <= ' ' || c == 0x7f || c == 0xa0:
			return bad("has white space or a control byte")
		}
	}
	return nil
}

// EndpointLinkName returns the host side device name for an endpoint: "lxc" and
// 12 lower-case characters that hold 60 bits of the SHA-256 sum of id. Every id
// of any length is hashed, so that no id can be chosen to equal the hash of
// another one. A collision is still noticed: [EnsureEndpoint] stores the id on
// the device and answers [ErrForeign].
func EndpointLinkName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return EndpointPrefix + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:MaxNameLen-len(EndpointPrefix)])
}

// asideName is where the successor of an overlay device is made. It depends on
// nothing but the name, so the next call finds what a killed one has left.
func asideName(name string) string {
	sum := sha256.Sum256([]byte("aside " + name))
	return "dp_" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:MaxNameLen-len("dp_")])
}

// The alias of a device says that it is ours and what it is. A name alone does
// not: names are short, guessable and free to take.
const (
	hostPairAlias       = "datapath host pair"
	vxlanAlias          = "datapath vxlan"
	endpointAliasPrefix = "datapath endpoint "
	hashedIDPrefix      = "sha256:"
	maxAliasLen         = 255 // IFALIASZ minus the closing zero
)

// endpointAlias is different for different ids. An id that does not fit or that
// can not be shown is replaced by its hash.
func endpointAlias(id string) string {
	plain := len(endpointAliasPrefix)+len(id) <= maxAliasLen && !strings.HasPrefix(id, hashedIDPrefix)
	for i := 0; plain && i < len(id); i++ {
		plain = id[i] > ' ' && id[i] < 0x7f
	}
	if plain {
		return endpointAliasPrefix + id
	}
	sum := sha256.Sum256([]byte(id))
	return endpointAliasPrefix + hashedIDPrefix + hex.EncodeToString(sum[:])
}
