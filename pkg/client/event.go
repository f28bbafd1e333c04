package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"posthorn/pkg/contract"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Event is one event of a contact request.
type Event struct {
	// ID is the same whenever this event is delivered: be idempotent on it (`ce-id`).
	ID string
	// Type names the schema of the body, such as posthorn.contact-request.received.v1 (`ce-type`).
	Type string
	// Subject is the NATS subject; the subject of the mail is ContactRequest.Subject.
	Subject string
	// Time is when the event happened (`ce-time`), in UTC; the zero time if it does not say.
	Time time.Time
	// Replay says that a replay published the event.
	Replay bool
	// Attempt is 1 when the event is delivered for the first time, as far as the broker knows.
	Attempt int

	// ContactRequest is the body of `received` and `replied`. Of an event that this package does not know only those
	// fields are set that it has in common with them; Event, Workflow and Source.ID always are.
	ContactRequest contract.ContactRequest
	// Body is the JSON as it was published, with the fields that this package does not know.
	Body []byte

	conn *nats.Conn
}

// Raw returns the bytes of the mail that made the event, from Posthorn's store. See [Content].
func (e *Event) Raw(ctx context.Context) (io.ReadCloser, error) {
	return Content(ctx, e.conn, contract.ContentRaw, e.ContactRequest.Source.ID, e.ContactRequest.Mail, 0)
}

// HTML returns the mail's HTML part in UTF-8. It is what a stranger wrote: clean it before it is shown. See [Content].
func (e *Event) HTML(ctx context.Context) (io.ReadCloser, error) {
	return Content(ctx, e.conn, contract.ContentHTML, e.ContactRequest.Source.ID, e.ContactRequest.Mail, 0)
}

// Attachment returns the decoded bytes of the attachment with that Index. See [Content].
func (e *Event) Attachment(ctx context.Context, index int) (io.ReadCloser, error) {
	return Content(ctx, e.conn, contract.ContentPart, e.ContactRequest.Source.ID, e.ContactRequest.Mail, index)
}

// readEvent makes an event of a message. It fails only where an event that this package knows cannot be read.
func readEvent(message jetstream.Msg, conn *nats.Conn) (Event, error) {
	name, workflow, source, _, err := contract.ContactRequestKeys(message.Subject())
	if err != nil {
		return Event{}, err
	}
	header := message.Headers()
	event := Event{
		ID:      header.Get(contract.HeaderID),
		Type:    header.Get(contract.HeaderType),
		Subject: message.Subject(),
		Replay:  header.Get(contract.HeaderReplay) != "",
		Attempt: attempt(message),
		Body:    message.Data(),
		conn:    conn,
	}
	if at, err := time.Parse(time.RFC3339Nano, header.Get(contract.HeaderTime)); err == nil {
		event.Time = at.UTC()
	}
	request := &event.ContactRequest
	if err := json.Unmarshal(event.Body, request); err != nil {
		if name == contract.EventReceived || name == contract.EventReplied {
			return Event{}, fmt.Errorf("body of %s: %w", name, err)
		}
		*request = contract.ContactRequest{} // another body than we know: what was read of it may be wrong
	}
	request.Event = name
	request.Source.ID = source
	if request.Workflow == "" {
		request.Workflow = workflow
	}
	return event, nil
}

// attempt counts the deliveries of a message from 1.
func attempt(message jetstream.Msg) int {
	metadata, err := message.Metadata()
	if err != nil || metadata.NumDelivered == 0 {
		return 1
	}
	return int(min(metadata.NumDelivered, 1<<30)) //nolint:gosec // bounded
}
