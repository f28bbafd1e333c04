package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"posthorn/pkg/contract"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	pullWait = 30 * time.Second // how long one request for an event waits at the broker
	askWait  = 10 * time.Second // how long the broker may take to answer a question
)

// Permanent marks an error of a handler as one that another attempt cannot cure: the event is given up by this durable.
// Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &permanentError{err}
}

type permanentError struct{ cause error }

func (e *permanentError) Error() string { return e.cause.Error() }
func (e *permanentError) Unwrap() error { return e.cause }

// Subscribe calls the handler for every event, until ctx ends: then it waits for the handlers that run and returns nil.
//
// A broker that goes away is waited for, as long as it takes, once Subscribe has reached it for the first time. What
// waiting cannot cure is returned: [ErrOptions], [ErrOtherFilter], [ErrDeleted], [ErrNoStream], a refused sign-in, or a
// missing right.
func Subscribe(ctx context.Context, options Options) error {
	if err := options.check(); err != nil {
		return err
	}
	options.setDefaults()
	conn := options.Conn
	if conn == nil {
		var err error
		if conn, err = connect(&options); err != nil {
			return err
		}
		defer conn.Close()
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("JetStream: %w", err)
	}
	s := &subscription{Options: options, conn: conn, js: js}
	consumer, err := s.bind(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	return s.run(ctx, consumer)
}

func connect(o *Options) (*nats.Conn, error) {
	connectOptions := []nats.Option{
		nats.Name("posthorn client " + o.Durable),
		nats.MaxReconnects(-1),
		nats.PingInterval(20 * time.Second),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				o.Logger.Warn("connection to the broker lost; trying again", "durable", o.Durable, "error", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { // its default prints
			o.Logger.Warn("the broker complains", "durable", o.Durable, "error", err)
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			o.Logger.Info("connected to the broker again", "durable", o.Durable)
		}),
	}
	conn, err := nats.Connect(o.URL, append(connectOptions, o.Connect...)...)
	if err != nil {
		return nil, fmt.Errorf("connecting to the broker: %w", err)
	}
	return conn, nil
}

// subscription is one call of Subscribe.
type subscription struct {
	Options
	conn *nats.Conn
	js   jetstream.JetStream
}

// bind finds the durable, or creates it.
func (s *subscription) bind(ctx context.Context) (jetstream.Consumer, error) {
	consumer, err := s.find(ctx)
	if err == nil {
		s.AckWait = consumer.CachedInfo().Config.AckWait // as it was made; it sets the pace of keepAlive
	}
	if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return consumer, err
	}
	asked, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	consumer, err = s.js.CreateConsumer(asked, string(contract.StreamContactRequests), s.consumer())
	if errors.Is(err, jetstream.ErrConsumerExists) {
		return s.find(ctx) // somebody was faster
	}
	if err != nil {
		return nil, s.explain("creating the durable", err)
	}
	return consumer, nil
}

// find returns the durable if it is there and has our filter.
func (s *subscription) find(ctx context.Context) (jetstream.Consumer, error) {
	asked, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	consumer, err := s.js.Consumer(asked, string(contract.StreamContactRequests), s.Durable)
	if err != nil {
		return nil, s.explain("asking for the durable", err)
	}
	config := consumer.CachedInfo().Config
	if len(config.FilterSubjects) > 0 || config.FilterSubject != s.filter() {
		return nil, fmt.Errorf("durable %s: %w: %s%s, not %s", s.Durable, ErrOtherFilter,
			config.FilterSubject, config.FilterSubjects, s.filter())
	}
	return consumer, nil
}

// explain says what to do about an error, where it is known. A broker does not answer a question that the user has no
// right to ask; what it says about that arrives apart.
func (s *subscription) explain(doing string, err error) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("durable %s: %w", s.Durable, ErrNoStream)
	}
	last := s.conn.LastError()
	if errors.Is(err, context.DeadlineExceeded) && errors.Is(last, nats.ErrPermissionViolation) {
		err = last
	}
	return fmt.Errorf("durable %s: %s: %w", s.Durable, doing, err)
}

// run pulls with every worker until ctx ends or one of them finds that going on makes no sense.
//
// Each worker asks for one event at a time: what is in hand is what was delivered, so the time to acknowledge begins
// with the handler.
func (s *subscription) run(ctx context.Context, consumer jetstream.Consumer) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	failed := make(chan error, s.Workers)
	var workers sync.WaitGroup
	for range s.Workers {
		workers.Go(func() {
			if err := s.work(ctx, consumer); err != nil {
				failed <- err
				stop(err)
			}
		})
	}
	workers.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func (s *subscription) work(ctx context.Context, consumer jetstream.Consumer) error {
	failures := 0
	for ctx.Err() == nil {
		waiting, cancel := context.WithTimeout(ctx, pullWait)
		message, err := consumer.Next(jetstream.FetchContext(waiting))
		cancel()
		switch {
		case err == nil:
			failures = 0
			s.handle(ctx, message)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, nats.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
			failures = 0 // nothing to do
		default:
			failures++
			if err := s.fatal(ctx, err); err != nil {
				return err
			}
			s.Logger.Debug("no event could be asked for", "durable", s.Durable, "error", err)
			pause(ctx, min(250*time.Millisecond<<min(failures-1, 5), 5*time.Second))
		}
	}
	return nil
}

// fatal looks into why no event could be asked for. It returns nil if that may pass.
func (s *subscription) fatal(ctx context.Context, cause error) error {
	if errors.Is(cause, jetstream.ErrConsumerDeleted) {
		return fmt.Errorf("durable %s: %w", s.Durable, ErrDeleted)
	}
	if s.conn.IsClosed() {
		if err := s.conn.LastError(); err != nil {
			cause = err
		}
		return fmt.Errorf("durable %s: the connection was closed: %w", s.Durable, cause)
	}
	if !s.conn.IsConnected() {
		return nil
	}
	// A deleted durable looks like a quiet one, so the broker is asked whether it is still there.
	_, err := s.find(ctx)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		return fmt.Errorf("durable %s: %w", s.Durable, ErrDeleted)
	case errors.Is(err, ErrNoStream), errors.Is(err, ErrOtherFilter), errors.Is(err, nats.ErrPermissionViolation):
		return err
	default:
		return nil
	}
}

// handle calls the handler for one message and answers the broker.
func (s *subscription) handle(ctx context.Context, message jetstream.Msg) {
	log := s.Logger.With("durable", s.Durable, "subject", message.Subject())
	event, err := readEvent(message, s.conn)
	if err != nil {
		log.Error("an event that cannot be read is given up", "error", err)
		if err := message.TermWithReason("unreadable"); err != nil {
			log.Warn("the broker could not be told", "error", err)
		}
		return
	}
	stillWorking := s.keepAlive(message)
	err = s.Handler(ctx, event)
	stillWorking()

	var permanent *permanentError
	switch {
	case err == nil:
		// Confirmed, even if ctx has ended meanwhile: the work is done.
		asked, cancel := context.WithTimeout(context.WithoutCancel(ctx), askWait)
		defer cancel()
		err = message.DoubleAck(asked)
	case errors.As(err, &permanent):
		log.Error("given up", "error", err)
		err = message.TermWithReason("given up by the handler")
	case ctx.Err() != nil:
		err = message.Nak() // we are leaving: another instance may have it at once
	default:
		delay := s.RetryDelay(event.Attempt)
		log.Warn("failed; to be tried again", "attempt", event.Attempt, "delay", delay, "error", err)
		err = message.NakWithDelay(delay)
	}
	if err != nil {
		log.Warn("the broker could not be told; the event will come again", "error", err)
	}
}

// keepAlive tells the broker that the message is being worked on, until the returned function is called.
func (s *subscription) keepAlive(message jetstream.Msg) (stop func()) {
	done := make(chan struct{})
	var beating sync.WaitGroup
	beating.Go(func() {
		beat := time.NewTicker(max(s.AckWait/3, time.Millisecond))
		defer beat.Stop()
		for {
			select {
			case <-done:
				return
			case <-beat.C:
				if err := message.InProgress(); err != nil {
					s.Logger.Debug("the broker could not be told that an event is being handled", "error", err)
				}
			}
		}
	})
	return func() {
		close(done)
		beating.Wait()
	}
}

// pause waits, but not longer than ctx lasts.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
