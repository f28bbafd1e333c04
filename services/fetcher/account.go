package fetcher

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/reply"
)

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
			if err := c.orderAgain(ctx, e, line, now); err != nil {
				return tally{}, err
			}
			if _, same := c.ledger.find(e); !same {
				counts.Unaccounted++
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
// Another mail that lies there now is not ordered away, but taken in.
func (c *cycle) orderAgain(ctx context.Context, e mailbox.Entry, line *place, now time.Time) error {
	if !c.source.Orders(line.Disposition) || !c.source.Orders(c.stamp.Disposition) ||
		now.Sub(time.Unix(line.Since, 0)) < orderAgainAfter {
		return nil
	}
	if waiting, err := c.ordersWaiting(ctx); err != nil || waiting {
		return err
	}
	if err := c.verify(ctx, []mailbox.Entry{e}); err != nil {
		return err
	}
	if _, same := c.ledger.find(e); !same {
		return nil
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

// ordersWaiting tells whether the archiver has orders of this source in hand or before it. It is asked once in a cycle.
func (c *cycle) ordersWaiting(ctx context.Context) (bool, error) {
	if c.waiting == nil {
		pending, inHand, err := c.fetcher.conn.Lag(ctx, contract.StreamDispositions, bus.DurableArchiver(c.source.ID))
		if err != nil && fault.CodeOf(err) != fault.StoreMissing { // missing: no order was ever taken
			return false, err
		}
		waiting := pending+inHand > 0
		c.waiting = &waiting
	}
	return *c.waiting, nil
}
