package client_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"posthorn/pkg/client"
	"posthorn/pkg/contract"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A program that prints who wrote and whether it is something new, until it is stopped.
func ExampleSubscribe() {
	url, stopBroker := exampleBroker() // in earnest: leave URL empty, and let `posthorn run` serve
	defer stopBroker()

	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	err := client.Subscribe(ctx, client.Options{
		URL:      url,
		Durable:  "crm",
		Workflow: "sales",
		All:      true, // from the first event on; by default from the next one on
		Handler: func(_ context.Context, e client.Event) error {
			request := e.ContactRequest
			switch request.Event {
			case contract.EventReceived:
				fmt.Println("new:", request.From.Name, "–", request.Subject)
			case contract.EventReplied:
				fmt.Println("answer:", request.From.Name, "–", request.TextReply)
				stop() // this example has seen enough
			}
			return nil
		},
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// new: Aino Mäkelä – Hana vuotaa
	// answer: Aino Mäkelä – Tiistai sopii, kiitos!
}

// exampleBroker stands in for Posthorn: a broker with two events.
func exampleBroker() (url string, stop func()) {
	dir, err := os.MkdirTemp("", "posthorn-example")
	check(err)
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true,
	})
	check(err)
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		log.Fatal("the server does not start")
	}
	conn, err := nats.Connect(s.ClientURL())
	check(err)
	js, err := jetstream.New(conn)
	check(err)
	_, err = js.CreateStream(context.Background(), jetstream.StreamConfig{
		Name: string(contract.StreamContactRequests), Subjects: []string{"contact-request.v1.>"},
	})
	check(err)
	aino := &contract.Address{Name: "Aino Mäkelä", Address: "aino.makela@kirjasto.example"}
	for key, body := range []contract.ContactRequest{
		{Event: "received", Content: contract.Content{From: aino, Subject: "Hana vuotaa"}},
		{Event: "replied", Content: contract.Content{From: aino, TextReply: "Tiistai sopii, kiitos!"}},
	} {
		data, err := json.Marshal(body)
		check(err)
		_, err = js.Publish(context.Background(),
			contract.ContactRequestSubject(body.Event, "sales", "inbox", fmt.Sprintf("k%d", key)), data)
		check(err)
	}
	return s.ClientURL(), func() {
		conn.Close()
		s.Shutdown()
		s.WaitForShutdown()
		check(os.RemoveAll(dir))
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
