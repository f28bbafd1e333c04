// The program subscriber prints every contact request of a workflow, one JSON object per line, with its headers. It
// knows nothing of Posthorn but a NATS URL and a subject: this is all that another system needs.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	conn, err := nats.Connect(os.Args[1])
	check(err)
	js, err := jetstream.New(conn)
	check(err)
	consumer, err := js.CreateOrUpdateConsumer(context.Background(), "CONTACT_REQUESTS", jetstream.ConsumerConfig{
		Durable: "subscriber", FilterSubject: os.Args[2], AckPolicy: jetstream.AckExplicitPolicy,
	})
	check(err)
	messages, err := consumer.Messages()
	check(err)
	for {
		message, err := messages.Next()
		check(err)
		check(json.NewEncoder(os.Stdout).Encode(map[string]any{
			"subject": message.Subject(), "header": message.Headers(), "body": json.RawMessage(message.Data()),
		}))
		check(message.Ack())
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
