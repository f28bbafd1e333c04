// Package archiver tidies mailboxes: it moves or deletes mails whose event is stored, on order, in batches per source.
// It acts on identity only, never on a mail it has not checked, never deletes as a fall-back, and fetches nothing
// again: orders wait in the stream for as long as a mailbox refuses, each source's for itself.
package archiver

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
)

// Archiver is the last stage. Create it with [New], start it with Run.
type Archiver struct {
	cfg     Config
	deps    stage.Deps
	log     *slog.Logger
	states  *source.States
	fetched *source.States
	objects *bus.Objects
	actions *prometheus.CounterVec
	backlog *prometheus.GaugeVec
}

// New checks the configuration. Nothing is opened before Run.
func New(cfg Config, deps stage.Deps) (*Archiver, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	a := &Archiver{
		cfg: cfg, deps: deps, log: deps.Log.With("stage", "archiver"),
		actions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "posthorn_archive_actions_total", Help: "Orders by disposition and what came of them.",
		}, []string{"action", "result"}),
		backlog: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "posthorn_archive_backlog", Help: "Orders that wait, by source.",
		}, []string{"source"}),
	}
	for _, c := range []prometheus.Collector{a.actions, a.backlog} {
		if err := deps.Metrics.Register(c); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Run carries out orders until ctx ends. ready is called once, when changes of sources are being followed.
func (a *Archiver) Run(ctx context.Context, ready func()) error {
	bucket, err := a.deps.Conn.Bucket(ctx, bus.BucketSourceState)
	if err != nil {
		return fmt.Errorf("archiver: %w", err)
	}
	records := stage.Records(bucket)
	a.states, a.fetched = source.NewStates(records, source.PartArchive), source.NewStates(records, source.PartFetch)
	if a.objects, err = a.deps.Conn.Objects(ctx, contract.ObjectBucket); err != nil {
		return fmt.Errorf("archiver: %w", err)
	}
	owner := stage.Owner{Stage: "archiver", Leases: a.deps.Leases, Sources: a.deps.Sources, Log: a.log}
	if err := owner.Run(ctx, ready, a.tidy, a.forget); err != nil {
		return fmt.Errorf("archiver: %w", err)
	}
	return nil
}

// tidy carries out the orders of one source while this process owns it.
func (a *Archiver) tidy(ctx context.Context, owned stage.Owned) {
	t := &tidier{
		archiver: a, log: a.log.With("source", owned.Source.ID), owned: owned, source: owned.Source,
		refused: map[string]*fault.Error{},
	}
	if state, err := a.states.Get(ctx, owned.Source.ID); err == nil {
		t.said = state.ErrorCode() // of another process, or before a restart: it is ours to take back
	}
	t.run(ctx)
}

// forget closes the waiting orders of a deleted source as left, and clears what was kept about it.
func (a *Archiver) forget(ctx context.Context, id string) {
	log := a.log.With("source", id)
	if err := a.closeOrders(ctx, id); err != nil {
		log.Warn("the orders of a deleted source could not be closed", "error", err)
		return
	}
	if err := a.states.Delete(ctx, id); err != nil {
		log.Warn("the state of a deleted source could not be cleared", "error", err)
	}
	a.backlog.DeleteLabelValues(id)
}

func (a *Archiver) closeOrders(ctx context.Context, id string) error {
	orders, err := a.orders(ctx, id)
	if err != nil {
		return err
	}
	for {
		batch, err := orders.Fetch(ctx, batchOrders, 0)
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			return a.deps.Conn.DeleteConsumer(ctx, contract.StreamDispositions, bus.DurableArchiver(id))
		}
		for _, delivery := range batch {
			if err := a.close(ctx, delivery, contract.OutcomeLeft, "the source was deleted"); err != nil {
				return err
			}
		}
	}
}

func (a *Archiver) orders(ctx context.Context, id string) (*bus.PullConsumer, error) {
	return a.deps.Conn.Orders(ctx, contract.StreamDispositions, bus.DurableArchiver(id), contract.DisposeSubject(id))
}
