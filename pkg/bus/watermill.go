package bus

import (
	"errors"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
)

// Watermill is the publisher as watermill's router wants it: the topic is the subject, the metadata are the headers,
// the UUID is the message's ID; metadata named Nats-… do not go out. What was already stored counts as published.
func (p *Publisher) Watermill() message.Publisher { return watermillPublisher{p} }

type watermillPublisher struct{ publisher *Publisher }

// Publish stores the messages, each within its own context.
func (w watermillPublisher) Publish(topic string, messages ...*message.Message) error {
	for _, msg := range messages {
		header := make(map[string]string, len(msg.Metadata))
		for name, value := range msg.Metadata {
			// What the broker was told about the message that was read says nothing about the one that is written.
			if !strings.HasPrefix(name, metaPrefix) && !strings.HasPrefix(name, "Nats-") {
				header[name] = value
			}
		}
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
