//go:build !(linux || darwin || freebsd)

package main

// freeSpace is not known here.
func freeSpace(string) (free, total int64, known bool) { return 0, 0, false }
