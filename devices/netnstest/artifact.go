// SPDX-License-Identifier: Apache-2.0

package netnstest

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
)

// keepCapture writes the capture of a failed test where its author finds it.
func (l *Lab) keepCapture(c *Capture) {
	if len(c.Frames()) == 0 {
		return
	}
	dir, err := l.artifactDir()
	if err != nil {
		l.t.Logf("netnstest: keep the capture of %s of %s: %v", c.device, c.host.name, err)
		return
	}
	name := strings.NewReplacer("/", "_", " ", "_").Replace(l.t.Name() + "-" + c.host.name + "-" + c.device)
	file, err := os.CreateTemp(dir, name+"-*.pcap")
	if err == nil {
		err = file.Close()
	}
	if err == nil {
		err = c.WriteFile(file.Name())
	}
	if err != nil {
		l.t.Logf("netnstest: keep the capture of %s of %s: %v", c.device, c.host.name, err)
		return
	}
	l.t.Logf("netnstest: %d frames of %s of %s are in %s", len(c.Frames()), c.device, c.host.name, file.Name())
}

func (l *Lab) artifactDir() (string, error) {
	if l.cfg.PcapDir != "" {
		return l.cfg.PcapDir, os.MkdirAll(l.cfg.PcapDir, 0o755)
	}
	// Without the flag the folder that ArtifactDir returns ends with the test.
	if f := flag.Lookup("test.artifacts"); f != nil && f.Value.String() == "true" {
		return l.t.ArtifactDir(), nil
	}
	dir := filepath.Join(os.TempDir(), "netnstest")
	return dir, os.MkdirAll(dir, 0o755)
}
