package stage

import (
	"context"
	"errors"
	"log/slog"
	"strconv"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/secret"
	"posthorn/pkg/source"
)

// Records lets sources, workflows and states live in a KV bucket of the bus.
func Records(bucket *bus.Bucket) source.Bucket { return records{bucket} }

type records struct{ bucket *bus.Bucket }

// missing turns the bus's word for "not there" into that of package source.
func missing(err error) error {
	if errors.Is(err, bus.ErrNotFound) {
		return errors.Join(source.ErrNotFound, err)
	}
	return err
}

func record(e bus.Entry) source.Entry {
	return source.Entry{Key: e.Key, Value: e.Value, Revision: e.Revision, Deleted: e.Deleted}
}

func (r records) Get(ctx context.Context, key string) (source.Entry, error) {
	entry, err := r.bucket.Get(ctx, key)
	if err != nil {
		return source.Entry{}, missing(err)
	}
	return record(entry), nil
}

func (r records) List(ctx context.Context, filter string) ([]source.Entry, error) {
	entries, err := r.bucket.List(ctx, filter)
	if err != nil {
		return nil, missing(err)
	}
	listed := make([]source.Entry, len(entries))
	for i, entry := range entries {
		listed[i] = record(entry)
	}
	return listed, nil
}

func (r records) Put(ctx context.Context, key string, value []byte) (uint64, error) {
	return r.bucket.Put(ctx, key, value)
}

func (r records) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	return r.bucket.Create(ctx, key, value)
}

func (r records) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	return r.bucket.Update(ctx, key, value, revision)
}

func (r records) Delete(ctx context.Context, key string, revision uint64) error {
	return missing(r.bucket.Delete(ctx, key, revision))
}

func (r records) Watch(ctx context.Context, filter string, each func(source.Entry) error, ready func()) error {
	return r.bucket.Watch(ctx, filter, func(e bus.Entry) error { return each(record(e)) }, ready)
}

// OpenSources opens the store of sources and workflows on the bus. Its changes are published as source.v1 and audit.v1
// events. keys may be nil where passwords are never written.
func OpenSources(
	ctx context.Context, conn *bus.Conn, keys *secret.Keyring, allowedPorts []int, log *slog.Logger,
) (*source.Store, error) {
	sources, err := conn.Bucket(ctx, bus.BucketSources)
	if err != nil {
		return nil, err
	}
	workflows, err := conn.Bucket(ctx, bus.BucketWorkflows)
	if err != nil {
		return nil, err
	}
	return source.NewStore(Records(sources), Records(workflows), keys, source.Options{
		AllowedPorts: allowedPorts, Announcer: announcer{conn.Publisher()}, Log: log,
	}), nil
}

// announcer publishes what happens to sources.
type announcer struct{ publisher *bus.Publisher }

var sourceTypes = map[string]string{
	contract.SourceCreated: contract.TypeSourceCreate,
	contract.SourceChanged: contract.TypeSourceChange,
	contract.SourceRemoved: contract.TypeSourceRemove,
}

// Announce publishes the event, if there is one, and the audit record.
func (a announcer) Announce(ctx context.Context, what source.Announcement) error {
	var errs []error
	if what.Event != "" {
		id := what.Source.Source.ID
		out, err := bus.Event(sourceTypes[what.Event], contract.SourceSubject(what.Event, id),
			contract.EventID(id, "source "+what.Event+strconv.FormatUint(what.Source.Revision, 10), 1), id, what.Source)
		if err == nil {
			_, err = a.publisher.Publish(ctx, out)
		}
		errs = append(errs, err)
	}
	audit := what.Audit
	id := contract.EventID(audit.Object, "audit "+audit.Actor+audit.Action+audit.At.String(), 1)
	out, err := bus.Event(contract.TypeAudit, contract.AuditSubject(actorToken(audit.Actor), audit.Action), id,
		audit.Object, audit)
	if err == nil {
		_, err = a.publisher.Publish(ctx, out)
	}
	return errors.Join(append(errs, err)...)
}

// actorToken makes a subject token of who did something; names that are none are in the body only.
func actorToken(actor string) string {
	if contract.ValidToken(actor) {
		return actor
	}
	return "person"
}
