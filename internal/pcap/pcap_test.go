// SPDX-License-Identifier: Apache-2.0

package pcap_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/godatapath/datapath/internal/pcap"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestWrite(t *testing.T) {
	t.Parallel()
	var file bytes.Buffer
	require.NoError(t, pcap.Write(&file, []pcap.Frame{
		{Time: time.Unix(0x01020304, 5), Bytes: []byte{0xaa, 0xbb}},
		{Time: time.Unix(1, 0), Bytes: []byte{0xcc}, Length: 9},
	}))
	assert.Equal(t, ""+
		"4d3cb2a1"+"0200"+"0400"+"00000000"+"00000000"+"00000400"+"01000000"+
		"04030201"+"05000000"+"02000000"+"02000000"+"aabb"+
		"01000000"+"00000000"+"01000000"+"09000000"+"cc",
		hex.EncodeToString(file.Bytes()))
}

func TestWriteErrors(t *testing.T) {
	t.Parallel()
	err := pcap.Write(&bytes.Buffer{}, []pcap.Frame{{Time: time.Unix(-1, 0)}})
	assert.ErrorContains(t, err, "frame 0")
	assert.ErrorIs(t, pcap.Write(full{}, nil), errFull)
	assert.ErrorIs(t, pcap.Write(full{}, []pcap.Frame{{Time: time.Unix(1, 0), Bytes: make([]byte, 9000)}}), errFull)
}

var errFull = errors.New("the disk is full")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }
