package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"posthorn/pkg/contract"
	"posthorn/pkg/fault"
)

// Stored is one message of a stream.
type Stored struct {
	Stream   contract.Stream
	Subject  string
	Sequence uint64
	// Time at which the broker stored it.
	Time time.Time
	// Header holds the first value of each header.
	Header map[string]string
	Body   []byte
}

// Last returns the last message of a stream whose subject matches the filter; wildcards are allowed. The answer is the
// leader's, never an older one of a replica. [ErrNotFound] when there is none.
func (c *Conn) Last(ctx context.Context, stream contract.Stream, filter string) (*Stored, error) {
	began := time.Now()
	stored, err := c.fromLeader(ctx, stream, map[string]any{"last_by_subj": filter})
	return stored, c.fault(err, began, string(stream))
}

// Get returns the message with a sequence. [ErrNotFound] when it is not, or no longer, there.
func (c *Conn) Get(ctx context.Context, stream contract.Stream, sequence uint64) (*Stored, error) {
	began := time.Now()
	stored, err := c.direct(ctx, stream, map[string]any{"seq": sequence})
	if errors.Is(err, ErrNotFound) {
		// A replica that lags behind does not have it yet: the leader has the last word.
		stored, err = c.fromLeader(ctx, stream, map[string]any{"seq": sequence})
	}
	return stored, c.fault(err, began, string(stream))
}

// fromLeader asks the leader of a stream for a message.
func (c *Conn) fromLeader(ctx context.Context, stream contract.Stream, which map[string]any) (*Stored, error) {
	question, err := json.Marshal(which)
	if err != nil {
		return nil, err
	}
	response, err := c.ask(ctx, &nats.Msg{Subject: "$JS.API.STREAM.MSG.GET." + string(stream), Data: question})
	if err != nil {
		return nil, err
	}
	var found struct {
		Message struct {
			Subject  string    `json:"subject"`
			Sequence uint64    `json:"seq"`
			Header   []byte    `json:"hdrs"`
			Data     []byte    `json:"data"`
			Time     time.Time `json:"time"`
		} `json:"message"`
	}
	if err := answer(response.Data, &found); err != nil {
		if errCode(err) == codeNoMessage {
			return nil, ErrNotFound
		}
		return nil, err
	}
	stored := &Stored{
		Stream: stream, Subject: found.Message.Subject, Sequence: found.Message.Sequence,
		Time: found.Message.Time, Body: found.Message.Data,
	}
	if len(found.Message.Header) > 0 {
		header, err := nats.DecodeHeadersMsg(found.Message.Header)
		if err != nil {
			return nil, fmt.Errorf("header of %s %d: %w", stream, stored.Sequence, err)
		}
		stored.Header = firstValues(header)
	}
	return stored, nil
}

// direct asks any replica of a stream for a message.
func (c *Conn) direct(ctx context.Context, stream contract.Stream, which map[string]any) (*Stored, error) {
	question, err := json.Marshal(which)
	if err != nil {
		return nil, err
	}
	response, err := c.ask(ctx, &nats.Msg{Subject: "$JS.API.DIRECT.GET." + string(stream), Data: question})
	if err != nil {
		return nil, err
	}
	if status := response.Header.Get("Status"); status != "" {
		if status == strconv.Itoa(http.StatusNotFound) {
			return nil, ErrNotFound
		}
		return nil, fmt.Errorf("direct get: %s %s", status, response.Header.Get("Description"))
	}
	stored := &Stored{
		Stream: stream, Subject: response.Header.Get(jetstream.SubjectHeader), Body: response.Data,
		Header: firstValues(response.Header),
	}
	stored.Sequence, err = strconv.ParseUint(response.Header.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("direct get: sequence: %w", err)
	}
	stored.Time, err = time.Parse(time.RFC3339Nano, response.Header.Get(jetstream.TimeStampHeaer))
	if err != nil {
		return nil, fmt.Errorf("direct get: time: %w", err)
	}
	for _, added := range []string{
		jetstream.StreamHeader, jetstream.SubjectHeader, jetstream.SequenceHeader, jetstream.TimeStampHeaer,
		jetstream.LastSequenceHeader,
	} {
		delete(stored.Header, added)
	}
	return stored, nil
}

// firstValues keeps the first value of each header: mail-like headers may come several times.
func firstValues(header nats.Header) map[string]string {
	first := make(map[string]string, len(header))
	for name, values := range header {
		if len(values) > 0 {
			first[name] = values[0]
		}
	}
	return first
}

// SecureDelete removes a message and overwrites its bytes on disk. It is no error when the message is gone already.
func (c *Conn) SecureDelete(ctx context.Context, stream contract.Stream, sequence uint64) error {
	began := time.Now()
	question := fmt.Appendf(nil, `{"seq":%d}`, sequence)
	response, err := c.ask(ctx, &nats.Msg{Subject: "$JS.API.STREAM.MSG.DELETE." + string(stream), Data: question})
	if err == nil {
		err = answer(response.Data, nil)
	}
	switch errCode(err) {
	case codeNoMessage, codeSequenceNotFound:
		return nil
	case codeDeleteFailed: // what failed is in the text alone
		gone, lookErr := c.fromLeader(ctx, stream, map[string]any{"seq": sequence})
		if gone == nil && errors.Is(lookErr, ErrNotFound) {
			return nil
		}
	}
	return c.fault(err, began, string(stream))
}

// Count tells how many messages of a stream match any of the filters, which must not overlap; no filter counts all. The
// number is exact at the time of asking and costs no reading of messages.
func (c *Conn) Count(ctx context.Context, stream contract.Stream, filters ...string) (uint64, error) {
	began := time.Now()
	consumer, err := c.js.CreateConsumer(ctx, string(stream), ephemeral(filters, true))
	if err != nil {
		return 0, c.fault(err, began, string(stream))
	}
	info := consumer.CachedInfo()
	c.dropConsumer(ctx, stream, info.Name)
	return info.NumPending, nil
}

// ephemeral configures a consumer that only reads, and that the broker forgets by itself.
func ephemeral(filters []string, headersOnly bool) jetstream.ConsumerConfig {
	config := jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: jetstream.DeliverAllPolicy, HeadersOnly: headersOnly,
		MemoryStorage: true, Replicas: 1, InactiveThreshold: time.Minute, MaxDeliver: 1,
	}
	if len(filters) == 1 {
		config.FilterSubject = filters[0]
	} else {
		config.FilterSubjects = filters
	}
	return config
}

// dropConsumer deletes an ephemeral consumer. The broker would do it by itself a minute later.
func (c *Conn) dropConsumer(ctx context.Context, stream contract.Stream, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := c.js.DeleteConsumer(ctx, string(stream), name); err != nil {
		c.log.Debug("ephemeral consumer not deleted", "stream", stream, "error", fault.Quote(err.Error()))
	}
}

// ScanOptions says what [Conn.Scan] reads. FromSeq and Since exclude each other.
type ScanOptions struct {
	// Filters are subjects with wildcards that must not overlap; none means all.
	Filters []string
	// FromSeq is the first sequence to read; 0 means the beginning.
	FromSeq uint64
	// Since is the time of storing from which on to read.
	Since time.Time
	// HeadersOnly leaves the bodies out.
	HeadersOnly bool
}

// Scan reads a stream in order, up to what was its end when the reading got there, and calls each for every message. It
// survives reconnects, and gives up when it got no further for half a minute. An error of each ends the scan and is
// returned.
func (c *Conn) Scan(
	ctx context.Context, stream contract.Stream, options ScanOptions, each func(Stored) error,
) error {
	r := reader{conn: c, stream: stream, filters: options.Filters, headersOnly: options.HeadersOnly,
		from: options.FromSeq, since: options.Since}
	return r.read(ctx, each, func() error { return errEnd })
}

// FollowOptions says what [Conn.Follow] reads. Without All and Since it reads what is stored from now on.
type FollowOptions struct {
	// Filters are subjects with wildcards that must not overlap; none means all.
	Filters []string
	// All reads from the beginning of the stream.
	All bool
	// Since is the time of storing from which on to read.
	Since time.Time
	// Started, when set, is called once everything stored from then on is sure to be seen.
	Started func()
}

// Follow reads a stream in order, without end: it returns when ctx ends (with nil) or when each returns an error (with
// that), or at once when the stream is missing or may not be read. It survives reconnects and restarts of the broker
// without a gap.
func (c *Conn) Follow(
	ctx context.Context, stream contract.Stream, options FollowOptions, each func(Stored) error,
) error {
	r := reader{conn: c, stream: stream, filters: options.Filters, since: options.Since, started: options.Started,
		onlyNew: !options.All && options.Since.IsZero(), endless: true}
	err := r.read(ctx, each, func() error { return nil })
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// errEnd ends a scan.
var errEnd = errors.New("end of stream")

// reader reads a stream in order through ephemeral consumers. Whatever may have lost a message on the way (a lost
// connection, a gap in the consumer's numbers, a consumer that is gone) makes it go on with a new consumer, after the
// last message that it saw.
type reader struct {
	conn        *Conn
	stream      contract.Stream
	filters     []string
	headersOnly bool
	from        uint64    // next sequence to read, once something was read or it is known
	since       time.Time // where to begin, when from is 0
	onlyNew     bool
	endless     bool // a broker that does not answer is waited for, once the reading began a stream that is gone too
	began       bool
	started     func()
	caughtUp    bool
}

// patience is how long a reading that has an end goes on trying without getting any further.
const patience = 30 * time.Second

// read calls each for every message, and end once nothing more was waiting; end may be called once only.
func (r *reader) read(ctx context.Context, each func(Stored) error, end func() error) error {
	progress := time.Now()
	for pause := 100 * time.Millisecond; ; {
		began := time.Now()
		before := r.from
		err := r.consume(ctx, each, end)
		if errors.Is(err, errEnd) {
			return nil
		}
		if own, ok := errors.AsType[*ownError](err); ok {
			return own.error
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err = r.conn.fault(err, began, string(r.stream))
		switch fault.CodeOf(err) {
		case fault.StoreMissing, fault.StoreDenied:
			if !r.endless || !r.began {
				return err
			}
		}
		if r.from != before {
			pause, progress = 100*time.Millisecond, time.Now()
		}
		if fault.Permanent(err) || !r.endless && time.Since(progress) > patience {
			return err
		}
		r.conn.log.Debug("reading goes on with a new consumer", "stream", r.stream, "error", err)
		select {
		case <-time.After(pause):
			pause = min(2*pause, 5*time.Second)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ownError carries an error of the caller's function out of the loop untouched.
type ownError struct{ error }

func (r *reader) consume(ctx context.Context, each func(Stored) error, end func() error) error {
	config := ephemeral(r.filters, r.headersOnly)
	switch {
	case r.from > 0:
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, r.from
	case !r.since.IsZero():
		since := r.since
		config.DeliverPolicy, config.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	case r.onlyNew:
		config.DeliverPolicy = jetstream.DeliverNewPolicy
	}
	creating, cancel := r.conn.within(ctx, attempt)
	defer cancel()
	reconnects := r.conn.nc.Stats().Reconnects
	consumer, err := r.conn.js.CreateConsumer(creating, string(r.stream), config)
	if err != nil {
		return err
	}
	r.began = true
	info := consumer.CachedInfo()
	defer r.conn.dropConsumer(ctx, r.stream, info.Name)
	if r.onlyNew && r.from == 0 {
		r.from = info.Delivered.Stream + 1 // a second consumer begins where this one did
	}
	if r.started != nil {
		r.started()
		r.started = nil
	}
	if err := r.noteEnd(info.NumPending, end); err != nil {
		return err
	}
	delivered := uint64(0) // by this consumer
	receive := func(msg *nats.Msg) error {
		stored, meta, err := toStored(msg)
		if err != nil {
			return err
		}
		if meta.Sequence.Consumer != delivered+1 {
			return fmt.Errorf("gap after message %d of the consumer", delivered)
		}
		delivered++
		if err := each(stored); err != nil {
			return &ownError{err}
		}
		r.from = stored.Sequence + 1
		return r.noteEnd(meta.NumPending, end)
	}
	for {
		before := delivered
		if err := r.conn.pull(ctx, r.stream, info.Name, receive); err != nil {
			return err
		}
		if r.conn.nc.Stats().Reconnects != reconnects || !r.conn.nc.IsConnected() {
			return nats.ErrDisconnected
		}
		if delivered > before {
			continue
		}
		checking, cancel := r.conn.within(ctx, attempt)
		info, err := consumer.Info(checking) // fails when the consumer is gone
		cancel()
		if err != nil {
			return err
		}
		if info.Delivered.Consumer != delivered {
			return fmt.Errorf("gap after message %d of the consumer", delivered)
		}
		if err := r.noteEnd(info.NumPending, end); err != nil {
			return err
		}
	}
}

// Bounds of one pull: bodies may be large, but the bytes must exceed the largest message the broker takes.
const (
	pullMessages = 256
	pullBytes    = 9 << 20
	pullWait     = 5 * time.Second
)

// pull asks a consumer for its next messages and waits for them until they are there or pullWait is over.
func (c *Conn) pull(ctx context.Context, stream contract.Stream, consumer string, each func(*nats.Msg) error) error {
	ctx, cancel := c.within(ctx, pullWait+2*time.Second)
	defer cancel()
	inbox := c.nc.NewInbox()
	sub, err := c.nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }() // fails only without a connection, which ends the subscription too
	subject := fmt.Sprintf("$JS.API.CONSUMER.MSG.NEXT.%s.%s", stream, consumer)
	question := fmt.Appendf(nil, `{"batch":%d,"max_bytes":%d,"expires":%d}`, pullMessages, pullBytes, pullWait)
	if err := c.nc.PublishRequest(subject, inbox, question); err != nil {
		return err
	}
	for got := 0; got < pullMessages; {
		msg, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return err
		}
		if status := msg.Header.Get("Status"); status != "" && len(msg.Data) == 0 {
			switch status {
			case "100": // idle heartbeat
				continue
			case "404", "408": // no more for now
				return nil
			case "409":
				if strings.Contains(msg.Header.Get("Description"), "MaxBytes") {
					return nil
				}
			case "503":
				return nats.ErrNoResponders
			}
			return fmt.Errorf("pull: %s %s", status, msg.Header.Get("Description"))
		}
		got++
		if err := each(msg); err != nil {
			return err
		}
	}
	return nil
}

// noteEnd calls end the first time that nothing more is waiting.
func (r *reader) noteEnd(pending uint64, end func() error) error {
	if pending > 0 || r.caughtUp {
		return nil
	}
	r.caughtUp = true
	err := end()
	if err != nil && !errors.Is(err, errEnd) {
		return &ownError{err}
	}
	return err
}

func toStored(msg *nats.Msg) (Stored, *nats.MsgMetadata, error) {
	meta, err := msg.Metadata()
	if err != nil {
		return Stored{}, nil, err
	}
	return Stored{
		Stream: contract.Stream(meta.Stream), Subject: msg.Subject, Sequence: meta.Sequence.Stream,
		Time: meta.Timestamp.UTC(), Header: firstValues(msg.Header), Body: msg.Data,
	}, meta, nil
}

// Lag tells how many messages a durable consumer has not delivered yet, and how many it has delivered that are not
// settled yet. The numbers may trail a publish by a moment.
func (c *Conn) Lag(
	ctx context.Context, stream contract.Stream, durable string,
) (pending, ackPending uint64, err error) {
	began := time.Now()
	consumer, err := c.js.Consumer(ctx, string(stream), durable)
	if err != nil {
		return 0, 0, c.fault(err, began, "the consumer "+durable)
	}
	info := consumer.CachedInfo()
	return info.NumPending, uint64(max(info.NumAckPending, 0)), nil
}

// LastSequence is the sequence of the newest message a stream has ever held, 0 for a new one; [ErrNotFound] when there
// is no such stream.
func (c *Conn) LastSequence(ctx context.Context, stream contract.Stream) (uint64, error) {
	began := time.Now()
	s, err := c.js.Stream(ctx, string(stream))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, ErrNotFound
	}
	if err != nil {
		return 0, c.fault(err, began, "the stream "+string(stream))
	}
	return s.CachedInfo().State.LastSeq, nil
}
