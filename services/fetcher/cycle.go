package fetcher

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/reply"
	"posthorn/pkg/source"
)

const (
	// backAfter is how long a mail that a person put back into the Inbox stays there before it is archived again.
	backAfter = 24 * time.Hour
	// graceStep is how often an unsure mail is looked at again without a new sent mail; the Sent copy of what it
	// answers may arrive late.
	graceStep = 10 * time.Minute
	// lostAfter is when a stored mail without an outcome is checked for its raw bytes.
	lostAfter = 2 * time.Minute
	// orderAgainAfter is when a mail that is taken in, still lies in the Inbox, and has no order waiting, is ordered away
	// again.
	orderAgainAfter = 15 * time.Minute
	// namelessMost is how many mails may stay on a POP3 server without UIDL, which are downloaded in every cycle.
	namelessMost = 1000
)

// cycle is one complete look at one mailbox: list, take in what is not in the ledger, account for every mail.
type cycle struct {
	fetcher *Fetcher
	drain   *drain
	log     *slog.Logger
	session mailbox.Session
	source  source.Source
	stamp   contract.Stamp
	ledger  *ledger
	lease   func() bool
	own     []string

	toDo     int            // mails this cycle has still before it
	nameless map[int]*place // POP3 without UIDL: places by number, for this cycle only
	trouble  error          // why a single mail could not be taken in this time
	waiting  *bool          // orders of this source wait; nil: not asked yet
}

// tally accounts for every mail in the Inbox.
type tally struct {
	Listed      int
	Left        map[string]int
	Dead        int
	Waiting     int // stored and not decided
	Unaccounted int
	Trouble     error // why a single mail is not accounted for
}

// run does one complete cycle. Its error means: nothing can be said about the mailbox now.
func (c *cycle) run(ctx context.Context) (tally, error) {
	entries, err := c.session.List(ctx)
	if err != nil {
		return tally{}, err
	}
	status := c.session.Status()
	if err := c.sameMailbox(ctx, status); err != nil {
		return tally{}, err
	}
	if err := c.namelessAllowed(status, entries); err != nil {
		return tally{}, err
	}
	now := c.fetcher.now()
	c.ledger.seen(entries, status.UIDNext, now)
	firstContact := c.ledger.meta.FirstSeen.IsZero()

	unknown := c.unknown(entries, now)
	if c.drain.sentIsDue(now, len(unknown) > 0) {
		if err := c.readSent(ctx); err != nil {
			return tally{}, err
		}
		unknown = c.unknown(entries, now) // what was unsure may be a reply by now
	}
	c.toDo = len(unknown)
	c.drain.backlog(ctx, c.toDo)
	for batch := range slices.Chunk(unknown, 1000) {
		if err := c.work(ctx, batch, firstContact); err != nil {
			return tally{}, err
		}
	}
	counts, err := c.account(ctx, entries, now)
	if err != nil {
		return tally{}, err
	}
	if err := c.ledger.save(ctx); err != nil {
		return tally{}, err
	}
	if firstContact {
		c.ledger.meta.FirstSeen = now.UTC()
		if err := c.ledger.saveMeta(ctx); err != nil {
			return tally{}, err
		}
	}
	return counts, nil
}

// unknown lists what is to be looked at: places that are not in the ledger, and those that were left for a reason that
// may not hold any more.
func (c *cycle) unknown(entries []mailbox.Entry, now time.Time) []mailbox.Entry {
	var unknown []mailbox.Entry
	for _, e := range entries {
		if e.Deleted {
			continue // somebody is about to remove it; taken in if the flag is taken off
		}
		if line, known := c.ledger.find(e); !known || c.again(line, now) {
			unknown = append(unknown, e)
		}
	}
	return unknown
}

// sameMailbox notices a new UIDVALIDITY: then all places are new, and mails are recognised by their bytes.
func (c *cycle) sameMailbox(ctx context.Context, status mailbox.Status) error {
	before := c.ledger.meta.UIDValidity
	if before == status.UIDValidity {
		return nil
	}
	c.ledger.reset(status.UIDValidity)
	if before == 0 {
		return c.ledger.saveMeta(ctx)
	}
	c.log.Warn("the server renumbered the mailbox (new UIDVALIDITY): every mail is compared with what is stored",
		"previous", before, "now", status.UIDValidity)
	at := c.fetcher.now().UTC()
	out, err := bus.Event(contract.TypeMailboxReset, contract.SourceSubject(contract.SourceMailboxReset, c.source.ID),
		contract.EventID(c.source.ID, fmt.Sprintf("mailbox-reset %d", status.UIDValidity), 1), c.source.ID,
		contract.MailboxResetEvent{Source: c.source.Ref(), Previous: before, Now: status.UIDValidity, At: at})
	if err != nil {
		return err
	}
	if _, err := c.fetcher.publisher.Publish(ctx, out); err != nil {
		return err
	}
	if err := c.ledger.save(ctx); err != nil {
		return err
	}
	return c.ledger.saveMeta(ctx)
}

// namelessAllowed refuses to leave many mails on a POP3 server that gives them no identity: each is downloaded in
// every cycle.
func (c *cycle) namelessAllowed(status mailbox.Status, entries []mailbox.Entry) error {
	if c.source.Type != mailbox.POP3 || status.HasUIDL || c.stamp.Disposition == contract.Delete {
		return nil
	}
	if len(entries) > namelessMost {
		return fault.New(fault.MailboxNoUIDL, nil, fault.Params{"most": fmt.Sprint(namelessMost)})
	}
	return nil
}

// again tells whether a known place is to be looked at once more, as the settings or the sent index have changed since
// it was left.
func (c *cycle) again(line *place, now time.Time) bool {
	switch line.Standing {
	case skipped:
		return !c.source.RepliesOnly
	case unsure:
		return !c.source.RepliesOnly || c.drain.sentChanged || now.Sub(time.Unix(line.Since, 0)) > graceStep
	case beforeStart:
		// POP3 without a date cannot tell; only an open start takes these in.
		boundary := c.source.Boundary
		return boundary.IsZero() || line.Received != 0 && !time.Unix(line.Received, 0).Before(boundary)
	case putBack:
		return now.Sub(time.Unix(line.Since, 0)) > backAfter
	}
	return false
}

// work takes one chunk of unknown mails through boundary, size and the replies-only rule, then fetches what remains.
func (c *cycle) work(ctx context.Context, unknown []mailbox.Entry, firstContact bool) error {
	infos, err := c.session.Describe(ctx, unknown)
	if err != nil {
		return err
	}
	var wanted, large []mailbox.Info
	infos = c.drain.doubts.sort(c.ledger.meta.UIDValidity, infos, c.fetcher.now())
	infos, err = c.sinceStart(ctx, infos, firstContact)
	if err != nil {
		return err
	}
	for _, info := range infos {
		if c.source.MaxSize > 0 && info.Size > int64(c.source.MaxSize) {
			large = append(large, info)
		} else {
			wanted = append(wanted, info)
		}
	}
	if c.source.RepliesOnly {
		if wanted, err = c.onlyReplies(ctx, wanted); err != nil {
			return err
		}
		if large, err = c.onlyReplies(ctx, large); err != nil {
			return err
		}
	}
	if err := c.oversize(ctx, large); err != nil {
		return err
	}
	if err := c.ledger.save(ctx); err != nil {
		return err
	}
	return c.take(ctx, wanted)
}

// sinceStart leaves what arrived before the import boundary. The boundary is a time, so it means the same after a
// UIDVALIDITY change. POP3 knows no time of receipt: what was there at first contact is from before; a start date is
// compared with the topmost Received header.
func (c *cycle) sinceStart(ctx context.Context, infos []mailbox.Info, firstContact bool) ([]mailbox.Info, error) {
	boundary := c.source.Boundary
	if boundary.IsZero() {
		return infos, nil
	}
	received := map[mailbox.Entry]time.Time{}
	// Without UIDL nothing can be remembered of what was there, so its date has to tell, every time.
	nameless := c.source.Type == mailbox.POP3 && !c.session.Status().HasUIDL
	if nameless || c.source.Type == mailbox.POP3 && firstContact && !c.source.ImportFromNow() {
		entries := make([]mailbox.Entry, len(infos))
		for i, info := range infos {
			entries[i] = info.Entry
		}
		err := c.session.Headers(ctx, entries, func(e mailbox.Entry, header []byte) error {
			if at, ok := reply.ReceivedDate(reply.ParseHeader(header)); ok {
				received[e] = at
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	var after []mailbox.Info
	for _, info := range infos {
		at := info.InternalDate
		before := !at.IsZero() && at.Before(boundary)
		if nameless || c.source.Type == mailbox.POP3 && firstContact {
			at = received[info.Entry]
			before = at.IsZero() || at.Before(boundary)
		}
		if !before {
			after = append(after, info)
			continue
		}
		line := c.line(info, "")
		if !at.IsZero() {
			line.Received = at.Unix()
		}
		line.stands(beforeStart, c.fetcher.now())
		c.enter(info, line)
	}
	return after, nil
}

// onlyReplies reads headers and leaves what is certainly no reply, or not surely one, untouched and not downloaded.
func (c *cycle) onlyReplies(ctx context.Context, infos []mailbox.Info) ([]mailbox.Info, error) {
	if len(infos) == 0 {
		return nil, nil
	}
	entries := make([]mailbox.Entry, len(infos))
	byEntry := map[mailbox.Entry]mailbox.Info{}
	for i, info := range infos {
		entries[i] = info.Entry
		byEntry[info.Entry] = info
	}
	var candidates []mailbox.Info
	var leave []skip
	err := c.session.Headers(ctx, entries, func(e mailbox.Entry, raw []byte) error {
		info := byEntry[e]
		header := reply.ParseHeader(raw)
		verdict := c.fetcher.decide(ctx, c.source, c.stamp.Evidence, header)
		if verdict.Verdict == reply.Reply || !verdict.CertainFromHeaders && verdict.Verdict != reply.Unsure {
			candidates = append(candidates, info)
			return nil
		}
		reason := skipped
		if verdict.Verdict == reply.Unsure {
			reason = unsure
		}
		line := c.line(info, "")
		before, known := c.ledger.find(e)
		line.stands(reason, c.fetcher.now())
		c.enter(info, line)
		if !known || before.Standing != reason {
			leave = append(leave, skip{
				place: c.place(info, raw), reason: reason, header: header, received: info.InternalDate, verdict: verdict,
			})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// The receipt comes before the ledger: a crash in between repeats it, and loses none.
	for _, s := range leave {
		if err := c.left(ctx, s); err != nil {
			return nil, err
		}
	}
	return candidates, nil
}

// oversize takes in the headers of mails that are too large: a request that says so, and the mail stays where it is.
func (c *cycle) oversize(ctx context.Context, infos []mailbox.Info) error {
	if len(infos) == 0 {
		return nil
	}
	entries := make([]mailbox.Entry, len(infos))
	byEntry := map[mailbox.Entry]mailbox.Info{}
	for i, info := range infos {
		entries[i] = info.Entry
		byEntry[info.Entry] = info
	}
	return c.session.Headers(ctx, entries, func(e mailbox.Entry, header []byte) error {
		info := byEntry[e]
		// Its bytes are never seen, so its key is made of its header and size.
		header = header[:min(len(header), inlineLimit)]
		mail := &rawMail{data: header, size: int64(len(header)), header: header}
		mail.digest = sha256.Sum256(fmt.Appendf(slices.Clone(header), "\x00oversize %d", info.Size))
		key := contract.MailKey(c.source.ID, mail.digest)
		stamp := c.stamp
		stamp.Disposition = contract.Leave
		mail.digest = sha256.Sum256(header)
		out, err := c.raw(info, mail, key, c.place(info, header), stamp)
		if err != nil {
			return err
		}
		out.Header[contract.HeaderPartial] = fmt.Sprint(info.Size)
		out.Body = header
		_, err = c.fetcher.publisher.Publish(ctx, out)
		if _, before := errors.AsType[*bus.AlreadyStored](err); err != nil && !before {
			return err
		}
		line := c.line(info, key)
		line.Disposition = contract.Leave
		line.stands(oversize, c.fetcher.now())
		c.enter(info, line)
		return c.left(ctx, skip{
			place: c.place(info, header), mail: key, reason: oversize, header: reply.ParseHeader(header),
			received: info.InternalDate,
		})
	})
}

func (c *cycle) enter(info mailbox.Info, line *place) {
	if info.UID == 0 && info.UIDL == "" {
		c.nameless[info.Number] = line
		return
	}
	c.ledger.add(line)
}

// skip is a mail that is left in the Inbox, and why.
type skip struct {
	place    contract.Place
	mail     string
	reason   standing
	header   reply.Header
	received time.Time
	verdict  reply.Verdict
}

// left publishes the receipt of a mail that stays in the Inbox. It carries no body.
func (c *cycle) left(ctx context.Context, s skip) error {
	c.fetcher.metrics.fetched(c.source.ID, "left")
	subject, from, messageID := s.header.Summary()
	body := contract.SkippedMail{
		Mail: s.mail, Source: c.source.Ref(), Place: s.place, MessageID: messageID, From: from, Subject: subject,
		SkippedAt: c.fetcher.now().UTC(), Reason: string(s.reason), Stage: "fetcher",
		Reply: contract.Reply{
			Verdict: s.verdict.Verdict, Reasons: s.verdict.Reasons, MatchedID: s.verdict.MatchedID,
		},
	}
	if !s.received.IsZero() {
		body.ReceivedAt = s.received.UTC()
	}
	id := contract.EventID(c.source.ID, "left "+placeKey(s.place)+" "+string(s.reason), 1)
	out, err := bus.Event(contract.TypeSkipped, contract.SkippedSubject(c.source.ID), id, c.source.ID, body)
	if err != nil {
		return err
	}
	out.Header[contract.HeaderMessageID] = contract.MessageIDKey(c.source.ID, messageID)
	if s.mail != "" {
		out.About(s.mail)
	}
	_, err = c.fetcher.publisher.Publish(ctx, out)
	return err
}

// outcome asks the streams what became of a mail that was stored under a revision of the source. The answer is stored
// while nothing is decided.
func (c *cycle) outcome(ctx context.Context, mail string, revision uint64) (standing, *contract.ContactRequest, error) {
	conn := c.fetcher.conn
	last, err := conn.Last(ctx, contract.StreamContactRequests, contract.ContactRequestFilter(c.source.ID, mail))
	if err == nil {
		var request contract.ContactRequest
		if err := json.Unmarshal(last.Body, &request); err != nil {
			return "", nil, fault.New(fault.StoreCorrupt, err, nil)
		}
		return taken, &request, nil
	}
	if !errors.Is(err, bus.ErrNotFound) {
		return "", nil, err
	}
	_, err = conn.Last(ctx, contract.StreamDeadLetters, contract.DeadLetterSubject("*", c.source.ID, mail))
	if err == nil {
		return dead, nil, nil
	}
	if !errors.Is(err, bus.ErrNotFound) {
		return "", nil, err
	}
	entry, err := c.fetcher.skipped.Get(ctx, c.source.ID+"."+mail)
	if errors.Is(err, bus.ErrNotFound) {
		return stored, nil, nil
	}
	if err != nil {
		return "", nil, err
	}
	var decision contract.Skipped
	if err := json.Unmarshal(entry.Value, &decision); err != nil {
		return "", nil, fault.New(fault.StoreCorrupt, err, nil)
	}
	switch {
	case decision.Revision < revision:
		return stored, nil, nil // the settings have changed since: the parser is looking again
	case decision.Verdict == reply.Unsure:
		return unsure, nil, nil
	}
	return skipped, nil, nil
}

// order orders the disposition of a mail whose event is stored, for one place of it.
func (c *cycle) order(ctx context.Context, request *contract.ContactRequest, where contract.Place) error {
	if !c.source.Orders(c.stamp.Disposition) {
		return nil
	}
	out, err := bus.DisposeOrder(contract.Dispose{
		Mail: request.Mail, Source: c.source.Ref(), Disposition: c.stamp.Disposition, Place: where,
		MessageID: request.MessageID, Raw: request.Raw, OrderedAt: c.fetcher.now().UTC(),
	})
	if err != nil {
		return err
	}
	_, err = c.fetcher.publisher.Publish(ctx, out)
	return err
}

// account brings the ledger up to date with the streams and counts every mail that lies in the Inbox.
func (c *cycle) account(ctx context.Context, entries []mailbox.Entry, now time.Time) (tally, error) {
	counts := tally{Listed: len(entries), Left: map[string]int{}, Trouble: c.trouble}
	if counts.Trouble == nil {
		counts.Trouble = c.drain.doubts.worst()
	}
	for _, e := range entries {
		if e.Deleted {
			counts.Left["flagged"]++
			continue
		}
		line, known := c.ledger.find(e)
		if !known {
			if line = c.nameless[e.Number]; line == nil {
				counts.Unaccounted++
				continue
			}
		}
		if line.Standing == stored {
			outcome, _, err := c.outcome(ctx, line.Mail, line.Revision)
			if err != nil {
				return tally{}, err
			}
			if outcome != stored {
				line.stands(outcome, now)
				c.changed(line, known)
			} else if lost, err := c.lost(ctx, line, now); err != nil {
				return tally{}, err
			} else if lost {
				c.ledger.remove(line)
				counts.Unaccounted++
				continue
			}
		}
		switch {
		case line.Standing == dead:
			if err := c.revived(ctx, line, now, known); err != nil {
				return tally{}, err
			}
			counts.Dead++
		case line.Standing == stored:
			counts.Waiting++
		case line.Standing.left():
			counts.Left[string(line.Standing)]++
		case line.Standing == taken && known:
			if err := c.orderAgain(ctx, line, now); err != nil {
				return tally{}, err
			}
		}
	}
	return counts, nil
}

func (c *cycle) changed(line *place, known bool) {
	if known {
		c.ledger.touch(line)
	}
}

// revived notices that a dead letter was handled since.
func (c *cycle) revived(ctx context.Context, line *place, now time.Time, known bool) error {
	outcome, _, err := c.outcome(ctx, line.Mail, line.Revision)
	if err != nil {
		return err
	}
	if outcome != dead {
		line.stands(outcome, now)
		c.changed(line, known)
	}
	return nil
}

// lost deals with a mail that is stored but was not decided for a while. It is fetched again when its bytes are in no
// stream (true); when they are, and no stage has anything in hand or before it, the parser is asked to look again: what
// carried the mail from stage to stage may have run out of its time.
func (c *cycle) lost(ctx context.Context, line *place, now time.Time) (bool, error) {
	if now.Sub(time.Unix(line.Since, 0)) < lostAfter {
		return false, nil
	}
	conn := c.fetcher.conn
	_, err := conn.Last(ctx, contract.StreamMail, contract.RawSubject(c.source.ID, line.Mail))
	if errors.Is(err, bus.ErrNotFound) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	for stream, durable := range map[contract.Stream]string{
		contract.StreamMail: bus.DurableParser, contract.StreamParsed: bus.DurableRouter,
	} {
		if pending, inHand, err := conn.Lag(ctx, stream, durable); err != nil || pending+inHand > 0 {
			return false, err
		}
	}
	line.Since = now.Unix()
	return false, c.evaluate(ctx, line.Mail, c.placeOf(line), c.stamp, "stuck")
}

// orderAgain repeats the order for a mail that should have left the Inbox long ago, when no order is waiting: the
// stream that carried it may have been lost, or the order was closed by something that has passed since.
func (c *cycle) orderAgain(ctx context.Context, line *place, now time.Time) error {
	if !c.source.Orders(line.Disposition) || !c.source.Orders(c.stamp.Disposition) ||
		now.Sub(time.Unix(line.Since, 0)) < orderAgainAfter {
		return nil
	}
	if waiting, err := c.ordersWaiting(ctx); err != nil || waiting {
		return err
	}
	outcome, request, err := c.outcome(ctx, line.Mail, line.Revision)
	if err != nil || outcome != taken {
		return err
	}
	line.Since = now.Unix()
	c.ledger.touch(line)
	return c.order(ctx, request, c.placeOf(line))
}

// placeOf is the place of a line of the ledger.
func (c *cycle) placeOf(line *place) contract.Place {
	return contract.Place{
		Epoch: c.source.Epoch, Protocol: string(c.source.Type), UIDValidity: line.UIDValidity, UID: line.UID,
		UIDL: line.UIDL, Size: line.Size, Fingerprint: line.Fingerprint,
	}
}
