// SPDX-License-Identifier: Apache-2.0

package netnstest

// LockOtherThread lets a test do by hand what Run does.
func LockOtherThread() { lockOtherThread() }
