// SPDX-License-Identifier: Apache-2.0

// Package lb balances services.
package lb
