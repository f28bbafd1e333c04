package bus

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

// Metadata that a [Subscriber] adds to the headers of a message. They are not published on.
const (
	metaPrefix = "bus."
	// MetaStream, MetaSubject and MetaSequence say where the message is stored.
	MetaStream   = metaPrefix + "stream"
	MetaSubject  = metaPrefix + "subject"
	MetaSequence = metaPrefix + "sequence"
	// MetaDelivered is how often it was delivered, this time included.
	MetaDelivered = metaPrefix + "delivered"
	// MetaTime is when it was stored, RFC 3339.
	MetaTime = metaPrefix + "time"
)

// SubscriberConfig says what a [Subscriber] reads and how it settles.
type SubscriberConfig struct {
	// Stage names the stage in dead letters.
	Stage string
	// Stream and Durable name the consumer. It must exist (see [Conn.Provision]) unless Filters are given: then it is
	// created with them.
	Stream  contract.Stream
	Durable string
	Filters []string
	// Workers is how many messages are in hand at once; 1 when 0. With one worker messages come in order.
	Workers int
	// AckWait is the consumer's (10 s); a sign of life is sent every Heartbeat (3 s) for messages in hand.
	AckWait, Heartbeat time.Duration
	// Drain bounds how long Close waits for the messages in hand (30 s).
	Drain time.Duration
	// Publisher of dead letters; the connection's when nil.
	Publisher *Publisher
	// Keys takes source and mail out of a message, for its dead letter. nil: from a raw subject, else the last token of
	// the subject and the header posthorn-mail.
	Keys func(Stored) (source, mail string)
	// Delay is how long to wait before the next try after so many deliveries; nil: 1 s doubling to 5 minutes, plus or
	// minus a fifth. What the error itself asks for ([fault.Error.RetryAfter]) counts when it is longer.
	Delay  func(delivered int, err error) time.Duration
	Logger *slog.Logger
}

// Subscriber hands the messages of a durable consumer to watermill's router. Each message is settled when its handler
// is through (use the [Settle] middleware, which tells the subscriber the handler's error):
//
//   - no error: done.
//   - a permanent error: set aside whole as a dead letter, then done.
//   - any other error: tried again later, growing pauses, for ever.
//   - a panic: as any other error twice, then set aside as mail.failed.
//
// A message that was delivered before, without this process having given it back, may be what ended a process. It runs
// alone (see [Lane]); that it runs is marked in the store before and unmarked after. Found marked three times it is set
// aside as mail.crashed without being run. Handlers must be idempotent: after a crash of the broker or of the program a
// message comes again.
type Subscriber struct {
	conn   *Conn
	config SubscriberConfig
	log    *slog.Logger

	stop, kill     context.Context
	doStop, doKill context.CancelFunc
	workers        sync.WaitGroup
	mu             sync.Mutex
	closed         bool
	failing        error
	inHand         map[uint64]struct{}
	returned       map[uint64]time.Time // came back from their handlers: not suspect when delivered again
	panics         map[uint64]int
	deathsKnown    map[string]int // where the marks in the store are known to be wrong
	quarantine     *Bucket
}

// NewSubscriber makes a subscriber. Nothing is asked of the broker before Subscribe.
func NewSubscriber(conn *Conn, config SubscriberConfig) *Subscriber {
	config.Workers = max(config.Workers, 1)
	for field, value := range map[*time.Duration]time.Duration{
		&config.AckWait: ackWait, &config.Heartbeat: 3 * time.Second, &config.Drain: 30 * time.Second,
	} {
		if *field <= 0 {
			*field = value
		}
	}
	if config.Publisher == nil {
		config.Publisher = conn.publisher
	}
	if config.Keys == nil {
		config.Keys = keysOf
	}
	if config.Delay == nil {
		config.Delay = growing
	}
	if config.Logger == nil {
		config.Logger = conn.log
	}
	s := &Subscriber{
		conn: conn, config: config,
		log:    config.Logger.With("stage", config.Stage, "consumer", config.Durable),
		inHand: map[uint64]struct{}{}, returned: map[uint64]time.Time{}, panics: map[uint64]int{},
		deathsKnown: map[string]int{}, quarantine: conn.bucket(bucketQuarantine),
	}
	s.stop, s.doStop = context.WithCancel(context.Background())
	s.kill, s.doKill = context.WithCancel(context.Background())
	return s
}

// growing is 1 s, 2 s, 4 s … 5 minutes, plus or minus a fifth.
func growing(delivered int, _ error) time.Duration {
	const most = 5 * time.Minute
	delay := time.Second << min(max(delivered-1, 0), 9)
	jitter := 0.8 + 0.4*rand.Float64() //nolint:gosec // spreading retries needs no secret
	return min(time.Duration(float64(min(delay, most))*jitter), most)
}

// keysOf is the default of [SubscriberConfig.Keys].
func keysOf(stored Stored) (source, mail string) {
	if source, mail, err := contract.RawKeys(stored.Subject); err == nil {
		return source, mail
	}
	return lastToken(stored.Subject), stored.Header[contract.HeaderMail]
}

// Subscribe starts the workers. The topic is not used: what is read is in the configuration. It fails with
// store.not_provisioned when the consumer is missing. The channel is closed once ctx has ended, or Close was called,
// and the messages in hand are settled.
func (s *Subscriber) Subscribe(ctx context.Context, _ string) (<-chan *message.Message, error) {
	began := time.Now()
	consumer, err := s.consumer(ctx)
	if err != nil {
		return nil, s.conn.fault(err, began, "the consumer "+s.config.Durable)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("the subscriber is closed")
	}
	ctx, cancel := context.WithCancel(ctx)
	unhook := context.AfterFunc(s.stop, cancel)
	out := make(chan *message.Message)
	var wait sync.WaitGroup
	for range s.config.Workers {
		s.workers.Add(1)
		wait.Go(func() {
			defer s.workers.Done()
			s.work(ctx, consumer, out)
		})
	}
	go func() {
		wait.Wait()
		unhook()
		cancel()
		close(out) // only after the last sender is gone
	}()
	return out, nil
}

// Close stops taking messages, waits for those in hand, at most [SubscriberConfig.Drain] long, and gives back what is
// not through then.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.doStop()
	drained := make(chan struct{})
	go func() {
		s.workers.Wait()
		close(drained)
	}()
	timer := time.NewTimer(s.config.Drain)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
		s.log.Warn("messages in hand were not finished in time and are given back")
		s.doKill()
		<-drained
	}
	s.doKill()
	return nil
}

// Ready is nil while messages can be taken, otherwise why not.
func (s *Subscriber) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failing
}

func (s *Subscriber) consumer(ctx context.Context) (jetstream.Consumer, error) {
	consumer, err := s.conn.js.Consumer(ctx, string(s.config.Stream), s.config.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) && len(s.config.Filters) > 0 {
		config := durableConfig(s.config.Durable, s.config.Filters, s.config.AckWait)
		consumer, err = s.conn.js.CreateConsumer(ctx, string(s.config.Stream), config)
	}
	return consumer, err
}

// work is one worker: it takes a message, and the next only when that one is settled. So what is delivered is in hand,
// and the ack wait begins when the handler does.
func (s *Subscriber) work(ctx context.Context, consumer jetstream.Consumer, out chan<- *message.Message) {
	pause := 100 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		waiting, cancel := s.conn.within(ctx, 30*time.Second)
		msg, err := consumer.Next(jetstream.FetchContext(waiting))
		cancel()
		if err == nil {
			s.note(nil)
			pause = 100 * time.Millisecond
			s.handle(ctx, msg, out)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if s.conn.nc.IsConnected() &&
			(errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)) {
			if s.conn.deniedSince(began) == "" {
				s.note(nil)
				continue // nothing came within the time
			}
		}
		s.note(s.conn.fault(err, began, "the consumer "+s.config.Durable))
		select {
		case <-time.After(pause):
			pause = min(2*pause, 5*time.Second)
		case <-ctx.Done():
		}
		// The consumer may have been made anew meanwhile.
		if found, err := s.consumer(ctx); err == nil {
			consumer = found
		}
	}
}

// note keeps the state for Ready, and logs its changes.
func (s *Subscriber) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fault.CodeOf(err) != fault.CodeOf(s.failing) {
		if err != nil {
			s.log.Warn("no messages can be taken", "error", err)
		} else {
			s.log.Info("messages can be taken again")
		}
	}
	s.failing = err
}

// handle runs one message and settles it.
func (s *Subscriber) handle(ctx context.Context, msg jetstream.Msg, out chan<- *message.Message) {
	meta, err := msg.Metadata()
	if err != nil {
		s.log.Error("message without metadata", "error", err)
		return
	}
	stored := Stored{
		Stream: contract.Stream(meta.Stream), Subject: msg.Subject(), Sequence: meta.Sequence.Stream,
		Time: meta.Timestamp.UTC(), Header: firstValues(msg.Headers()), Body: msg.Data(),
	}
	d := &delivery{Stored: stored, msg: msg, delivered: int(min(meta.NumDelivered, 1<<30))} //nolint:gosec // bounded
	alone, ok := s.take(d)
	if !ok {
		// It is still in hand here: this process was too slow to send a sign of life, and it is not dead.
		s.tell(d, msg.NakWithDelay(s.config.AckWait))
		return
	}
	defer s.release(d)
	stopHeartbeat := s.heartbeat(msg)
	defer stopHeartbeat()

	leave := s.conn.lane.enter(ctx, alone)
	if leave == nil {
		s.giveBack(d, 0)
		return
	}
	defer leave()
	if alone && !s.mark(ctx, d) {
		return
	}
	v := s.run(ctx, d, out)
	if alone {
		s.unmark(d)
	}
	stopHeartbeat()
	s.settle(d, v)
}

// delivery is one message in hand.
type delivery struct {
	Stored

	msg       jetstream.Msg
	delivered int
}

// verdict is what became of a message in its handler.
type verdict struct {
	err      error
	panicked bool
	unrun    bool // the handler did not get it, or did not finish in time: nobody's fault
}

// take notes a message as in hand, and tells whether it has to run alone. ok is false when it is in hand already.
func (s *Subscriber) take(d *delivery) (alone, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, busy := s.inHand[d.Sequence]; busy {
		return false, false
	}
	s.inHand[d.Sequence] = struct{}{}
	_, known := s.returned[d.Sequence]
	return d.delivered > 1 && !known, true
}

func (s *Subscriber) release(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.inHand, d.Sequence)
}

// keepReturned bounds what is remembered of messages that were given back: another instance may have settled them.
const keepReturned = 10000

// cameBack notes that a message came back from its handler, so that it is not suspect when it is delivered again.
func (s *Subscriber) cameBack(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.returned[d.Sequence] = time.Now()
	if len(s.returned) > keepReturned {
		for sequence, at := range s.returned {
			if time.Since(at) > time.Hour {
				delete(s.returned, sequence)
			}
		}
	}
}

// heartbeat sends signs of life until the returned function is called.
func (s *Subscriber) heartbeat(msg jetstream.Msg) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(s.config.Heartbeat)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if err := msg.InProgress(); err != nil {
					s.log.Debug("sign of life not sent", "error", fault.Quote(err.Error()))
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return sync.OnceFunc(func() { cancel(); <-done })
}

// run hands the message to the handler and waits for it.
func (s *Subscriber) run(ctx context.Context, d *delivery, out chan<- *message.Message) verdict {
	id := d.Header[contract.HeaderID]
	if id == "" {
		id = d.Header[contract.HeaderMsgID]
	}
	if id == "" {
		id = string(d.Stream) + "." + strconv.FormatUint(d.Sequence, 10)
	}
	wm := message.NewMessage(id, d.Body)
	for name, value := range d.Header {
		wm.Metadata.Set(name, value)
	}
	wm.Metadata.Set(MetaStream, string(d.Stream))
	wm.Metadata.Set(MetaSubject, d.Subject)
	wm.Metadata.Set(MetaSequence, strconv.FormatUint(d.Sequence, 10))
	wm.Metadata.Set(MetaDelivered, strconv.Itoa(d.delivered))
	wm.Metadata.Set(MetaTime, d.Time.Format(time.RFC3339Nano))

	// The message outlives the end of the subscription: what is in hand is finished. Only kill ends it.
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(s.kill, cancel)()
	slip := &slip{stored: d.Stored}
	wm.SetContext(context.WithValue(inner, slipKey{}, slip))

	select {
	case out <- wm:
	case <-ctx.Done():
		return verdict{unrun: true}
	}
	select {
	case <-wm.Acked():
		return slip.verdict()
	case <-wm.Nacked():
		v := slip.verdict()
		if v.err == nil {
			v.err = fault.New(fault.StoreUnknown, errors.New("the handler gave the message back"), nil)
		}
		return v
	case <-s.kill.Done():
		return verdict{unrun: true}
	}
}

// settle tells the broker, and everybody else who needs to know, what became of a message.
func (s *Subscriber) settle(d *delivery, v verdict) {
	s.cameBack(d)
	if v.panicked {
		s.mu.Lock()
		s.panics[d.Sequence]++
		if s.panics[d.Sequence] >= mostPanics {
			v.err = fault.New(fault.MailFailed, v.err, nil)
		}
		s.mu.Unlock()
	}
	switch {
	case v.unrun:
		s.giveBack(d, 0)
	case v.err == nil:
		s.done(d)
	case fault.Permanent(v.err):
		if err := s.setAside(d, v.err); err != nil {
			s.log.Error("dead letter not stored", "sequence", d.Sequence, "error", err)
			s.giveBack(d, s.config.Delay(d.delivered, err))
			return
		}
		s.done(d)
	default:
		delay := max(s.config.Delay(d.delivered, v.err), fault.As(v.err).RetryAfter)
		s.log.Info("message is tried again later", "sequence", d.Sequence, "delivered", d.delivered,
			"delay", delay.Round(time.Millisecond).String(), "error", fault.As(v.err))
		s.giveBack(d, delay)
	}
}

// done acknowledges a message and waits until the broker knows. If it does not, the message comes again.
func (s *Subscriber) done(d *delivery) {
	ctx, cancel := s.conn.within(context.Background(), attempt)
	defer cancel()
	if err := d.msg.DoubleAck(ctx); err != nil {
		s.tell(d, err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.returned, d.Sequence)
	delete(s.panics, d.Sequence)
}

// giveBack lets the broker deliver the message again after a delay.
func (s *Subscriber) giveBack(d *delivery, delay time.Duration) {
	s.cameBack(d)
	if delay <= 0 {
		s.tell(d, d.msg.Nak())
		return
	}
	s.tell(d, d.msg.NakWithDelay(delay))
}

func (s *Subscriber) tell(d *delivery, err error) {
	if err != nil {
		s.log.Warn("message could not be settled and comes again", "sequence", d.Sequence,
			"error", fault.Quote(err.Error()))
	}
}
