//go:build linux || darwin || freebsd

package main

import "syscall"

// freeSpace is how many bytes are free for this user where a directory lies, and how many there are.
func freeSpace(dir string) (free, total int64, known bool) {
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return 0, 0, false
	}
	size := int64(stat.Bsize)                                         //nolint:unconvert // another type elsewhere
	return int64(stat.Bavail) * size, int64(stat.Blocks) * size, true //nolint:gosec // no disk is that large
}
