package bus

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"posthorn/pkg/contract"
)

// Outgoing is one message to be stored.
type Outgoing struct {
	Subject string
	// Header of the message. The publisher adds what the broker needs for the fields below; it does not change the map.
	Header map[string]string
	Body   []byte
	// ID goes out as Nats-Msg-Id and must be derived from what the message says, so that two messages that must not
	// both be stored have the same one. Two messages with one ID never share a batch.
	ID string
	// Once is a filter of subjects, the message's own subject or one with wildcards, that must hold no message yet.
	// If it does, Publish returns [AlreadyStored].
	Once string
	// After lets the message in only if nothing was stored since something was read. If there was, Publish returns
	// store.conflict.
	After *After
}

// After names what must still be the last message: the sequence of the last message for the filter, 0 for none. An
// empty Filter is the message's subject.
type After struct {
	Filter   string
	Sequence uint64
}

// Ack says that a message is stored: on disk, if the broker runs with sync_interval always.
type Ack struct {
	Stream   contract.Stream
	Sequence uint64
	// Duplicate tells that a message with the same ID was stored before, within the stream's duplicate window.
	Duplicate bool
}

// PublisherConfig tunes a [Publisher]; the zero value is right for everything but tests.
type PublisherConfig struct {
	// BatchFrom is the number of waiting messages from which on they go as one atomic batch (25: below that a batch costs
	// more than it saves), BatchMax the most that go at once (250). A BatchMax of 1 never makes a batch.
	BatchFrom, BatchMax int
	// BatchBytes bounds the sum of the bodies of one batch (4 MB).
	BatchBytes int
	// Attempt is how long to wait for one answer (5 s); Budget is for how long an unknown outcome is tried again when the
	// caller's context has no deadline (30 s).
	Attempt, Budget time.Duration
}

// Publisher stores messages with group commit: messages that are published at the same time by different goroutines go
// to the broker as one atomic batch, which costs one write to disk instead of one for each. It is safe for concurrent
// use and needs no closing.
type Publisher struct {
	conn   *Conn
	config PublisherConfig

	mu     sync.Mutex
	queues map[string]*queue

	batches, batched, refused int // batches stored, messages in them, batches refused: for tests and the benchmark
}

// NewPublisher makes a publisher. Publishers do not share batches: one per process and connection is best.
func NewPublisher(conn *Conn, config PublisherConfig) *Publisher {
	set := func(field *int, value int) {
		if *field <= 0 {
			*field = value
		}
	}
	set(&config.BatchFrom, 25)
	set(&config.BatchMax, 250)
	set(&config.BatchBytes, 4<<20)
	config.BatchMax = min(config.BatchMax, 1000) // the broker's own limit
	if config.Attempt <= 0 {
		config.Attempt = attempt
	}
	if config.Budget <= 0 {
		config.Budget = 30 * time.Second
	}
	return &Publisher{conn: conn, config: config, queues: map[string]*queue{}}
}

// Publish stores one message and returns once it is stored. Otherwise the error is [AlreadyStored], or a fault:
// store.conflict (see [Outgoing.After]), store.full, store.denied, or store.unavailable, which includes that the
// outcome is not known: it was tried again, with the same ID, for as long as ctx allows, and the stream did not show
// the message either.
func (p *Publisher) Publish(ctx context.Context, out Outgoing) (Ack, error) {
	began := time.Now()
	stream, err := p.conn.streamOf(ctx, out.Subject)
	if err != nil {
		return Ack{}, p.conn.fault(err, began, out.Subject)
	}
	budget, cancel := context.WithTimeout(ctx, p.config.Budget)
	if _, ok := ctx.Deadline(); ok {
		cancel()
		budget, cancel = context.WithCancel(ctx)
	}
	defer cancel()

	unclear := false // whether an attempt may have been stored without our knowing
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		ack, err := p.queue(stream).publish(budget, out)
		if err == nil {
			return ack, nil
		}
		switch code := errCode(err); {
		case code == codeWrongLastSequence:
			return p.wrongSequence(ctx, began, stream, out, err, unclear)
		case code == codeStoreFailed && strings.Contains(err.Error(), textMaxPerSubject):
			return p.subjectFull(ctx, began, stream, out)
		case code == codeWrongLastInFlight, code == codeExpectedNotReady, code == codeDuplicateInFlight,
			code == codeNotLeader, code == codeNotAvailable, code == codeTooManyBatches, code == codeStreamOffline:
			// Not stored, but somebody else's may be about to be: it is decided in a moment.
		case errors.Is(err, nats.ErrNoResponders):
			// Nothing listens on the subject: for a moment while a broker starts, or as the stream is missing.
			if !unclear && time.Since(began) > 2*time.Second {
				if _, missing := p.conn.js.Stream(budget, string(stream)); missing != nil {
					err = missing
				}
				return Ack{}, p.conn.fault(err, began, "the stream "+string(stream))
			}
		case unknownOutcome(err):
			unclear = true
			if p.conn.deniedSince(began) != "" {
				return Ack{}, p.conn.fault(err, began, string(stream))
			}
		default:
			return Ack{}, p.conn.fault(err, began, string(stream))
		}
		select {
		case <-time.After(pause):
		case <-budget.Done():
			if unclear {
				if ack, ok := p.find(context.WithoutCancel(ctx), stream, out); ok {
					return ack, nil
				}
			}
			return Ack{}, p.conn.fault(errors.Join(err, budget.Err()), began, string(stream))
		}
	}
}

// PublishAll publishes all messages at the same time, so that they can share batches, and returns the first error. A
// message that was already stored is no error. Messages of one call are stored in no particular order.
func (p *Publisher) PublishAll(ctx context.Context, all []Outgoing) error {
	var (
		wait   sync.WaitGroup
		once   sync.Once
		failed error
	)
	for _, out := range all {
		wait.Go(func() {
			_, err := p.Publish(ctx, out)
			if _, already := errors.AsType[*AlreadyStored](err); err != nil && !already {
				once.Do(func() { failed = err })
			}
		})
	}
	wait.Wait()
	return failed
}

// wrongSequence sorts out error 10071. After an attempt without an answer the message in the way may be our own.
func (p *Publisher) wrongSequence(
	ctx context.Context, began time.Time, stream contract.Stream, out Outgoing, err error, unclear bool,
) (Ack, error) {
	if unclear {
		if ack, ok := p.find(ctx, stream, out); ok {
			return ack, nil
		}
	}
	if out.Once == "" {
		return Ack{}, p.conn.fault(err, began, out.Subject)
	}
	return Ack{}, &AlreadyStored{Sequence: lastNumber(err)}
}

// subjectFull sorts out that the subject already holds all the messages it may. Its code is that of a full stream too,
// so only a look at the stream makes it "already stored".
func (p *Publisher) subjectFull(
	ctx context.Context, began time.Time, stream contract.Stream, out Outgoing,
) (Ack, error) {
	last, err := p.conn.Last(ctx, stream, out.Subject)
	if err != nil {
		return Ack{}, p.conn.fault(err, began, out.Subject)
	}
	return Ack{}, &AlreadyStored{Sequence: last.Sequence}
}

// find looks for the message itself in the stream, by its ID.
func (p *Publisher) find(ctx context.Context, stream contract.Stream, out Outgoing) (Ack, bool) {
	if out.ID == "" {
		return Ack{}, false
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.Attempt)
	defer cancel()
	filter := out.Subject
	if expected, _, ok := out.expectation(); ok {
		filter = expected
	}
	last, err := p.conn.Last(ctx, stream, filter)
	if err != nil || last.Header[contract.HeaderMsgID] != out.ID {
		return Ack{}, false
	}
	return Ack{Stream: stream, Sequence: last.Sequence, Duplicate: true}, true
}

// expectation is what the broker is told to expect: the filter, and the sequence of its last message.
func (o *Outgoing) expectation() (filter string, sequence uint64, ok bool) {
	switch {
	case o.Once != "":
		return o.Once, 0, true
	case o.After != nil && o.After.Filter != "":
		return o.After.Filter, o.After.Sequence, true
	case o.After != nil:
		return o.Subject, o.After.Sequence, true
	}
	return "", 0, false
}

// message is what goes over the wire.
func (o *Outgoing) message() *nats.Msg {
	msg := &nats.Msg{Subject: o.Subject, Data: o.Body, Header: make(nats.Header, len(o.Header)+3)}
	for name, value := range o.Header {
		msg.Header[name] = []string{value}
	}
	if o.ID != "" {
		msg.Header[contract.HeaderMsgID] = []string{o.ID}
	}
	if filter, sequence, ok := o.expectation(); ok {
		msg.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(sequence, 10)}
		if filter != o.Subject {
			msg.Header[jetstream.ExpectedLastSubjSeqSubjHeader] = []string{filter}
		}
	}
	return msg
}

// alone tells that a message does not go into a batch: a rollup, or an expectation that cannot be told apart from
// the batch's other messages.
func (o *Outgoing) alone() bool {
	filter, _, ok := o.expectation()
	return o.Header[jetstream.MsgRollup] != "" || ok && (strings.HasSuffix(filter, "*") || strings.HasSuffix(filter, ">"))
}

// lastNumber takes the sequence out of "wrong last sequence: 13995".
func lastNumber(err error) uint64 {
	api, ok := errors.AsType[*jetstream.APIError](err)
	if !ok {
		return 0
	}
	_, number, _ := strings.Cut(api.Description, ": ")
	sequence, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return 0
	}
	return sequence
}

// streamOf knows which stream stores a subject: those of the contract and of buckets by their names, others by asking.
func (c *Conn) streamOf(ctx context.Context, subject string) (contract.Stream, error) {
	for _, known := range streams {
		for _, filter := range known.subjects {
			if matches(filter, subject) {
				return known.name, nil
			}
		}
	}
	for prefix, stream := range map[string]string{"$KV.": "KV_", "$O.": "OBJ_"} {
		if rest, ok := strings.CutPrefix(subject, prefix); ok {
			bucket, _, _ := strings.Cut(rest, ".")
			return contract.Stream(stream + bucket), nil
		}
	}
	name, err := c.js.StreamNameBySubject(ctx, subject)
	return contract.Stream(name), err
}

// matches tells whether a filter with wildcards (* is one token, > is one or more) matches a subject.
func matches(filter, subject string) bool {
	for {
		want, filterRest, moreFilter := strings.Cut(filter, ".")
		have, subjectRest, moreSubject := strings.Cut(subject, ".")
		if want == ">" {
			return true
		}
		if want != "*" && want != have || moreFilter != moreSubject {
			return false
		}
		if !moreFilter {
			return true
		}
		filter, subject = filterRest, subjectRest
	}
}

func (p *Publisher) queue(stream contract.Stream) *queue {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.queues[string(stream)]
	if q == nil {
		q = &queue{publisher: p, stream: stream}
		p.queues[string(stream)] = q
	}
	return q
}

// single publishes one message by itself.
func (p *Publisher) single(out *Outgoing) (Ack, error) {
	ctx, cancel := p.conn.within(context.Background(), p.config.Attempt)
	defer cancel()
	response, err := p.conn.nc.RequestMsgWithContext(ctx, out.message())
	if err != nil {
		return Ack{}, err
	}
	ack, err := pubAck(response.Data)
	return Ack{Stream: contract.Stream(ack.Stream), Sequence: ack.Sequence, Duplicate: ack.Duplicate}, err
}

type publishAnswer struct {
	Stream    string `json:"stream"`
	Sequence  uint64 `json:"seq"`
	Duplicate bool   `json:"duplicate"`
	Batch     string `json:"batch"`
	Count     int    `json:"count"`
}

func pubAck(data []byte) (publishAnswer, error) {
	var ack publishAnswer
	if err := answer(data, &ack); err != nil {
		return publishAnswer{}, err
	}
	if ack.Stream == "" {
		return publishAnswer{}, jetstream.ErrInvalidJSAck
	}
	return ack, nil
}
