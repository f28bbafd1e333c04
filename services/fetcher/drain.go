package fetcher

import (
	"context"
	"log/slog"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/source"
	"posthorn/pkg/stage"
)

const (
	// soon is when a mailbox is looked at again while stored mails wait for their decision, doubling up to the poll
	// interval. Also the pause before the second complete cycle that clears a failure.
	soon = time.Second
	// mostWakes is how often in a row a change may end a wait at once; then changes are gathered first, as a server may
	// tell of changes without end.
	mostWakes = 5
	// sentEvery is how often the Sent mailbox is read when nothing else asks for it.
	sentEvery = 5 * time.Minute
	// tellEvery is how often the state is written although nothing but the time of the last cycle has changed.
	tellEvery = 15 * time.Second
	// progressEvery is how often a long cycle says how far it is.
	progressEvery = 2 * time.Second
)

// drain keeps one source drained for as long as this process holds its lease.
type drain struct {
	fetcher *Fetcher
	log     *slog.Logger
	owned   stage.Owned

	source  source.Source
	session *stage.Session
	ledger  *ledger

	short       map[string]int // how often a body came shorter than announced, by place
	doubts      doubts         // mails that have ended sessions
	sentRead    time.Time      // when the Sent mailbox was read last
	sentChanged bool           // new sent mails since unsure mails were looked at
	noSent      error          // why there is no sent index
	evidence    string         // resolved: sent or header
	certUntil   time.Time      // when the server's certificate ends

	alone      bool // the server has no connection left for the archiver while ours waits for mail
	cuts       int  // waits in a row that the server ended by ending the connection
	wakes      int  // waits in a row that a change of the mailbox ended at once
	failures   int  // in a row, of the same class
	failedWith fault.Code
	good       int // complete cycles since the last failure
	gap        int // cycles in a row with unaccounted mails
	state      source.State
	told       time.Time
}

// run drains until ctx ends or the lease is lost.
func (d *drain) run(ctx context.Context) {
	defer d.close()
	wait := time.Duration(0)
	for {
		if !d.pause(ctx, wait) {
			return
		}
		if d.source.Paused {
			d.close()
			d.report(ctx, source.State{State: source.StatePaused, LastCycle: d.state.LastCycle, Counts: d.state.Counts})
			wait = time.Hour // a change of the settings ends the wait
			continue
		}
		counts, err := d.cycle(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			wait = d.failed(ctx, err)
			continue
		}
		wait = d.succeeded(ctx, counts)
	}
}

// pause waits: for the mailbox to change, for new settings, for the time to pass. It returns false when ctx ended.
func (d *drain) pause(ctx context.Context, wait time.Duration) bool {
	session := d.session
	if session == nil || wait <= 0 {
		return d.await(ctx, timer(wait)) == nil && ctx.Err() == nil
	}
	began := time.Now()
	err := d.await(ctx, func(ctx context.Context) error { return session.Wait(ctx, wait) })
	switch {
	case ctx.Err() != nil:
		return false
	case err != nil:
		d.close()
		rest := d.cut(err, wait)
		d.log.Info("the connection ended while waiting for mail", "error", err, "wait", rest.String())
		return d.pause(ctx, rest)
	}
	d.cuts = 0
	d.wakes++
	if time.Since(began) >= soon {
		d.wakes = 0
	}
	if d.wakes > mostWakes {
		_ = d.await(ctx, timer(soon)) // a timer ends with ctx only, which is asked next
	}
	return ctx.Err() == nil
}

// await waits until wait returns, for new settings, or for the end of ctx. Its error is that of wait.
func (d *drain) await(ctx context.Context, wait func(context.Context) error) error {
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	over := make(chan error, 1)
	go func() { over <- wait(waiting) }()
	select {
	case next := <-d.owned.Changes:
		stop()
		<-over //nolint:errcheck // the session is closed now, whatever it says
		d.adopt(next)
		return nil
	case err := <-over:
		return err
	case <-ctx.Done():
		return <-over
	}
}

func timer(wait time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		return nil
	}
}

// cut returns how long to wait before signing in again after a connection that ended in the middle of a wait. The first
// time it is taken for a mere mishap; a server that ends every wait is polled, not signed in to without end.
func (d *drain) cut(err error, wait time.Duration) time.Duration {
	d.cuts++
	if class := fault.CodeOf(err).Class(); d.cuts == 1 && class != "limit" && class != "auth" {
		return 0
	}
	return min(wait, fault.Delay(err, d.cuts))
}

// adopt takes over changed settings: at once, with a fresh connection and no more back-off.
func (d *drain) adopt(next source.Source) {
	if next.Epoch != d.source.Epoch {
		d.ledger = nil
		d.evidence, d.noSent, d.sentRead = "", nil, time.Time{}
	}
	d.source = next
	d.failures, d.failedWith, d.alone = 0, "", false
	d.doubts = doubts{} // mails that rest are tried again at once, too
	d.close()
}

// close ends the session and gives the maildrop free.
func (d *drain) close() {
	if d.session != nil {
		d.session.Close()
		d.session = nil
	}
}

// cycle opens what is not open and looks at the mailbox once, completely.
func (d *drain) cycle(ctx context.Context) (tally, error) {
	if d.session == nil {
		d.connecting(ctx)
		if err := d.open(ctx); err != nil {
			return tally{}, err
		}
	}
	if d.ledger == nil {
		l, err := openLedger(ctx, d.fetcher.books, d.source.ID, d.source.Epoch)
		if err != nil {
			return tally{}, err
		}
		d.ledger = l
	}
	c := &cycle{
		fetcher: d.fetcher, drain: d, log: d.log, session: d.session.Session, source: d.source, ledger: d.ledger,
		lease: d.fresh, nameless: map[int]*place{},
	}
	if err := d.resolveEvidence(ctx, c); err != nil {
		return tally{}, err
	}
	c.stamp = d.source.Stamp(d.evidence)
	began := time.Now()
	counts, err := c.run(ctx)
	if err != nil {
		if fault.CodeOf(err) == fault.StoreConflict {
			d.ledger = nil // read it anew: somebody else has written
		}
		return tally{}, err
	}
	d.fetcher.metrics.cycle(d.source.ID, time.Since(began))
	d.sentChanged = false
	if d.source.Type == mailbox.POP3 || d.crowded(ctx) {
		d.close() // the maildrop is for one at a time: the archiver may want it
	}
	return counts, nil
}

// crowded tells whether the archiver was refused because there are too many connections. Ours would be one too many for
// ever, so from then on, until the settings change, none is kept between two cycles.
func (d *drain) crowded(ctx context.Context) bool {
	if !d.alone {
		state, err := d.fetcher.archived.Get(ctx, d.source.ID)
		d.alone = err == nil && state.ErrorCode() == fault.LimitConnections
	}
	return d.alone
}

func (d *drain) fresh() bool {
	return d.owned.Fresh() && d.session.Fresh()
}

func (d *drain) open(ctx context.Context) error {
	trace := d.fetcher.traces.line(d.source.ID)
	session, err := d.fetcher.deps.SignIn(ctx, d.source, d.fetcher.cfg.Mail, mailbox.Read, trace)
	d.fetcher.metrics.signIn(d.source.ID, err)
	if err != nil {
		return err
	}
	d.session, d.certUntil = session, session.Status().CertUntil
	d.fetcher.metrics.certificate(d.source.ID, d.certUntil)
	return nil
}

// resolveEvidence decides what counts as proof of a reply. The Sent mailbox is read before the first decision of a
// replies-only source; `auto` is `sent` once a Sent mailbox with mail in it was read, else `header`.
func (d *drain) resolveEvidence(ctx context.Context, c *cycle) error {
	if d.source.RepliesOnly && d.sentRead.IsZero() {
		if err := c.readSent(ctx); err != nil {
			return err
		}
	}
	switch d.source.ReplyEvidence {
	case source.EvidenceSent, source.EvidenceHeader:
		d.evidence = string(d.source.ReplyEvidence)
	default:
		d.evidence = string(source.EvidenceHeader)
		if d.ledger.meta.SentRead && d.ledger.meta.SentMails > 0 {
			d.evidence = string(source.EvidenceSent)
		}
	}
	return nil
}

// sentIsDue tells whether the Sent mailbox is to be read in this cycle.
func (d *drain) sentIsDue(now time.Time, unknown bool) bool {
	if d.source.Type != mailbox.IMAP {
		return false
	}
	age := now.Sub(d.sentRead)
	switch {
	case d.source.RepliesOnly && unknown:
		return true // it decides what is taken in
	case d.source.RepliesOnly && d.ledger.holds(unsure):
		return age >= min(time.Duration(d.source.PollInterval), sentEvery)
	}
	return age > sentEvery
}

// failed books a failed cycle and returns how long to wait.
func (d *drain) failed(ctx context.Context, err error) time.Duration {
	e := fault.As(err)
	d.close()
	if e.Code.Class() != d.failedWith.Class() {
		d.failures = 0
	}
	d.failures++
	d.failedWith = e.Code
	d.good = 0
	wait := fault.Delay(e, d.failures)
	next := d.fetcher.now().Add(wait)
	d.log.Warn("nothing is taken in", "error", e, "attempt", d.failures, "next_try", next.UTC())
	d.report(ctx, source.State{
		State: source.StateFailing, Error: source.NewStateError(e, d.since(e.Code)), LastCycle: d.state.LastCycle,
		NextTry: next.UTC(), Counts: d.state.Counts,
	})
	return wait
}

// succeeded books a complete cycle and returns how long to wait. A failure clears after two complete cycles.
func (d *drain) succeeded(ctx context.Context, counts tally) time.Duration {
	d.good++
	now := d.fetcher.now()
	if counts.Unaccounted > 0 {
		d.gap++
	} else {
		d.gap = 0
	}
	state := source.State{State: source.StateOK, LastCycle: now.UTC(), Counts: source.Counts{
		Dead: counts.Dead, Waiting: counts.Waiting, LeftBy: counts.Left, Inbox: counts.Listed,
	}}
	for _, n := range counts.Left {
		state.Counts.Left += n
	}
	if d.gap >= 2 {
		state.Counts.Unaccounted = counts.Unaccounted
		if trouble := fault.As(counts.Trouble); trouble != nil {
			state.State = source.StateDegraded
			state.Error = source.NewStateError(trouble, d.since(trouble.Code))
		}
	}
	d.note(&state)
	wait := time.Duration(d.source.PollInterval)
	switch {
	case d.state.State == source.StateFailing && d.good < 2:
		state.State, state.Error = source.StateFailing, d.state.Error
		wait = soon
	case counts.Waiting > 0 || counts.Unaccounted > 0:
		wait = min(wait, soon<<min(d.good, 6))
	}
	d.failures, d.failedWith = 0, ""
	if counts.Waiting == 0 && counts.Unaccounted == 0 && state.State == source.StateOK {
		d.good = 2
	}
	state.NextTry = now.Add(wait).UTC()
	d.log.Debug("a complete cycle", "inbox", counts.Listed, "left", state.Counts.Left, "waiting", counts.Waiting,
		"unaccounted", counts.Unaccounted, "wait", wait.String())
	d.report(ctx, state)
	return wait
}

// since is when an error began: now, unless it is the one that is shown already.
func (d *drain) since(code fault.Code) time.Time {
	if d.state.ErrorCode() == code {
		return d.state.Error.Since
	}
	return d.fetcher.now().UTC()
}

// note adds what a person should know although mail is taken in.
func (d *drain) note(state *source.State) {
	now := d.fetcher.now()
	if !d.certUntil.IsZero() && d.certUntil.Sub(now) < mailbox.ExpirySoon && state.Error == nil {
		until := fault.Params{"until": d.certUntil.UTC().Format(time.DateOnly)}
		state.State = source.StateDegraded
		state.Error = source.NewStateError(fault.New(fault.TLSExpiresSoon, nil, until), d.since(fault.TLSExpiresSoon))
	}
	if d.source.RepliesOnly && d.noSent != nil && d.source.ReplyEvidence != source.EvidenceHeader {
		e := fault.As(d.noSent)
		if d.source.ReplyEvidence == source.EvidenceSent {
			state.State = source.StateDegraded
			state.Error = source.NewStateError(e, d.since(e.Code))
		}
		state.Notes = append(state.Notes, e.Text("en").Headline+". "+e.Text("en").Now)
	}
}

// connecting shows that a first connection is being made; a source that failed before stays failing until it works.
func (d *drain) connecting(ctx context.Context) {
	if d.state.State == "" || d.state.State == source.StatePaused {
		d.report(ctx, source.State{State: source.StateConnecting, LastCycle: d.state.LastCycle, Counts: d.state.Counts})
	}
}

// backlog shows, while a long cycle runs, how many mails wait, and that it makes progress.
func (d *drain) backlog(ctx context.Context, waiting int) {
	now := d.fetcher.now()
	if waiting < batchMails || now.Sub(d.told) < progressEvery {
		return
	}
	state := d.state
	state.Counts.Waiting, state.Backlog, state.Progress = waiting, waiting, now.UTC()
	d.report(ctx, state)
}

// report writes the state where everybody reads it, and publishes an event when it is another than before.
func (d *drain) report(ctx context.Context, state source.State) {
	now := d.fetcher.now()
	before := d.state
	state.Instance = d.fetcher.cfg.Instance
	same := before.State == state.State && before.ErrorCode() == state.ErrorCode()
	if same && state.Counts.Equal(before.Counts) && now.Sub(d.told) < tellEvery {
		return
	}
	d.state = state
	d.told = now
	if err := d.fetcher.states.Put(ctx, d.source.ID, state); err != nil {
		d.log.Warn("the state of the source could not be written", "error", err)
		return
	}
	d.fetcher.metrics.state(d.source.ID, string(d.source.Type), state)
	if same {
		return
	}
	d.announce(ctx, before, state, now)
}

// announce publishes source.v1.state.
func (d *drain) announce(ctx context.Context, before, state source.State, now time.Time) {
	body := contract.StateEvent{
		Source: d.source.Ref(), State: string(state.State), Previous: string(before.State), Since: now.UTC(),
	}
	if state.Error != nil {
		body.Code, body.Text, body.Since = string(state.Error.Code), state.Error.Text, state.Error.Since
	}
	id := contract.EventID(d.source.ID, "state "+string(state.State)+body.Code+now.UTC().Format(time.RFC3339Nano), 1)
	out, err := bus.Event(contract.TypeSourceState, contract.SourceSubject(contract.SourceState, d.source.ID), id,
		d.source.ID, body)
	if err == nil {
		_, err = d.fetcher.publisher.Publish(ctx, out)
	}
	if err != nil {
		d.log.Warn("the change of state could not be published", "error", err)
	}
}
