package archiver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
)

const (
	// batchOrders is how many mails are moved or deleted at once: servers move one by one at most about 300 a second.
	batchOrders = 200
	// gather is how long a batch waits to fill up.
	gather = 300 * time.Millisecond
	// finish bounds one batch; also how long a stop waits for it. A slow server moves 200 mails in less.
	finish = 2 * time.Minute
	// keepSession is how long a signed-in session waits for more orders.
	keepSession = 20 * time.Second
)

// tidier carries out the orders of one source, one batch at a time.
type tidier struct {
	archiver *Archiver
	log      *slog.Logger
	owned    stage.Owned
	source   source.Source
	orders   *bus.PullConsumer

	session  *stage.Session
	alone    bool // the server has no connection left for the fetcher while ours waits for orders
	failures int
	said     fault.Code              // what the state says is wrong; "" when nothing is
	refused  map[string]*fault.Error // single mails that could not be moved or deleted, by key
}

// order is one order in hand.
type order struct {
	delivery *bus.Delivery
	dispose  contract.Dispose
}

func (t *tidier) run(ctx context.Context) {
	defer t.close()
	for ctx.Err() == nil {
		wait, err := t.step(ctx)
		if err != nil && ctx.Err() == nil {
			wait = t.back(ctx, err)
		}
		if wait > 0 {
			t.pause(ctx, wait)
		}
	}
}

// pause waits for time to pass or the settings to change; a change ends a back-off at once.
func (t *tidier) pause(ctx context.Context, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case t.source = <-t.owned.Changes:
		t.close()
		t.failures = 0
	case <-timer.C:
	case <-ctx.Done():
	}
}

// back ends the session and returns how long to wait. Orders stay in the stream.
func (t *tidier) back(ctx context.Context, err error) time.Duration {
	t.close()
	e := fault.As(err)
	if t.said.Class() != e.Code.Class() {
		t.failures = 0
	}
	t.failures++
	t.alone = t.alone || e.Code == fault.LimitConnections
	wait := fault.Delay(e, t.failures)
	t.log.Warn("mail that is taken in cannot be moved or deleted now; it stays where it is",
		"error", e, "attempt", t.failures, "wait", wait.Round(time.Second).String())
	t.say(ctx, e)
	return wait
}

// say writes what is wrong with tidying this source, or that nothing is.
func (t *tidier) say(ctx context.Context, e *fault.Error) {
	if fault.CodeOf(e.OrNil()) == t.said {
		return
	}
	state := source.State{State: source.StateOK, Instance: t.archiver.cfg.Instance}
	if e != nil {
		state.State, state.Error = source.StateDegraded, source.NewStateError(e, t.archiver.cfg.Now().UTC())
	}
	if err := t.archiver.states.Put(ctx, t.source.ID, state); err != nil {
		t.log.Warn("the state of the source could not be written", "error", err)
		return
	}
	t.said = fault.CodeOf(e.OrNil())
}

// nothingWaits takes back what the state says is wrong when no order waits any more: the last ones may have been closed
// by a session that then ended badly, or by another process.
func (t *tidier) nothingWaits(ctx context.Context) error {
	if t.said == "" {
		return nil
	}
	pending, err := t.orders.Pending(ctx)
	if err != nil || pending > 0 {
		return err
	}
	clear(t.refused)
	t.failures = 0
	t.say(ctx, nil)
	return nil
}

// step carries out one batch. It returns how long to wait before the next.
func (t *tidier) step(ctx context.Context) (time.Duration, error) {
	if t.orders == nil {
		orders, err := t.archiver.orders(ctx, t.source.ID)
		if err != nil {
			return 0, err
		}
		t.orders = orders
	}
	select {
	case t.source = <-t.owned.Changes:
		t.close()
	default:
	}
	if t.source.Paused {
		t.close()
		return time.Hour, nil
	}
	idle := 5 * time.Minute
	if t.session != nil {
		idle = keepSession
	} else if err := t.nothingWaits(ctx); err != nil {
		return 0, err
	}
	first, err := t.orders.Fetch(ctx, 1, idle)
	if err != nil {
		return 0, err
	}
	if len(first) == 0 {
		t.close()
		return 0, nil
	}
	inHand, done := t.owned.InHand(finish)
	defer done()
	stop := t.orders.Keep(inHand, first)
	rest, err := t.orders.Fetch(inHand, batchOrders-1, gather)
	stop()
	if err != nil {
		return 0, errors.Join(err, giveBack(inHand, first))
	}
	batch := slices.Concat(first, rest)
	defer t.orders.Keep(inHand, batch)()
	if err := t.carryOut(inHand, batch); err != nil {
		return 0, errors.Join(err, giveBack(inHand, batch))
	}
	if pending, err := t.orders.Pending(ctx); err == nil {
		t.archiver.backlog.WithLabelValues(t.source.ID).Set(float64(pending))
	}
	return 0, nil
}

// giveBack returns orders that were not closed to the stream, to be delivered again.
func giveBack(ctx context.Context, batch []*bus.Delivery) error {
	var errs []error
	for _, delivery := range batch {
		if !delivery.Settled() {
			errs = append(errs, delivery.Nak(ctx, 0))
		}
	}
	return errors.Join(errs...)
}

// carryOut does what a batch of orders asks for, as far as stamp and present settings agree. Orders it leaves unsettled
// are given back when it returns an error.
func (t *tidier) carryOut(ctx context.Context, batch []*bus.Delivery) error {
	now, err := t.archiver.deps.Sources.Get(ctx, t.source.ID) // a fresh read, not what was heard last
	if err != nil {
		return err
	}
	t.source = now
	byDisposition := map[contract.Disposition][]order{}
	for _, delivery := range batch {
		var d contract.Dispose
		if err := json.Unmarshal(delivery.Body, &d); err != nil {
			return fault.New(fault.StoreCorrupt, err, nil)
		}
		what, outcome, why := t.agree(d)
		if outcome != "" {
			if err := t.archiver.close(ctx, delivery, outcome, why); err != nil {
				return err
			}
			continue
		}
		byDisposition[what] = append(byDisposition[what], order{delivery: delivery, dispose: d})
	}
	for _, what := range []contract.Disposition{contract.Archive, contract.Delete} {
		if orders := byDisposition[what]; len(orders) > 0 {
			if err := t.tidy(ctx, what, orders); err != nil {
				return err
			}
		}
	}
	t.failures = 0
	for _, e := range t.refused { // one is enough to say what is wrong
		t.say(ctx, e)
		return nil
	}
	t.say(ctx, nil)
	return nil
}

// refuse gives one order back for later, without holding up the others.
func (t *tidier) refuse(ctx context.Context, what contract.Disposition, o order, err error) error {
	e := fault.As(err)
	t.refused[o.dispose.Mail] = e
	t.archiver.actions.WithLabelValues(string(what), "refused").Inc()
	wait := fault.Delay(e, o.delivery.Delivered)
	t.log.Warn("one mail could not be moved or deleted; it stays where it is", "mail", o.dispose.Mail, "error", e,
		"wait", wait.Round(time.Second).String())
	return o.delivery.Nak(ctx, wait)
}

// agree compares an order with the source as it is now. A mail is deleted only if the order and the settings of today
// both say so; where they differ, the gentler one holds.
func (t *tidier) agree(d contract.Dispose) (what contract.Disposition, outcome, why string) {
	today := t.source.AfterFetch
	switch {
	case d.Place.Epoch != t.source.Epoch:
		return "", contract.OutcomeSuperseded, "the source now names another account"
	case today == contract.Leave:
		return "", contract.OutcomeLeft, "the source now leaves mail in the mailbox"
	case d.Disposition == contract.Delete && today == contract.Archive:
		if t.source.Type == mailbox.POP3 {
			return "", contract.OutcomeLeft, "the source no longer deletes"
		}
		return contract.Archive, "", ""
	}
	return d.Disposition, "", ""
}

// tidy moves or deletes mails whose stored bytes are whole.
func (t *tidier) tidy(ctx context.Context, what contract.Disposition, orders []order) error {
	if durable, err := t.archiver.cfg.Durable(ctx); err != nil {
		return err
	} else if !durable {
		return fault.New(fault.StoreNotDurable, nil, nil)
	}
	var targets []mailbox.Target
	byPlace := map[contract.Place]order{}
	for _, o := range orders {
		if err := t.archiver.whole(ctx, o.dispose.Raw); fault.CodeOf(err) == fault.StoreCorrupt {
			if err := t.refuse(ctx, what, o, err); err != nil {
				return err
			}
			continue
		} else if err != nil {
			return err
		}
		if _, twice := byPlace[o.dispose.Place]; twice {
			if err := t.archiver.close(ctx, o.delivery, contract.OutcomeGone, "ordered twice"); err != nil {
				return err
			}
			continue
		}
		byPlace[o.dispose.Place] = o
		targets = append(targets, mailbox.Target{
			Place: o.dispose.Place, SHA256: o.dispose.Raw.SHA256, MessageID: o.dispose.MessageID,
		})
	}
	if len(targets) == 0 {
		return nil
	}
	if err := t.open(ctx); err != nil {
		return err
	}
	if !t.fresh() {
		return fault.New(fault.StoreConflict, nil, fault.Params{"what": "the lease of the source"})
	}
	results, err := t.session.Dispose(ctx, what, t.source.ArchiveMailbox, targets)
	if t.source.Type == mailbox.POP3 || t.alone {
		t.close() // deletions end the session, and the maildrop is for one at a time
	}
	return errors.Join(err, t.settle(ctx, what, byPlace, results))
}

// settle closes what was carried out and gives back what was refused. When everything was refused, it is the mailbox
// that refuses: that error is returned, and the whole source waits.
func (t *tidier) settle(
	ctx context.Context, what contract.Disposition, byPlace map[contract.Place]order, results []mailbox.Result,
) error {
	var refusals []mailbox.Result
	var settling errgroup.Group
	settling.SetLimit(64) // side by side, so that the store commits them in groups
	for _, result := range results {
		if result.Err != nil {
			refusals = append(refusals, result)
			continue
		}
		o := byPlace[result.Target.Place]
		delete(t.refused, o.dispose.Mail)
		t.archiver.actions.WithLabelValues(string(what), result.Outcome).Inc()
		settling.Go(func() error {
			return t.archiver.closeAt(ctx, o.delivery, o.dispose, result.Outcome, result.Mailbox, "")
		})
	}
	if err := settling.Wait(); err != nil {
		return err
	}
	if len(refusals) > 0 && len(refusals) == len(results) {
		return refusals[0].Err
	}
	for _, result := range refusals {
		if err := t.refuse(ctx, what, byPlace[result.Target.Place], result.Err); err != nil {
			return err
		}
	}
	return nil
}

func (t *tidier) fresh() bool { return t.owned.Fresh() && t.session.Fresh() }

// open signs in, unless the fetcher has just been rejected: an account is not tried twice as often for having two
// stages.
func (t *tidier) open(ctx context.Context) error {
	if t.session != nil {
		return nil
	}
	if state, err := t.archiver.fetched.Get(ctx, t.source.ID); err == nil && state.Error != nil &&
		state.State == source.StateFailing && state.Error.Code.Class() == "auth" {
		return fault.New(state.Error.Code, nil, state.Error.Params).WithRetryAfter(30 * time.Second)
	}
	session, err := t.archiver.deps.SignIn(ctx, t.source, t.archiver.cfg.Mail, mailbox.Write, nil)
	if err != nil {
		return err
	}
	t.session = session
	return nil
}

func (t *tidier) close() {
	if t.session != nil {
		t.session.Close()
		t.session = nil
	}
}

// whole re-reads a stored raw mail and compares its digest: what cannot be read back is not taken away from its server.
func (a *Archiver) whole(ctx context.Context, raw contract.Raw) error {
	digest := sha256.New()
	if raw.Object != "" {
		object, err := a.objects.Open(ctx, raw.Object)
		if err != nil {
			return notWhole(err)
		}
		_, err = io.Copy(digest, object)
		if err = errors.Join(err, object.Close()); err != nil {
			return notWhole(err)
		}
	} else {
		stored, err := a.deps.Conn.Get(ctx, contract.Stream(raw.Stream), raw.Sequence)
		if err != nil {
			return notWhole(err)
		}
		_, _ = digest.Write(stored.Body) // a hash never fails to write
	}
	if hex.EncodeToString(digest.Sum(nil)) != raw.SHA256 {
		return fault.New(fault.StoreCorrupt, nil, nil)
	}
	return nil
}

func notWhole(err error) error {
	if errors.Is(err, bus.ErrNotFound) {
		return fault.New(fault.StoreCorrupt, err, nil)
	}
	return err
}

// close settles an order that needed no mailbox.
func (a *Archiver) close(ctx context.Context, delivery *bus.Delivery, outcome, why string) error {
	var d contract.Dispose
	if err := json.Unmarshal(delivery.Body, &d); err != nil {
		return fault.New(fault.StoreCorrupt, err, nil)
	}
	a.actions.WithLabelValues(string(d.Disposition), outcome).Inc()
	return a.closeAt(ctx, delivery, d, outcome, "", why)
}

// closeAt publishes what came of an order, then acknowledges it.
func (a *Archiver) closeAt(
	ctx context.Context, delivery *bus.Delivery, d contract.Dispose, outcome, where, why string,
) error {
	place, err := json.Marshal(d.Place)
	if err != nil {
		return err
	}
	id := contract.EventID(d.Mail, "disposed "+outcome+string(place), 1)
	out, err := bus.Event(contract.TypeDisposed, contract.DisposedSubject(d.Source.ID), id, d.Source.ID,
		contract.Disposed{
			Mail: d.Mail, Source: d.Source, Place: d.Place, Outcome: outcome, Mailbox: where, Reason: why,
			DisposedAt: a.cfg.Now().UTC(),
		})
	if err != nil {
		return err
	}
	out.About(d.Mail)
	if _, err := a.deps.Publisher.Publish(ctx, out); err != nil {
		return err
	}
	return delivery.Ack(ctx)
}
