package bus

import (
	"context"
	"time"
)

// BucketLeases holds who owns what at this moment; see [Leases].
const BucketLeases = bucketLeases

// Usage tells how many bytes the store keeps on disk and how many it may keep; limit is 0 when the broker does not say.
func (c *Conn) Usage(ctx context.Context) (used, limit int64, err error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	info, err := c.js.AccountInfo(ctx)
	if err != nil {
		return 0, 0, c.fault(err, began, "the account")
	}
	limit = max(info.Limits.MaxStore, 0)
	if c.embedded != nil { // its account has no limit of its own, the server has
		limit = c.embedded.MaxStore()
	}
	return int64(min(info.Store, 1<<62)), limit, nil //nolint:gosec // bounded
}
