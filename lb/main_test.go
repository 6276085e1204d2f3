// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"os"
	"testing"

	"github.com/godatapath/datapath/devices/netnstest"
)

func TestMain(m *testing.M) { os.Exit(netnstest.Main(m)) }
