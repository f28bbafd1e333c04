package router

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"posthorn/pkg/bus"
	"posthorn/pkg/contract"
)

// mostIDs is how many ids of a mail are looked up, the newest first.
const mostIDs = 32

// thread is what is remembered of every mail under its Message-ID: the request it made or joined. It leads answers to
// their request, and a Message-ID to its mail's receipt.
type thread struct {
	Mail         string    `json:"mail"`
	Request      string    `json:"request"`
	Conversation string    `json:"conversation"`
	At           time.Time `json:"at"`
}

// sentMail is the part of a record of the sent index that the router reads: which mails our own mail answered.
type sentMail struct {
	Answers []string `json:"answers,omitempty"`
}

// decide makes the event of a mail: part of the conversation it answers, or a new request.
func (r *Router) decide(ctx context.Context, p contract.ParsedMail) (contract.ContactRequest, error) {
	event := contract.ContactRequest{
		Event: contract.EventReceived, Request: p.Mail, Mail: p.Mail, Revision: 1, Source: p.Stamp.Source,
		Workflow: p.Stamp.Workflow, Conversation: contract.Conversation{ID: p.Mail, New: true}, Content: p.Content,
	}
	found, ok, err := r.find(ctx, p)
	if err != nil {
		return event, err
	}
	if ok {
		event.Conversation = contract.Conversation{ID: found.Conversation}
		event.Event, event.Request = contract.EventReplied, found.Request
	}
	return event, nil
}

// find looks for a known mail of the same source that this one answers: by In-Reply-To, then by References from the
// newest to the oldest; an id of a mail that we sent leads to the mails which that one answered. An empty id matches
// nothing. A bounce or an automatic answer joins nothing.
func (r *Router) find(ctx context.Context, p contract.ParsedMail) (thread, bool, error) {
	switch p.Machine {
	case "dsn", "mdn", "feedback", "auto-reply":
		return thread{}, false, nil
	}
	source := p.Stamp.Source.ID
	ids := append([]string(nil), p.InReplyTo...)
	for i := len(p.References) - 1; i >= 0 && len(ids) < mostIDs; i-- {
		ids = append(ids, p.References[i])
	}
	var answered []string
	for _, id := range ids[:min(len(ids), mostIDs)] {
		key := contract.MessageIDKey(source, id)
		if key == "" {
			continue
		}
		if t, ok, err := lookUp[thread](ctx, r.threads, source+"."+key); err != nil || ok && t.Mail != p.Mail {
			return t, ok, err
		}
		sent, _, err := lookUp[sentMail](ctx, r.sent, source+"."+key)
		if err != nil {
			return thread{}, false, err
		}
		answered = append(answered, sent.Answers...)
	}
	for _, key := range answered[:min(len(answered), mostIDs)] {
		if t, ok, err := lookUp[thread](ctx, r.threads, source+"."+key); err != nil || ok && t.Mail != p.Mail {
			return t, ok, err
		}
	}
	return thread{}, false, nil
}

func lookUp[T any](ctx context.Context, bucket *bus.Bucket, key string) (T, bool, error) {
	var record T
	entry, err := bucket.Get(ctx, key)
	if errors.Is(err, bus.ErrNotFound) {
		return record, false, nil
	}
	if err != nil {
		return record, false, err
	}
	if err := json.Unmarshal(entry.Value, &record); err != nil {
		return record, false, nil //nolint:nilerr // a record nobody can read leads nowhere; the mail is still taken in
	}
	return record, true, nil
}

// remember keeps the mail under its Message-ID. The first mail of an id keeps it: a stranger who repeats the id of
// another mail does not draw its answers to himself. He is filed beside it, so that his receipt is found.
func (r *Router) remember(ctx context.Context, p contract.ParsedMail, event contract.ContactRequest) error {
	source := p.Stamp.Source.ID
	key := contract.MessageIDKey(source, p.MessageID)
	if key == "" {
		return nil // found by its key alone
	}
	value, err := json.Marshal(thread{
		Mail: event.Mail, Request: event.Request, Conversation: event.Conversation.ID, At: event.ReceivedAt,
	})
	if err != nil {
		return err
	}
	first := r.threads.Outgoing(source+"."+key, value, nil)
	first.Once = first.Subject
	_, err = r.publisher.Publish(ctx, first)
	if _, before := errors.AsType[*bus.AlreadyStored](err); !before {
		return err
	}
	t, ok, err := lookUp[thread](ctx, r.threads, source+"."+key)
	if err != nil || ok && t.Mail == event.Mail {
		return err
	}
	_, err = r.publisher.Publish(ctx, r.threads.Outgoing(source+"."+key+"."+event.Mail, value, nil))
	return err
}
