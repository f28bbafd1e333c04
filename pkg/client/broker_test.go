package client_test

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"testing"
	"time"

	"posthorn/pkg/contract"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const soon = 30 * time.Second // longer than anything here takes, even on a busy machine

// broker is a NATS server with the stream of contact requests, as Posthorn provisions it.
type broker struct {
	t       *testing.T
	options server.Options
	server  *server.Server
	conn    *nats.Conn
	js      jetstream.JetStream
}

func newBroker(t *testing.T, change ...func(*server.Options)) *broker {
	t.Helper()
	b := &broker{t: t, options: server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true,
	}}
	for _, c := range change {
		c(&b.options)
	}
	b.start()
	t.Cleanup(b.stop)
	b.connect()
	_, err := b.js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: string(contract.StreamContactRequests), Subjects: []string{"contact-request.v1.>"},
		Discard: jetstream.DiscardNew,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *broker) start() {
	b.t.Helper()
	options := b.options
	s, err := server.NewServer(&options)
	if err != nil {
		b.t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(soon) {
		b.t.Fatal("the server does not start")
	}
	b.server = s
}

func (b *broker) stop() {
	if b.conn != nil {
		b.conn.Close()
	}
	b.server.Shutdown()
	b.server.WaitForShutdown()
}

// restart stops the server and starts it again at the same address, on the same store.
func (b *broker) restart(meanwhile func(storeDir string)) {
	b.t.Helper()
	address, ok := b.server.Addr().(*net.TCPAddr)
	if !ok {
		b.t.Fatal("no TCP address")
	}
	b.options.Port = address.Port
	b.stop()
	meanwhile(b.options.StoreDir)
	b.start()
	b.connect()
}

func (b *broker) connect() {
	b.t.Helper()
	var options []nats.Option
	if len(b.options.Users) > 0 {
		options = append(options, nats.UserInfo(b.options.Users[0].Username, b.options.Users[0].Password))
	}
	var err error
	if b.conn, err = nats.Connect(b.server.ClientURL(), options...); err != nil {
		b.t.Fatal(err)
	}
	if b.js, err = jetstream.New(b.conn); err != nil {
		b.t.Fatal(err)
	}
}

// publish stores one event as the router does. Body nil means a plausible one.
func (b *broker) publish(event, workflow, source, key string, body []byte) {
	b.t.Helper()
	if body == nil {
		var err error
		body, err = json.Marshal(contract.ContactRequest{
			Event: event, Request: key, Mail: key, Revision: 1, Workflow: workflow,
			Source:       contract.SourceRef{ID: source, Name: "Sales inbox"},
			Conversation: contract.Conversation{ID: key, New: true},
			Content:      contract.Content{Subject: "Hana vuotaa", Text: "Hei, hana vuotaa.\n"},
		})
		if err != nil {
			b.t.Fatal(err)
		}
	}
	message := nats.NewMsg(contract.ContactRequestSubject(event, workflow, source, key))
	message.Data = body
	message.Header.Set(contract.HeaderID, contract.EventID(key, event, 1))
	message.Header.Set(contract.HeaderType, "posthorn.contact-request."+event+".v1")
	message.Header.Set(contract.HeaderTime, "2026-11-23T07:41:10.5Z")
	ctx, cancel := context.WithTimeout(b.t.Context(), soon)
	defer cancel()
	if _, err := b.js.PublishMsg(ctx, message); err != nil {
		b.t.Fatal(err)
	}
}

func (b *broker) consumer(name string) jetstream.Consumer {
	b.t.Helper()
	consumer, err := b.js.Consumer(b.t.Context(), string(contract.StreamContactRequests), name)
	if err != nil {
		b.t.Fatal(err)
	}
	return consumer
}

// settled waits until nothing of the durable is in hand or waiting.
func (b *broker) settled(name string) {
	b.t.Helper()
	eventually(b.t, "nothing in hand, nothing waiting", func() bool {
		info, err := b.consumer(name).Info(b.t.Context())
		return err == nil && info.NumAckPending == 0 && info.NumPending == 0
	})
}

// eventually polls until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	deadline := time.After(soon)
	for !holds() {
		select {
		case <-poll.C:
		case <-deadline:
			t.Fatalf("did not come true: %s", what)
		}
	}
}

func receive[T any](t *testing.T, what string, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(soon):
		t.Fatalf("did not happen: %s", what)
		panic("unreachable")
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}
