package source

import (
	"context"
	"errors"
)

// Entry is one key of a [Bucket] with its value.
type Entry struct {
	Key   string
	Value []byte
	// Revision of the value, greater than 0.
	Revision uint64
	// Deleted: the key was deleted; seen in [Bucket.Watch] only.
	Deleted bool
}

// ErrNotFound is what a [Bucket] answers for a key that is not there.
var ErrNotFound = errors.New("not found")

// Bucket is what this package needs of a KV bucket.
type Bucket interface {
	// Get reads one key; [ErrNotFound] when there is none.
	Get(ctx context.Context, key string) (Entry, error)
	// List reads all keys that match, such as ">" for all of them.
	List(ctx context.Context, filter string) ([]Entry, error)
	// Put writes a key whatever it holds.
	Put(ctx context.Context, key string, value []byte) (revision uint64, err error)
	// Create writes a key that is not there; store.conflict when it is.
	Create(ctx context.Context, key string, value []byte) (revision uint64, err error)
	// Update writes a key that has this revision; store.conflict when it has another.
	Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	// Delete deletes a key that has this revision; store.conflict when it has another.
	Delete(ctx context.Context, key string, revision uint64) error
	// Watch calls each with every key that is there, then ready once, then each with every change, one at a time and in
	// order, until ctx ends (nil) or each returns an error (that).
	Watch(ctx context.Context, filter string, each func(Entry) error, ready func()) error
}
