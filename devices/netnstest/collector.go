// SPDX-License-Identifier: Apache-2.0

package netnstest

import "runtime/debug"

// stopCollector keeps the garbage collector from running until start is called.
// A file or a connection that nobody holds any more is closed when it is
// collected, and the search for what is left behind asks for memory itself: it
// would have the collector tidy up before it has looked twice.
//
// Checks of tests that run in parallel may overlap. Only the one that has stopped
// the collector starts it again, so it is never left stopped.
func stopCollector() (start func()) {
	was := debug.SetGCPercent(-1)
	return func() {
		if was >= 0 {
			debug.SetGCPercent(was)
		}
	}
}
