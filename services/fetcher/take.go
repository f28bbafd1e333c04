package fetcher

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/reply"
)

const (
	// inlineLimit is the largest raw mail that travels inside its message; larger ones go to the object store and the
	// message carries a claim check. 512 KiB stay below NATS's default message limit of 1 MB.
	inlineLimit = 512 << 10
	// batchMails and batchBytes bound what one FETCH asks for.
	batchMails = 64
	batchBytes = 16 << 20
	// inFlight is how many raw mails wait for the store at once: enough for the publisher to commit them in groups.
	inFlight = 64
)

// fetched is what came of one mail of a batch.
type fetched struct {
	info  mailbox.Info
	line  *place // nil when the mail was not stored
	fault error
}

// take fetches mails, stores each, and enters them in the ledger: first the store, then the ledger, so that a crash in
// between leads to a second fetch of a mail that the store then knows, and never to a mail that is lost.
func (c *cycle) take(ctx context.Context, mails []mailbox.Info) error {
	for len(mails) > 0 {
		n, sum := 0, int64(0)
		for n < len(mails) && n < batchMails && (n == 0 || sum+mails[n].Size <= batchBytes) {
			if n > 0 && c.drain.doubts.about(c.ledger.meta.UIDValidity, mails[n]) {
				break // what ended a session before comes alone
			}
			sum += mails[n].Size
			n++
		}
		if err := c.takeBatch(ctx, mails[:n]); err != nil {
			c.doubt(mails[:n], err)
			return err
		}
		mails = mails[n:]
		c.toDo -= n
		c.drain.backlog(ctx, c.toDo)
	}
	return nil
}

func (c *cycle) takeBatch(ctx context.Context, mails []mailbox.Info) error {
	if !c.lease() {
		return fault.New(fault.StoreConflict, nil, fault.Params{"what": "the lease of the source"})
	}
	infos := make(map[mailbox.Entry]mailbox.Info, len(mails))
	entries := make([]mailbox.Entry, len(mails))
	for i, info := range mails {
		entries[i] = info.Entry
		infos[info.Entry] = info
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		results []fetched
		room    = make(chan struct{}, inFlight)
	)
	keep := func(f fetched) {
		mu.Lock()
		results = append(results, f)
		mu.Unlock()
		if f.fault != nil && fault.As(f.fault).Code.Class() == "store" {
			cancel(f.fault) // what cannot be stored is not fetched
		}
	}
	err := c.session.Fetch(ctx, entries, func(e mailbox.Entry, size int64, body io.Reader) error {
		info := infos[e]
		mail, err := c.receive(ctx, info, body)
		if err != nil {
			if class := fault.As(err).Code; class == fault.ProtocolEmpty || class == fault.ProtocolShort {
				keep(fetched{info: info, fault: err})
				return nil
			}
			return err
		}
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			mail.discard()
			return context.Cause(ctx)
		}
		wg.Go(func() {
			defer func() { <-room }()
			defer mail.discard()
			line, err := c.store(ctx, info, mail)
			keep(fetched{info: info, line: line, fault: err})
		})
		return nil
	})
	wg.Wait()

	var storeErr error
	for _, f := range results {
		switch {
		case f.line != nil:
			c.book(f)
		case fault.As(f.fault).Code.Class() == "store":
			storeErr = f.fault
		default:
			c.note(f.info, f.fault)
		}
	}
	// The ledger is written whatever happened to the rest of the batch: what is stored is not fetched again.
	if saveErr := c.ledger.save(context.WithoutCancel(ctx)); saveErr != nil {
		return saveErr
	}
	if storeErr != nil {
		return storeErr
	}
	if err != nil {
		return err
	}
	return nil
}

// book enters a stored mail in the ledger.
func (c *cycle) book(f fetched) {
	c.fetcher.metrics.fetched(c.source.ID, "stored")
	c.fetcher.metrics.bytes.WithLabelValues(c.source.ID).Add(float64(f.line.Size))
	delete(c.drain.doubts, f.line.id())
	if f.info.UID == 0 && f.info.UIDL == "" {
		c.nameless[f.info.Number] = f.line
		return
	}
	c.ledger.add(f.line)
}

// note remembers that one mail could not be taken in, without stopping the others.
func (c *cycle) note(info mailbox.Info, err error) {
	c.fetcher.metrics.fetched(c.source.ID, "failed")
	c.trouble = err
	c.log.Warn("a mail could not be taken in; it stays in the Inbox and is fetched again", "uid", info.UID, "error", err)
}

// store publishes one raw mail. It returns the mail's line for the ledger once the store has it, be it from now or
// from before.
func (c *cycle) store(ctx context.Context, info mailbox.Info, mail *rawMail) (*place, error) {
	key := contract.MailKey(c.source.ID, mail.digest)
	where := c.place(info, mail.head)
	stamp := c.stamp
	line := c.line(info, key)
	line.Fingerprint = where.Fingerprint
	if info.UID == 0 && info.UIDL == "" { // downloaded in every cycle: ask before sending it all to the store again
		if outcome, _, err := c.outcome(ctx, key, c.stamp.Revision); err != nil || outcome != stored {
			if err != nil {
				return nil, err
			}
			return c.known(ctx, line, key, where, stamp)
		}
	}

	out, err := c.raw(info, mail, key, where, stamp)
	if err != nil {
		return nil, err
	}
	if mail.file != nil {
		name := hex.EncodeToString(mail.digest[:]) + "-" + key
		if err := c.fetcher.objects.Put(ctx, name, mail.open(), mail.size); err != nil {
			return nil, err
		}
		out.Header[contract.HeaderObject] = name
	} else {
		out.Body = mail.data
	}
	_, err = c.fetcher.publisher.Publish(ctx, out)
	if err == nil {
		return line, nil
	}
	if _, before := errors.AsType[*bus.AlreadyStored](err); !before {
		return nil, err
	}
	return c.known(ctx, line, key, where, stamp)
}

// raw is the message that stores one mail.
func (c *cycle) raw(
	info mailbox.Info, mail *rawMail, key string, where contract.Place, stamp contract.Stamp,
) (bus.Outgoing, error) {
	subject := contract.RawSubject(c.source.ID, key)
	stampJSON, err := json.Marshal(stamp)
	if err != nil {
		return bus.Outgoing{}, err
	}
	placeJSON, err := json.Marshal(where)
	if err != nil {
		return bus.Outgoing{}, err
	}
	// The revision is in the id: a mail that was left, and its bytes erased, may be wanted a minute after the settings
	// have changed, and the broker remembers ids for longer.
	id := contract.EventID(key, fmt.Sprintf("raw %d", stamp.Revision), 1)
	out := bus.Outgoing{
		Subject: subject, ID: id, Once: subject,
		Header: bus.EventHeader(contract.TypeRaw, id, c.source.ID, "message/rfc822"),
	}
	out.About(key)
	out.Header[contract.HeaderStamp] = string(stampJSON)
	out.Header[contract.HeaderPlace] = string(placeJSON)
	out.Header[contract.HeaderReceivedAt] = c.receivedAt(info, mail.header).Format(time.RFC3339)
	out.Header[contract.HeaderSHA256] = hex.EncodeToString(mail.digest[:])
	out.Header[contract.HeaderSize] = strconv.FormatInt(mail.size, 10)
	return out, nil
}

// known deals with a mail whose bytes the store has already. Stored is not decided: where an event exists, the
// disposition is ordered again for this place; where none does, the parser is asked to look again.
func (c *cycle) known(
	ctx context.Context, line *place, key string, where contract.Place, stamp contract.Stamp,
) (*place, error) {
	now := c.fetcher.now()
	returned := c.ledger.wasPutBack(key, line.UID)
	if before, ok := c.ledger.byID[line.id()]; ok && before.Standing == putBack {
		returned = false // it has had its day in the Inbox
	}
	outcome, request, err := c.outcome(ctx, key, stamp.Revision)
	if err != nil {
		return nil, err
	}
	switch outcome {
	case taken:
		if returned {
			line.stands(putBack, now)
			return line, c.left(ctx, skip{place: where, mail: key, reason: putBack})
		}
		line.stands(taken, now)
		return line, c.order(ctx, request, where)
	case dead:
		line.stands(dead, now)
		return line, nil
	default:
		return line, c.evaluate(ctx, key, where, stamp, "seen-again")
	}
}

// evaluate orders the parser to look at a stored mail again.
func (c *cycle) evaluate(
	ctx context.Context, key string, where contract.Place, stamp contract.Stamp, reason string,
) error {
	// The id changes every minute: an order that is repeated later is not taken for the one before.
	id := contract.EventID(key, fmt.Sprintf("evaluate %s %d %d", placeKey(where), stamp.Revision,
		c.fetcher.now().Unix()/60), 1)
	out, err := bus.Event(contract.TypeEvaluate, contract.EvaluateSubject(c.source.ID), id, c.source.ID,
		contract.Evaluate{Mail: key, Stamp: stamp, Place: where, Reason: reason})
	if err != nil {
		return err
	}
	out.About(key)
	_, err = c.fetcher.publisher.Publish(ctx, out)
	return err
}

// line is a new line of the ledger for a mail that is stored.
func (c *cycle) line(info mailbox.Info, key string) *place {
	line := &place{
		UIDValidity: c.ledger.meta.UIDValidity, UID: info.UID, UIDL: info.UIDL, Size: info.Size, Mail: key,
		Disposition: c.stamp.Disposition, Revision: c.stamp.Revision,
	}
	if !info.InternalDate.IsZero() {
		line.Received = info.InternalDate.Unix()
	}
	line.stands(stored, c.fetcher.now())
	return line
}

func (c *cycle) place(info mailbox.Info, header []byte) contract.Place {
	return contract.Place{
		Epoch: c.source.Epoch, Protocol: string(c.source.Type), UIDValidity: c.ledger.meta.UIDValidity, UID: info.UID,
		UIDL: info.UIDL, Size: info.Size, Fingerprint: mailbox.Fingerprint(header),
	}
}

// placeKey names a place inside ids.
func placeKey(p contract.Place) string {
	return p.Epoch + "/" + placeID(p.UIDValidity, p.UID, p.UIDL, p.Size)
}

// receivedAt is INTERNALDATE; on POP3 the date of the topmost Received header, else now.
func (c *cycle) receivedAt(info mailbox.Info, header []byte) time.Time {
	if !info.InternalDate.IsZero() {
		return info.InternalDate.UTC()
	}
	if at, ok := reply.ReceivedDate(reply.ParseHeader(header)); ok {
		return at.UTC()
	}
	return c.fetcher.now().UTC()
}
