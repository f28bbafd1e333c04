// Package fetcher drains mailboxes into the MAIL stream. It owns sources by lease, lists each Inbox, fetches what its
// ledger does not hold, stores it, and then writes the ledger. It opens mailboxes read-only: it marks, moves and
// deletes nothing.
package fetcher

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
)

// Fetcher is the first stage. Create it with [New], start it with Run.
type Fetcher struct {
	cfg       Config
	deps      stage.Deps
	log       *slog.Logger
	conn      *bus.Conn
	publisher *bus.Publisher
	leases    *bus.Leases
	metrics   *metrics
	traces    *traces
	now       func() time.Time

	books    *bus.Bucket // ledger
	sent     *bus.Bucket // sent index
	skipped  *bus.Bucket // decisions of the parser to leave a mail
	states   *source.States
	archived *source.States // what the archiver says
	objects  *bus.Objects
}

// New checks the configuration. Nothing is opened before Run.
func New(cfg Config, deps stage.Deps) (*Fetcher, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	m, err := newMetrics(deps.Metrics)
	if err != nil {
		return nil, err
	}
	return &Fetcher{
		cfg: cfg, deps: deps, log: deps.Log.With("stage", "fetcher"), conn: deps.Conn, publisher: deps.Publisher,
		leases: deps.Leases, metrics: m, traces: newTraces(deps.Conn, cfg.Now), now: cfg.Now,
	}, nil
}

// Run drains all sources until ctx ends. ready is called once, when changes of sources are being followed.
func (f *Fetcher) Run(ctx context.Context, ready func()) error {
	if err := f.open(ctx); err != nil {
		return fmt.Errorf("fetcher: %w", err)
	}
	if err := f.answerTests(ctx); err != nil {
		return fmt.Errorf("fetcher: %w", err)
	}
	owner := stage.Owner{Stage: "fetcher", Leases: f.leases, Sources: f.deps.Sources, Log: f.log}
	if err := owner.Run(ctx, ready, f.drain, f.remove); err != nil {
		return fmt.Errorf("fetcher: %w", err)
	}
	return nil
}

// drain keeps a source drained while this process owns it.
func (f *Fetcher) drain(ctx context.Context, owned stage.Owned) {
	d := &drain{
		fetcher: f, log: f.log.With("source", owned.Source.ID), owned: owned, source: owned.Source,
		short: map[string]int{}, doubts: doubts{},
	}
	// What an earlier process saw last stays known until this one has looked.
	if before, err := f.states.Get(ctx, d.source.ID); err == nil {
		d.state = source.State{LastCycle: before.LastCycle, Counts: before.Counts}
	}
	d.run(ctx)
}

func (f *Fetcher) open(ctx context.Context) error {
	for name, bucket := range map[string]**bus.Bucket{
		bus.BucketLedger: &f.books, bus.BucketSentIndex: &f.sent, bus.BucketSkipped: &f.skipped,
	} {
		b, err := f.conn.Bucket(ctx, name)
		if err != nil {
			return err
		}
		*bucket = b
	}
	states, err := f.conn.Bucket(ctx, bus.BucketSourceState)
	if err != nil {
		return err
	}
	records := stage.Records(states)
	f.states, f.archived = source.NewStates(records, source.PartFetch), source.NewStates(records, source.PartArchive)
	f.objects, err = f.conn.Objects(ctx, contract.ObjectBucket)
	return err
}

// remove clears what was kept about the mailbox of a source that was deleted.
func (f *Fetcher) remove(ctx context.Context, id string) {
	f.metrics.forget(id)
	for _, bucket := range []*bus.Bucket{f.books, f.sent, f.skipped} {
		entries, err := bucket.Keys(ctx, id+".>")
		for _, key := range entries {
			if err == nil {
				err = bucket.Purge(ctx, key)
			}
		}
		if err != nil {
			f.log.Warn("what was kept of a deleted source could not be cleared", "source", id, "error", err)
		}
	}
	if err := f.states.Delete(ctx, id); err != nil {
		f.log.Warn("the state of a deleted source could not be cleared", "source", id, "error", err)
	}
}
