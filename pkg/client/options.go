package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"posthorn/pkg/contract"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Options say what to subscribe to and how. Durable and Handler are required; everything else has a useful zero value.
type Options struct {
	// URL of the broker, with user and password or token where it asks for them. Empty means nats://127.0.0.1:4222,
	// where `posthorn run` serves subscribers on the same machine.
	URL string
	// Connect is added when connecting: credentials, TLS, an inbox prefix.
	Connect []nats.Option
	// Conn is used instead of URL and Connect, and stays open.
	Conn *nats.Conn

	// Durable is the name under which the broker remembers which events were handled. Programs that share a durable
	// share the work; programs of their own durable each get every event. It is created when it is not there.
	Durable string
	// Workflow and Source narrow the subscription to one workflow (the one at the time of receipt) or one source.
	// Empty means every one. An existing durable must have been made with the same two.
	Workflow string
	Source   string

	// All and Since say where a durable begins when it is created: with the first event in the stream, or with the
	// first one stored at that time or later. By default with the next one. An existing durable goes on where it was.
	All   bool
	Since time.Time

	// Handler is called for each event, never twice at the same time for one event. Its context ends with that of
	// [Subscribe]; what it has begun it may finish. Required.
	Handler func(context.Context, Event) error
	// Workers is how many events are handled at a time, 1 if it is 0. With more than one, their order is not kept.
	Workers int
	// AckWait is how soon the broker hands out an event again whose handler's process died, 30 s if it is 0. It does not
	// limit how long a handler may take. It counts when the durable is created.
	AckWait time.Duration
	// RetryDelay says how long to wait after the given attempt (1, 2, 3 …) has failed. By default 1 s, growing to 5
	// minutes.
	RetryDelay func(attempt int) time.Duration

	// Logger is told of lost connections and failed handlers: never of an event's content. By default nobody is.
	Logger *slog.Logger
}

// Errors of [Subscribe]. The error that is returned wraps one of them or of those of package nats.
var (
	// ErrOptions means that a required option is missing or an option has a wrong form.
	ErrOptions = errors.New("wrong option")
	// ErrOtherFilter means that the durable exists and was made for another workflow or source.
	ErrOtherFilter = errors.New("the durable exists with another filter")
	// ErrDeleted means that the durable was deleted while it was in use: nothing would ever arrive on it. Whoever deleted
	// it decided how far the next one begins; calling [Subscribe] again makes a new one.
	ErrDeleted = errors.New("the durable was deleted")
	// ErrNoStream means that the broker has no stream of contact requests: it is another broker, or Posthorn has never
	// run there.
	ErrNoStream = errors.New("the broker has no stream " + string(contract.StreamContactRequests))
)

func (o *Options) check() error {
	var wrong []error
	if o.Durable == "" {
		wrong = append(wrong, fmt.Errorf("%w: Durable is required", ErrOptions))
	}
	if o.Handler == nil {
		wrong = append(wrong, fmt.Errorf("%w: Handler is required", ErrOptions))
	}
	for name, value := range map[string]string{"Workflow": o.Workflow, "Source": o.Source} {
		if value != "" && !contract.ValidToken(value) {
			wrong = append(wrong, fmt.Errorf("%w: %s %q is no id (a-z, 0-9, _ and -)", ErrOptions, name, value))
		}
	}
	if o.All && !o.Since.IsZero() {
		wrong = append(wrong, fmt.Errorf("%w: All and Since exclude each other", ErrOptions))
	}
	if o.Workers < 0 || o.AckWait < 0 {
		wrong = append(wrong, fmt.Errorf("%w: Workers and AckWait are not negative", ErrOptions))
	}
	return errors.Join(wrong...)
}

func (o *Options) setDefaults() {
	if o.URL == "" {
		o.URL = nats.DefaultURL
	}
	if o.Workers == 0 {
		o.Workers = 1
	}
	if o.AckWait == 0 {
		o.AckWait = 30 * time.Second
	}
	if o.RetryDelay == nil {
		o.RetryDelay = retryDelay
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// filter is the one filter of the durable.
func (o *Options) filter() string {
	switch {
	case o.Source != "" && o.Workflow != "":
		return "contact-request.v1.*." + o.Workflow + "." + o.Source + ".>"
	case o.Source != "":
		return "contact-request.v1.*.*." + o.Source + ".>"
	case o.Workflow != "":
		return "contact-request.v1.*." + o.Workflow + ".>"
	default:
		return "contact-request.v1.>"
	}
}

// consumer is the durable as it is created. It never gives an event up by itself, and it has one filter: a broker can
// grant a right to exactly that.
func (o *Options) consumer() jetstream.ConsumerConfig {
	config := jetstream.ConsumerConfig{
		Durable:       o.Durable,
		FilterSubject: o.filter(),
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       o.AckWait,
		MaxDeliver:    -1,
		DeliverPolicy: jetstream.DeliverNewPolicy,
	}
	switch {
	case o.All:
		config.DeliverPolicy = jetstream.DeliverAllPolicy
	case !o.Since.IsZero():
		config.DeliverPolicy = jetstream.DeliverByStartTimePolicy
		config.OptStartTime = &o.Since
	}
	return config
}

// retryDelay doubles from one second to five minutes.
func retryDelay(attempt int) time.Duration {
	const longest = 5 * time.Minute
	if attempt > 9 {
		return longest
	}
	return min(time.Second<<max(attempt-1, 0), longest)
}
