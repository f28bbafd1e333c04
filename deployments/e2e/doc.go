// Package e2e tests the whole program from the outside: processes that are started, killed and started again, real
// mail servers, and the promises that only the whole can keep.
package e2e
