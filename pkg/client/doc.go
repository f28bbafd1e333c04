// Package client is for programs that act on contact requests: it subscribes to them with a durable JetStream consumer
// and fetches what a mail held.
//
//	package main
//
//	import (
//		"context"
//		"log"
//		"os/signal"
//		"syscall"
//
//		"posthorn/pkg/client"
//		"posthorn/pkg/contract"
//	)
//
//	func main() {
//		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
//		defer stop()
//		err := client.Subscribe(ctx, client.Options{
//			Durable:  "crm", // the broker remembers under this name how far we are
//			Workflow: "sales",
//			Handler: func(ctx context.Context, e client.Event) error {
//				switch e.ContactRequest.Event {
//				case contract.EventReceived, contract.EventReplied:
//					return save(ctx, e.ID, e.ContactRequest) // nil: done; an error: once more, later
//				default:
//					return nil // an event of a later version
//				}
//			},
//		})
//		if err != nil {
//			log.Fatal(err)
//		}
//	}
//
// # What to rely on
//
// Every mail makes exactly one event in the stream, `received` or `replied`. Its delivery is at least once: a handler
// that has done its work may be called again, after a crash for example. Make the handler idempotent on [Event.ID],
// which stays the same over redelivery, replay and restore.
//
// A handler's nil acknowledges the event, and the acknowledgement itself is confirmed by the broker. An error brings
// the event back after a delay that grows from a second to five minutes. [Permanent] gives the event up: it stays in
// the stream and does not come back to this durable. As long as a handler runs the broker is told so; it may take
// hours.
//
// Switch on the event and let `default` return nil: who handles `received` alone misses the customer's second mail, and
// later versions add events and fields. Fields that this package does not know are in [Event.Body].
//
// # Rights
//
// On a broker with users, a right to one durable name with one filter is all a subscriber needs; it keeps workflows
// apart. For the program above, publish rights:
//
//	$JS.API.CONSUMER.CREATE.CONTACT_REQUESTS.crm.contact-request.v1.*.sales.>
//	$JS.API.CONSUMER.INFO.CONTACT_REQUESTS.crm
//	$JS.API.CONSUMER.MSG.NEXT.CONTACT_REQUESTS.crm
//	$JS.ACK.CONTACT_REQUESTS.crm.>
//
// a subscribe right to `_INBOX.>` (or the inbox prefix given by [nats.CustomInboxPrefix]), and a publish right to
// `content.v1.*.<source>.>` for the sources whose content it may read.
package client
