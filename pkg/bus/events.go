package bus

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"posthorn/pkg/contract"
)

// Event makes a message of an event body: CloudEvents headers, JSON, and the id as message id.
func Event(kind, subject, id, source string, body any) (Outgoing, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return Outgoing{}, err
	}
	return Outgoing{Subject: subject, ID: id, Body: data, Header: EventHeader(kind, id, source, "application/json")}, nil
}

// EventHeader holds the CloudEvents attributes of an event of one source, in NATS binary mode.
func EventHeader(kind, id, source, contentType string) map[string]string {
	return map[string]string{
		contract.HeaderSpecVersion: "1.0",
		contract.HeaderID:          id,
		contract.HeaderType:        kind,
		contract.HeaderSource:      "/posthorn/sources/" + source,
		contract.HeaderTime:        time.Now().UTC().Format(time.RFC3339Nano),
		contract.HeaderContentType: contentType,
	}
}

// DisposeOrder is the message that orders a mail to be archived or deleted. The same order for the same place has the
// same id, so that repeating it at once is harmless.
func DisposeOrder(d contract.Dispose) (Outgoing, error) {
	place, err := json.Marshal(d.Place)
	if err != nil {
		return Outgoing{}, err
	}
	id := contract.EventID(d.Mail, "dispose "+string(d.Disposition)+string(place), 1)
	out, err := Event(contract.TypeDispose, contract.DisposeSubject(d.Source.ID), id, d.Source.ID, d)
	if err == nil {
		out.About(d.Mail)
	}
	return out, err
}

// About says which mail an event is about: in a header of its own, and in the trace that all events of the mail share.
func (o *Outgoing) About(mail string) {
	o.Header[contract.HeaderMail] = mail
	o.Header[contract.HeaderTraceParent] = contract.TraceParent(mail, o.ID)
}

// Redelivered tells whether a message was delivered before, so that what it asks for may be done already.
func Redelivered(msg *message.Message) bool {
	delivered, err := strconv.Atoi(msg.Metadata.Get(MetaDelivered))
	return err != nil || delivered > 1
}
