package fetcher

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/reply"
)

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
		line.Fingerprint = mailbox.Fingerprint(raw)
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
		line.Disposition, line.Fingerprint = contract.Leave, mailbox.Fingerprint(header)
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
