package client_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"posthorn/pkg/client"
	"posthorn/pkg/contract"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// subscriber runs Subscribe in the background until the test ends.
type subscriber struct {
	events chan client.Event
	ended  chan error
	stop   context.CancelFunc
}

// subscribe fills in what the options leave open. A handler that is nil sends every event to events and returns nil.
func subscribe(t *testing.T, b *broker, options client.Options) *subscriber {
	t.Helper()
	s := &subscriber{events: make(chan client.Event, 100), ended: make(chan error, 1)}
	if options.URL == "" {
		options.URL = b.server.ClientURL()
	}
	if options.Durable == "" {
		options.Durable = "crm"
	}
	if options.Handler == nil {
		options.Handler = func(_ context.Context, e client.Event) error {
			s.events <- e
			return nil
		}
	}
	if options.RetryDelay == nil {
		options.RetryDelay = func(int) time.Duration { return 10 * time.Millisecond }
	}
	options.Connect = append(options.Connect, nats.ReconnectWait(20*time.Millisecond))
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ended <- client.Subscribe(ctx, options)
	}()
	t.Cleanup(func() { cancel(); <-done })
	eventually(t, "the durable is there", func() bool {
		_, err := b.js.Consumer(t.Context(), string(contract.StreamContactRequests), options.Durable)
		return err == nil
	})
	return s
}

func TestAnEventReachesTheHandlerOnceWithAllItSays(t *testing.T) {
	b := newBroker(t)
	s := subscribe(t, b, client.Options{})
	b.publish("received", "sales", "inbox", "k1", nil)

	e := receive(t, "the event arrives", s.events)
	b.settled("crm")
	if e.ID != contract.EventID("k1", "received", 1) || e.Type != contract.TypeReceived || e.Attempt != 1 || e.Replay {
		t.Errorf("got %+v", e)
	}
	if e.Subject != "contact-request.v1.received.sales.inbox.k1" {
		t.Errorf("subject %s", e.Subject)
	}
	if want := time.Date(2026, 11, 23, 7, 41, 10, 5e8, time.UTC); !e.Time.Equal(want) {
		t.Errorf("time %v, want %v", e.Time, want)
	}
	if r := e.ContactRequest; r.Event != "received" || r.Subject != "Hana vuotaa" || r.Source.Name != "Sales inbox" {
		t.Errorf("got %+v", r)
	}
	if len(s.events) != 0 {
		t.Error("it arrived twice")
	}
}

func TestAnEventWhoseHandlerFailsComesBack(t *testing.T) {
	b := newBroker(t)
	attempts := make(chan int, 10)
	subscribe(t, b, client.Options{Handler: func(_ context.Context, e client.Event) error {
		attempts <- e.Attempt
		if e.Attempt < 3 {
			return errors.New("the CRM is down")
		}
		return nil
	}})
	b.publish("received", "sales", "inbox", "k1", nil)
	for want := 1; want <= 3; want++ {
		if got := receive(t, "another attempt", attempts); got != want {
			t.Fatalf("attempt %d, want %d", got, want)
		}
	}
	b.settled("crm")
	if len(attempts) != 0 {
		t.Error("handled again after success")
	}
}

func TestAPermanentErrorGivesTheEventUpAndTheNextOneComes(t *testing.T) {
	b := newBroker(t)
	seen := make(chan string, 10)
	cause := errors.New("no such customer")
	subscribe(t, b, client.Options{Handler: func(_ context.Context, e client.Event) error {
		seen <- e.ContactRequest.Request
		if e.ContactRequest.Request == "k1" {
			return client.Permanent(cause)
		}
		return nil
	}})
	b.publish("received", "sales", "inbox", "k1", nil)
	b.publish("received", "sales", "inbox", "k2", nil)
	if first, second := receive(t, "k1", seen), receive(t, "k2", seen); first != "k1" || second != "k2" {
		t.Errorf("got %s and %s", first, second)
	}
	b.settled("crm")
	if len(seen) != 0 {
		t.Error("the event that was given up came back")
	}
	if !errors.Is(client.Permanent(cause), cause) || client.Permanent(nil) != nil {
		t.Error("Permanent hides its cause, or makes an error of none")
	}
}

func TestAnEventIsNotHandedOutAgainWhileItsHandlerRuns(t *testing.T) {
	t.Parallel() // it takes its time
	b := newBroker(t)
	signs := make(chan *nats.Msg, 100)
	if _, err := b.conn.ChanSubscribe("$JS.ACK.>", signs); err != nil {
		t.Fatal(err)
	}
	var calls atomic.Int32
	subscribe(t, b, client.Options{
		AckWait: 6 * time.Second,
		Workers: 4,
		Handler: func(context.Context, client.Event) error {
			calls.Add(1)
			for range 4 { // signs of life, two seconds apart: longer than the broker waits for the answer
				if sign := receive(t, "a sign of life", signs); string(sign.Data) != "+WPI" {
					t.Errorf("the broker was told %q", sign.Data)
				}
			}
			return nil
		},
	})
	b.publish("received", "sales", "inbox", "k1", nil)
	b.settled("crm")
	if got := calls.Load(); got != 1 {
		t.Errorf("handled %d times", got)
	}
}

func TestADurableMissesNothingWhileNobodyListens(t *testing.T) {
	b := newBroker(t)
	s := subscribe(t, b, client.Options{})
	b.publish("received", "sales", "inbox", "k1", nil)
	receive(t, "k1 arrives", s.events)
	b.settled("crm")
	s.stop()
	if err := receive(t, "Subscribe returns", s.ended); err != nil {
		t.Errorf("stopped with %v", err)
	}
	b.publish("replied", "sales", "inbox", "k2", nil)

	s = subscribe(t, b, client.Options{All: true}) // goes on where it was, whatever a new one would do
	if e := receive(t, "k2 arrives", s.events); e.ContactRequest.Request != "k2" {
		t.Errorf("got %s", e.ContactRequest.Request)
	}
}

func TestWhereANewDurableBegins(t *testing.T) {
	b := newBroker(t)
	b.publish("received", "sales", "inbox", "k1", nil)
	var first *jetstream.RawStreamMsg
	stream, err := b.js.Stream(t.Context(), string(contract.StreamContactRequests))
	if err == nil {
		first, err = stream.GetMsg(t.Context(), 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(time.Until(first.Time.Add(50 * time.Millisecond)))
	b.publish("received", "sales", "inbox", "k2", nil)

	all := subscribe(t, b, client.Options{Durable: "all", All: true})
	since := subscribe(t, b, client.Options{Durable: "since", Since: first.Time.Add(25 * time.Millisecond)})
	next := subscribe(t, b, client.Options{Durable: "next"})
	b.publish("received", "sales", "inbox", "k3", nil)
	for name, want := range map[*subscriber][]string{all: {"k1", "k2", "k3"}, since: {"k2", "k3"}, next: {"k3"}} {
		for _, key := range want {
			if e := receive(t, key, name.events); e.ContactRequest.Request != key {
				t.Errorf("got %s, want %s", e.ContactRequest.Request, key)
			}
		}
	}
}

func TestASubscriptionIsNarrowedToAWorkflowAndASource(t *testing.T) {
	b := newBroker(t)
	b.publish("received", "sales", "one", "k1", nil)
	b.publish("replied", "sales", "two", "k2", nil)
	b.publish("received", "support", "two", "k3", nil)
	for durable, want := range map[string]struct {
		options client.Options
		filter  string
		keys    []string
	}{
		"every":    {client.Options{}, "contact-request.v1.>", []string{"k1", "k2", "k3"}},
		"workflow": {client.Options{Workflow: "sales"}, "contact-request.v1.*.sales.>", []string{"k1", "k2"}},
		"source":   {client.Options{Source: "two"}, "contact-request.v1.*.*.two.>", []string{"k2", "k3"}},
		"both": {
			client.Options{Workflow: "sales", Source: "two"}, "contact-request.v1.*.sales.two.>", []string{"k2"},
		},
	} {
		t.Run(durable, func(t *testing.T) {
			want.options.Durable, want.options.All = durable, true
			s := subscribe(t, b, want.options)
			if got := b.consumer(durable).CachedInfo().Config.FilterSubject; got != want.filter {
				t.Errorf("filter %s, want %s", got, want.filter)
			}
			for _, key := range want.keys {
				if e := receive(t, key, s.events); e.ContactRequest.Request != key {
					t.Errorf("got %s, want %s", e.ContactRequest.Request, key)
				}
			}
			b.settled(durable)
			if len(s.events) != 0 {
				t.Errorf("more than %v", want.keys)
			}
		})
	}
}

func TestADurableOfAnotherFilterIsRefused(t *testing.T) {
	b := newBroker(t)
	subscribe(t, b, client.Options{Workflow: "sales"})
	err := client.Subscribe(t.Context(), client.Options{
		URL: b.server.ClientURL(), Durable: "crm", Workflow: "support",
		Handler: func(context.Context, client.Event) error { return nil },
	})
	if !errors.Is(err, client.ErrOtherFilter) {
		t.Errorf("got %v", err)
	}
}

func TestADeletedDurableIsNoticed(t *testing.T) {
	b := newBroker(t)
	s := subscribe(t, b, client.Options{Workers: 3})
	b.publish("received", "sales", "inbox", "k1", nil)
	receive(t, "k1 arrives", s.events)
	if err := b.js.DeleteConsumer(t.Context(), string(contract.StreamContactRequests), "crm"); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, "Subscribe returns", s.ended); !errors.Is(err, client.ErrDeleted) {
		t.Errorf("got %v", err)
	}
}

func TestARestartOfTheBrokerIsSurvived(t *testing.T) {
	b := newBroker(t)
	s := subscribe(t, b, client.Options{})
	b.publish("received", "sales", "inbox", "k1", nil)
	receive(t, "k1 arrives", s.events)
	b.settled("crm")
	b.restart(func(string) {})
	b.publish("received", "sales", "inbox", "k2", nil)
	for e := receive(t, "k2 arrives", s.events); e.ContactRequest.Request != "k2"; {
		e = receive(t, "k2 arrives", s.events)
	}
	b.settled("crm")
}

func TestADurableThatIsGoneAfterARestartIsNoticed(t *testing.T) {
	b := newBroker(t)
	s := subscribe(t, b, client.Options{})
	b.restart(func(storeDir string) {
		durables, err := filepath.Glob(filepath.Join(storeDir, "jetstream", "*", "streams", "*", "obs", "crm"))
		if err != nil || len(durables) != 1 {
			t.Fatalf("found %v, %v", durables, err)
		}
		remove(t, durables[0])
	})
	if err := receive(t, "Subscribe returns", s.ended); !errors.Is(err, client.ErrDeleted) {
		t.Errorf("got %v", err)
	}
}

func TestABrokerWithoutTheStreamIsNamed(t *testing.T) {
	b := newBroker(t)
	if err := b.js.DeleteStream(t.Context(), string(contract.StreamContactRequests)); err != nil {
		t.Fatal(err)
	}
	err := client.Subscribe(t.Context(), client.Options{
		URL: b.server.ClientURL(), Durable: "crm",
		Handler: func(context.Context, client.Event) error { return nil },
	})
	if !errors.Is(err, client.ErrNoStream) {
		t.Errorf("got %v", err)
	}
}

func TestEventsAndFieldsOfLaterVersionsDoNoHarm(t *testing.T) {
	b := newBroker(t)
	s := subscribe(t, b, client.Options{})
	b.publish("received", "sales", "inbox", "k1", []byte(`{"event":"received","request":"k1","mail":"k1","revision":1,
		"subject":"Hei","mood":{"of":"the customer"},"machine":"robot-of-the-future"}`))
	b.publish("erased", "sales", "inbox", "k2", []byte(`{"request":"k2"}`))
	b.publish("merged", "sales", "inbox", "k3", []byte(`{"request":{"from":"k3","into":"k1"},"subject":7}`))
	b.publish("vanished", "sales", "inbox", "k4", []byte(`not even JSON`))

	if e := receive(t, "received", s.events); e.ContactRequest.Subject != "Hei" || e.ContactRequest.Machine == "" {
		t.Errorf("got %+v", e.ContactRequest)
	}
	for _, event := range []string{"erased", "merged", "vanished"} {
		e := receive(t, event, s.events)
		r := e.ContactRequest
		if r.Event != event || r.Workflow != "sales" || r.Source.ID != "inbox" || len(e.Body) == 0 {
			t.Errorf("got %+v", r)
		}
	}
	b.settled("crm")
}

func TestAnEventThatCannotBeReadStopsNobody(t *testing.T) {
	b := newBroker(t)
	s := subscribe(t, b, client.Options{})
	b.publish("received", "sales", "inbox", "k1", []byte(`{"event":`))
	b.publish("received", "sales", "inbox", "k2", nil)
	if e := receive(t, "k2", s.events); e.ContactRequest.Request != "k2" {
		t.Errorf("got %s", e.ContactRequest.Request)
	}
	b.settled("crm")
}

func TestAHandlerThatRunsMayFinishWhenSubscribeEnds(t *testing.T) {
	b := newBroker(t)
	began, finish := make(chan bool), make(chan bool)
	s := subscribe(t, b, client.Options{Handler: func(context.Context, client.Event) error {
		began <- true
		<-finish
		return nil
	}})
	b.publish("received", "sales", "inbox", "k1", nil)
	receive(t, "the handler begins", began)
	s.stop()
	close(finish)
	if err := receive(t, "Subscribe returns", s.ended); err != nil {
		t.Errorf("got %v", err)
	}
	b.settled("crm") // what was finished is acknowledged
}

func TestWhatAHandlerGivesBackOnTheWayOutIsFreeAtOnce(t *testing.T) {
	b := newBroker(t)
	began := make(chan bool)
	s := subscribe(t, b, client.Options{AckWait: time.Hour, Handler: func(ctx context.Context, _ client.Event) error {
		began <- true
		<-ctx.Done()
		return ctx.Err()
	}})
	b.publish("received", "sales", "inbox", "k1", nil)
	receive(t, "the handler begins", began)
	s.stop()
	if err := receive(t, "Subscribe returns", s.ended); err != nil {
		t.Errorf("got %v", err)
	}

	s = subscribe(t, b, client.Options{})
	if e := receive(t, "the event comes to the next instance", s.events); e.Attempt != 2 {
		t.Errorf("attempt %d", e.Attempt)
	}
}

// A right to one durable name with one filter is all that the package documentation asks for.
func TestTheDocumentedRightsAreEnoughAndNoMore(t *testing.T) {
	t.Parallel() // a question that may not be asked is not answered, which takes its time
	b := newBroker(t, func(o *server.Options) {
		o.Users = []*server.User{
			{Username: "posthorn", Password: "all"},
			{Username: "crm", Password: "some", Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Allow: []string{
					"$JS.API.CONSUMER.CREATE.CONTACT_REQUESTS.crm.contact-request.v1.*.sales.>",
					"$JS.API.CONSUMER.INFO.CONTACT_REQUESTS.crm",
					"$JS.API.CONSUMER.MSG.NEXT.CONTACT_REQUESTS.crm",
					"$JS.ACK.CONTACT_REQUESTS.crm.>",
				}},
				Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
			}},
		}
	})
	as := nats.UserInfo("crm", "some")
	failed := make(chan bool, 1)
	s := &subscriber{events: make(chan client.Event, 10)}
	subscribe(t, b, client.Options{Workflow: "sales", Connect: []nats.Option{as},
		Handler: func(_ context.Context, e client.Event) error {
			select {
			case failed <- true:
				return errors.New("once more")
			default:
				s.events <- e
				return nil
			}
		}})
	b.publish("received", "sales", "inbox", "k1", nil)
	receive(t, "k1 arrives again after a failure", s.events)
	b.settled("crm")

	for name, options := range map[string]client.Options{
		"another name": {Durable: "other", Workflow: "sales"}, "another workflow": {Durable: "crm", Workflow: "support"},
	} {
		options.URL, options.Connect = b.server.ClientURL(), []nats.Option{as}
		options.Handler = func(context.Context, client.Event) error { return nil }
		err := client.Subscribe(t.Context(), options)
		if !errors.Is(err, nats.ErrPermissionViolation) && !errors.Is(err, client.ErrOtherFilter) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestWrongOptionsAreNamedBeforeAnythingHappens(t *testing.T) {
	handler := func(context.Context, client.Event) error { return nil }
	for name, options := range map[string]client.Options{
		"no durable":         {Handler: handler},
		"no handler":         {Durable: "crm"},
		"a workflow's title": {Durable: "crm", Handler: handler, Workflow: "Sales team"},
		"a wildcard":         {Durable: "crm", Handler: handler, Source: ">"},
		"two beginnings":     {Durable: "crm", Handler: handler, All: true, Since: time.Unix(1, 0)},
		"fewer than none":    {Durable: "crm", Handler: handler, Workers: -1},
	} {
		if err := client.Subscribe(t.Context(), options); !errors.Is(err, client.ErrOptions) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestABrokerThatIsNotThereIsAnErrorAtTheStart(t *testing.T) {
	b := newBroker(t)
	url := b.server.ClientURL()
	b.stop()
	err := client.Subscribe(t.Context(), client.Options{
		URL: url, Durable: "crm", Handler: func(context.Context, client.Event) error { return nil },
	})
	if !errors.Is(err, nats.ErrNoServers) {
		t.Errorf("got %v", err)
	}
}
