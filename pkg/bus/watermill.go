package bus

import (
	"errors"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"posthorn/pkg/contract"
)

// Watermill is the publisher as watermill's router wants it: the topic is the subject, the metadata are the headers, the
// UUID is the message's ID. What was already stored counts as published.
func (p *Publisher) Watermill() message.Publisher { return watermillPublisher{p} }

type watermillPublisher struct{ publisher *Publisher }

// Publish stores the messages, each within its own context.
func (w watermillPublisher) Publish(topic string, messages ...*message.Message) error {
	for _, msg := range messages {
		header := make(map[string]string, len(msg.Metadata))
		for name, value := range msg.Metadata {
			if !strings.HasPrefix(name, metaPrefix) {
				header[name] = value
			}
		}
		delete(header, contract.HeaderMsgID) // the UUID is the id
		_, err := w.publisher.Publish(msg.Context(), Outgoing{
			Subject: topic, Header: header, Body: msg.Payload, ID: msg.UUID,
		})
		if _, already := errors.AsType[*AlreadyStored](err); err != nil && !already {
			return err
		}
	}
	return nil
}

// Close does nothing: the router closes the publisher of every handler that ends, but the connection is everybody's.
func (w watermillPublisher) Close() error { return nil }
