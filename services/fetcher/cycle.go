package fetcher

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
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
	if err := c.sameUIDs(ctx, status, entries); err != nil {
		return tally{}, err
	}
	c.ledger.seen(entries, status.UIDNext, now)
	firstContact := c.ledger.meta.FirstSeen.IsZero()

	unknown := c.unknown(entries, now)
	sentFirst := c.source.RepliesOnly // it decides what is taken in; else new mail does not wait for it
	if sentFirst && c.drain.sentIsDue(now, len(unknown) > 0) {
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
	if !sentFirst && c.drain.sentIsDue(now, len(unknown) > 0) {
		if err := c.readSent(ctx); err != nil {
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

// sameUIDs notices a server that was set back, as by a restore, and kept its UIDVALIDITY: UIDNEXT may only grow (RFC
// 9051 section 2.3.1.1). What lies at a known UID may be another mail then, so every one is compared with the book.
func (c *cycle) sameUIDs(ctx context.Context, status mailbox.Status, entries []mailbox.Entry) error {
	before := c.ledger.meta.UIDNext
	if status.UIDNext == before {
		return nil
	}
	if status.UIDNext < before {
		c.log.Warn("the server was set back: every mail of the Inbox is compared with what is known",
			"uid_next_before", before, "uid_next", status.UIDNext)
		if err := c.verify(ctx, entries); err != nil {
			return err
		}
		if err := c.ledger.save(ctx); err != nil {
			return err
		}
	}
	c.ledger.meta.UIDNext = status.UIDNext
	return c.ledger.saveMeta(ctx)
}

// verify forgets places at which another mail lies than the book says, or of which the book cannot say: they are looked
// at as if they were new.
func (c *cycle) verify(ctx context.Context, entries []mailbox.Entry) error {
	var known []mailbox.Entry
	for _, e := range entries {
		line, ok := c.ledger.find(e)
		switch {
		case !ok:
		case line.Fingerprint == "":
			c.ledger.remove(line)
		default:
			known = append(known, e)
		}
	}
	return c.session.Headers(ctx, known, func(e mailbox.Entry, header []byte) error {
		if line, ok := c.ledger.find(e); ok && mailbox.Fingerprint(header) != line.Fingerprint {
			c.ledger.remove(line)
		}
		return nil
	})
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
