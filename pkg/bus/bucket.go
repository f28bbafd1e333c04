package bus

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

// Bucket is a bucket of keys and values. A key is one or more tokens of a-z, A-Z, 0-9, _ and -, joined by dots. Every
// write takes part in the group commit of the connection's publisher.
type Bucket struct {
	conn *Conn
	name string
}

// Entry is the value of a key. Its revision grows with every write to the bucket.
type Entry struct {
	Key      string
	Value    []byte
	Revision uint64
	// Deleted entries are seen by watchers only; they have no value.
	Deleted bool
	Time    time.Time
}

const headerOperation = "KV-Operation"

var validKey = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

// Bucket opens a bucket that [Conn.Provision] has made; store.not_provisioned when it is missing.
func (c *Conn) Bucket(ctx context.Context, name string) (*Bucket, error) {
	began := time.Now()
	if _, err := c.js.Stream(ctx, "KV_"+name); err != nil {
		return nil, c.fault(err, began, "the bucket "+name)
	}
	return c.bucket(name), nil
}

func (c *Conn) bucket(name string) *Bucket { return &Bucket{conn: c, name: name} }

func (b *Bucket) stream() contract.Stream { return contract.Stream("KV_" + b.name) }

func (b *Bucket) prefix() string { return "$KV." + b.name + "." }

// Get reads a key from the leader, so it sees every write that was acknowledged before. [ErrNotFound] when the key has
// no value.
func (b *Bucket) Get(ctx context.Context, key string) (Entry, error) {
	entry, err := b.last(ctx, key)
	if err == nil && entry.Deleted {
		return Entry{}, ErrNotFound
	}
	return entry, err
}

// last is the last message of a key, which may be a deletion.
func (b *Bucket) last(ctx context.Context, key string) (Entry, error) {
	if !validKey.MatchString(key) {
		return Entry{}, fmt.Errorf("%q is no key of bucket %s", key, b.name)
	}
	stored, err := b.conn.Last(ctx, b.stream(), b.prefix()+key)
	if err != nil {
		return Entry{}, err
	}
	return b.entry(*stored), nil
}

func (b *Bucket) entry(stored Stored) Entry {
	deleted := stored.Header[headerOperation] != "" || stored.Header[jetstream.MarkerReasonHeader] != ""
	return Entry{
		Key: strings.TrimPrefix(stored.Subject, b.prefix()), Value: stored.Body, Revision: stored.Sequence,
		Deleted: deleted, Time: stored.Time,
	}
}

// List reads the entries whose keys match a filter such as "sales.*" or "sales.>"; "" or ">" matches all.
func (b *Bucket) List(ctx context.Context, filter string) ([]Entry, error) {
	var entries []Entry
	err := b.conn.Scan(ctx, b.stream(), ScanOptions{Filters: b.filters(filter)}, func(stored Stored) error {
		if entry := b.entry(stored); !entry.Deleted {
			entries = append(entries, entry)
		}
		return nil
	})
	return entries, err
}

// Keys lists the keys that match a filter, without reading their values.
func (b *Bucket) Keys(ctx context.Context, filter string) ([]string, error) {
	var keys []string
	options := ScanOptions{Filters: b.filters(filter), HeadersOnly: true}
	err := b.conn.Scan(ctx, b.stream(), options, func(stored Stored) error {
		if entry := b.entry(stored); !entry.Deleted {
			keys = append(keys, entry.Key)
		}
		return nil
	})
	return keys, err
}

func (b *Bucket) filters(filter string) []string {
	if filter == "" {
		filter = ">"
	}
	return []string{b.prefix() + filter}
}

// Create writes a key that has no value; store.conflict when it has one.
func (b *Bucket) Create(ctx context.Context, key string, value []byte) (revision uint64, err error) {
	revision, err = b.Update(ctx, key, value, 0)
	if fault.CodeOf(err) != fault.StoreConflict {
		return revision, err
	}
	// A deletion may be what is in the way.
	entry, lastErr := b.last(ctx, key)
	if lastErr != nil || !entry.Deleted {
		return 0, err
	}
	return b.Update(ctx, key, value, entry.Revision)
}

// Update writes a key whose revision is still the given one; store.conflict when it is not.
func (b *Bucket) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	return b.publish(ctx, b.Outgoing(key, value, &revision))
}

// Put writes a key, whatever its value was.
func (b *Bucket) Put(ctx context.Context, key string, value []byte) (revision uint64, err error) {
	return b.publish(ctx, b.Outgoing(key, value, nil))
}

// PutMany writes several keys at the same time, so that they share writes to disk. They are not written all or none.
func (b *Bucket) PutMany(ctx context.Context, values map[string][]byte) error {
	all := make([]Outgoing, 0, len(values))
	for key, value := range values {
		if !validKey.MatchString(key) {
			return fmt.Errorf("%q is no key of bucket %s", key, b.name)
		}
		all = append(all, b.Outgoing(key, value, nil))
	}
	return b.conn.publisher.PublishAll(ctx, all)
}

// Outgoing is the write of a key as a message, for publishing it together with others. With a revision it is the update
// of that revision, 0 meaning a key that was never written.
func (b *Bucket) Outgoing(key string, value []byte, revision *uint64) Outgoing {
	out := Outgoing{Subject: b.prefix() + key, Body: value}
	if revision != nil {
		// The id is for telling our own write from another's when an answer was lost.
		out.ID, out.After = nuid.Next(), &After{Sequence: *revision}
	}
	return out
}

// Delete removes a key whose revision is still the given one, 0 meaning any. Watchers see the deletion. The old value
// may stay readable on disk, see [Bucket.Erase].
func (b *Bucket) Delete(ctx context.Context, key string, revision uint64) error {
	var expected *uint64
	if revision > 0 {
		expected = &revision
	}
	out := b.Outgoing(key, nil, expected)
	out.Header = map[string]string{headerOperation: "DEL"}
	_, err := b.publish(ctx, out)
	return err
}

// Purge removes a key and its history. Watchers see the deletion.
func (b *Bucket) Purge(ctx context.Context, key string) error {
	out := b.Outgoing(key, nil, nil)
	out.Header = map[string]string{headerOperation: "PURGE", jetstream.MsgRollup: jetstream.MsgRollupSubject}
	_, err := b.publish(ctx, out)
	return err
}

// Erase removes a key without a trace and overwrites the bytes of its value on disk. Watchers do not see it. Only the
// buckets ledger, sent-index, threads and quarantine allow it.
func (b *Bucket) Erase(ctx context.Context, key string) error {
	entry, err := b.last(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return b.conn.SecureDelete(ctx, b.stream(), entry.Revision)
}

func (b *Bucket) publish(ctx context.Context, out Outgoing) (uint64, error) {
	if key := strings.TrimPrefix(out.Subject, b.prefix()); !validKey.MatchString(key) {
		return 0, fmt.Errorf("%q is no key of bucket %s", key, b.name)
	}
	ack, err := b.conn.publisher.Publish(ctx, out)
	if failure, ok := errors.AsType[*fault.Error](err); ok && failure.Code == fault.StoreConflict {
		key := strings.TrimPrefix(out.Subject, b.prefix())
		return 0, fault.New(fault.StoreConflict, failure.Unwrap(), fault.Params{"what": key})
	}
	return ack.Sequence, err
}

// Watch calls each for the entries that match a filter, first those that are there, then, for ever, every change,
// deletions included; ready, when not nil, is called once in between. After a lost connection it goes on where it was.
// It returns when ctx ends (with nil), when each returns an error (with that), or at once when the bucket is missing.
func (b *Bucket) Watch(ctx context.Context, filter string, each func(Entry) error, ready func()) error {
	r := reader{conn: b.conn, stream: b.stream(), filters: b.filters(filter), endless: true}
	err := r.read(ctx, func(stored Stored) error { return each(b.entry(stored)) }, func() error {
		if ready != nil {
			ready()
		}
		return nil
	})
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}
