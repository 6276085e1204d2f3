// SPDX-License-Identifier: Apache-2.0

// Package cli is what the example programs do alike as commands: the signals
// that end them, the rights that they need, and whether somebody watches.
package cli
