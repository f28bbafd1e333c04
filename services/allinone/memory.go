package allinone

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// restMemory is what a small installation should do with, also while a mail of 50 MB passes through.
const restMemory = 160 << 20

// keepMemorySmall sets the runtime's soft memory limit a little above what is in use: a large mail makes the collector
// work for a moment instead of doubling the memory of the process, and a large installation is not slowed down. Whoever
// sets GOMEMLIMIT knows better.
func keepMemorySmall(ctx context.Context) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	ticker := time.NewTicker(10 * time.Second)
	defer ticker.Stop()
	for {
		metrics.Read(live)
		// Half of what is live is room enough for the collector, and grows with the installation.
		debug.SetMemoryLimit(max(restMemory, int64(live[0].Value.Uint64())*3/2)) //nolint:gosec // far below 2^63
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}
