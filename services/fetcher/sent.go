package fetcher

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
	"posthorn/pkg/mailbox"
	"posthorn/pkg/reply"
	"posthorn/pkg/source"
)

// sentRecord is what the sent index keeps of one mail that left from an account: enough to recognise an answer to it,
// and to find the conversation that it belongs to. Ids are kept as [contract.MessageIDKey]s only.
type sentRecord struct {
	At      time.Time `json:"at,omitzero"`
	Answers []string  `json:"answers,omitempty"`
}

// sentEntries makes the records of one sent mail: under its Message-ID, and under the ids by which some providers
// replace it on the way (Gmail, Amazon SES, Microsoft 365).
func sentEntries(sourceID string, header reply.Header) (map[string][]byte, error) {
	record := sentRecord{}
	if at, ok := reply.SentDate(header); ok {
		record.At = at.UTC()
	}
	for _, id := range reply.IDs(append(header.All("In-Reply-To"), header.All("References")...)) {
		if key := contract.MessageIDKey(sourceID, id); key != "" {
			record.Answers = append(record.Answers, key)
		}
	}
	value, err := json.Marshal(record)
	if err != nil {
		return nil, err
	}
	entries := map[string][]byte{}
	for _, name := range []string{
		"Message-ID", "X-GM-Message-ID", "X-SES-Message-ID", "X-Microsoft-Original-Message-ID",
	} {
		for _, id := range reply.IDs(header.All(name)) {
			if key := contract.MessageIDKey(sourceID, id); key != "" {
				entries[sourceID+"."+key] = value
			}
		}
	}
	return entries, nil
}

// decide asks the replies-only rule about one header block, with the sent index at hand.
func (f *Fetcher) decide(ctx context.Context, s source.Source, evidence string, header reply.Header) reply.Verdict {
	return reply.Decide(reply.Input{
		Header:       header,
		OwnAddresses: []string{s.Address, s.Username},
		Evidence:     evidence,
		SentReady:    evidence == string(source.EvidenceSent),
		Sent: func(id string) bool {
			key := contract.MessageIDKey(s.ID, id)
			if key == "" {
				return false
			}
			_, err := f.sent.Get(ctx, s.ID+"."+key)
			if err != nil && !errors.Is(err, bus.ErrNotFound) {
				f.log.Warn("the sent index could not be read", "source", s.ID, "error", err)
			}
			return err == nil
		},
	})
}

// readSent brings the sent index up to date with the Sent mailbox.
func (c *cycle) readSent(ctx context.Context) error {
	d := c.drain
	found := map[string][]byte{}
	write := func() error {
		if len(found) == 0 {
			return nil
		}
		err := c.fetcher.sent.PutMany(ctx, found)
		clear(found)
		return err
	}
	seen := 0
	cursor, err := c.session.Sent(ctx, c.ledger.meta.Sent, func(mail mailbox.SentMail) error {
		header := reply.ParseHeader(mail.Header)
		seen++
		entries, err := sentEntries(c.source.ID, header)
		if err != nil {
			return err
		}
		maps.Copy(found, entries)
		if len(found) >= 250 {
			return write()
		}
		return nil
	})
	if fault.CodeOf(err) == fault.MailboxNoSent {
		d.noSent, d.sentRead = err, c.fetcher.now()
		return nil
	}
	if err != nil {
		return err
	}
	if err := write(); err != nil {
		return err
	}
	d.sentRead, d.noSent = c.fetcher.now(), nil
	if seen == 0 && c.ledger.meta.SentRead && cursor == c.ledger.meta.Sent {
		return c.emptySent()
	}
	d.sentChanged = d.sentChanged || seen > 0
	c.ledger.meta.Sent, c.ledger.meta.SentRead = cursor, true
	c.ledger.meta.SentMails += seen
	if err := c.emptySent(); err != nil {
		return err
	}
	return c.ledger.saveMeta(ctx)
}

// emptySent remembers that there is a Sent mailbox without any mail: it proves nothing.
func (c *cycle) emptySent() error {
	if c.ledger.meta.SentMails == 0 {
		c.drain.noSent = fault.New(fault.MailboxNoSent, nil, nil)
	}
	return nil
}
