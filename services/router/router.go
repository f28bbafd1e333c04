// Package router makes exactly one event of every parsed mail: `received` for a new contact request, `replied` when the
// mail belongs to one that is known. Only when the event is stored does it order the mail's disposition.
package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/stage"
)

// Router is the third stage. Create it with [New], start it with Run.
type Router struct {
	cfg       Config
	deps      stage.Deps
	log       *slog.Logger
	publisher *bus.Publisher
	threads   *bus.Bucket
	sent      *bus.Bucket
	endToEnd  prometheus.Histogram
}

// New checks the configuration. Nothing is opened before Run.
func New(cfg Config, deps stage.Deps) (*Router, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	r := &Router{
		cfg: cfg, deps: deps, log: deps.Log.With("stage", "router"), publisher: deps.Publisher,
		endToEnd: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "posthorn_end_to_end_seconds", Help: "From the mail's arrival on its server to its stored event.",
			Buckets: prometheus.ExponentialBuckets(0.1, 4, 10),
		}),
	}
	return r, deps.Metrics.Register(r.endToEnd)
}

// Run routes mails until ctx ends and those in hand are done. ready is called once, when mails are being taken.
func (r *Router) Run(ctx context.Context, ready func()) error {
	var err error
	if r.threads, err = r.deps.Conn.Bucket(ctx, bus.BucketThreads); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	if r.sent, err = r.deps.Conn.Bucket(ctx, bus.BucketSentIndex); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	work, err := stage.NewWork("router", r.deps.Conn, r.publisher, r.deps.Metrics, r.log)
	if err != nil {
		return fmt.Errorf("router: %w", err)
	}
	work.Handle(stage.Input{
		Stream: contract.StreamParsed, Durable: bus.DurableRouter, Workers: r.cfg.Workers,
	}, r.route)
	if err := work.Run(ctx, ready); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	return nil
}

// route handles one parsed mail. Every step may be repeated: the event is stored once for ever, the rest is idempotent.
func (r *Router) route(msg *message.Message) error {
	ctx := msg.Context()
	var parsed contract.ParsedMail
	if err := json.Unmarshal(msg.Payload, &parsed); err != nil {
		return fault.New(fault.MailFailed, err, nil)
	}
	event, err := r.publish(ctx, parsed, bus.Redelivered(msg))
	if err != nil {
		return err
	}
	var after errgroup.Group
	after.Go(func() error { return r.remember(ctx, parsed, event) })
	after.Go(func() error { return r.dispose(ctx, parsed, event) })
	return after.Wait()
}

// publish stores the mail's one event, and returns it as it is stored: this one, or the one that was there before.
func (r *Router) publish(
	ctx context.Context, p contract.ParsedMail, perhapsDone bool,
) (contract.ContactRequest, error) {
	source, filter := p.Stamp.Source.ID, contract.ContactRequestFilter(p.Stamp.Source.ID, p.Mail)
	if perhapsDone { // spare plain subscribers a repeated message that the stream would refuse
		if event, found, err := r.stored(ctx, filter); err != nil || found {
			return event, err
		}
	}
	event, err := r.decide(ctx, p)
	if err != nil {
		return contract.ContactRequest{}, err
	}
	kind := contract.TypeReceived
	if event.Event == contract.EventReplied {
		kind = contract.TypeReplied
	}
	subject := contract.ContactRequestSubject(event.Event, event.Workflow, source, p.Mail)
	out, err := bus.Event(kind, subject, contract.OpeningID(p.Mail), source, event)
	if err != nil {
		return contract.ContactRequest{}, fault.New(fault.MailFailed, err, nil)
	}
	out.Once = filter
	out.Header[contract.HeaderSubject] = p.Mail
	out.About(p.Mail)
	_, err = r.publisher.Publish(ctx, out)
	if _, before := errors.AsType[*bus.AlreadyStored](err); before {
		event, found, err := r.stored(ctx, filter)
		if err == nil && !found {
			err = fault.New(fault.StoreUnavailable, errors.New("an event is stored but cannot be read"), nil)
		}
		return event, err
	}
	if err == nil {
		r.endToEnd.Observe(max(time.Since(event.ReceivedAt).Seconds(), 0))
	}
	return event, err
}

// stored reads the event that a mail has made, if it has.
func (r *Router) stored(ctx context.Context, filter string) (contract.ContactRequest, bool, error) {
	var event contract.ContactRequest
	last, err := r.deps.Conn.Last(ctx, contract.StreamContactRequests, filter)
	if errors.Is(err, bus.ErrNotFound) {
		return event, false, nil
	}
	if err != nil {
		return event, false, err
	}
	if err := json.Unmarshal(last.Body, &event); err != nil {
		return event, false, fault.New(fault.StoreCorrupt, err, nil)
	}
	return event, true, nil
}

// dispose orders what the mail's stamp asks for: nothing for mail that is to be left, and POP3 knows no archive.
func (r *Router) dispose(ctx context.Context, p contract.ParsedMail, event contract.ContactRequest) error {
	what := p.Stamp.Disposition
	if what == contract.Leave || what == contract.Archive && p.Place.Protocol == string(mailbox.POP3) {
		return nil
	}
	order, err := bus.DisposeOrder(contract.Dispose{
		Mail: p.Mail, Source: p.Stamp.Source, Disposition: what, Place: p.Place, MessageID: p.MessageID, Raw: event.Raw,
		OrderedAt: time.Now().UTC(),
	})
	if err != nil {
		return err
	}
	_, err = r.publisher.Publish(ctx, order)
	return err
}
