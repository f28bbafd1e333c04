package fetcher

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
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
